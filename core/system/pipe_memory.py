"""The memory of the pipe server: records, rings and openings, which outlive any death of it.

    +------------------+  one page: the last number that a pipe was given, and how many places of
    | head             |  the table of openings were ever used
    +------------------+
    | openings         |  OPENINGS_LIMIT places of `_OPENING`; its first number is written last
    +------------------+
    | record of pipe 0 |  one page each
    | ...              |
    +------------------+
    | ring of pipe 0   |  LARGE_RING octets for each of the first LARGE_PIPES, SMALL_RING for each
    | ...              |  of the others; they cost memory only while something is in them
    +------------------+

A record stands twice in its page, and one octet says which copy is valid; a change is written into
the other copy and becomes valid with that octet, so a death at any instant leaves one whole record.
Whatever an operation changes of a pipe, it changes with one such switch.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final

import msgspec

LARGE_PIPES: Final = 128
"""Places whose rings are large: for pipes without a name, as long as there are any."""
SMALL_PIPES: Final = 1024
PIPES_LIMIT: Final = LARGE_PIPES + SMALL_PIPES
LARGE_RING: Final = 1024 * 1024
SMALL_RING: Final = 256 * 1024
OPENINGS_LIMIT: Final = 16_384
REMEMBERED: Final = 8
"""Reads and writes of a pipe whose outcome is remembered."""
_PAGE: Final = 4096
_COPY: Final = 2040
"""Octets of a copy of a record, its size included."""
_HEAD: Final = struct.Struct("<QQ")
_NUMBER: Final = struct.Struct("<Q")
_OPENING: Final = struct.Struct("<QQQQQQ")
"""number, client, turn, key, access, met."""
_KEY: Final = 24
_MET: Final = 40
_RECORDS: Final = _PAGE + OPENINGS_LIMIT * _OPENING.size
_RINGS: Final = _RECORDS + PIPES_LIMIT * _PAGE
_SMALL: Final = _RINGS + LARGE_PIPES * LARGE_RING
SIZE: Final = _SMALL + SMALL_PIPES * SMALL_RING
FIRST_NUMBER: Final = 1 << 32
"""No pipe has a smaller number: small badges are those that come with granted rights."""


class Took(msgspec.Struct, array_like=True, gc=False):
    """Octets `start` to `end` were given to `turn` of the opening `who`; see `Record`."""

    who: int
    turn: int
    start: int
    end: int


class Gave(msgspec.Struct, array_like=True, gc=False):
    """`count` octets of `turn` of the opening `who` were taken into the ring."""

    who: int
    turn: int
    count: int


class Record(msgspec.Struct, array_like=True):
    """One pipe.

    Attributes:
        number: of the pipe; 0: the place is free.
        tail, head: octets that were written and read since its beginning.
        took: the newest reads, oldest first. The octets of each are in the ring as long as it is
            here. `who` is an opening, or 0 for a request through a right to an end.
        gave: the newest writes, likewise.
        reader_seen, writer_seen: there has been one.
        reading_right, writing_right: a right to that end is in somebody's hands.
        openings: how many it has been given, closed ones included.
        unlinked_by: the request that took the name away.
    """

    number: int
    name: bytes = b""
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    made_ns: int = 0
    head: int = 0
    tail: int = 0
    took: list[Took] = []
    gave: list[Gave] = []
    reader_seen: bool = False
    writer_seen: bool = False
    reading_right: bool = False
    writing_right: bool = False
    openings: int = 0
    unlinked_by: int = 0


class Opening(msgspec.Struct):
    """One opening of a pipe. See `core.userlib.streams`."""

    number: int
    client: int
    turn: int
    key: int
    access: int
    met: int
    place: int


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Record).decode


class PipeMemory:
    """The memory object, mapped.

    Attributes:
        places: the places of pipes that were ever used when this was made. To look at all would
            take milliseconds, and have the host make a page for each.

    Args:
        number: its descriptor; closed here, the mapping stays.
    """

    def __init__(self, number: int) -> None:
        try:
            self._memory = mmap.mmap(number, SIZE)
            self.places = _places(number)
        finally:
            os.close(number)
        self._view = memoryview(self._memory)
        last, used = _HEAD.unpack_from(self._view)
        self._last: int = last
        self._used: int = used

    def next_number(self) -> int:
        """Return a number that no pipe has had."""
        self._last = max(self._last, FIRST_NUMBER) + 1
        _NUMBER.pack_into(self._view, 0, self._last)
        return self._last

    # Records and rings

    def load(self, place: int) -> Record | None:
        """Return the record of a place, None if it is free."""
        page = self._page(place)
        start = 8 + page[0] * _COPY
        size = int.from_bytes(page[start : start + 2], "little")
        if not size:
            return None
        record = _decode(page[start + 2 : start + 2 + size])
        return record if record.number else None

    def store(self, place: int, record: Record) -> None:
        """Make the record's present state the valid one."""
        data = _encode(record)
        page = self._page(place)
        valid = 1 - page[0]
        start = 8 + valid * _COPY
        page[start : start + 2 + len(data)] = len(data).to_bytes(2, "little") + data
        page[0] = valid

    def _page(self, place: int) -> memoryview:
        start = _RECORDS + place * _PAGE
        return self._view[start : start + _PAGE]

    def ring(self, place: int) -> memoryview:
        """Return the ring of a place."""
        start, size = _ring(place)
        return self._view[start : start + size]

    def free(self, place: int) -> None:
        """Mark a place as free; the ring's pages go back to the host (madvise(2))."""
        self.store(place, Record(0))
        self._memory.madvise(mmap.MADV_REMOVE, *_ring(place))

    # Openings

    @property
    def rows(self) -> int:
        """How many places of the table of openings were ever used."""
        return self._used

    def load_openings(self) -> list[Opening]:
        """Return all openings."""
        found = []
        for place in range(self._used):
            members = _OPENING.unpack_from(self._view, _PAGE + place * _OPENING.size)
            if members[0]:
                number, client, turn, key, access, met = members
                found.append(Opening(number, client, turn, key, access, met, place))
        return found

    def add_opening(self, opening: Opening) -> None:
        """Write an opening down; it counts from the moment when its number is there."""
        start = _PAGE + opening.place * _OPENING.size
        if opening.place >= self._used:
            _NUMBER.pack_into(self._view, start, 0)
            self._used = opening.place + 1
            _NUMBER.pack_into(self._view, _NUMBER.size, self._used)
        members = (opening.client, opening.turn, opening.key, opening.access, opening.met)
        _OPENING.pack_into(self._view, start, 0, *members)
        _NUMBER.pack_into(self._view, start, opening.number)

    def set_key(self, opening: Opening) -> None:
        """Write down the opening's key."""
        _NUMBER.pack_into(self._view, _PAGE + opening.place * _OPENING.size + _KEY, opening.key)

    def set_met(self, opening: Opening) -> None:
        """Write down that the other end was opened."""
        _NUMBER.pack_into(self._view, _PAGE + opening.place * _OPENING.size + _MET, opening.met)

    def remove_opening(self, opening: Opening) -> None:
        """Strike an opening out."""
        _NUMBER.pack_into(self._view, _PAGE + opening.place * _OPENING.size, 0)

    def close(self) -> None:
        """Unmap it; the kernel still keeps it."""
        self._view.release()
        self._memory.close()


def _ring(place: int) -> tuple[int, int]:
    """Return where the ring of a place begins, and its size."""
    if place < LARGE_PIPES:
        return _RINGS + place * LARGE_RING, LARGE_RING
    return _SMALL + (place - LARGE_PIPES) * SMALL_RING, SMALL_RING


def _places(number: int) -> list[int]:
    """Return the places whose records have a page (lseek(2), SEEK_DATA)."""
    found = []
    start = _RECORDS
    while start < _RINGS:
        try:
            start = os.lseek(number, start, os.SEEK_DATA)
        except OSError:  # ENXIO: there is no more
            break
        if start < _RINGS:
            found.append((start - _RECORDS) // _PAGE)
        start += _PAGE
    return found


def new_memory() -> int:
    """Return the descriptor of a new memory object, the caller's."""
    number = os.memfd_create("atoll-pipes", os.MFD_CLOEXEC)
    os.ftruncate(number, SIZE)
    return number
