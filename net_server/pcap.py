"""Capture files in the pcapng format (IETF draft-ietf-opsawg-pcapng), written, not read.

A file is a sequence of blocks: one section header, one interface description, then one enhanced
packet block for each frame, and at the end the interface's statistics.

    +------+------------+------+---------+------------+
    | type | whole size | body | padding | whole size |
    +------+------------+------+---------+------------+

Each function returns the octets of a block, to be written one after the other.
"""

from __future__ import annotations

import struct
from typing import Final

from .capture import INBOUND, Record

_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_STATISTICS: Final = 5
_PACKET: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_ETHERNET: Final = 1
_NANOSECONDS: Final = b"\x09"

_END_OF_OPTIONS: Final = bytes(4)


def _padded(octets: bytes) -> bytes:
    return octets + bytes(-len(octets) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + size + body + size


def header(interface: str, snaplen: int) -> bytes:
    """Return the beginning of a file: the section, and the one interface that frames come from."""
    section = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1) + _option(4, b"atoll") + _END_OF_OPTIONS
    options = _option(2, interface.encode()) + _option(9, _NANOSECONDS) + _END_OF_OPTIONS
    description = struct.pack("<HHI", _ETHERNET, 0, snaplen) + options
    return _block(_SECTION, section) + _block(_INTERFACE, description)


def packet(record: Record) -> bytes:
    """Return a frame's block, with its direction."""
    high, low = record.time_ns >> 32, record.time_ns & 0xFFFF_FFFF
    head = struct.pack("<IIIII", 0, high, low, len(record.octets), record.size)
    direction = 1 if record.direction == INBOUND else 2
    flags = _option(2, struct.pack("<I", direction)) + _END_OF_OPTIONS
    return _block(_PACKET, head + _padded(record.octets) + flags)


def statistics(time_ns: int, dropped: int) -> bytes:
    """Return the end of a file: how many frames the capture had to drop.

    Args:
        time_ns: the end of the capture, since 1970.
    """
    head = struct.pack("<III", 0, time_ns >> 32, time_ns & 0xFFFF_FFFF)
    return _block(_STATISTICS, head + _option(5, struct.pack("<Q", dropped)) + _END_OF_OPTIONS)
