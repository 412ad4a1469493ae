"""Which frames and packets are taken, and how each one that is not is counted (RFC 1122, 3.2.1)."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from net_server.stack.counters import Counters
from net_server.stack.rate_limit import TokenBucket
from net_server.stack.routes import Prefix, Route, Routes, station_address
from net_server.wire import ParseError
from tests.net_server.peer import (
    BROADCAST_LINK,
    ELSEWHERE,
    OTHER,
    OUR_LINK,
    OURS,
    THEIR_LINK,
    THEIRS,
    Peer,
    number,
)

STRANGER = "02:00:00:00:00:99"


def frame(payload: Packet | bytes, **fields: Any) -> bytes:
    values: dict[str, Any] = {"src": THEIR_LINK, "dst": OUR_LINK, **fields}
    return bytes(Ether(**values) / payload)


def ip(**fields: Any) -> Packet:
    values: dict[str, Any] = {"src": THEIRS, "dst": OURS, **fields}
    packet: Packet = IP(**values) / UDP(dport=9)
    return packet


DROPS = [
    ("cut Ethernet header", frame(ip())[:13], "ifInErrors"),
    ("another station's frame", frame(ip(), dst=STRANGER), "ifInDiscards"),
    ("a group as source", frame(ip(), src="01:00:5e:00:00:01"), "ifInErrors"),
    ("IPv6", frame(IPv6()), "ifInUnknownProtos"),
    ("VLAN tag", frame(Dot1Q(vlan=3) / ip()), "ifInUnknownProtos"),
    ("802.3 size", frame(b"x" * 50, type=50), "ifInUnknownProtos"),
    ("version 6 in an IPv4 frame", frame(ip(version=6)), "ipInHdrErrors"),
    ("wrong header checksum", frame(ip(chksum=7)), "ipInHdrErrors"),
    ("another host's packet", frame(ip(dst=OTHER)), "ipInAddrErrors"),
    ("the network's address", frame(ip(dst="10.90.0.0"), dst=BROADCAST_LINK), "ipInAddrErrors"),
    (
        "a group we are not in",
        frame(ip(dst="239.1.2.3"), dst="01:00:5e:01:02:03"),
        "ipInAddrErrors",
    ),
    ("a loopback address from the link", frame(ip(dst="127.0.0.1")), "ipInAddrErrors"),
    ("our own address as source", frame(ip(src=OURS)), "ipInAddrErrors"),
    ("a loopback source", frame(ip(src="127.0.0.1")), "ipInAddrErrors"),
    ("a broadcast source", frame(ip(src="255.255.255.255")), "ipInAddrErrors"),
    ("the link's broadcast as source", frame(ip(src="10.90.0.255")), "ipInAddrErrors"),
    ("the network as source", frame(ip(src="10.90.0.0")), "ipInAddrErrors"),
    ("a group as IP source", frame(ip(src="224.0.0.1")), "ipInAddrErrors"),
    ("a reserved source", frame(ip(src="250.1.1.1")), "ipInAddrErrors"),
    ("no source", frame(ip(src="0.0.0.0")), "ipInAddrErrors"),
    ("a unicast packet in a broadcast frame", frame(ip(), dst=BROADCAST_LINK), "ipInAddrErrors"),
]


@pytest.mark.parametrize(
    ("octets", "counter"), [drop[1:] for drop in DROPS], ids=[drop[0] for drop in DROPS]
)
def test_dropped_in_silence_and_counted(octets: bytes, counter: str) -> None:
    peer = Peer()
    before = peer.count(counter)
    assert peer.send(octets) == []
    assert peer.count(counter) == before + 1
    assert peer.count("ipInDelivers") == 0


def test_legal_source_does_not_vouch_for_the_next() -> None:
    peer = Peer()
    assert len(peer.send(peer.packet() / ICMP())) == 1
    assert peer.send(peer.packet("127.0.0.1") / ICMP()) == []
    assert len(peer.send(peer.packet() / ICMP())) == 1


def test_counters_have_the_names_of_the_mibs() -> None:
    names = set(Counters().statistics())
    assert {
        "ifInOctets", "ipInReceives", "ipInHdrErrors", "ipInAddrErrors", "ipInUnknownProtos",
        "ipInDiscards", "ipInDelivers", "ipOutRequests", "ipOutDiscards", "ipOutNoRoutes",
        "ipReasmReqds", "ipReasmOKs", "ipReasmFails", "ipFragOKs", "ipFragFails", "ipFragCreates",
        "icmpInMsgs", "icmpInErrors", "icmpInDestUnreachs", "icmpInTimeExcds", "icmpInEchos",
        "icmpInEchoReps", "icmpOutMsgs", "icmpOutDestUnreachs", "icmpOutTimeExcds",
        "icmpOutEchos", "icmpOutEchoReps", "udpInDatagrams", "udpNoPorts", "udpInErrors",
        "udpOutDatagrams",
    } <= names  # fmt: skip


def test_longest_prefix_wins() -> None:
    routes = Routes()
    routes.add(Route(Prefix(0, 0), number(THEIRS)))
    routes.add(Route(Prefix.from_text("192.0.2.0/24"), number(OTHER)))
    routes.add(Route(Prefix.from_text("10.90.0.2/24")))
    assert routes.next_hop(number(ELSEWHERE)) == number(OTHER)
    assert routes.next_hop(number("10.90.0.200")) == number("10.90.0.200")
    assert routes.next_hop(number("8.8.8.8")) == number(THEIRS)


def test_route_for_the_same_network_is_replaced() -> None:
    routes = Routes()
    routes.add(Route(Prefix.from_text("192.0.2.7/24"), number(OTHER)))
    routes.add(Route(Prefix.from_text("192.0.2.9/24"), number(THEIRS)))
    assert [route.gateway for route in routes] == [number(THEIRS)]


def test_new_route_is_used_for_what_was_looked_up_before() -> None:
    peer = Peer(gateway=OTHER)
    peer.stack.icmp.send_echo(number(ELSEWHERE), 1, 1, b"", peer.now)
    peer.sent()
    peer.stack.ip.add_route(Route(Prefix.from_text("192.0.2.0/24"), number(THEIRS)))
    peer.stack.icmp.send_echo(number(ELSEWHERE), 1, 1, b"", peer.now)
    assert peer.sent()[0].dst == THEIR_LINK


def test_remembered_hops_are_bounded() -> None:
    peer = Peer(gateway=THEIRS)
    for index in range(5000):
        peer.stack.icmp.send_echo(number("192.0.0.0") + index, 1, 1, b"", peer.now)
        assert len(peer.stack.ip.hops) <= 1024


@pytest.mark.parametrize(
    ("text", "network", "broadcast"),
    [
        ("10.90.0.2/24", "10.90.0.0", "10.90.0.255"),
        ("10.90.7.2/16", "10.90.0.0", "10.90.255.255"),
        ("10.90.0.2/30", "10.90.0.0", "10.90.0.3"),
        ("10.90.0.2/31", "10.90.0.2", None),
        ("10.90.0.2/32", "10.90.0.2", None),
    ],
)
def test_prefix_knows_its_network_and_broadcast(
    text: str, network: str, broadcast: str | None
) -> None:
    prefix = Prefix.from_text(text)
    assert prefix.network == number(network)
    assert prefix.broadcast == (None if broadcast is None else number(broadcast))
    assert str(prefix) == text


@pytest.mark.parametrize(
    "text", ["", "10.90.0.2", "10.90.0.2/", "10.90.0.2/33", "10.90.0/8", "a/8"]
)
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        Prefix.from_text(text)


def test_station_address_is_given_or_made() -> None:
    prefix = Prefix.from_text("10.90.0.2/24")
    assert station_address("", prefix).hex(":") == OUR_LINK
    assert station_address("02:AB:00:00:00:01", prefix).hex(":") == "02:ab:00:00:00:01"
    for wrong in ("02:00", "01:00:5e:00:00:01", "zz:00:00:00:00:01", "é" * 12):
        with pytest.raises(ParseError):
            station_address(wrong, prefix)


def test_bucket_allows_a_burst_and_then_a_rate() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=5)
    assert [bucket.take(100.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [bucket.take(100.25) for _ in range(4)] == [True, True, False, False]
    assert not bucket.take(0.0)
    assert sum(bucket.take(1000.0) for _ in range(20)) == 5
