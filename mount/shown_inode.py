"""An inode as pyfuse3 shows it: one EntryAttributes for as long as the host's kernel knows it."""

from __future__ import annotations

from pyfuse3 import EntryAttributes

from fs_server.interface import Attributes

from .known_inode import BLOCK_SIZE, CACHE_S, KnownInode


class ShownInode(KnownInode):
    """The same, as pyfuse3 wants to see it."""

    __slots__ = ("entry",)

    def __init__(self, entry_s: float) -> None:
        super().__init__()
        self.entry = EntryAttributes()
        self.entry.attr_timeout = CACHE_S
        self.entry.entry_timeout = entry_s
        self.entry.st_blksize = BLOCK_SIZE

    def show(self, attributes: Attributes) -> EntryAttributes:
        """Return the entry brought up to date."""
        entry = self.entry
        self.moved = False
        if attributes is self.attributes or attributes == self.attributes:
            return entry
        self.attributes = attributes
        entry.st_ino = attributes.inode
        entry.st_mode = attributes.mode
        entry.st_nlink = attributes.links
        entry.st_uid = attributes.uid
        entry.st_gid = attributes.gid
        entry.st_rdev = attributes.device
        entry.st_size = attributes.size
        entry.st_blocks = attributes.blocks
        entry.st_atime_ns = attributes.atime
        entry.st_mtime_ns = attributes.mtime
        entry.st_ctime_ns = attributes.ctime
        return entry
