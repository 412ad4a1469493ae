"""IPv4: which packets are ours, putting fragments together, and sending (RFC 791, 1122).

Received packets pass, in this order: header (version, sizes, checksum), destination, source,
reassembly, protocol. Packets for others are dropped: a host is no router. TTL is not looked at,
because a packet that has arrived has arrived (RFC 1122, 3.2.1.7).

Packets to our own address never reach the link: they go through `local`, a bounded queue that
`Stack` feeds back, so a task can talk to another through the same sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from net_server.wire import Octets, ParseError, ethernet, ipv4, vnet

from .counters import Counters
from .egress import Egress
from .fragmentation import fragments
from .neighbors import Fragment, Neighbors
from .reassembly import Reassembly
from .routes import (
    ALL_HOSTS,
    LIMITED_BROADCAST,
    LOOPBACK_NET,
    Prefix,
    Route,
    Routes,
    is_multicast,
)

LOCAL_LIMIT: Final = 64
"""Packets to ourselves that wait."""
HOPS_LIMIT: Final = 1024
"""Destinations whose next hop is remembered."""
_IDENTIFICATION_STREAMS: Final = 256


class Packet(NamedTuple):
    """A whole packet for us, as a protocol above IP sees it. The octets are valid for the call."""

    header: ipv4.Header
    octets: memoryview
    """From the IP header on, without padding."""
    payload: memoryview
    group: bool
    """It came to more than us, by its IP or its link address."""
    trusted: bool
    """The device vouches for the transport checksum."""
    gso_size: int
    """Not 0: the payload stands for several datagrams of so many octets each."""


Handler = Callable[[Packet, float], None]


class Identifications:
    """Numbers for fragments: unpredictable, and unique for long to one peer (RFC 6864, 7739)."""

    def __init__(self, draw: Callable[[int], int]) -> None:
        self._secret = draw(32)
        self._next = [draw(16) for _ in range(_IDENTIFICATION_STREAMS)]

    def take(self, destination: int) -> int:
        """Return the next number for a destination."""
        stream = (destination ^ self._secret) % _IDENTIFICATION_STREAMS
        number = self._next[stream] = self._next[stream] + 1 & 0xFFFF
        return number


class Ip:
    """One interface's IPv4. `handlers` maps protocol numbers to what is above."""

    def __init__(
        self,
        prefix: Prefix,
        mtu: int,
        counters: Counters,
        egress: Egress,
        neighbors: Neighbors,
        draw: Callable[[int], int],
    ) -> None:
        self.address = prefix.address
        self.prefix = prefix
        self.mtu = mtu
        self.payload_limit = mtu - ipv4.HEADER_SIZE
        self.routes = Routes()
        self.handlers: dict[int, Handler] = {}
        self.on_unknown_protocol: Handler | None = None
        self.local: deque[bytes] = deque()
        self.reassembly = Reassembly(counters)
        self._counters = counters
        self._egress = egress
        self._neighbors = neighbors
        self.identifications = Identifications(draw)
        self._broadcasts = {LIMITED_BROADCAST, prefix.broadcast} - {None}
        self.legal_source = -1
        """The source that was found legal last."""
        self.hops: dict[int, int] = {}
        """Next hops of destinations that are one other host's, so they are looked up once."""

    def is_broadcast(self, address: int) -> bool:
        """Return whether the address means every host of the link."""
        return address in self._broadcasts

    def is_ours(self, address: int) -> bool:
        """Return whether packets to the address stay in this host."""
        return address == self.address or address >> 24 == LOOPBACK_NET

    def receive(
        self, octets: memoryview, now: float, *, group: bool, trusted: bool, gso_size: int
    ) -> None:
        """Take a packet from the link.

        Args:
            octets: from the IP header on, perhaps with padding.
            group: the frame came to a group or broadcast address of the link.
        """
        counters = self._counters
        counters.ip_in_receives += 1
        try:
            header = ipv4.parse(octets)
        except ParseError:
            counters.ip_in_hdr_errors += 1
            return
        destination, source = header.destination, header.source
        if destination == self.address:
            if group:
                # RFC 1122, 3.3.6: a unicast packet in a broadcast frame
                counters.ip_in_addr_errors += 1
                return
        elif destination in self._broadcasts or destination == ALL_HOSTS:
            group = True
        else:
            counters.ip_in_addr_errors += 1
            return
        if source != self.legal_source:
            if not self._is_legal_source(source):
                counters.ip_in_addr_errors += 1
                return
            self.legal_source = source
        octets = octets[: header.total_size]
        if header.flags_offset & ipv4.FRAGMENT_MASK:
            self._receive_fragment(header, octets, now, group=group)
        else:
            self._deliver(header, octets, now, group, trusted, gso_size)

    def _is_legal_source(self, source: int) -> bool:
        """Return whether a source can be another host's (RFC 1122, 3.2.1.3)."""
        if self.is_ours(source) or source in self._broadcasts:
            return False
        if source == self.prefix.network and self.prefix.broadcast is not None:
            return False
        return source >> 28 < 14 and source >> 24 != 0

    def receive_local(self, packet: bytes, now: float) -> None:
        """Take a packet that we sent to ourselves."""
        self._counters.ip_in_receives += 1
        octets = memoryview(packet)
        self._deliver(ipv4.parse(octets), octets, now, False, True, 0)

    def _receive_fragment(
        self, header: ipv4.Header, octets: memoryview, now: float, *, group: bool
    ) -> None:
        whole = self.reassembly.receive(header, octets, now, group=group)
        if whole is not None:
            octets = memoryview(whole)
            self._deliver(ipv4.parse(octets), octets, now, group, False, 0)

    def _deliver(
        self,
        header: ipv4.Header,
        octets: memoryview,
        now: float,
        group: bool,
        trusted: bool,
        gso_size: int,
    ) -> None:
        packet = Packet(header, octets, octets[header.header_size :], group, trusted, gso_size)
        handler = self.handlers.get(header.protocol)
        if handler is None:
            self._counters.ip_in_unknown_protos += 1
            if self.on_unknown_protocol is not None:
                self.on_unknown_protocol(packet, now)
        else:
            self._counters.ip_in_delivers += 1
            handler(packet, now)

    def send(
        self,
        destination: int,
        protocol: int,
        head: bytes,
        body: Octets,
        now: float,
        device: bytes = vnet.PLAIN,
    ) -> bool:
        """Send a datagram; return False if there is no route to its destination.

        Args:
            head: the header of the protocol above; `body` follows it. Together they are at most
                `ipv4.PAYLOAD_LIMIT` octets. `body` may be aliased until the frames are written.
            device: what the device shall do with the packet. Only for what fits `payload_limit`.
        """
        self._counters.ip_out_requests += 1
        size = len(head) + len(body)
        identification = self.identifications.take(destination)
        hop = self.hops.get(destination)
        if hop is None:
            if self.is_ours(destination):
                header = ipv4.emit(destination, destination, protocol, size, identification)
                self._send_local(b"".join((header, head, body)))
                return True
            hop = self._next_hop(destination)
            if hop is None:
                self._counters.ip_out_no_routes += 1
                return False
        link = self._neighbors.lookup(hop, now) or self._group_header(hop)
        if size <= self.payload_limit:
            head = ipv4.emit(self.address, destination, protocol, size, identification) + head
            if link is not None:
                self._egress.send(device, link + head, body)
                return True
            packets: tuple[Fragment, ...] = (Fragment(device, head, bytes(body)),)
        else:
            payload = b"".join((head, body))
            packets = self._fragments(destination, protocol, payload, identification)
        if link is None:
            return self._hold(hop, packets, now)
        for device, head, body in packets:
            self._egress.send(device, link + head, body)
        return True

    def _send_local(self, packet: bytes) -> None:
        if len(self.local) < LOCAL_LIMIT:
            self.local.append(packet)
        else:
            self._counters.ip_out_discards += 1

    def _next_hop(self, destination: int) -> int | None:
        if destination in self._broadcasts or is_multicast(destination):
            return destination
        hop = self.routes.next_hop(destination)
        if hop is not None:
            if len(self.hops) >= HOPS_LIMIT:
                self.hops.clear()
            self.hops[destination] = hop
        return hop

    def add_route(self, route: Route) -> None:
        """Add a route; what was looked up before may go another way now."""
        self.routes.add(route)
        self.hops.clear()

    def _group_header(self, hop: int) -> bytes | None:
        """Return the Ethernet header of packets to a group; None for one host's address."""
        if hop in self._broadcasts:
            return self._neighbors.header_for(ethernet.BROADCAST)
        if is_multicast(hop):
            return self._neighbors.header_for(ethernet.multicast_ipv4(hop))
        return None

    def _hold(self, hop: int, packets: tuple[Fragment, ...], now: float) -> bool:
        if not self._neighbors.hold(hop, packets, now):
            self._counters.ip_out_discards += 1
        return True

    def _fragments(
        self, destination: int, protocol: int, payload: bytes, identification: int
    ) -> tuple[Fragment, ...]:
        view = memoryview(payload)
        packets = tuple(
            Fragment(
                vnet.PLAIN,
                ipv4.emit(self.address, destination, protocol, size, identification, flags),
                view[offset : offset + size],
            )
            for offset, size, flags in fragments(len(payload), self.mtu)
        )
        self._counters.ip_frag_oks += 1
        self._counters.ip_frag_creates += len(packets)
        return packets
