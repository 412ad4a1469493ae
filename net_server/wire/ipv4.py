"""IPv4 headers (RFC 791). Options are skipped by length on receipt and never sent.

    0       4       8               16                              32
    +-------+-------+---------------+-------------------------------+
    |   4   | words |    service    |          total size           |
    +-------+-------+---------------+-------------------------------+
    |        identification         |0 D M|  offset in units of 8   |
    +---------------+---------------+-------------------------------+
    |      TTL      |   protocol    |            checksum           |
    +---------------+---------------+-------------------------------+
    |                       source, destination                     |
    +---------------------------------------------------------------+

D is "do not fragment", M is "more fragments follow".
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from . import Octets, ParseError

HEADER_SIZE: Final = 20
SIZE_LIMIT: Final = 65_535
"""Octets in one packet, header included."""
PAYLOAD_LIMIT: Final = SIZE_LIMIT - HEADER_SIZE
TTL: Final = 64

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17

DONT_FRAGMENT: Final = 0x4000
MORE_FRAGMENTS: Final = 0x2000
_OFFSET: Final = 0x1FFF
FRAGMENT_MASK: Final = MORE_FRAGMENTS | _OFFSET
"""The bits of `flags_offset` of which any says that the packet is a fragment."""

_HEADER: Final = struct.Struct("!BBHHHBBHII")


class Header(NamedTuple):
    """A packet's header, field by field as on the wire, with what follows from the fields."""

    version_words: int
    service: int
    total_size: int
    identification: int
    flags_offset: int
    ttl: int
    protocol: int
    checksum: int
    source: int
    destination: int

    @property
    def header_size(self) -> int:
        """Octets of the header, options included."""
        return (self.version_words & 15) << 2

    @property
    def is_fragment(self) -> bool:
        """Whether this is a part of a datagram only."""
        return self.flags_offset & FRAGMENT_MASK != 0

    @property
    def offset(self) -> int:
        """Where in the datagram's payload this fragment begins, in octets."""
        return (self.flags_offset & _OFFSET) << 3

    @property
    def more_fragments(self) -> bool:
        """Whether another fragment follows this one in the datagram."""
        return self.flags_offset & MORE_FRAGMENTS != 0


def parse(packet: Octets) -> Header:
    """Return the header of a packet that has arrived whole; octets after `total_size` are padding.

    Raises:
        ParseError: not version 4, a size that is not true, or a wrong checksum.
    """
    if len(packet) < HEADER_SIZE:
        raise ParseError("packet shorter than its header")
    # the quick form of Header(*fields): this runs for every packet
    header = tuple.__new__(Header, _HEADER.unpack_from(packet))
    first = header[0]
    size = 20 if first == 0x45 else (first & 15) << 2
    if first >> 4 != 4 or size < HEADER_SIZE:
        raise ParseError("not an IPv4 header")
    if not size <= header[2] <= len(packet):
        raise ParseError("total size is not true")
    if int.from_bytes(packet[:size], "big") % 65535:
        raise ParseError("wrong header checksum")
    return header


def parse_quoted(packet: Octets) -> Header:
    """Return the header quoted in an ICMP error: the payload may be cut, the checksum stale.

    Raises:
        ParseError: not an IPv4 header of full size.
    """
    if len(packet) < HEADER_SIZE:
        raise ParseError("quoted packet shorter than its header")
    header = Header._make(_HEADER.unpack_from(packet))
    if header.version_words >> 4 != 4 or not HEADER_SIZE <= header.header_size <= len(packet):
        raise ParseError("not an IPv4 header in the quotation")
    return header


def emit(
    source: int,
    destination: int,
    protocol: int,
    payload_size: int,
    identification: int,
    flags_offset: int = 0,
    ttl: int = TTL,
) -> bytes:
    """Return a header of 20 octets, checksum included.

    Args:
        payload_size: octets that follow, at most `PAYLOAD_LIMIT`.
        flags_offset: D, M and the offset in units of 8 octets.
    """
    total = HEADER_SIZE + payload_size
    sixteen = ttl << 8 | protocol
    # the words added up; an address counts as its two halves, since 2**16 is 1 modulo 65,535
    words = 0x4500 + total + identification + flags_offset + sixteen + source + destination
    field = 65535 - (words % 65535 or 65535)
    return _HEADER.pack(
        0x45, 0, total, identification, flags_offset, ttl, protocol, field, source, destination
    )


def rewrite(header: Octets, payload_size: int) -> bytes:
    """Return a received header, options included, as that of the whole datagram of its fragment.

    Raises:
        ParseError: header and payload together exceed `SIZE_LIMIT`.
    """
    total = len(header) + payload_size
    if total > SIZE_LIMIT:
        raise ParseError("datagram larger than a packet can be")
    whole = bytearray(header)
    whole[2:4] = total.to_bytes(2, "big")
    whole[6:8] = bytes(2)
    whole[10:12] = bytes(2)
    field = 65535 - (int.from_bytes(whole, "big") % 65535 or 65535)
    whole[10:12] = field.to_bytes(2, "big")
    return bytes(whole)


def from_text(text: str) -> int:
    """Return a dotted address as an int.

    Raises:
        ParseError: not four decimal numbers of 0..255.
    """
    parts = text.split(".")
    if len(parts) != 4 or not all(p.isascii() and p.isdigit() and len(p) <= 3 for p in parts):
        raise ParseError(f"{text!r} is not an IPv4 address")
    numbers = [int(part) for part in parts]
    if max(numbers) > 255:
        raise ParseError(f"{text!r} is not an IPv4 address")
    return int.from_bytes(bytes(numbers), "big")


def to_text(address: int) -> str:
    """Return an address in dotted form."""
    return ".".join(str(octet) for octet in address.to_bytes(4, "big"))
