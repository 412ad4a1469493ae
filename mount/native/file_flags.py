"""The ioctls that file systems share: flags and extended attributes of inodes, as `lsattr` asks.

There are none of these flags here, so they read as none, and setting none succeeds: that is what
`chattr` without effect does. Every other ioctl is not one of ours.
"""

from __future__ import annotations

import errno
from typing import Final

from core.errors import Refused

from .protocol.replies import IoctlOut
from .protocol.requests import Ioctl

GET_FLAGS: Final = frozenset({0x8008_6601, 0x8004_6601})
"""FS_IOC_GETFLAGS, of programs of 64 and of 32 bits."""
SET_FLAGS: Final = frozenset({0x4008_6602, 0x4004_6602})
GET_XATTR: Final = 0x801C_581F
"""FS_IOC_FSGETXATTR: flags of another form, extent size, project."""
SET_XATTR: Final = 0x401C_5820
_SIZE_LIMIT: Final = 64
"""Octets of the longest answer."""
_DONE: Final = IoctlOut(0, 0, 0, 0).pack()


def answer(request: Ioctl) -> bytes:
    """Return the reply's body.

    Raises:
        Refused: EOPNOTSUPP for a flag that is to be set; ENOTTY for an ioctl that is none of these.
    """
    if request.cmd in GET_FLAGS or request.cmd == GET_XATTR:
        if request.out_size > _SIZE_LIMIT:
            raise Refused(errno.EINVAL, f"{request.out_size} octets of flags")
        return _DONE + bytes(request.out_size)
    if request.cmd in SET_FLAGS or request.cmd == SET_XATTR:
        if any(request.data):
            raise Refused(errno.EOPNOTSUPP, "files have no flags here")
        return _DONE
    raise Refused(errno.ENOTTY)
