"""Echo, and when errors are reported about what (RFC 792; 1122, 3.2.2; 1812, 4.3.2)."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from net_server.stack import icmp
from net_server.stack.icmp import EchoReply
from net_server.wire import icmpv4
from tests.net_server.peer import (
    BROADCAST_LINK,
    ELSEWHERE,
    OUR_LINK,
    OURS,
    THEIR_LINK,
    THEIRS,
    Peer,
    is_intact,
    number,
)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=1472))
def test_echo_comes_back_unchanged(identifier: int, sequence: int, data: bytes) -> None:
    peer = Peer()
    (reply,) = peer.send(peer.packet() / ICMP(id=identifier, seq=sequence) / data)
    assert (reply.src, reply.dst) == (OUR_LINK, THEIR_LINK)
    assert (reply[IP].src, reply[IP].dst, reply[IP].ttl) == (OURS, THEIRS, 64)
    assert (reply[ICMP].type, reply[ICMP].code) == (0, 0)
    assert (reply[ICMP].id, reply[ICMP].seq) == (identifier, sequence)
    assert bytes(reply[ICMP].payload) == data
    assert is_intact(reply)


def test_padding_of_a_short_frame_is_no_data() -> None:
    peer = Peer()
    frame = bytes(peer.packet() / ICMP(id=1, seq=2) / b"x")
    (reply,) = peer.send(frame + bytes(60 - len(frame)))
    assert len(reply[IP]) == reply[IP].len == 29


def test_echo_with_options_is_answered_without_them() -> None:
    peer = Peer()
    (reply,) = peer.send(
        peer.packet(options=[IPOption_RR(routers=["0.0.0.0"] * 3)]) / ICMP() / b"a"
    )
    assert reply[IP].ihl == 5
    assert bytes(reply[ICMP].payload) == b"a"


def test_echo_with_a_ttl_of_one_is_answered() -> None:
    peer = Peer()
    assert len(peer.send(peer.packet(ttl=1) / ICMP())) == 1


def test_echo_of_a_neighbor_that_is_not_known_is_answered_once_it_is() -> None:
    peer = Peer(known=False)
    (question,) = peer.send(peer.packet() / ICMP(id=9) / b"kept though the buffer is used again")
    assert question[ARP].pdst == THEIRS
    answer = ARP(op=2, hwsrc=THEIR_LINK, psrc=THEIRS, hwdst=OUR_LINK, pdst=OURS)
    (reply,) = peer.send(Ether(src=THEIR_LINK, dst=OUR_LINK) / answer)
    assert bytes(reply[ICMP].payload) == b"kept though the buffer is used again"


@pytest.mark.parametrize("size", [1473, 1480, 1481, 9000, 65_507])
def test_large_echo_comes_back_in_fragments(size: int) -> None:
    peer = Peer(mtu=1500)
    data = random.Random(size).randbytes(size)
    whole = bytes(IP(src=THEIRS, dst=OURS) / ICMP(id=3) / data)
    frames = peer.send(Ether(src=THEIR_LINK, dst=OUR_LINK, type=0x800) / whole)
    assert all(len(frame[IP]) <= 1500 for frame in frames)
    assert len({frame[IP].id for frame in frames}) == 1
    pieces = sorted(frames, key=lambda frame: int(frame[IP].frag))
    assert b"".join(bytes(frame[IP].payload) for frame in pieces)[8:] == data


def test_icmp_with_a_wrong_checksum_is_counted_and_dropped() -> None:
    peer = Peer()
    assert peer.send(peer.packet() / ICMP(chksum=1) / b"abc") == []
    assert peer.count("icmpInErrors") == 1


@pytest.mark.parametrize(
    ("destination", "to"),
    [
        ("255.255.255.255", BROADCAST_LINK),
        ("10.90.0.255", BROADCAST_LINK),
        ("224.0.0.1", "01:00:5e:00:00:01"),
        (OURS, BROADCAST_LINK),
    ],
)
def test_echo_to_more_than_us_is_not_answered(destination: str, to: str) -> None:
    peer = Peer()
    frame = Ether(src=THEIR_LINK, dst=to) / IP(src=THEIRS, dst=destination) / ICMP()
    assert peer.send(frame) == []


def frame_about(layers: Packet, to: str = OUR_LINK, **fields: Any) -> Packet:
    values = {"src": THEIRS, "dst": OURS, **fields}
    return Ether(src=THEIR_LINK, dst=to) / IP(**values) / layers


def broadcast_about(**fields: Any) -> Packet:
    return frame_about(UDP(dport=9), to=BROADCAST_LINK, **fields)


_UNREACHABLE = ICMP(type=3, code=3) / IP(src=OURS, dst=THEIRS) / UDP(sport=1, dport=2)

ERROR_RULES = [
    ("UDP to a port without socket", frame_about(UDP(dport=9)), (3, 3)),
    ("a protocol not spoken", frame_about(Raw(b"12345678"), proto=132), (3, 2)),
    ("TCP, which is not spoken", frame_about(TCP(dport=80)), (3, 2)),
    ("UDP to the limited broadcast", broadcast_about(dst="255.255.255.255"), None),
    ("UDP to the link's broadcast", broadcast_about(dst="10.90.0.255"), None),
    ("UDP to all hosts", frame_about(UDP(dport=9), dst="224.0.0.1", to="01:00:5e:00:00:01"), None),
    ("UDP to us in a broadcast frame", broadcast_about(), None),
    ("an ICMP error", frame_about(_UNREACHABLE), None),
    ("an ICMP type without meaning", frame_about(ICMP(type=200)), None),
    ("UDP from a broadcast address", frame_about(UDP(dport=9), src="10.90.0.255"), None),
    ("UDP from a group", frame_about(UDP(dport=9), src="224.0.0.5"), None),
    ("UDP from the reserved class", frame_about(UDP(dport=9), src="240.0.0.1"), None),
    ("UDP from nowhere", frame_about(UDP(dport=9), src="0.0.0.0"), None),
    ("UDP from a loopback address", frame_about(UDP(dport=9), src="127.0.0.1"), None),
    ("UDP from our own address", frame_about(UDP(dport=9), src=OURS), None),
    ("UDP with a wrong checksum", frame_about(UDP(dport=9, chksum=1)), None),
    ("UDP with a size that is not true", frame_about(UDP(dport=9, len=99)), None),
    ("UDP for another host", frame_about(UDP(dport=9), dst="10.90.0.9"), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("frame", "expected"), [rule[1:] for rule in ERROR_RULES], ids=[rule[0] for rule in ERROR_RULES]
)
def test_error_is_reported_about(frame: Packet, expected: tuple[int, int] | None) -> None:
    peer = Peer()
    answers = peer.send(frame)
    assert [(answer[ICMP].type, answer[ICMP].code) for answer in answers] == (
        [] if expected is None else [expected]
    )
    for answer in answers:
        assert is_intact(answer)
        assert answer[IP].dst == THEIRS
        assert bytes(answer)[14 + 28 :] == bytes(frame[IP])[:548]


def test_error_about_a_large_datagram_fits_576_octets() -> None:
    peer = Peer()
    frame = bytes(peer.packet() / UDP(dport=9) / bytes(1400))
    (error,) = peer.send(frame)
    assert error[IP].len == 576
    assert bytes(error)[14 + 28 :] == frame[14 : 14 + 548]


def test_errors_are_limited_and_resume() -> None:
    peer = Peer()
    frame = bytes(peer.packet() / UDP(dport=9))
    errors = sum(len(peer.send(frame)) for _ in range(500))
    assert errors == icmp.ERRORS_BURST
    assert peer.count("icmpOutRateLimited") == 500 - icmp.ERRORS_BURST
    peer.pass_time(1.0)
    assert sum(len(peer.send(frame)) for _ in range(500)) == icmp.ERRORS_BURST


def test_echo_replies_are_not_limited() -> None:
    peer = Peer()
    frame = bytes(peer.packet() / ICMP())
    assert sum(len(peer.send(frame)) for _ in range(500)) == 500


def test_reply_reaches_who_sent_the_echo() -> None:
    peer = Peer()
    heard: list[EchoReply] = []
    peer.stack.icmp.echoes[7] = heard.append
    peer.stack.icmp.send_echo(number(THEIRS), 7, 3, b"data", peer.now)
    (request,) = peer.sent()
    assert is_intact(request)
    assert (request[ICMP].type, request[ICMP].id, request[ICMP].seq) == (8, 7, 3)
    peer.send(peer.packet(ttl=33) / ICMP(type=0, id=8, seq=3) / b"another's")
    peer.send(peer.packet(ttl=33) / ICMP(type=0, id=7, seq=3) / b"data")
    assert heard == [EchoReply(number(THEIRS), 3, b"data", 33)]


@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        (3, 0, errno.ENETUNREACH),
        (3, 1, errno.EHOSTUNREACH),
        (3, 4, errno.EMSGSIZE),
        (3, 13, errno.EHOSTUNREACH),
        (11, 0, errno.EHOSTUNREACH),
    ],
)
def test_error_about_our_echo_reaches_who_sent_it(kind: int, code: int, expected: int) -> None:
    peer = Peer(gateway=THEIRS)
    heard: list[EchoReply] = []
    peer.stack.icmp.echoes[7] = heard.append
    peer.stack.icmp.send_echo(number(ELSEWHERE), 7, 3, b"data", peer.now)
    (request,) = peer.sent()
    peer.send(peer.packet() / ICMP(type=kind, code=code) / bytes(request[IP]))
    assert heard == [EchoReply(number(THEIRS), 3, b"", 0, expected)]


@pytest.mark.parametrize("kind", [4, 5, 12])
def test_source_quench_redirect_and_parameter_problem_change_nothing(kind: int) -> None:
    peer = Peer()
    heard: list[EchoReply] = []
    peer.stack.icmp.echoes[7] = heard.append
    quoted = bytes(IP(src=OURS, dst=THEIRS) / ICMP(id=7))
    assert peer.send(peer.packet() / ICMP(type=kind) / quoted) == []
    assert heard == []
    assert len(list(peer.stack.ip.routes)) == 1


@pytest.mark.parametrize("size", range(0, 28, 3))
def test_cut_quotation_is_dropped(size: int) -> None:
    peer = Peer()
    heard: list[EchoReply] = []
    peer.stack.icmp.echoes[7] = heard.append
    quoted = bytes(IP(src=OURS, dst=THEIRS) / ICMP(id=7))[:size]
    assert peer.send(peer.packet() / ICMP(type=3, code=1) / quoted) == []
    assert heard == []


def test_echo_to_ourselves_is_answered_without_the_link() -> None:
    peer = Peer()
    heard: list[EchoReply] = []
    peer.stack.icmp.echoes[7] = heard.append
    for address in (OURS, "127.0.0.1"):
        peer.stack.icmp.send_echo(number(address), 7, 3, b"data", peer.now)
        peer.stack.settle(peer.now)
        peer.stack.settle(peer.now)
    assert [reply.source for reply in heard] == [number(OURS), number("127.0.0.1")]
    assert peer.sent() == []


def test_quote_limit_leaves_room_for_both_headers() -> None:
    assert icmpv4.QUOTE_LIMIT == 548
