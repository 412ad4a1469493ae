"""What the front end remembers of an inode for as long as the host's kernel knows it.

It is a cache: all of it can be asked for again, and all of it goes when the kernel forgets.
"""

from __future__ import annotations

from typing import Final

from pyfuse3 import EntryAttributes

from fs_server.interface import Attributes

CACHE_S: Final = 86_400.0
"""Seconds that the host's kernel may keep entries and attributes: it is told of changes."""
ENTRY_SHORTLY_S: Final = 1.0
"""The same for entries, on a host's kernel that cannot drop all of them at once."""
BLOCK_SIZE: Final = 65_536
"""What `st_blksize` says: programs that read and write through buffers take ones of this size."""
NOTHING_ABSENT: Final[frozenset[bytes]] = frozenset()


class KnownInode:
    """What is remembered of an inode while the host's kernel knows it."""

    __slots__ = ("absent", "attributes", "entry", "moved")

    def __init__(self, entry_s: float) -> None:
        self.entry = EntryAttributes()
        self.entry.attr_timeout = CACHE_S
        self.entry.entry_timeout = entry_s
        self.entry.st_blksize = BLOCK_SIZE
        self.attributes: Attributes | None = None
        self.absent: frozenset[bytes] = NOTHING_ABSENT
        """Extended attributes that are not there; the kernel asks for one before every write."""
        self.moved = False
        """Another client changed the data, and the kernel has not asked for the new size since."""

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
