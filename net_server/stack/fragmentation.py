"""Splitting a datagram that is larger than the link's MTU (RFC 791, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator

from net_server.wire.ipv4 import HEADER_SIZE, MORE_FRAGMENTS


def fragments(size: int, mtu: int) -> Iterator[tuple[int, int, int]]:
    """Yield `(offset, size, flags_offset)` of each fragment of a payload of `size` octets.

    All but the last have the same size: the largest multiple of 8 octets that fits the MTU.

    Args:
        size: octets of payload, more than fit one packet.
        mtu: octets in one packet, header included; at least 28.
    """
    step = (mtu - HEADER_SIZE) & ~7
    for offset in range(0, size, step):
        if offset + step < size:
            yield offset, step, MORE_FRAGMENTS | offset >> 3
        else:
            yield offset, size - offset, offset >> 3
