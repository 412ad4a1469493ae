"""The quick answer to an echo is, to the last octet and count, that of the layers."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from net_server.stack import neighbors
from tests.net_server.peer import OTHER, OUR_LINK, OURS, THEIR_LINK, THEIRS, Peer, is_intact


def pair() -> tuple[Peer, Peer]:
    """Return two stacks in the same state; the second always goes through the layers."""
    quick, layered = Peer(), Peer()
    layered.stack._answer_echo = lambda frame, now: False
    for peer in (quick, layered):
        peer.send(peer.packet() / ICMP(id=1, seq=1))
    return quick, layered


def assert_same(quick: Peer, layered: Peer, frame: bytes) -> None:
    ours = [bytes(answer) for answer in quick.send(frame)]
    theirs = [bytes(answer) for answer in layered.send(frame)]
    assert ours == theirs
    assert quick.stack.counters.statistics() == layered.stack.counters.statistics()


@given(
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.one_of(st.binary(max_size=80), st.just(bytes(1472)), st.just(bytes(1473))),
    st.integers(0, 30),
)
@example(0, 0, b"", 0)
@example(0, 0, bytes(56), 0)
@example(0xFFFF, 0, b"", 18)
@example(0, 0xF7FF, b"", 18)
@example(0, 0, b"\xff\xff", 0)
def test_any_echo_is_answered_alike(identifier: int, seq: int, data: bytes, padding: int) -> None:
    quick, layered = pair()
    frame = bytes(quick.packet() / ICMP(id=identifier, seq=seq) / data) + bytes(padding)
    assert_same(quick, layered, frame)


@given(
    st.lists(st.tuples(st.integers(0, 69), st.integers(0, 255)), min_size=1, max_size=3),
    st.booleans(),
)
def test_any_damaged_echo_is_treated_alike(changes: list[tuple[int, int]], mend: bool) -> None:
    quick, layered = pair()
    frame = bytearray(bytes(quick.packet() / ICMP(id=5, seq=6) / bytes(range(28))))
    for place, value in changes:
        frame[place] = value
    if mend and frame[14] == 0x45:
        mended: Packet = IP(bytes(frame[14:]))
        del mended.chksum
        frame[14:] = bytes(mended)
    assert_same(quick, layered, bytes(frame))


@pytest.mark.parametrize("size", range(43))
def test_cut_echo_is_treated_alike(size: int) -> None:
    quick, layered = pair()
    assert_same(quick, layered, bytes(quick.packet() / ICMP())[:size])


def test_echoes_of_several_neighbors_are_treated_alike() -> None:
    quick, layered = pair()
    for source in (THEIRS, OTHER, "192.0.2.1", THEIRS, OURS, THEIRS):
        frame = Ether(src=THEIR_LINK, dst=OUR_LINK) / IP(src=source, dst=OURS) / ICMP()
        assert_same(quick, layered, bytes(frame))


def test_old_neighbor_is_asked_again_alike() -> None:
    quick, layered = pair()
    for peer in (quick, layered):
        peer.pass_time(neighbors.FRESH_S)
    frame = bytes(quick.packet() / ICMP(id=9))
    assert_same(quick, layered, frame)
    assert_same(quick, layered, frame)


def test_ordinary_echo_is_answered_quickly_and_right() -> None:
    quick, _ = pair()
    (reply,) = quick.send(quick.packet() / ICMP(id=1, seq=2) / b"data")
    assert is_intact(reply)
    assert quick.stack.counters.quick_echoes == 1
