"""Putting fragments together again (RFC 791 section 3.2, RFC 1122 section 3.3.2, RFC 5722).

Theory of operation. Fragments of one datagram share source, destination, protocol and
identification. They are kept in order of their offsets until the one with offset 0, the one
without "more fragments" and all between have come; the header of offset 0 becomes the header of
the whole.

Invariants:
1. Kept fragments never overlap. An exact repetition is ignored; any other overlap condemns the
   whole datagram, and it stays condemned until its time is over, so that no later fragment
   revives it. (Every choice between two versions of an octet has been used to smuggle data past a
   filter.)
2. Octets held, with a fixed charge for each fragment, stay within `OCTETS_LIMIT`; datagrams under
   way within `DATAGRAMS_LIMIT`, from one source within `SOURCE_LIMIT`. The oldest gives way.
3. A datagram is given up `TIMEOUT_S` after its first fragment came; later ones do not prolong it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from typing import Final, NamedTuple

from net_server.wire import ParseError, ipv4

from .counters import Counters

TIMEOUT_S: Final = 60.0
"""RFC 1122 asks for a fixed value of 60 to 120 seconds."""
DATAGRAMS_LIMIT: Final = 64
SOURCE_LIMIT: Final = 16
OCTETS_LIMIT: Final = 1 << 20
FRAGMENTS_LIMIT: Final = 1500
"""Fragments of one datagram: enough for the largest one at the smallest MTU, 68."""
_FRAGMENT_CHARGE: Final = 128

_Key = tuple[int, int, int, int]


class Expired(NamedTuple):
    """A datagram that stayed incomplete although its first fragment, `packet`, had come."""

    header: ipv4.Header
    packet: bytes
    group: bool
    """The fragment came to a group or broadcast address of the link."""


class _Datagram:
    """One datagram under way."""

    __slots__ = (
        "charge",
        "condemned",
        "deadline",
        "end",
        "first",
        "group",
        "pieces",
        "starts",
        "total",
    )

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.starts: list[int] = []
        self.pieces: list[bytes] = []
        self.total = 0
        """Octets of payload that have come."""
        self.end: int | None = None
        """Octets of payload in the whole, once the last fragment has told."""
        self.first: tuple[ipv4.Header, bytes, bool] | None = None
        self.charge = 0
        self.condemned = False

    def overlap(self, start: int, piece: bytes) -> bool | None:
        """Return False if the piece fits a gap, None if it repeats one exactly, else True."""
        place = bisect.bisect_right(self.starts, start)
        if place:
            before = self.pieces[place - 1]
            if self.starts[place - 1] == start and before == piece:
                return None
            if self.starts[place - 1] + len(before) > start:
                return True
        return place < len(self.starts) and start + len(piece) > self.starts[place]

    def insert(self, start: int, piece: bytes) -> None:
        place = bisect.bisect_right(self.starts, start)
        self.starts.insert(place, start)
        self.pieces.insert(place, piece)
        self.total += len(piece)

    def condemn(self) -> None:
        self.condemned = True
        self.starts, self.pieces, self.first = [], [], None


class Reassembly:
    """All datagrams of which some fragments have come and others have not."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._datagrams: dict[_Key, _Datagram] = {}  # oldest first
        self._octets = 0

    def __len__(self) -> int:
        return len(self._datagrams)

    @property
    def octets(self) -> int:
        """Octets charged against `OCTETS_LIMIT`."""
        return self._octets

    @property
    def deadline(self) -> float:
        """When `expire` has something to do; infinity if nothing is under way."""
        for datagram in self._datagrams.values():
            return datagram.deadline
        return math.inf

    def receive(
        self, header: ipv4.Header, packet: memoryview, now: float, *, group: bool
    ) -> bytes | None:
        """Take a fragment; return the whole packet once it is complete.

        Args:
            header: the fragment's, parsed.
            packet: the fragment, header included and padding excluded; copied.
            group: it came to a group or broadcast address of the link.
        """
        self._counters.ip_reasm_reqds += 1
        piece = bytes(packet[header.header_size :])
        if not _is_possible(header, piece):
            self._counters.ip_reasm_fails += 1
            return None
        key = (header.source, header.destination, header.protocol, header.identification)
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._admit(key, now)
        if datagram.condemned:
            self._counters.ip_reasm_fails += 1
            return None
        try:
            if not self._place(datagram, header, packet, piece, group=group):
                return None
            return self._complete(key, datagram)
        except ParseError:
            self._counters.ip_reasm_fails += 1
            self._octets -= datagram.charge
            datagram.charge = 0
            datagram.condemn()
            return None

    def _admit(self, key: _Key, now: float) -> _Datagram:
        source = key[0]
        rivals = [other for other in self._datagrams if other[0] == source]
        if len(rivals) >= SOURCE_LIMIT:
            self._give_up(rivals[0])
        elif len(self._datagrams) >= DATAGRAMS_LIMIT:
            self._give_up(next(iter(self._datagrams)))
        datagram = self._datagrams[key] = _Datagram(now + TIMEOUT_S)
        return datagram

    def _place(
        self,
        datagram: _Datagram,
        header: ipv4.Header,
        packet: memoryview,
        piece: bytes,
        *,
        group: bool,
    ) -> bool:
        """Keep a piece; return whether the datagram gained anything by it."""
        start, end = header.offset, header.offset + len(piece)
        overlap = datagram.overlap(start, piece)
        if overlap:
            raise ParseError("fragments overlap")
        if overlap is None:
            return False
        if len(datagram.pieces) >= FRAGMENTS_LIMIT:
            raise ParseError("too many fragments")
        if not header.more_fragments:
            if datagram.end is not None or (datagram.starts and datagram.starts[-1] >= end):
                raise ParseError("two ends")
            datagram.end = end
        if datagram.end is not None and end > datagram.end:
            raise ParseError("octets after the end")
        datagram.insert(start, piece)
        if start == 0:
            datagram.first = (header, bytes(packet), group)
        charge = len(piece) + _FRAGMENT_CHARGE
        datagram.charge += charge
        self._octets += charge
        self._make_room(datagram)
        return True

    def _make_room(self, newest: _Datagram) -> None:
        while self._octets > OCTETS_LIMIT:
            key = next(k for k, d in self._datagrams.items() if d.charge and d is not newest)
            self._give_up(key)

    def _complete(self, key: _Key, datagram: _Datagram) -> bytes | None:
        if datagram.end is None or datagram.total != datagram.end or datagram.first is None:
            return None
        header, packet, _ = datagram.first
        whole = ipv4.rewrite(packet[: header.header_size], datagram.end)
        del self._datagrams[key]
        self._octets -= datagram.charge
        self._counters.ip_reasm_oks += 1
        return b"".join((whole, *datagram.pieces))

    def _give_up(self, key: _Key) -> _Datagram:
        datagram = self._datagrams.pop(key)
        self._octets -= datagram.charge
        if not datagram.condemned:
            self._counters.ip_reasm_fails += 1
        return datagram

    def expire(self, now: float) -> Iterator[Expired]:
        """Give up every datagram whose time is over; yield those that the sender may be told of."""
        while self._datagrams and self.deadline <= now:
            first = self._give_up(next(iter(self._datagrams))).first
            if first is not None:
                yield Expired(*first)


def _is_possible(header: ipv4.Header, piece: bytes) -> bool:
    """Return whether a fragment can be a part of any datagram."""
    size = len(piece)
    if size == 0 or (header.more_fragments and size & 7):
        return False
    return header.header_size + header.offset + size <= ipv4.SIZE_LIMIT
