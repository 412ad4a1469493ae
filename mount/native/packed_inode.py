"""An inode as the protocol shows it: packed once for each change of its attributes."""

from __future__ import annotations

from typing import Final

from fs_server.interface import Attributes
from mount.known_inode import BLOCK_SIZE, CACHE_S, KnownInode

from .protocol.layouts import ATTR, ATTR_OUT, ENTRY_OUT

_CACHE_S: Final = int(CACHE_S)
_UNSIGNED: Final = (1 << 64) - 1
_SHORT: Final = (1 << 32) - 1
_NS: Final = 1_000_000_000


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


_GOT: Final = ATTR_OUT.pack(_CACHE_S, 0, b"")[: -ATTR.size]
"""A `fuse_attr_out` without its attributes."""
_ENTRY_HEAD: Final = ENTRY_OUT.size - ATTR.size


class PackedInode(KnownInode):
    """What is remembered of an inode, and the replies that show it.

    Attributes:
        lookups: how often the host's kernel was given it by name, and has not forgotten it.
        last: the attributes that were shown last.
    """

    __slots__ = ("_entry", "_packed", "last", "lookups")

    def __init__(self) -> None:
        super().__init__()
        self.lookups = 0
        self.last: Attributes | None = None
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
