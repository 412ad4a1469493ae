"""ARP for IPv4 over Ethernet (RFC 826).

    +----------+----------+------+------+-----------+
    | hardware | protocol | 6    | 4    | operation |
    +----------+----------+------+------+-----------+
    | sender's link and IPv4 address                |
    | target's link and IPv4 address                |
    +-----------------------------------------------+

What follows the 28 octets is the padding of a short frame.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from . import Octets, ParseError

SIZE: Final = 28
REQUEST: Final = 1
REPLY: Final = 2

_PACKET: Final = struct.Struct("!HHBBH6sI6sI")
_ETHERNET: Final = 1
_IPV4: Final = 0x0800
_NO_LINK: Final = bytes(6)


class Packet(NamedTuple):
    """A request or a reply. Of the link addresses, a request's target is without meaning."""

    operation: int
    sender_link: bytes
    sender: int
    target_link: bytes
    target: int


def parse(packet: Octets) -> Packet:
    """Return the packet; octets after the first 28 are padding.

    Raises:
        ParseError: too short, not Ethernet and IPv4, or neither request nor reply.
    """
    if len(packet) < SIZE:
        raise ParseError("ARP packet shorter than 28 octets")
    hardware, protocol, link_size, size, operation, *addresses = _PACKET.unpack_from(packet)
    if (hardware, protocol, link_size, size) != (_ETHERNET, _IPV4, 6, 4):
        raise ParseError("ARP for something other than IPv4 over Ethernet")
    if operation not in {REQUEST, REPLY}:
        raise ParseError("ARP operation is neither request nor reply")
    return Packet(operation, *addresses)


def emit(packet: Packet) -> bytes:
    """Return the packet's 28 octets."""
    operation, sender_link, sender, target_link, target = packet
    return _PACKET.pack(_ETHERNET, _IPV4, 6, 4, operation, sender_link, sender, target_link, target)


def request(sender_link: bytes, sender: int, target: int) -> Packet:
    """Return the question who has `target`; a sender equal to the target announces it."""
    return Packet(REQUEST, sender_link, sender, _NO_LINK, target)
