"""ICMP for IPv4 (RFC 792; RFC 4884 for the size of a quotation).

    +--------+--------+-----------------+---------------------+-----------
    |  type  |  code  |    checksum     | depends on the type | payload
    +--------+--------+-----------------+---------------------+-----------

For echo the four octets are identifier and sequence number; errors quote the packet they are about.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from . import Octets, ParseError
from .checksum import checksum, is_valid, update

HEADER_SIZE: Final = 8
ECHO_LIMIT: Final = 65_535 - 20 - HEADER_SIZE
"""Octets of data in the largest echo that fits a packet."""

ECHO_REPLY: Final = 0
DESTINATION_UNREACHABLE: Final = 3
SOURCE_QUENCH: Final = 4
REDIRECT: Final = 5
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12

ERRORS: Final = frozenset(
    (
        DESTINATION_UNREACHABLE,
        SOURCE_QUENCH,
        REDIRECT,
        TIME_EXCEEDED,
        PARAMETER_PROBLEM,
    )
)

NET_UNREACHABLE: Final = 0
HOST_UNREACHABLE: Final = 1
PROTOCOL_UNREACHABLE: Final = 2
PORT_UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4
TTL_EXCEEDED: Final = 0
REASSEMBLY_EXCEEDED: Final = 1

QUOTE_LIMIT: Final = 576 - 20 - HEADER_SIZE
"""Octets of the packet that an error quotes: the error fits 576 octets (RFC 1812, 4.3.2.3)."""

_HEADER: Final = struct.Struct("!BBHI")


class Message(NamedTuple):
    """A message whose checksum is right. `rest` is the word after the checksum."""

    type: int
    code: int
    checksum: int
    rest: int


def parse(message: Octets) -> Message:
    """Return the message's header; its payload begins at `HEADER_SIZE`.

    Raises:
        ParseError: shorter than its header, or a wrong checksum.
    """
    if len(message) < HEADER_SIZE:
        raise ParseError("ICMP message shorter than its header")
    if not is_valid(message):
        raise ParseError("wrong ICMP checksum")
    return Message(*_HEADER.unpack_from(message))


def emit(kind: int, code: int, rest: int, payload: Octets) -> bytes:
    """Return the header of a message that carries `payload`, checksum included."""
    word = kind << 8 | code
    field = checksum(payload, word + (rest >> 16) + (rest & 0xFFFF))
    return _HEADER.pack(kind, code, field, rest)


def emit_echo_reply(request: Message, payload: Octets) -> bytes:
    """Return the header that answers `request`; its payload is sent back as it is."""
    field = update(request.checksum, request.type << 8 | request.code, 0)
    if not field and not request.rest and not any(payload):
        # the one case in which the incremental form finds the wrong zero
        field = 0xFFFF
    return _HEADER.pack(ECHO_REPLY, 0, field, request.rest)
