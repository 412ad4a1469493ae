"""An inode as the protocol shows it: packed once for each change of its attributes."""

from __future__ import annotations

import os
from typing import Final

from fs_server.interface import Attributes
from mount.known_inode import BLOCK_SIZE, CACHE_S, KnownInode

from .protocol.layouts import ATTR, ATTR_OUT, ENTRY_OUT
from .protocol.replies import StatxOut, StatxRecord, SxTime

_CACHE_S: Final = int(CACHE_S)
_UNSIGNED: Final = (1 << 64) - 1
_SHORT: Final = (1 << 32) - 1
_NS: Final = 1_000_000_000
_BASIC: Final = 0x07FF
"""STATX_BASIC_STATS."""
_BTIME: Final = 0x0800


def pack_attributes(shown: Attributes) -> bytes:
    """Return a packed `fuse_attr`."""
    atime, atime_ns = divmod(shown.atime, _NS)
    mtime, mtime_ns = divmod(shown.mtime, _NS)
    ctime, ctime_ns = divmod(shown.ctime, _NS)
    return ATTR.pack(
        shown.inode,
        shown.size,
        shown.blocks,
        atime & _UNSIGNED,
        mtime & _UNSIGNED,
        ctime & _UNSIGNED,
        atime_ns,
        mtime_ns,
        ctime_ns,
        shown.mode,
        shown.links,
        shown.uid,
        shown.gid,
        shown.device & _SHORT,
        BLOCK_SIZE,
        0,
    )


def _sx_time(time_ns: int) -> bytes:
    return SxTime(*divmod(time_ns, _NS)).pack()


def pack_statx(shown: Attributes, birth: int) -> bytes:
    """Return a packed `fuse_statx`; `birth` 0: it is not known."""
    return StatxRecord(
        mask=_BASIC | _BTIME if birth else _BASIC,
        blksize=BLOCK_SIZE,
        attributes=0,
        nlink=shown.links,
        uid=shown.uid,
        gid=shown.gid,
        mode=shown.mode,
        ino=shown.inode,
        size=shown.size,
        blocks=shown.blocks,
        attributes_mask=0,
        atime=_sx_time(shown.atime),
        btime=_sx_time(birth),
        ctime=_sx_time(shown.ctime),
        mtime=_sx_time(shown.mtime),
        rdev_major=os.major(shown.device),
        rdev_minor=os.minor(shown.device),
        dev_major=0,
        dev_minor=0,
    ).pack()


_GOT: Final = ATTR_OUT.pack(_CACHE_S, 0, b"")[: -ATTR.size]
"""A `fuse_attr_out` without its attributes."""
_ENTRY_HEAD: Final = ENTRY_OUT.size - ATTR.size


class PackedInode(KnownInode):
    """What is remembered of an inode, and the replies that show it.

    Attributes:
        lookups: how often the host's kernel was given it by name, and has not forgotten it.
        last: the attributes that were shown last.
        birth: when it was made, in nanoseconds since 1970; 0: not known; None: not asked for yet.
    """

    __slots__ = ("_entry", "_packed", "birth", "last", "lookups")

    def __init__(self) -> None:
        super().__init__()
        self.lookups = 0
        self.last: Attributes | None = None
        self.birth: int | None = None
        self._entry = b""
        self._packed = b""

    def show(self, attributes: Attributes, entry_s: int) -> None:
        """Bring both replies up to date; they are packed as far as they have in common."""
        self.moved = False
        if attributes is self.attributes or attributes == self.attributes:
            return
        if self.attributes is None:
            head = ENTRY_OUT.pack(attributes.inode, 0, entry_s, _CACHE_S, 0, 0, b"")
            self._entry = head[:_ENTRY_HEAD]
        self.attributes = self.last = attributes
        self._packed = pack_attributes(attributes)

    @property
    def entry(self) -> bytes:
        """A packed `fuse_entry_out`."""
        return self._entry + self._packed

    @property
    def got(self) -> bytes:
        """A packed `fuse_attr_out`."""
        return _GOT + self._packed

    def statx(self) -> bytes:
        """Return a packed `fuse_statx_out`; the birth is in it if it is known."""
        assert self.last is not None
        return StatxOut(_CACHE_S, 0, 0, pack_statx(self.last, self.birth or 0)).pack()
