"""The native front end: the host's kernel is spoken to directly, without libfuse.

`protocol` is the language, as pure functions of octets; `device` mounts, `session` reads requests
and writes replies, `front_end` handles them, over what it shares with pyfuse3's front end.
"""
