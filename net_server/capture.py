"""Recording frames for those who ask: one bounded ring for each, nothing at all while nobody does.

A batch is a run of records, in the order in which the frames passed:

    +----------------+-----------+-------+---------------+---------------+----------
    | time, ns since | direction | 3 x 0 | size of the   | octets kept   | octets
    | 1970, u64      | u8        |       | frame, u32    | of it, u32    |
    +----------------+-----------+-------+---------------+---------------+----------

A transport checksum that was left to the device is finished in the record, so what is captured is
what a wire would have carried. When a ring is full, new frames are dropped and counted: what is
there is without gaps up to then.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from .wire import Octets, vnet
from .wire.checksum import checksum
from .wire.udp import CHECKSUM_OFFSET

INBOUND: Final = 1
OUTBOUND: Final = 2
SNAPLEN_LIMIT: Final = 65_549
"""Octets of the largest frame."""
RING_OCTETS_LIMIT: Final = 4 << 20
CAPTURES_LIMIT: Final = 16

_RECORD: Final = struct.Struct("<QB3xII")
SIZE_MIN: Final = _RECORD.size
"""Octets of a record without any of its frame."""


class Record(NamedTuple):
    """One frame of a capture. `size` is what it had, `octets` what was kept of it."""

    time_ns: int
    direction: int
    size: int
    octets: bytes


def records(batch: Octets) -> Iterator[Record]:
    """Yield the records of a batch as `Capture.take` gave it."""
    view = memoryview(batch)
    offset = 0
    while offset < len(view):
        time_ns, direction, size, kept = _RECORD.unpack_from(view, offset)
        offset += _RECORD.size
        yield Record(time_ns, direction, size, bytes(view[offset : offset + kept]))
        offset += kept


class Capture:
    """One client's ring. `notify` is called when it ceases to be empty."""

    def __init__(self, snaplen: int) -> None:
        self.snaplen = snaplen
        self.dropped = 0
        self.notify: Callable[[], None] = lambda: None
        self._ring: deque[bytes] = deque()
        self._octets = 0

    def __len__(self) -> int:
        return len(self._ring)

    def put(self, time_ns: int, direction: int, frame: bytes) -> None:
        """Keep a frame, or as much of it as was asked for."""
        kept = frame[: self.snaplen]
        record = _RECORD.pack(time_ns, direction, len(frame), len(kept)) + kept
        if self._octets + len(record) > RING_OCTETS_LIMIT:
            self.dropped += 1
            return
        self._ring.append(record)
        self._octets += len(record)
        if len(self._ring) == 1:
            self.notify()

    def take(self, size: int) -> bytes:
        """Return as many records as fit, and at least one, cut to fit if need be.

        Args:
            size: octets, at least `SIZE_MIN`.
        """
        batch: list[bytes] = []
        room = size
        while self._ring and (len(self._ring[0]) <= room or not batch):
            record = self._ring.popleft()
            self._octets -= len(record)
            room -= len(record)
            batch.append(record)
        if room < 0:
            batch[0] = _cut(batch[0], size)
        return b"".join(batch)


class Captures:
    """All captures under way. False while there are none, which is all the hot path looks at."""

    def __init__(self, epoch_ns: int) -> None:
        """Begin without any.

        Args:
            epoch_ns: nanoseconds since 1970 when the clock that `now` comes from read 0.
        """
        self._epoch_ns = epoch_ns
        self._captures: list[Capture] = []

    def __bool__(self) -> bool:
        return bool(self._captures)

    def add(self, capture: Capture) -> None:
        """Let a capture see the frames from now on."""
        self._captures.append(capture)

    def remove(self, capture: Capture) -> None:
        """Let a capture see no more frames."""
        self._captures.remove(capture)

    def record(self, direction: int, now: float, device: Octets, frame: Octets) -> None:
        """Show a frame to all captures; `device` is the virtio header, or empty."""
        octets = finish(device, frame)
        time_ns = self._epoch_ns + int(now * 1e9)
        for capture in self._captures:
            capture.put(time_ns, direction, octets)

    def record_buffers(
        self, direction: int, now: float, buffers: tuple[Octets, ...], *, header: bool
    ) -> None:
        """Show a frame that lies in several buffers, the device's header first if there is one."""
        device = buffers[0] if header else b""
        self.record(direction, now, device, b"".join(buffers[1:] if header else buffers))


def finish(device: Octets, frame: Octets) -> bytes:
    """Return the frame as a wire would carry it: with the checksum that was left to the device."""
    if not device or not device[0] & vnet.NEEDS_CHECKSUM:
        return bytes(frame)
    header = vnet.parse(device)
    start = header.checksum_start
    place = start + header.checksum_offset
    whole = bytearray(frame)
    if place + 2 <= len(whole):
        # the field holds the pseudo header's sum already, so it takes part
        field = checksum(memoryview(whole)[start:])
        if not field and header.checksum_offset == CHECKSUM_OFFSET:
            field = 0xFFFF
        whole[place : place + 2] = field.to_bytes(2, "big")
    return bytes(whole)


def _cut(record: bytes, size: int) -> bytes:
    """Return a record that keeps fewer octets of its frame, so that it fits `size`."""
    time_ns, direction, original, kept = _RECORD.unpack_from(record)
    kept = min(kept, size - _RECORD.size)
    head = _RECORD.pack(time_ns, direction, original, kept)
    return head + record[_RECORD.size : _RECORD.size + kept]
