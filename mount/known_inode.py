"""What the front end remembers of an inode for as long as the host's kernel knows it.

It is a cache: all of it can be asked for again, and all of it goes when the kernel forgets.
"""

from __future__ import annotations

from typing import Final

from fs_server.interface import Attributes

CACHE_S: Final = 86_400.0
"""Seconds that the host's kernel may keep entries and attributes: it is told of changes."""
ENTRY_SHORTLY_S: Final = 1.0
"""The same for entries, on a host's kernel that cannot drop all of them at once."""
BLOCK_SIZE: Final = 65_536
"""What `st_blksize` says: programs that read and write through buffers take ones of this size."""
NOTHING_ABSENT: Final[frozenset[bytes]] = frozenset()


class KnownInode:
    """What is remembered of an inode while the host's kernel knows it, whoever serves the mount."""

    __slots__ = ("absent", "attributes", "moved")

    def __init__(self) -> None:
        self.attributes: Attributes | None = None
        self.absent: frozenset[bytes] = NOTHING_ABSENT
        """Extended attributes that are not there; the kernel asks for one before every write."""
        self.moved = False
        """Another client changed the data, and the kernel has not asked for the new size since."""
