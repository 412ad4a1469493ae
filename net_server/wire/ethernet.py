"""Ethernet II frames (RFC 894): destination, source, type.

    0             6             12     14
    +-------------+-------------+------+---------
    | destination |   source    | type | payload
    +-------------+-------------+------+---------

The device below adds and strips the frame check sequence, and pads short frames.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from . import Octets, ParseError

HEADER_SIZE: Final = 14
BROADCAST: Final = b"\xff" * 6
TYPE_IPV4: Final = 0x0800
TYPE_ARP: Final = 0x0806
TYPE_IPV6: Final = 0x86DD

_HEADER: Final = struct.Struct("!6s6sH")


class Header(NamedTuple):
    """The first 14 octets of a frame."""

    destination: bytes
    source: bytes
    type: int


def parse(frame: Octets) -> Header:
    """Return the frame's header.

    Raises:
        ParseError: fewer than 14 octets.
    """
    if len(frame) < HEADER_SIZE:
        raise ParseError("frame shorter than its header")
    return Header(*_HEADER.unpack_from(frame))


def emit(destination: bytes, source: bytes, ethertype: int) -> bytes:
    """Return a header of 14 octets."""
    return _HEADER.pack(destination, source, ethertype)


def is_group(address: bytes) -> bool:
    """Return whether the address is a multicast or the broadcast address."""
    return bool(address[0] & 1)


def multicast_ipv4(group: int) -> bytes:
    """Return the link address of an IPv4 multicast group (RFC 1112, section 6.4)."""
    return b"\x01\x00\x5e" + (group & 0x7FFFFF).to_bytes(3, "big")
