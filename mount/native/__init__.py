"""The native front end: the host's kernel is spoken to directly, without libfuse.

`protocol` is the language, as pure functions of octets.
"""
