"""The answer to an ordinary echo request, in one step.

A ping measures how long a stack thinks. Passing a frame through every layer costs more than all
that the device does, so the request that everybody sends (unicast, no options, no fragment, from
a neighbor that the layers have just approved of) is recognised as a whole and answered from one
template.

Invariant: a frame is answered here exactly as the layers would have answered it, to the last
octet and count, or left to them untouched. A test compares the two on arbitrary frames.
"""

from __future__ import annotations

import struct
from typing import Final

from net_server.wire import ethernet, icmpv4, ipv4, vnet
from net_server.wire.checksum import is_valid

from .counters import Counters
from .egress import Egress
from .ip import Ip
from .neighbors import Neighbors

SIZE: Final = 42
"""Octets of the headers that are looked at."""

_HEADERS: Final = struct.Struct("!6s6sHBBHHHBBHIIBBHI")
_REPLY: Final = struct.Struct("!14sBBHHHBBHIIBBHI")
_REQUEST_WORD: Final = icmpv4.ECHO_REQUEST << 8
_AMBIGUOUS: Final = 0xFFFF - _REQUEST_WORD
"""The checksum of a request whose reply's is one of the two zeros."""
_TTL_WORD: Final = ipv4.TTL << 8 | ipv4.ICMP


class QuickEcho:
    """Answers echo requests for one interface."""

    __slots__ = ("_address", "_counters", "_egress", "_ip", "_link", "_neighbors", "_size_limit")

    def __init__(
        self, link: bytes, ip: Ip, neighbors: Neighbors, egress: Egress, counters: Counters
    ) -> None:
        self._link = link
        self._address = ip.address
        self._size_limit = ip.mtu
        self._ip = ip
        self._neighbors = neighbors
        self._egress = egress
        self._counters = counters

    def answer(self, frame: memoryview, now: float) -> bool:
        """Answer a frame of `SIZE` octets or more; return False if it is one for the layers."""
        (
            to, _, kind, version, _, total, _, fragment, _, protocol, _, source, destination,
            message, code, field, rest,
        ) = _HEADERS.unpack_from(frame)  # fmt: skip
        ip = self._ip
        if (
            kind != ethernet.TYPE_IPV4
            or version != 0x45
            or protocol != ipv4.ICMP
            or message != icmpv4.ECHO_REQUEST
            or code
            or fragment & ipv4.FRAGMENT_MASK
            or destination != self._address
            or to != self._link
            or source != ip.legal_source
            or ip.hops.get(source) != source
            or not 28 <= total <= self._size_limit
            or len(frame) < 14 + total
            or frame[6] & 1
        ):
            return False
        end = 14 + total
        if (
            int.from_bytes(frame[14:34], "big") % 65535
            or not is_valid(frame[34:end])
            or field == _AMBIGUOUS
        ):
            return False
        link = self._neighbors.lookup(source, now)
        if link is None:
            return False
        field += _REQUEST_WORD
        field = (field & 0xFFFF) + (field >> 16)
        identification = ip.identifications.take(source)
        words = 0x4500 + total + identification + _TTL_WORD + self._address + source
        head = _REPLY.pack(
            link, 0x45, 0, total, identification, 0, ipv4.TTL, ipv4.ICMP,
            65535 - (words % 65535 or 65535), self._address, source, 0, 0, field, rest,
        )  # fmt: skip
        counters = self._counters
        counters.quick_echoes += 1
        counters.if_in_octets += len(frame)
        self._egress.send(vnet.PLAIN, head, bytes(frame[SIZE:end]))
        return True
