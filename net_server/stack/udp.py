"""UDP: sockets bound to ports, and the datagrams that wait in them (RFC 768, RFC 1122 section 4.1).

A socket's queue holds datagrams and, in the order in which they came, errors that were reported
about datagrams it sent: RFC 1122 section 4.1.3.3 wants the application to hear of them. A queue
that is full drops what comes last and counts it, so nobody's slowness costs memory.

A frame with a GSO size stands for several datagrams; it is taken apart here, because only here a
datagram's own size matters.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from net_server.wire import Octets, ParseError, ipv4, udp, vnet

from .counters import Counters
from .icmp import Report
from .ip import Ip, Packet

SOCKETS_LIMIT: Final = 1024
QUEUE_OCTETS_LIMIT: Final = 1 << 20
"""Octets in one socket's queue, each datagram charged for its own keeping."""
_DATAGRAM_CHARGE: Final = 128
EPHEMERAL_FIRST: Final = 49_152
"""RFC 6335: ports from here on are nobody's; a bind to port 0 gets one of them by lot (RFC
6056)."""
_EPHEMERAL_COUNT: Final = 65_536 - EPHEMERAL_FIRST

_TRANSPORT_START: Final = 14 + ipv4.HEADER_SIZE
_PARTIAL: Final = vnet.emit(
    vnet.Header(vnet.NEEDS_CHECKSUM, vnet.GSO_NONE, 0, 0, _TRANSPORT_START, udp.CHECKSUM_OFFSET)
)


class UdpError(Exception):
    """A bind or a send that cannot be done; `errno` is the host's number for the reason."""

    def __init__(self, number: int, detail: str) -> None:
        super().__init__(detail)
        self.errno = number
        self.detail = detail


class Datagram(NamedTuple):
    """What a socket received. With an `errno`, it is an error instead: see `source`."""

    source: int
    """Who sent it; of an error, to whom the datagram went that it is about."""
    port: int
    """The port of `source`."""
    destination: int
    """Ours, a broadcast address or a group; of an error, who reported it."""
    payload: bytes
    """Of an error, what it quotes of the datagram."""
    errno: int = 0


class Socket:
    """A port that somebody is bound to. `notify` is called when the queue ceases to be empty."""

    __slots__ = ("_octets", "broadcast", "dropped", "notify", "port", "queue")

    def __init__(self, port: int, *, broadcast: bool) -> None:
        self.port = port
        self.broadcast = broadcast
        """May send to broadcast addresses, and receives what was sent to them."""
        self.queue: deque[Datagram] = deque()
        self.dropped = 0
        self.notify: Callable[[], None] = lambda: None
        self._octets = 0

    def put(self, datagram: Datagram) -> bool:
        """Queue a datagram; return False if there is no room for it."""
        charge = len(datagram.payload) + _DATAGRAM_CHARGE
        if self._octets + charge > QUEUE_OCTETS_LIMIT:
            self.dropped += 1
            return False
        self._octets += charge
        self.queue.append(datagram)
        if len(self.queue) == 1:
            self.notify()
        return True

    def take(self) -> Datagram:
        """Return the datagram that waits longest; the queue is not empty."""
        datagram = self.queue.popleft()
        self._octets -= len(datagram.payload) + _DATAGRAM_CHARGE
        return datagram


class Udp:
    """UDP of one interface."""

    def __init__(
        self, ip: Ip, counters: Counters, draw: Callable[[int], int], *, checksum_offload: bool
    ) -> None:
        self._ip = ip
        self._counters = counters
        self._draw = draw
        self._offload = checksum_offload
        self.sockets: dict[int, Socket] = {}
        self.on_no_port: Callable[[Packet, float], None] | None = None

    def bind(self, port: int, *, broadcast: bool = False) -> Socket:
        """Return a new socket.

        Args:
            port: 0..65535; 0: any that is free.

        Raises:
            UdpError: EINVAL, EADDRINUSE, or ENOBUFS when there are too many sockets.
        """
        if not 0 <= port <= 0xFFFF:
            raise UdpError(errno.EINVAL, f"{port} is not a port")
        if len(self.sockets) >= SOCKETS_LIMIT:
            raise UdpError(errno.ENOBUFS, f"{SOCKETS_LIMIT} sockets are bound already")
        if port == 0:
            port = self._free_port()
        elif port in self.sockets:
            raise UdpError(errno.EADDRINUSE, f"UDP port {port} is bound already")
        socket = self.sockets[port] = Socket(port, broadcast=broadcast)
        return socket

    def _free_port(self) -> int:
        # terminates: there are more ports than sockets
        offset = self._draw(16)
        while True:
            port = EPHEMERAL_FIRST + offset % _EPHEMERAL_COUNT
            if port not in self.sockets:
                return port
            offset += 1

    def close(self, socket: Socket) -> None:
        """Give a socket's port back; what waits in it is dropped."""
        if self.sockets.get(socket.port) is socket:
            del self.sockets[socket.port]

    def receive(self, packet: Packet, now: float) -> None:
        """Take a UDP datagram for us."""
        counters = self._counters
        payload = packet.payload
        try:
            header = udp.parse(payload)
        except ParseError:
            counters.udp_in_errors += 1
            return
        source, destination = packet.header.source, packet.header.destination
        payload = payload[: header.size]
        verify = header.checksum and not packet.trusted
        if verify and not udp.is_intact(payload, source, destination):
            counters.udp_in_errors += 1
            return
        socket = self.sockets.get(header.destination)
        if socket is None or (packet.group and not socket.broadcast):
            counters.udp_no_ports += 1
            if self.on_no_port is not None:
                self.on_no_port(packet, now)
            return
        data = payload[udp.HEADER_SIZE :]
        step = packet.gso_size or len(data) or 1
        for start in range(0, len(data) or 1, step):
            piece = bytes(data[start : start + step])
            if socket.put(Datagram(source, header.source, destination, piece)):
                counters.udp_in_datagrams += 1
            else:
                counters.udp_in_overflows += 1

    def receive_report(self, report: Report) -> None:
        """Hear of an error about a datagram of ours."""
        port = int.from_bytes(report.quoted[0:2], "big")
        remote_port = int.from_bytes(report.quoted[2:4], "big")
        socket = self.sockets.get(port)
        if socket is not None:
            data = bytes(report.quoted[udp.HEADER_SIZE :])
            destination = report.header.destination
            socket.put(Datagram(destination, remote_port, report.reporter, data, report.errno))

    def send(
        self, socket: Socket, destination: int, port: int, payload: Octets, now: float
    ) -> None:
        """Send a datagram from a socket.

        Args:
            payload: may be aliased until the frames are written.

        Raises: UdpError: EINVAL, EMSGSIZE, EACCES (broadcast from a socket that may not) or
            ENETUNREACH.
        """
        ip = self._ip
        if not 0 < port <= 0xFFFF or not 0 < destination <= 0xFFFF_FFFF:
            raise UdpError(errno.EINVAL, "a datagram needs an address and a port to go to")
        size = len(payload)
        if size > udp.PAYLOAD_LIMIT:
            raise UdpError(errno.EMSGSIZE, f"{size} octets exceed {udp.PAYLOAD_LIMIT}")
        if ip.is_broadcast(destination) and not socket.broadcast:
            raise UdpError(errno.EACCES, "the socket was not bound for broadcasts")
        source = destination if ip.is_ours(destination) else ip.address
        device = vnet.PLAIN
        if self._offload and size + udp.HEADER_SIZE <= ip.payload_limit and source != destination:
            device = _PARTIAL
            head = udp.emit_partial(source, socket.port, destination, port, size)
        else:
            head = udp.emit(source, socket.port, destination, port, payload)
        if not ip.send(destination, ipv4.UDP, head, payload, now, device):
            raise UdpError(errno.ENETUNREACH, "no route to the destination")
        self._counters.udp_out_datagrams += 1
