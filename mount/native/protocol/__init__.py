"""The protocol of /dev/fuse, 7.31 to 7.45, without any input or output.

`layout` and `layouts` say how structures lie in memory, `flags` and `opcodes` name the numbers,
`operations` is the one table of all requests, `decoding` makes typed requests of octets, `replies`,
`directory` and `notifications` make octets of what is to be said, and `negotiation` answers INIT.

The names of structures and members are those of the kernel's header <linux/fuse.h>, so that a test
can compare the two. Numbers have the host's octet order: both ends run on one machine.
"""
