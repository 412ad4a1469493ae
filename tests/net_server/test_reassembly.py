"""Fragments: in any order, twice, overlapping, too many, never complete (RFC 791, 1122, 5722)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from net_server.stack import reassembly
from net_server.stack.fragmentation import fragments
from tests.net_server.peer import OTHER, OURS, THEIR_LINK, THEIRS, Peer, is_intact

DATA = bytes(range(256)) * 8


def split(packet: Packet, size: int) -> list[Packet]:
    """Return the packet in fragments, as scapy makes them."""
    pieces: list[Packet] = fragment(packet, size)  # type: ignore[no-untyped-call]
    return pieces


def echo_fragments(data: bytes = DATA, size: int = 504, **fields: Any) -> list[Packet]:
    """Return the frames of an echo request in fragments of `size` octets."""
    packet = IP(src=THEIRS, dst=OURS, id=77, **fields) / ICMP(id=5, seq=6) / data
    return [Ether(src=THEIR_LINK, dst="02:00:0a:5a:00:02") / piece for piece in split(packet, size)]


def replies(frames: list[Packet]) -> bytes:
    """Return the data of an echo reply that came in fragments."""
    pieces = sorted(frames, key=lambda frame: int(frame[IP].frag))
    return b"".join(bytes(frame[IP].payload) for frame in pieces)[8:]


@pytest.mark.parametrize("order", list(itertools.permutations(range(5))))
def test_fragments_in_any_order_make_the_whole(order: tuple[int, ...]) -> None:
    peer = Peer()
    frames = echo_fragments()
    answers = [answer for index in order for answer in peer.send(frames[index])]
    assert replies(answers) == DATA
    assert peer.count("ipReasmOKs") == 1
    assert peer.stack.ip.reassembly.octets == 0


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 60), st.randoms())
def test_random_fragments_make_the_whole(data: bytes, eighths: int, chance: random.Random) -> None:
    peer = Peer()
    frames = echo_fragments(data, 8 * eighths)
    repeated = [*frames[:-1], *chance.choices(frames[:-1], k=3)] if len(frames) > 1 else []
    chance.shuffle(repeated)
    answers = [answer for frame in [*repeated, frames[-1]] for answer in peer.send(frame)]
    assert replies(answers) == data


def test_exact_repetition_is_ignored() -> None:
    peer = Peer()
    frames = echo_fragments()
    answers = [a for f in (frames[0], frames[0], *frames[1:]) for a in peer.send(f)]
    assert replies(answers) == DATA


@pytest.mark.parametrize("shift", [-1, 1, 30])
def test_overlap_condemns_the_whole_datagram(shift: int) -> None:
    peer = Peer()
    frames = echo_fragments()
    overlapping = frames[1].copy()
    overlapping[IP].frag += shift
    del overlapping[IP].chksum
    order = [frames[0], frames[1], overlapping, *frames[2:], *frames]
    assert [answer for frame in order for answer in peer.send(frame)] == []
    assert peer.count("ipReasmOKs") == 0
    peer.pass_time(reassembly.TIMEOUT_S)
    assert len(peer.stack.ip.reassembly) == 0
    assert peer.stack.ip.reassembly.octets == 0


def test_same_place_with_other_octets_condemns() -> None:
    peer = Peer()
    frames = echo_fragments()
    other = frames[1].copy()
    other[Raw].load = b"\xff" * len(other[Raw].load)
    assert [a for f in (frames[0], frames[1], other, *frames[2:]) for a in peer.send(f)] == []


def test_fragment_beyond_the_end_condemns() -> None:
    peer = Peer()
    frames = echo_fragments()
    beyond = frames[3].copy()
    beyond[IP].frag = 4000
    del beyond[IP].chksum
    assert [a for f in (frames[-1], beyond, *frames[:-1]) for a in peer.send(f)] == []


@pytest.mark.parametrize(
    ("offset", "more", "size"),
    [(8189, 0, 100), (8191, 1, 8), (8000, 0, 1536), (1, 1, 9), (1, 1, 0), (1, 0, 0)],
)
def test_impossible_fragment_is_dropped(offset: int, more: int, size: int) -> None:
    peer = Peer()
    frame = peer.packet(frag=offset, flags=more, proto=17) / Raw(bytes(size))
    assert peer.send(frame) == []
    assert len(peer.stack.ip.reassembly) == 0
    assert peer.count("ipReasmFails") == 1


def test_time_exceeded_quotes_the_first_fragment() -> None:
    peer = Peer()
    frames = echo_fragments()
    peer.send(frames[0])
    peer.send(frames[2])
    (error,) = (f for f in peer.pass_time(reassembly.TIMEOUT_S) if ICMP in f)
    assert (error[ICMP].type, error[ICMP].code) == (11, 1)
    assert is_intact(error)
    assert bytes(error)[14 + 28 :] == bytes(frames[0][IP])[:548]
    assert len(error[IP]) <= 576
    assert peer.count("ipReasmFails") == 1


def test_no_time_exceeded_without_the_first_fragment() -> None:
    peer = Peer()
    for frame in echo_fragments()[1:]:
        peer.send(frame)
    assert peer.pass_time(2 * reassembly.TIMEOUT_S) == []
    assert peer.count("ipReasmFails") == 1


def test_later_fragments_do_not_prolong_the_time() -> None:
    peer = Peer()
    frames = echo_fragments()
    peer.send(frames[0])
    peer.pass_time(reassembly.TIMEOUT_S - 1)
    peer.send(frames[1])
    assert sum(ICMP in frame for frame in peer.pass_time(1)) == 1
    assert len(peer.stack.ip.reassembly) == 0


def test_datagrams_differ_by_identification_source_and_protocol() -> None:
    peer = Peer()
    mixed: list[list[Packet]] = []
    for identification, source, layer in (
        (1, THEIRS, ICMP(id=1)),
        (2, THEIRS, ICMP(id=1)),
        (1, OTHER, ICMP(id=1)),
        (1, THEIRS, UDP(sport=9, dport=9)),
    ):
        packet = IP(src=source, dst=OURS, id=identification) / layer / DATA
        mixed.append(split(packet, 504))
    for piece in (piece for group in zip(*mixed, strict=True) for piece in group):
        peer.send(Ether(src=THEIR_LINK, dst="02:00:0a:5a:00:02") / piece)
    assert peer.count("ipReasmOKs") == 4


def test_flood_of_first_fragments_stays_within_the_limits() -> None:
    peer = Peer()
    table = peer.stack.ip.reassembly
    for index in range(900):
        frame = peer.packet(f"10.90.0.{index % 200 + 3}", id=index, flags="MF", proto=17)
        peer.send(frame / Raw(bytes(1400)))
        assert len(table) <= reassembly.DATAGRAMS_LIMIT
        assert table.octets <= reassembly.OCTETS_LIMIT


def test_one_source_cannot_take_the_places_of_others() -> None:
    peer = Peer()
    frames = echo_fragments()
    peer.send(frames[0])
    for index in range(500):
        peer.send(peer.packet(OTHER, id=index, flags="MF", proto=17) / Raw(bytes(8)))
    assert len(peer.stack.ip.reassembly) == reassembly.SOURCE_LIMIT + 1
    assert replies([a for frame in frames[1:] for a in peer.send(frame)]) == DATA


def test_largest_datagram_in_the_smallest_fragments_is_put_together() -> None:
    peer = Peer()
    data = random.Random(3).randbytes(65_507)
    answers = [a for frame in echo_fragments(data, 48) for a in peer.send(frame)]
    assert replies(answers) == data


@given(st.integers(1, 65_515), st.integers(68, 9000))
def test_fragments_cover_the_payload_and_fit_the_mtu(size: int, mtu: int) -> None:
    end = 0
    for offset, piece, flags in fragments(size, mtu):
        assert offset == end
        assert 20 + piece <= mtu
        assert flags & 0x1FFF == offset // 8
        end = offset + piece
        assert bool(flags & 0x2000) == (end < size)
        assert end == size or piece % 8 == 0
    assert end == size
