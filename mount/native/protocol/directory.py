"""Directory listings: entries one after another, each on a multiple of 8 octets."""

from __future__ import annotations

from typing import Final

from .layouts import DIRENT, ENTRY_OUT
from .malformed import MalformedError

_PADDING: Final = tuple(bytes(-size & 7) for size in range(8))


class Listing:
    """The body of a reply to READDIR or READDIRPLUS, in the making.

    Args:
        room: octets that it may have: the request's `size`.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._parts: list[bytes] = []

    def add(self, name: bytes, inode: int, cookie: int, mode: int, entry: bytes = b"") -> bool:
        """Add an entry, if there is room for it. Returns if there was.

        Args:
            cookie: the offset from which the listing goes on after this entry.
            mode: of the file: its kind is told.
            entry: for READDIRPLUS: a packed `EntryOut`, with node id 0 for "." and "..". Every
                other one that was added is a look-up, which the kernel will forget.
        """
        size = len(entry) + DIRENT.size + len(name)
        padding = _PADDING[size & 7]
        size += len(padding)
        if size > self._room:
            return False
        self._room -= size
        dirent = DIRENT.pack(inode, cookie, len(name), (mode >> 12) & 15)
        self._parts.append(b"".join((entry, dirent, name, padding)))
        return True

    def pack(self) -> bytes:
        """Return the body. Empty: the listing is at its end."""
        return b"".join(self._parts)


def parse_listing(body: memoryview, *, plus: bool) -> list[tuple[bytes, bytes, int, int, int]]:
    """Return `(entry, name, inode, cookie, kind)` of each entry of a listing. MalformedError."""
    found = []
    position = 0
    entry_size = ENTRY_OUT.size if plus else 0
    while position < len(body):
        begin = position + entry_size + DIRENT.size
        if begin > len(body):
            raise MalformedError("a listing ends inside an entry")
        inode, cookie, length, kind = DIRENT.unpack_from(body, position + entry_size)
        end = begin + length
        if not length or end > len(body):
            raise MalformedError(f"an entry says that its name has {length} octets")
        entry = bytes(body[position : position + entry_size])
        found.append((entry, bytes(body[begin:end]), inode, cookie, kind))
        position = end + (-(end - position) & 7)
    return found
