"""The header that a TAP device with IFF_VNET_HDR puts before a frame (virtio 1.2, 5.1.6).

    0       1          2             4          6            8             10
    +-------+----------+-------------+----------+------------+-------------+--------
    | flags | GSO type | header size | GSO size | sum starts | sum's place | frame
    +-------+----------+-------------+----------+------------+-------------+--------

Words are in the host's byte order. With NEEDS_CHECKSUM the transport checksum in the frame holds
only the pseudo header's sum: whoever puts the frame on a real wire finishes it, and a receiver
behind the same host must not verify it. A GSO type says that the frame stands for several of `GSO
size` octets of transport payload each.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from . import Octets, ParseError

SIZE: Final = 10

NEEDS_CHECKSUM: Final = 1
DATA_VALID: Final = 2
TRUSTED: Final = NEEDS_CHECKSUM | DATA_VALID
"""Flags that each say the transport checksum need not be verified."""

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP: Final = 5
_GSO_ECN: Final = 0x80

_HEADER: Final = struct.Struct("=BBHHHH")

PLAIN: Final = bytes(SIZE)
"""The header of a frame that is complete in itself."""


class Header(NamedTuple):
    """What the device says of a frame. `gso_type` is without the ECN bit."""

    flags: int
    gso_type: int
    header_size: int
    gso_size: int
    checksum_start: int
    checksum_offset: int


def parse(octets: Octets) -> Header:
    """Return the header.

    Raises:
        ParseError: fewer than 10 octets.
    """
    if len(octets) < SIZE:
        raise ParseError("frame shorter than the device's header")
    flags, gso_type, *sizes = _HEADER.unpack_from(octets)
    return Header(flags, gso_type & ~_GSO_ECN, *sizes)


def emit(header: Header) -> bytes:
    """Return the header's 10 octets."""
    return _HEADER.pack(*header)
