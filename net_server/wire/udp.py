"""UDP headers (RFC 768).

    +-------------+------------------+--------+----------+---------
    | source port | destination port |  size  | checksum | payload
    +-------------+------------------+--------+----------+---------

A checksum of 0 says that the sender made none, so a computed 0 is sent as 0xFFFF.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from . import Octets, ParseError
from .checksum import checksum, is_valid, pseudo_header
from .ipv4 import UDP

HEADER_SIZE: Final = 8
PAYLOAD_LIMIT: Final = 65_535 - 20 - HEADER_SIZE
"""Octets of data in the largest datagram over IPv4."""
CHECKSUM_OFFSET: Final = 6

_HEADER: Final = struct.Struct("!HHHH")


class Header(NamedTuple):
    """A datagram's header; `size` counts the header too."""

    source: int
    destination: int
    size: int
    checksum: int


def parse(datagram: Octets) -> Header:
    """Return the header; octets after `size` are not part of the datagram.

    Raises:
        ParseError: fewer octets than the header has or says.
    """
    if len(datagram) < HEADER_SIZE:
        raise ParseError("datagram shorter than its header")
    header = Header(*_HEADER.unpack_from(datagram))
    if not HEADER_SIZE <= header.size <= len(datagram):
        raise ParseError("datagram's size is not true")
    return header


def is_intact(datagram: Octets, source: int, destination: int) -> bool:
    """Return whether the checksum of a datagram cut to its size is right; the sender made one."""
    return is_valid(datagram, pseudo_header(source, destination, UDP, len(datagram)))


def emit(
    source: int, source_port: int, destination: int, destination_port: int, payload: Octets
) -> bytes:
    """Return the header of a datagram from address and port to address and port."""
    size = HEADER_SIZE + len(payload)
    initial = pseudo_header(source, destination, UDP, size) + source_port + destination_port + size
    field = checksum(payload, initial) or 0xFFFF
    return _HEADER.pack(source_port, destination_port, size, field)


def emit_partial(
    source: int, source_port: int, destination: int, destination_port: int, payload_size: int
) -> bytes:
    """Return a header with the pseudo header's sum in it, for the device to finish."""
    size = HEADER_SIZE + payload_size
    field = pseudo_header(source, destination, UDP, size) % 65535 or 65535
    return _HEADER.pack(source_port, destination_port, size, field)
