"""The TCP/IP server's interface: datagram sockets, echo, captures, and what `netstat` would show.

Addresses are octets in network order: four for IPv4. A socket or a capture is a right to the
server's port that carries a badge: whoever holds it uses it with the `udp_` or `capture_`
operations, and when the last copy is gone the server closes it. Both survive the server's death;
datagrams and frames that waited in them do not, and a capture says so.
"""

from __future__ import annotations

import msgspec

from core.abi import Right
from core.userlib.interface import Bulk, Interface, operation


class Datagram(msgspec.Struct, frozen=True, array_like=True):
    """What came to a socket, beside the octets of the datagram.

    With an `errno`, it is an error that was reported about a datagram sent: `source` and `port` are
    where that one went, `destination` is who reported it, and the octets are what was quoted of it.
    """

    source: bytes
    port: int
    destination: bytes
    """Our address; another if the datagram was a broadcast."""
    errno: int
    waiting: int
    """Datagrams that wait in the socket behind this one."""


class Echo(msgspec.Struct, frozen=True, array_like=True):
    """The answer to an echo."""

    source: bytes
    round_trip_ns: int
    ttl: int
    size: int
    intact: bool
    """The octets that came back are those that were sent."""


class CaptureBatch(msgspec.Struct, frozen=True, array_like=True):
    """What a capture says beside the frames; `net_server.capture.records` decodes those."""

    dropped: int
    """Frames that found the ring full, since the capture began."""
    interrupted: bool
    """The server died since the last batch: frames are missing, nobody knows how many."""


class Address(msgspec.Struct, frozen=True, array_like=True):
    """An address of an interface."""

    interface: str
    link: bytes
    address: bytes
    prefix_bits: int
    mtu: int


class NeighborInfo(msgspec.Struct, frozen=True, array_like=True):
    """An entry of the neighbor table."""

    address: bytes
    link: bytes | None
    state: str
    age_s: float | None
    """Seconds since the neighbor said so; None: never."""


class RouteInfo(msgspec.Struct, frozen=True, array_like=True):
    """An entry of the routing table."""

    network: bytes
    prefix_bits: int
    gateway: bytes | None


class SocketInfo(msgspec.Struct, frozen=True, array_like=True):
    """A bound socket."""

    protocol: str
    port: int
    waiting: int
    dropped: int


class Network(Interface):
    """A host on a network."""

    @operation
    async def udp_bind(self, port: int, broadcast: bool) -> tuple[int, Right]:
        """Return the port, and the right that is the socket.

        Args:
            port: 0 for any that is free.
            broadcast: whether broadcasts may be sent and shall be received.

        Raises:
            Refused: EADDRINUSE, EINVAL, or ENOBUFS.
        """

    @operation
    async def udp_send(self, address: bytes, port: int, data: Bulk) -> None:
        """Send a datagram from the socket; that it is lost on its way is no error.

        Raises:
            Refused: EBADF (the right is no socket), EMSGSIZE, EACCES, ENETUNREACH, EINVAL;
                ENETDOWN, another server holds the link.
        """

    @operation(waits=True, room="size")
    async def udp_receive(self, size: int) -> tuple[Datagram, Bulk]:
        """Wait for a datagram, or an error about one that was sent.

        Args:
            size: at most so many octets of the datagram; the rest is cut off.

        Raises:
            Refused: EBADF, also when the socket is closed while waiting; EINVAL.
        """

    @operation
    async def udp_close(self) -> None:
        """Give the socket's port back, even if copies of its right remain."""

    @operation(waits=True)
    async def ping(self, address: bytes, timeout_ms: int, data: Bulk) -> Echo:
        """Send an ICMP echo and wait for the answer.

        Raises:
            Refused: ETIMEDOUT; EMSGSIZE; ENETUNREACH, EHOSTUNREACH and the like, as reported;
                ENETDOWN, another server holds the link.
        """

    @operation
    async def capture_start(self, snaplen: int) -> Right:
        """Return a right that is a capture of all frames from now on, in both directions.

        Args:
            snaplen: octets to keep of each frame; 0 for all.

        Raises:
            Refused: ENOBUFS, EINVAL.
        """

    @operation(waits=True, room="size")
    async def capture_next(self, size: int) -> tuple[CaptureBatch, Bulk]:
        """Wait for frames, and return as many as fit `size` octets.

        Raises:
            Refused: EBADF (the right is no capture), EINVAL.
        """

    @operation
    async def capture_stop(self) -> None:
        """End the capture, even if copies of its right remain."""

    @operation(idempotent=True)
    async def addresses(self) -> list[Address]:
        """Return the addresses of this host."""

    @operation(idempotent=True)
    async def neighbors(self) -> list[NeighborInfo]:
        """Return the neighbor table."""

    @operation(idempotent=True)
    async def routes(self) -> list[RouteInfo]:
        """Return the routing table, the most specific first."""

    @operation(idempotent=True)
    async def sockets(self) -> list[SocketInfo]:
        """Return the bound sockets by port."""

    @operation(idempotent=True)
    async def statistics(self) -> dict[str, int]:
        """Return the counters, named as in the MIBs (`ipInReceives`, `udpNoPorts`...)."""

    @operation(waits=True, idempotent=True)
    async def link_take(self, timeout_ms: int) -> None:
        """Take the link over from the server that holds it, if that agrees; wait until it is up.

        Args:
            timeout_ms: how long the holder may take to answer.

        Raises:
            Refused: EBUSY, ETIMEDOUT, EALREADY, EINVAL: see `Link.take_over`.
        """
