"""The entries of directories: the table, and recent look-ups in memory, vain ones included.

An entry has a *sequence* number that no other entry of its directory ever had; it is the entry's
place in listings and the cookie to go on from. So a listing sees every entry that stays exactly
once, whatever comes and goes meanwhile. An entry that is made to name another inode keeps its
place.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from core.errors import Refused

from .inodes import Inode
from .interface import NAME_LIMIT
from .recent import Recent
from .store import Store

ABSENT: Final = 0
"""Kept in memory for a name that is not there. No inode has this number."""


def check_name(name: bytes) -> None:
    """Refuse impossible names: ENAMETOOLONG, ENOENT if empty, EINVAL for '/' and NUL."""
    if len(name) > NAME_LIMIT:
        raise Refused(errno.ENAMETOOLONG)
    if not name:
        raise Refused(errno.ENOENT, "a name must not be empty")
    if b"/" in name or b"\0" in name:
        raise Refused(errno.EINVAL, "a name must not hold '/' or NUL")


class Entries:
    """The table. `limit`: about how many look-ups stay in memory."""

    def __init__(self, store: Store, limit: int) -> None:
        self._store = store
        self.recent: Recent[tuple[int, bytes], int] = Recent(max(limit, 64))

    def find(self, directory: int, name: bytes) -> int:
        """Return the inode that an entry names, or ABSENT."""
        key = (directory, name)
        number = self.recent.young.get(key)
        if number is None:
            number = self.recent.get(key)
            if number is None:
                number = self._store.value(
                    "SELECT inode FROM entry WHERE directory = ? AND name = ?", key
                )
                self.recent.put(key, number or ABSENT)
        return number or ABSENT

    def add(self, directory: Inode, name: bytes, number: int) -> None:
        """Add an entry that is not there yet. The caller saves the directory."""
        sequence = directory.sequence
        directory.sequence = sequence + 1
        self._store.write(
            "INSERT INTO entry VALUES(?, ?, ?, ?)", (directory.number, name, sequence, number)
        )
        self.recent.put((directory.number, name), number)

    def change(self, directory: int, name: bytes, number: int) -> None:
        """Make an entry name another inode."""
        self._store.write(
            "UPDATE entry SET inode = ? WHERE directory = ? AND name = ?",
            (number, directory, name),
        )
        self.recent.put((directory, name), number)

    def remove(self, directory: int, name: bytes) -> None:
        """Remove an entry."""
        self._store.write("DELETE FROM entry WHERE directory = ? AND name = ?", (directory, name))
        self.recent.put((directory, name), ABSENT)

    def is_empty(self, directory: int) -> bool:
        """Return whether a directory has no entries."""
        return (
            self._store.value("SELECT 1 FROM entry WHERE directory = ? LIMIT 1", (directory,))
            is None
        )

    def listing(self, directory: int, after: int, limit: int) -> list[tuple[Any, ...]]:
        """Return (sequence, name, inode) of at most `limit` entries behind sequence `after`."""
        return self._store.execute(
            "SELECT sequence, name, inode FROM entry WHERE directory = ? AND sequence > ?"
            " ORDER BY sequence LIMIT ?",
            (directory, after, limit),
        ).fetchall()
