"""ICMP: answering echo, sending our own, reporting errors and hearing of them (RFC 792, 1122).

When an error may be reported is a table of exceptions (RFC 1122, 3.2.2): never about an ICMP
error, never about what came to more than one host, never about a fragment other than the first,
and no more than a token bucket allows. An error quotes the packet it is about, as much as fits
576 octets.

Redirects, source quench and parameter problems are counted and change nothing: a host may ignore
the first from anyone and must ignore the second (RFC 6633).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, NamedTuple

from net_server.wire import Octets, ParseError, icmpv4, ipv4

from .counters import Counters
from .ip import Ip, Packet
from .rate_limit import TokenBucket
from .reassembly import Expired

ERRORS_PER_S: Final = 100.0
ERRORS_BURST: Final = 50
ECHOES_LIMIT: Final = 256
"""Tasks that may wait for answers to their echoes at once."""

_QUERIES: Final = frozenset((0, 8, 9, 10, 13, 14, 15, 16, 17, 18))
"""Types that are no errors, so an error may be reported about them."""

_ERRNO: Final = {
    icmpv4.NET_UNREACHABLE: errno.ENETUNREACH,
    icmpv4.PROTOCOL_UNREACHABLE: errno.ENOPROTOOPT,
    icmpv4.PORT_UNREACHABLE: errno.ECONNREFUSED,
    icmpv4.FRAGMENTATION_NEEDED: errno.EMSGSIZE,
    6: errno.ENETUNREACH,
    9: errno.ENETUNREACH,
    11: errno.ENETUNREACH,
}
"""Host error numbers for codes of "destination unreachable"; the others mean the host."""


class EchoReply(NamedTuple):
    """An answer to an echo of ours, or why there is none."""

    source: int
    sequence: int
    payload: bytes
    ttl: int
    errno: int = 0
    """Not 0: an ICMP error came instead, from `source`."""


class Report(NamedTuple):
    """An error that was reported about a packet of ours."""

    errno: int
    reporter: int
    """Who says so; our own address if the neighbor did not answer."""
    header: ipv4.Header
    quoted: memoryview
    """The quoted packet's payload, eight octets or more."""


class Icmp:
    """ICMP of one interface.

    `reports` maps a protocol to what hears of errors about its packets; `echoes` maps an identifier
    to what hears of the replies.
    """

    def __init__(self, ip: Ip, counters: Counters) -> None:
        self._ip = ip
        self._counters = counters
        self._bucket = TokenBucket(ERRORS_PER_S, ERRORS_BURST)
        self.reports: dict[int, Callable[[Report], None]] = {ipv4.ICMP: self._report_echo}
        self.echoes: dict[int, Callable[[EchoReply], None]] = {}

    def receive(self, packet: Packet, now: float) -> None:
        """Take an ICMP message for us."""
        counters = self._counters
        counters.icmp_in_msgs += 1
        try:
            message = icmpv4.parse(packet.payload)
        except ParseError:
            counters.icmp_in_errors += 1
            return
        kind = message.type
        if kind == icmpv4.ECHO_REQUEST:
            counters.icmp_in_echos += 1
            # RFC 1122, 3.2.2.6 lets a host ignore an echo to a group; answering amplifies attacks
            if not packet.group:
                self._answer(packet, message, now)
        elif kind == icmpv4.ECHO_REPLY:
            counters.icmp_in_echo_reps += 1
            self._hear_reply(packet, message)
        elif kind in icmpv4.ERRORS:
            self._count_error(kind)
            self._hear_error(packet, message)

    def _answer(self, packet: Packet, message: icmpv4.Message, now: float) -> None:
        self._counters.icmp_out_msgs += 1
        self._counters.icmp_out_echo_reps += 1
        # copied: the frame's buffer is used again before a held reply is sent
        data = bytes(packet.payload[icmpv4.HEADER_SIZE :])
        reply = icmpv4.emit_echo_reply(message, data)
        self._ip.send(packet.header.source, ipv4.ICMP, reply, data, now)

    def _hear_reply(self, packet: Packet, message: icmpv4.Message) -> None:
        hear = self.echoes.get(message.rest >> 16)
        if hear is not None and not packet.group:
            payload = bytes(packet.payload[icmpv4.HEADER_SIZE :])
            header = packet.header
            hear(EchoReply(header.source, message.rest & 0xFFFF, payload, header.ttl))

    def _count_error(self, kind: int) -> None:
        counters = self._counters
        if kind == icmpv4.DESTINATION_UNREACHABLE:
            counters.icmp_in_dest_unreachs += 1
        elif kind == icmpv4.TIME_EXCEEDED:
            counters.icmp_in_time_excds += 1
        elif kind == icmpv4.SOURCE_QUENCH:
            counters.icmp_in_src_quenchs += 1
        elif kind == icmpv4.REDIRECT:
            counters.icmp_in_redirects += 1
        else:
            counters.icmp_in_parm_probs += 1

    def _hear_error(self, packet: Packet, message: icmpv4.Message) -> None:
        if message.type == icmpv4.DESTINATION_UNREACHABLE:
            number = _ERRNO.get(message.code, errno.EHOSTUNREACH)
        elif message.type == icmpv4.TIME_EXCEEDED:
            number = errno.EHOSTUNREACH
        else:
            return
        quotation = packet.payload[icmpv4.HEADER_SIZE :]
        try:
            header = ipv4.parse_quoted(quotation)
        except ParseError:
            self._counters.icmp_in_errors += 1
            return
        quoted = quotation[header.header_size :]
        if self._ip.is_ours(header.source) and len(quoted) >= 8 and not header.offset:
            self._pass_on(Report(number, packet.header.source, header, quoted))

    def _pass_on(self, report: Report) -> None:
        hear = self.reports.get(report.header.protocol)
        if hear is not None:
            hear(report)

    def neighbor_failed(self, head: bytes, body: Octets) -> None:
        """Report to ourselves that a packet's next hop does not answer (RFC 1122, 2.4)."""
        packet = memoryview(b"".join((head, body)))
        header = ipv4.parse_quoted(packet)
        quoted = packet[header.header_size :]
        self._pass_on(Report(errno.EHOSTUNREACH, self._ip.address, header, quoted))

    def _report_echo(self, report: Report) -> None:
        if report.quoted[0] == icmpv4.ECHO_REQUEST:
            hear = self.echoes.get(int.from_bytes(report.quoted[4:6], "big"))
            if hear is not None:
                sequence = int.from_bytes(report.quoted[6:8], "big")
                hear(EchoReply(report.reporter, sequence, b"", 0, report.errno))

    def send_echo(
        self, destination: int, identifier: int, sequence: int, payload: Octets, now: float
    ) -> bool:
        """Send an echo request of at most `icmpv4.ECHO_LIMIT` octets; False: there is no route."""
        self._counters.icmp_out_msgs += 1
        self._counters.icmp_out_echos += 1
        head = icmpv4.emit(icmpv4.ECHO_REQUEST, 0, identifier << 16 | sequence, payload)
        return self._ip.send(destination, ipv4.ICMP, head, payload, now)

    def port_unreachable(self, packet: Packet, now: float) -> None:
        """Tell the sender of a datagram that nobody is bound to its port."""
        self._send_error(packet, icmpv4.DESTINATION_UNREACHABLE, icmpv4.PORT_UNREACHABLE, now)

    def protocol_unreachable(self, packet: Packet, now: float) -> None:
        """Tell the sender of a packet that its protocol is not spoken here."""
        self._send_error(packet, icmpv4.DESTINATION_UNREACHABLE, icmpv4.PROTOCOL_UNREACHABLE, now)

    def reassembly_exceeded(self, expired: Expired, now: float) -> None:
        """Tell the sender of a first fragment that the others did not come in time."""
        octets = memoryview(expired.packet)
        payload = octets[expired.header.header_size :]
        packet = Packet(expired.header, octets, payload, expired.group, False, 0)
        self._send_error(packet, icmpv4.TIME_EXCEEDED, icmpv4.REASSEMBLY_EXCEEDED, now)

    def _send_error(self, packet: Packet, kind: int, code: int, now: float) -> None:
        if not may_report(packet):
            return
        if not self._bucket.take(now):
            self._counters.icmp_out_rate_limited += 1
            return
        counters = self._counters
        counters.icmp_out_msgs += 1
        if kind == icmpv4.TIME_EXCEEDED:
            counters.icmp_out_time_excds += 1
        else:
            counters.icmp_out_dest_unreachs += 1
        quotation = bytes(packet.octets[: icmpv4.QUOTE_LIMIT])
        head = icmpv4.emit(kind, code, 0, quotation)
        self._ip.send(packet.header.source, ipv4.ICMP, head, quotation, now)


def may_report(packet: Packet) -> bool:
    """Return whether an ICMP error may be sent about a packet (RFC 1122, 3.2.2)."""
    if packet.group or packet.header.offset:
        return False
    if packet.header.protocol != ipv4.ICMP:
        return True
    return len(packet.payload) > 0 and packet.payload[0] in _QUERIES
