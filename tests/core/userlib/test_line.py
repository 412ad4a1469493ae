"""Packets: sizes that do not add up are found, whatever they claim."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.abi import (
    FIELDS_LIMIT,
    HEADER,
    HEADER_SIZE,
    KERNEL_SLOTS,
    NAME,
    NO_SLOT,
    REGION_SIZE,
    RIGHTS_LIMIT,
    SLOT_SIZE,
    TASK_SLOTS,
    Kind,
)
from core.errors import LimitError, MessageTooLargeError
from core.userlib.line import ClosedError, Line, Packet, Region, Slots, aligned, new_region

numbers32 = st.one_of(st.integers(0, 100), st.integers(0, 2**32 - 1), st.just(NO_SLOT))


@given(st.binary(max_size=200))
def test_random_octets_are_no_packet_or_a_consistent_one(data: bytes) -> None:
    check(data)


@given(
    st.integers(0, 255),
    st.lists(numbers32, min_size=6, max_size=6),
    st.integers(0, 20),
    st.integers(0, 20),
    st.binary(max_size=120),
)
def test_forged_headers_are_no_packet_or_a_consistent_one(
    kind: int, words: list[int], rights: int, count: int, rest: bytes
) -> None:
    name, fields, bulk, slot, room, deadline = words
    header = HEADER.pack(kind, 0, 1, name, 2, 3, fields, bulk, slot, room, deadline, rights, count)
    check(header + rest)


def check(data: bytes) -> None:
    """A packet that is accepted consists of exactly the octets that came."""
    buffer = bytearray(data + b"\xaa" * 500)  # what an earlier packet has left behind
    try:
        packet = Packet(memoryview(buffer), len(data), [])
    except ValueError:
        return
    whole = HEADER_SIZE + len(packet.rights) * NAME.size + len(packet.fields) + len(packet.bulk)
    assert whole == len(data)
    assert len(packet.rights) <= RIGHTS_LIMIT
    assert packet.descriptors == []


def lines() -> tuple[Line, Line]:
    """Return both ends of a line, in this process."""
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = new_region()
    made = Line(one, Region(descriptor)), Line(two, Region(descriptor))
    os.close(descriptor)
    return made


def test_a_packet_arrives_as_it_was_sent() -> None:
    one, two = lines()
    reading, writing = os.pipe()
    one.send(
        Kind.CALL, operation=3, name=4, request=5, fields=b"ff", bulk=b"bulk", room=6,
        rights=(7, 8), descriptors=(reading,), deadline_ms=9,
    )  # fmt: skip
    packet = two.receive()
    assert (packet.kind, packet.operation, packet.name, packet.request) == (Kind.CALL, 3, 4, 5)
    assert (packet.fields, packet.bulk, packet.bulk_size) == (b"ff", b"bulk", 4)
    assert (packet.room, packet.rights, packet.deadline_ms, packet.slot) == (6, (7, 8), 9, NO_SLOT)
    (lent,) = packet.descriptors
    assert not os.get_inheritable(lent)
    for number in (reading, writing, lent):
        os.close(number)
    one.region.view(2, 100, 5)[:] = b"hello"
    assert bytes(two.region.view(2, 100, 5)) == b"hello"
    one.close()
    with pytest.raises(ClosedError):
        two.receive()
    with pytest.raises(ClosedError):
        two.send(Kind.READY)
    two.close()


def test_fields_beyond_a_packet_are_refused_before_they_are_sent() -> None:
    one, two = lines()
    one.send(Kind.CALL, fields=b"x" * FIELDS_LIMIT)
    assert len(two.receive().fields) == FIELDS_LIMIT
    with pytest.raises(MessageTooLargeError):
        one.send(Kind.CALL, fields=b"x" * (FIELDS_LIMIT + 1))
    with pytest.raises(BlockingIOError):
        two.receive(socket.MSG_DONTWAIT)
    one.close()
    two.close()


def test_slots_are_given_out_once_and_warm_ones_first() -> None:
    slots = Slots(KERNEL_SLOTS, TASK_SLOTS)
    taken = [slots.take() for _ in range(TASK_SLOTS)]
    assert taken == list(range(KERNEL_SLOTS, KERNEL_SLOTS + TASK_SLOTS))
    with pytest.raises(LimitError):
        slots.take()
    slots.give(taken[5])
    slots.give(NO_SLOT)
    assert slots.take() == taken[5]
    assert slots.most == TASK_SLOTS
    assert (max(taken) + 1) * SLOT_SIZE == REGION_SIZE


def test_discarded_slots_hold_no_pages_and_read_as_zeros() -> None:
    descriptor = new_region()
    region = Region(descriptor)
    for slot in range(4):
        region.view(slot, 0, 100_000)[:] = b"x" * 100_000
    before = os.fstat(descriptor).st_blocks
    region.discard(2, 4)
    assert os.fstat(descriptor).st_blocks <= before // 2
    assert bytes(region.view(1, 0, 3)) == b"xxx"
    assert bytes(region.view(2, 0, 3)) == b"\0\0\0"
    region.close()
    os.close(descriptor)


@given(st.integers(0, 2**31))
def test_the_replys_place_begins_at_a_page_behind_the_request(size: int) -> None:
    assert size <= aligned(size) < size + 4096
    assert aligned(size) % 4096 == 0
