"""The TAP driver's interface: it owns a link, and lends the descriptor that frames pass through."""

from __future__ import annotations

import msgspec

from core.userlib.interface import Descriptor, Interface, operation


class LinkInfo(msgspec.Struct, frozen=True, array_like=True):
    """What the borrower of a link has to know of it."""

    name: str
    """The host's name for the device."""
    mtu: int
    """Octets in one packet."""
    device_header: bool
    """Every frame has a virtio header of 10 octets before it."""
    checksum_offload: bool
    """The device takes and gives frames whose transport checksum is not finished."""
    udp_segmentation: bool
    """The device takes and gives UDP frames that stand for several datagrams."""
    host_address: str
    """The host's own IPv4 address on the link, with prefix length."""


class Link(Interface):
    """A link between the host and a network server."""

    @operation(idempotent=True)
    async def lend(self) -> tuple[LinkInfo, Descriptor]:
        """Return the link's descriptor; reading gives a frame, writing sends one.

        A device that has been removed is made again.
        """

    @operation(idempotent=True)
    async def namespace(self) -> Descriptor:
        """Return a descriptor of the network namespace that the host's side of the link is in.

        Raises:
            Refused: ENOENT, the link is in the host's own namespace.
        """
