"""No frame can make the stack raise, answer without end, or grow beyond its limits."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, IPOption_LSRR, IPOption_Timestamp
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw, fuzz

from net_server.stack import neighbors, reassembly
from net_server.stack.icmp import ERRORS_BURST
from tests.net_server.peer import BROADCAST_LINK, OUR_LINK, OURS, THEIR_LINK, THEIRS, Peer, number


def samples() -> list[bytes]:
    """Return a frame of every kind that the stack takes."""
    station = Ether(src=THEIR_LINK, dst=OUR_LINK)
    everyone = Ether(src=THEIR_LINK, dst=BROADCAST_LINK)
    ours = IP(src=OURS, dst=THEIRS) / UDP(sport=5000, dport=9) / b"quoted"
    packets: list[Packet] = [
        station / Peer.request(),
        station / ARP(op=2, hwsrc=THEIR_LINK, psrc=THEIRS, hwdst=OUR_LINK, pdst=OURS),
        station / IP(src=THEIRS, dst=OURS) / ICMP(id=1, seq=2) / bytes(40),
        station / IP(src=THEIRS, dst=OURS) / ICMP(type=0, id=1, seq=2) / bytes(40),
        station / IP(src=THEIRS, dst=OURS) / ICMP(type=3, code=3) / bytes(ours),
        station / IP(src=THEIRS, dst=OURS) / ICMP(type=11, code=1) / bytes(ours),
        station / IP(src=THEIRS, dst=OURS) / UDP(sport=1, dport=5000) / b"data",
        station / IP(src=THEIRS, dst=OURS) / UDP(sport=1, dport=9) / b"data",
        station / IP(src=THEIRS, dst=OURS, flags="MF", id=3) / Raw(bytes(64)),
        station / IP(src=THEIRS, dst=OURS, frag=8, id=3) / Raw(bytes(60)),
        station / IP(src=THEIRS, dst=OURS, options=[IPOption_LSRR(routers=[OURS])]) / ICMP(),
        station / IP(src=THEIRS, dst=OURS, options=[IPOption_Timestamp()]) / UDP(dport=5000),
        everyone / IP(src=THEIRS, dst="10.90.0.255") / UDP(sport=1, dport=5001) / b"data",
        everyone / IP(src=THEIRS, dst="255.255.255.255") / ICMP(),
    ]
    return [bytes(packet) for packet in packets]


SAMPLES = samples()


def mend(frame: bytearray) -> None:
    """Put the IP header's checksum right, so that damage reaches the layers above."""
    size = (frame[14] & 15) * 4 if len(frame) > 14 else 0
    if frame[12:14] == b"\x08\x00" and size >= 20 and len(frame) >= 14 + size:
        frame[24:26] = bytes(2)
        total = int.from_bytes(frame[14 : 14 + size], "big") % 65535 or 65535
        frame[24:26] = (65535 - total).to_bytes(2, "big")


def prepared() -> Peer:
    peer = Peer(gateway=THEIRS)
    peer.stack.udp.bind(5000)
    peer.stack.udp.bind(5001, broadcast=True)
    peer.stack.icmp.echoes[1] = lambda reply: None
    return peer


def assert_bounded(peer: Peer) -> None:
    stack = peer.stack
    assert len(stack.neighbors) <= neighbors.ENTRIES_LIMIT
    assert len(stack.ip.reassembly) <= reassembly.DATAGRAMS_LIMIT
    assert 0 <= stack.ip.reassembly.octets <= reassembly.OCTETS_LIMIT
    assert len(stack.ip.hops) <= 1024
    assert len(stack.ip.local) <= 64
    assert len(stack.udp.sockets) == 2


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_random_octets_do_no_harm(frames: list[bytes]) -> None:
    peer = prepared()
    for frame in frames:
        assert len(peer.send(frame)) <= 1
        assert len(peer.send(bytes.fromhex("02000a5a000202000a5a00010800") + frame)) <= 1
        assert len(peer.send(bytes.fromhex("02000a5a000202000a5a00010806") + frame)) <= 1
    assert_bounded(peer)


@settings(max_examples=300)
@given(st.data())
def test_damaged_frames_do_no_harm(data: st.DataObject) -> None:
    peer = prepared()
    for _ in range(data.draw(st.integers(1, 8))):
        frame = bytearray(data.draw(st.sampled_from(SAMPLES)))
        for _ in range(data.draw(st.integers(0, 4))):
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        frame = frame[: data.draw(st.integers(0, len(frame)))]
        if data.draw(st.booleans()):
            mend(frame)
        answers = peer.send(
            bytes(frame), data.draw(st.integers(0, 3)), data.draw(st.sampled_from([0, 1, 7]))
        )
        assert len(answers) <= 3
        peer.pass_time(data.draw(st.sampled_from([0.0, 0.5, 70.0])))
    assert_bounded(peer)


def test_long_flood_of_damaged_frames_stays_within_the_limits() -> None:
    chance = random.Random(20)
    peer = prepared()
    for turn in range(6000):
        frame = bytearray(chance.choice(SAMPLES))
        for _ in range(chance.randrange(4)):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        mend(frame)
        octets = memoryview(frame)
        peer.stack.receive_frame(octets, peer.now, chance.randrange(4))
        peer.stack.egress.frames.clear()
        if turn % 100 == 0:
            peer.pass_time(0.1)
            assert_bounded(peer)


def test_what_scapy_makes_up_does_no_harm() -> None:
    random.seed(11)
    peer = prepared()
    station = Ether(src=THEIR_LINK, dst=OUR_LINK)
    for _ in range(150):
        for layers in (
            station / fuzz(IP(src=THEIRS, dst=OURS)) / fuzz(UDP()) / b"data",
            station / fuzz(IP(src=THEIRS, dst=OURS)) / fuzz(ICMP()),
            station / fuzz(ARP(psrc=THEIRS)),
        ):
            peer.send(bytes(layers))
    assert_bounded(peer)


def test_errors_never_answer_errors_between_two_stacks() -> None:
    peer = prepared()
    sent = 0
    frame = bytes(Ether(src=THEIR_LINK, dst=OUR_LINK) / IP(src=THEIRS, dst=OURS) / UDP(dport=9))
    for _ in range(200):
        answers = peer.send(frame)
        sent += len(answers)
        for answer in answers:
            back = bytearray(bytes(answer))
            back[0:12] = back[6:12] + back[0:6]
            back[26:34] = back[30:34] + back[26:30]
            assert peer.send(bytes(back)) == []
    assert sent == ERRORS_BURST


def test_echo_to_ourselves_from_ourselves_ends() -> None:
    peer = prepared()
    socket = peer.stack.udp.bind(7000)
    peer.stack.udp.send(socket, number(OURS), 7001, b"", peer.now)
    for _ in range(10):
        peer.stack.settle(peer.now)
    assert not peer.stack.ip.local
