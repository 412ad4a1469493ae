"""UDP: what reaches a socket, what is sent, what the device does for it (RFC 768, 1122)."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether

from net_server.capture import finish
from net_server.stack import udp
from net_server.stack.udp import Datagram, Socket, UdpError
from net_server.wire import vnet
from tests.net_server.peer import (
    BROADCAST_LINK,
    ELSEWHERE,
    OTHER,
    OURS,
    THEIR_LINK,
    THEIRS,
    Peer,
    is_intact,
    number,
)


def taken(socket: Socket) -> list[Datagram]:
    return [socket.take() for _ in range(len(socket.queue))]


@given(st.binary(max_size=1472), st.integers(0, 0xFFFF))
def test_datagram_reaches_its_socket(data: bytes, port: int) -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    assert peer.send(peer.packet() / UDP(sport=port, dport=5000) / data) == []
    assert taken(socket) == [Datagram(number(THEIRS), port, number(OURS), data)]
    assert peer.count("udpInDatagrams") == 1


@given(st.binary(max_size=4000))
def test_datagram_is_sent_whole(data: bytes) -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    peer.stack.udp.send(socket, number(THEIRS), 7, data, peer.now)
    frames = peer.sent()
    whole = b"".join(bytes(f[IP].payload) for f in sorted(frames, key=lambda f: int(f[IP].frag)))
    assert whole == bytes(IP(src=OURS, dst=THEIRS) / UDP(sport=5000, dport=7) / data)[20:]


def test_checksum_of_zero_is_none() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    peer.send(peer.packet() / UDP(sport=1, dport=5000, chksum=0) / b"unchecked")
    assert [datagram.payload for datagram in taken(socket)] == [b"unchecked"]


def test_wrong_checksum_is_dropped_unless_the_device_vouches() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    frame = peer.packet() / UDP(sport=1, dport=5000, chksum=1) / b"data"
    peer.send(frame)
    assert taken(socket) == []
    assert peer.count("udpInErrors") == 1
    peer.send(frame, vnet.NEEDS_CHECKSUM)
    peer.send(frame, vnet.DATA_VALID)
    assert len(taken(socket)) == 2


def test_octets_after_the_datagram_are_not_delivered() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    peer.send(peer.packet() / UDP(sport=1, dport=5000, len=12) / b"data" / b"more", vnet.DATA_VALID)
    assert [datagram.payload for datagram in taken(socket)] == [b"data"]


def test_one_frame_for_many_datagrams_is_taken_apart() -> None:
    peer = Peer(device_header=True, checksum_offload=True)
    socket = peer.stack.udp.bind(5000)
    data = random.Random(5).randbytes(40 * 1472 + 100)
    frame = peer.packet() / UDP(sport=1, dport=5000) / data
    peer.send(frame, vnet.NEEDS_CHECKSUM, gso_size=1472)
    datagrams = taken(socket)
    assert [len(datagram.payload) for datagram in datagrams] == [1472] * 40 + [100]
    assert b"".join(datagram.payload for datagram in datagrams) == data


def test_full_socket_drops_the_newest_and_counts() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    for index in range(80):
        peer.send(peer.packet() / UDP(sport=index, dport=5000) / bytes(14_000), vnet.DATA_VALID)
    waiting = len(socket.queue)
    assert waiting == udp.QUEUE_OCTETS_LIMIT // (14_000 + 128)
    assert socket.dropped == peer.count("udpInOverflows") == 80 - waiting
    assert [datagram.port for datagram in taken(socket)] == list(range(waiting))


def test_empty_datagrams_are_bounded_too() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    frame = bytes(peer.packet() / UDP(sport=1, dport=5000))
    for _ in range(10_000):
        peer.send(frame, vnet.DATA_VALID)
    assert len(socket.queue) == udp.QUEUE_OCTETS_LIMIT // 128


def test_socket_is_notified_when_it_ceases_to_be_empty() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    notified: list[int] = []
    socket.notify = lambda: notified.append(len(socket.queue))
    frame = bytes(peer.packet() / UDP(sport=1, dport=5000))
    for _ in range(3):
        peer.send(frame)
    assert notified == [1]
    taken(socket)
    peer.send(frame)
    assert notified == [1, 1]


@pytest.mark.parametrize("destination", ["10.90.0.255", "255.255.255.255"])
def test_broadcast_reaches_only_who_asked_for_it(destination: str) -> None:
    peer = Peer()
    wanting = peer.stack.udp.bind(5000, broadcast=True)
    plain = peer.stack.udp.bind(5001)
    for port in (5000, 5001):
        frame = Ether(src=THEIR_LINK, dst=BROADCAST_LINK) / IP(src=THEIRS, dst=destination)
        assert peer.send(frame / UDP(sport=9, dport=port) / b"all") == []
    assert taken(wanting) == [Datagram(number(THEIRS), 9, number(destination), b"all")]
    assert taken(plain) == []


def test_broadcast_is_sent_only_by_who_may() -> None:
    peer = Peer()
    plain = peer.stack.udp.bind(5001)
    with pytest.raises(UdpError) as refused:
        peer.stack.udp.send(plain, number("10.90.0.255"), 9, b"", peer.now)
    assert refused.value.errno == errno.EACCES
    allowed = peer.stack.udp.bind(5000, broadcast=True)
    for destination in ("10.90.0.255", "255.255.255.255"):
        peer.stack.udp.send(allowed, number(destination), 9, b"all", peer.now)
        (frame,) = peer.sent()
        assert (frame.dst, frame[IP].dst) == (BROADCAST_LINK, destination)
        assert is_intact(frame)


def test_group_is_sent_to_its_link_address() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    peer.stack.udp.send(socket, number("239.129.2.3"), 9, b"", peer.now)
    assert peer.sent()[0].dst == "01:00:5e:01:02:03"


@pytest.mark.parametrize(
    ("destination", "port", "size", "expected"),
    [
        (ELSEWHERE, 9, 0, errno.ENETUNREACH),
        (THEIRS, 9, 65_508, errno.EMSGSIZE),
        (THEIRS, 0, 0, errno.EINVAL),
        (THEIRS, 65_536, 0, errno.EINVAL),
        ("0.0.0.0", 9, 0, errno.EINVAL),
    ],
)
def test_what_cannot_be_sent_is_refused(
    destination: str, port: int, size: int, expected: int
) -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    with pytest.raises(UdpError) as refused:
        peer.stack.udp.send(socket, number(destination), port, bytes(size), peer.now)
    assert refused.value.errno == expected
    assert peer.sent() == []


def test_bound_port_is_in_use_until_closed() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    with pytest.raises(UdpError) as refused:
        peer.stack.udp.bind(5000)
    assert refused.value.errno == errno.EADDRINUSE
    peer.stack.udp.close(socket)
    again = peer.stack.udp.bind(5000)
    peer.stack.udp.close(socket)
    assert peer.stack.udp.sockets == {5000: again}


def test_port_zero_gets_free_ports_until_there_are_too_many_sockets() -> None:
    peer = Peer()
    ports = {peer.stack.udp.bind(0).port for _ in range(udp.SOCKETS_LIMIT)}
    assert len(ports) == udp.SOCKETS_LIMIT
    assert min(ports) >= udp.EPHEMERAL_FIRST
    with pytest.raises(UdpError) as refused:
        peer.stack.udp.bind(0)
    assert refused.value.errno == errno.ENOBUFS


def test_port_unreachable_reaches_the_socket_that_sent() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    peer.stack.udp.send(socket, number(THEIRS), 9, b"is anybody there", peer.now)
    (sent,) = peer.sent()
    peer.send(peer.packet() / ICMP(type=3, code=3) / bytes(sent[IP])[:36])
    (error,) = taken(socket)
    assert error == Datagram(number(THEIRS), 9, number(THEIRS), b"is anybo", errno.ECONNREFUSED)


def test_report_about_what_we_did_not_send_reaches_nobody() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    forged = IP(src=OTHER, dst=THEIRS) / UDP(sport=5000, dport=9) / b"12345678"
    peer.send(peer.packet() / ICMP(type=3, code=3) / bytes(forged))
    assert taken(socket) == []


def test_silent_neighbor_is_reported_to_the_socket() -> None:
    peer = Peer(known=False)
    socket = peer.stack.udp.bind(5000)
    peer.stack.udp.send(socket, number(OTHER), 9, b"hello", peer.now)
    peer.pass_time(10)
    assert taken(socket) == [Datagram(number(OTHER), 9, number(OURS), b"hello", errno.EHOSTUNREACH)]


def test_datagram_to_ourselves_does_not_touch_the_link() -> None:
    peer = Peer()
    sender, receiver = peer.stack.udp.bind(5000), peer.stack.udp.bind(5001)
    for address in (OURS, "127.0.0.1"):
        peer.stack.udp.send(sender, number(address), 5001, b"here", peer.now)
        peer.stack.settle(peer.now)
        assert taken(receiver) == [Datagram(number(address), 5000, number(address), b"here")]
    assert peer.sent() == []


def test_port_unreachable_from_ourselves_reaches_the_sender() -> None:
    peer = Peer()
    sender = peer.stack.udp.bind(5000)
    peer.stack.udp.send(sender, number(OURS), 5001, b"nobody", peer.now)
    peer.stack.settle(peer.now)
    peer.stack.settle(peer.now)
    assert [datagram.errno for datagram in taken(sender)] == [errno.ECONNREFUSED]


def test_packets_to_ourselves_are_bounded() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    for _ in range(1000):
        peer.stack.udp.send(socket, number(OURS), 5000, b"", peer.now)
    assert peer.count("ipOutDiscards") == 1000 - len(peer.stack.ip.local)
    assert peer.stack.next_deadline(peer.now) == peer.now


@given(st.binary(max_size=1472))
def test_checksum_left_to_the_device_is_the_right_one(data: bytes) -> None:
    peer = Peer(device_header=True, checksum_offload=True)
    socket = peer.stack.udp.bind(5000)
    peer.stack.udp.send(socket, number(THEIRS), 7, data, peer.now)
    ((device, head, body),) = peer.stack.egress.frames
    header = vnet.parse(device)
    assert (header.flags, header.checksum_start, header.checksum_offset) == (1, 34, 6)
    assert is_intact(Ether(finish(bytes(device), bytes(head) + bytes(body))))


def test_fragments_and_icmp_have_whole_checksums_with_offload_too() -> None:
    peer = Peer(device_header=True, checksum_offload=True)
    socket = peer.stack.udp.bind(5000)
    peer.stack.udp.send(socket, number(THEIRS), 7, bytes(3000), peer.now)
    frames = [buffers[0] for buffers in peer.stack.egress.frames]
    whole = b"".join(bytes(frame[IP].payload) for frame in peer.sent())
    assert whole == bytes(IP(src=OURS, dst=THEIRS) / UDP(sport=5000, dport=7) / bytes(3000))[20:]
    peer.stack.icmp.send_echo(number(THEIRS), 1, 2, b"data", peer.now)
    frames += [buffers[0] for buffers in peer.stack.egress.frames]
    assert set(frames) == {vnet.PLAIN}
    assert is_intact(peer.sent()[0])


def test_identifications_differ_for_long() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    seen = set()
    for _ in range(60_000):
        peer.stack.udp.send(socket, number(THEIRS), 7, b"", peer.now)
        ((head, _),) = peer.stack.egress.frames
        peer.stack.egress.frames.clear()
        seen.add(bytes(head[18:20]))
    assert len(seen) == 60_000


def test_frames_that_nobody_takes_are_bounded() -> None:
    peer = Peer()
    socket = peer.stack.udp.bind(5000)
    for _ in range(5000):
        peer.stack.udp.send(socket, number(THEIRS), 7, b"", peer.now)
    assert len(peer.stack.egress.frames) == 4096
    assert peer.count("ifOutDiscards") == 5000 - 4096
