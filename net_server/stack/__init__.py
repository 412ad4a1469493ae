"""The network layer and UDP, sans-I/O: frames in, frames out, with the time as an argument.

Nothing here touches a descriptor, a clock, a source of chance or trio; `Stack` is the way in.
"""
