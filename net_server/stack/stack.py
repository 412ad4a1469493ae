"""A host's network interface: frames and time in, frames out.

    frame --> Stack.receive_frame --> ARP --> Neighbors
                     |
                     +--> Ip.receive --> (Reassembly) --> Icmp | Udp --> Socket.queue
                                                             |      |
    Stack.egress <-- Egress.send <-- (fragments) <-- Ip.send <------+<-- Udp.send

Theory of operation. Nothing waits and nothing is scheduled: a frame is followed to its end before
`receive_frame` returns, and what it causes to be sent is in `egress.frames` then. The owner of
the link writes those frames before it reads the next into the same buffer, calls `handle_timers`
no earlier than `next_deadline`, and is called back through `Socket.notify` and the like, where it
may only wake.

No frame can make any of this raise, and every table is bounded: that is tested by fuzzing.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Final

from net_server.wire import ethernet, ipv4, vnet
from net_server.wire.icmpv4 import ECHO_REQUEST

from .counters import Counters
from .egress import Egress
from .icmp import Icmp
from .ip import Ip
from .neighbors import Held, Neighbors
from .quick_echo import SIZE as ECHO_SIZE
from .quick_echo import QuickEcho
from .routes import Prefix, Route
from .udp import Udp

MTU_MIN: Final = 576
_TYPE: Final = struct.Struct("!H")


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """What an interface is told at its start.

    Attributes:
        link: this station's link address, six octets.
        prefix: its IPv4 address and the link's network.
        gateway: who takes packets for other networks.
        mtu: octets in one packet on the link.
        device_header: frames are sent with a virtio header before them.
        checksum_offload: the device finishes transport checksums; needs `device_header`.
    """

    link: bytes
    prefix: Prefix
    gateway: int | None = None
    mtu: int = 1500
    device_header: bool = False
    checksum_offload: bool = False


class Stack:
    """One interface with its protocols."""

    def __init__(self, configuration: Configuration, draw: Callable[[int], int]) -> None:
        """Begin with empty tables.

        Args:
            draw: returns so many random bits as an int; the only source of chance.
        """
        self.configuration = configuration
        self.counters = counters = Counters()
        self.egress = egress = Egress(counters, device_header=configuration.device_header)
        self.link = configuration.link
        prefix = configuration.prefix
        self.neighbors = Neighbors(self.link, prefix, counters, egress, self._neighbor_failed)
        mtu = max(configuration.mtu, MTU_MIN)
        self.ip = Ip(prefix, mtu, counters, egress, self.neighbors, draw)
        self.icmp = Icmp(self.ip, counters)
        offload = configuration.device_header and configuration.checksum_offload
        self.udp = Udp(self.ip, counters, draw, checksum_offload=offload)
        self.ip.add_route(Route(prefix))
        if configuration.gateway is not None:
            self.ip.add_route(Route(Prefix(0, 0), configuration.gateway))
        self._answer_echo = QuickEcho(self.link, self.ip, self.neighbors, egress, counters).answer
        self.ip.handlers = {ipv4.ICMP: self.icmp.receive, ipv4.UDP: self.udp.receive}
        self.ip.on_unknown_protocol = self.icmp.protocol_unreachable
        self.udp.on_no_port = self.icmp.port_unreachable
        self.icmp.reports[ipv4.UDP] = self.udp.receive_report

    def receive_frame(
        self, frame: memoryview, now: float, flags: int = 0, gso_size: int = 0
    ) -> None:
        """Take a frame from the link.

        Args: frame: from the Ethernet header on; may be overwritten once its consequences are
            written. flags: of the virtio header, 0 where there is none. gso_size: of the virtio
            header; 0 if the frame is one datagram's.
        """
        size = len(frame)
        if size >= ECHO_SIZE and frame[34] == ECHO_REQUEST and self._answer_echo(frame, now):
            return
        counters = self.counters
        counters.if_in_octets += size
        if size < ethernet.HEADER_SIZE or frame[6] & 1:
            counters.if_in_errors += 1
            return
        group = False
        if frame[:6] == self.link:
            counters.if_in_ucast_pkts += 1
        elif frame[0] & 1:
            counters.if_in_n_ucast_pkts += 1
            group = True
        else:
            counters.if_in_discards += 1
            return
        kind = _TYPE.unpack_from(frame, 12)[0]
        if kind == ethernet.TYPE_IPV4:
            trusted = flags & vnet.TRUSTED != 0
            self.ip.receive(frame[14:], now, group=group, trusted=trusted, gso_size=gso_size)
            if self.ip.local:
                self.settle(now)
        elif kind == ethernet.TYPE_ARP:
            self.neighbors.receive(frame[14:], now)
        else:
            counters.if_in_unknown_protos += 1

    def settle(self, now: float) -> None:
        """Deliver what was sent to ourselves; what that sends to ourselves again waits a turn."""
        for _ in range(len(self.ip.local)):
            self.ip.receive_local(self.ip.local.popleft(), now)

    def next_deadline(self, now: float) -> float:
        """Return when `handle_timers` has something to do; infinity if nothing is awaited."""
        if self.ip.local:
            return now
        return min(self.neighbors.deadline, self.ip.reassembly.deadline)

    def handle_timers(self, now: float) -> None:
        """Do what is due: ask neighbors again, give up datagrams that stayed incomplete."""
        self.neighbors.handle_timers(now)
        for expired in self.ip.reassembly.expire(now):
            self.icmp.reassembly_exceeded(expired, now)
        self.settle(now)

    def _neighbor_failed(self, datagram: Held) -> None:
        first = datagram[0]
        self.counters.ip_out_discards += 1
        self.icmp.neighbor_failed(first.head, first.body)
