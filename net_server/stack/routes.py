"""Where a packet goes next: prefixes on the link, and gateways for all else (RFC 1122, 3.3.1)."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterator
from typing import Final

from net_server.wire import ParseError
from net_server.wire.ipv4 import from_text, to_text

LIMITED_BROADCAST: Final = 0xFFFF_FFFF
ALL_HOSTS: Final = 0xE000_0001
"""224.0.0.1, the one group that every host is a member of."""
LOOPBACK_NET: Final = 127


def is_multicast(address: int) -> bool:
    """Return whether the address names a group, 224.0.0.0/4."""
    return address >> 28 == 14


@dataclasses.dataclass(frozen=True, slots=True)
class Prefix:
    """An address and how many of its leading bits name the network."""

    address: int
    bits: int

    @property
    def mask(self) -> int:
        """The network's bits set, the host's clear."""
        return (0xFFFF_FFFF << (32 - self.bits)) & 0xFFFF_FFFF

    @property
    def network(self) -> int:
        """The network's own address, host part 0."""
        return self.address & self.mask

    @property
    def broadcast(self) -> int | None:
        """The directed broadcast address; None for /31 and /32, which have none (RFC 3021)."""
        return self.network | ~self.mask & 0xFFFF_FFFF if self.bits < 31 else None

    def __contains__(self, address: int) -> bool:
        return address & self.mask == self.network

    def __str__(self) -> str:
        return f"{to_text(self.address)}/{self.bits}"

    @classmethod
    def from_text(cls, text: str) -> Prefix:
        """Return the prefix written as `10.90.0.2/24`.

        Raises:
            ParseError: not an address, a slash and a number of 0..32.
        """
        address, slash, bits = text.partition("/")
        if not slash or not bits.isascii() or not bits.isdigit() or int(bits) > 32:
            raise ParseError(f"{text!r} is not an address with a prefix length")
        return cls(from_text(address), int(bits))


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """Packets for `prefix` go to `gateway`, or straight to their destination if it is None."""

    prefix: Prefix
    gateway: int | None = None


class Routes:
    """A routing table; the longest matching prefix wins."""

    def __init__(self) -> None:
        self._routes: list[Route] = []

    def add(self, route: Route) -> None:
        """Add a route; one for the same network is replaced."""
        same = (route.prefix.network, route.prefix.bits)
        kept = [r for r in self._routes if (r.prefix.network, r.prefix.bits) != same]
        self._routes = sorted([*kept, route], key=lambda r: -r.prefix.bits)

    def next_hop(self, destination: int) -> int | None:
        """Return the neighbor to hand a packet to, or None if there is no route."""
        for route in self._routes:
            prefix = route.prefix
            if destination & prefix.mask == prefix.network:
                return destination if route.gateway is None else route.gateway
        return None

    def __iter__(self) -> Iterator[Route]:
        return iter(tuple(self._routes))


def station_address(text: str, prefix: Prefix) -> bytes:
    """Return a station's link address: as given, or one of our own making from its IPv4 address.

    The one made is "locally administered", so it never meets a manufacturer's.

    Raises:
        ParseError: the text is not empty and not six octets of one station.
    """
    if not text:
        return b"\x02\x00" + prefix.address.to_bytes(4, "big")
    digits = text.replace(":", "")
    if len(digits) != 12 or not set(digits) <= set(string.hexdigits) or int(digits[1], 16) & 1:
        raise ParseError(f"{text!r} is not the link address of a station")
    return bytes.fromhex(digits)
