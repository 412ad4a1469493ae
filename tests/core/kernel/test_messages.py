"""What goes from a client to a server and back, in either placement."""

from __future__ import annotations

import errno
import os
import zlib
from typing import Any

import pytest
import trio

from core.abi import CLIENT_LIMIT, QUEUE_LIMIT
from core.errors import (
    BadMessageError,
    MessageTooLargeError,
    NoRightError,
    QueueFullError,
    Refused,
    ServerFaultError,
    WrongRightError,
)
from core.userlib.interface import Descriptor
from tests.support.servers import Point, Probe, Slow
from tests.support.small_system import Small

SIZES = (0, 1, 4096, 4097, 65_536, 1024 * 1024)


async def test_fields_arrive_and_return(small: Small) -> None:
    assert await small.probe.echo(-(2**63), "é\0") == (-(2**63), "é\0")
    assert await small.probe.echo(2**64 - 1, "") == (2**64 - 1, "")
    moved = await small.probe.move(Point(1, 2.5, ["a"]), {"x": 3.0, "y": 0.5})
    assert moved == Point(4, 3.0, ["a"])


async def test_each_request_has_an_id_of_its_own_and_the_badge_of_its_client(small: Small) -> None:
    first, second = await small.probe.seen(), await small.probe.seen()
    assert first.id < second.id
    assert first.badge == second.badge == small.user.place.badge
    assert not first.redelivered


async def test_bulk_of_any_size_goes_both_ways(small: Small) -> None:
    for size in SIZES:
        data = os.urandom(size)
        assert await small.probe.digest(data) == zlib.crc32(data)
        data = data[: 512 * 1024]  # request and reply together have one limit
        assert bytes(await small.probe.mirror(len(data), data)) == data
        assert bytes(await small.probe.mirror(len(data), memoryview(bytearray(data)))) == data


async def test_bulk_written_in_place_arrives(small: Small) -> None:
    for size in SIZES:
        assert bytes(await small.probe.fill(size, 7)) == b"\7" * size


async def test_many_large_calls_at_once_wait_for_room_and_all_end(small: Small) -> None:
    answers: list[bytes] = []

    async def one(number: int) -> None:
        data = bytes([number]) * 100_000
        answers.append(bytes(await small.slow.mirror(number, 100_000, data)))

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(one, number)
        released = 0
        while released < 40:
            for number in range(40):
                released += await small.slow.release(number)
            await trio.sleep(0.001)
    assert sorted(answers) == [bytes([number]) * 100_000 for number in range(40)]


async def test_more_bulk_than_a_message_may_carry_is_refused_at_once(small: Small) -> None:
    if small.isolated:
        with pytest.raises(MessageTooLargeError):
            await small.probe.mirror(0, bytes(1024 * 1024 + 1))
    assert (await small.probe.echo(1, ""))[0] == 1


async def test_absurd_room_is_the_servers_to_judge_and_ends_nobody(small: Small) -> None:
    for room in (-1, -(2**40), 2**62):
        assert bytes(await small.probe.mirror(room, b"abc")) == b"abc"
    assert small.generation("probe") == 0


async def test_memory_that_is_no_octets_is_sent_as_octets(small: Small) -> None:
    wide = memoryview(b"\1\0\0\0\2\0\0\0").cast("I")
    reply = await small.probe.mirror(8, wide)
    assert memoryview(reply).cast("B").tobytes() == b"\1\0\0\0\2\0\0\0"
    if small.isolated:
        with pytest.raises(BadMessageError):
            await small.probe.mirror(8, memoryview(b"abcdef")[::2])
    assert small.generation("probe") == 0


async def test_wrong_types_are_the_callers_fault(small: Small) -> None:
    wrong: list[tuple[str, tuple[Any, ...]]] = [
        ("echo", ("1", "x")),
        ("echo", (1, 2)),
        ("echo", (True, "x")),
        ("echo", (None, "x")),
        ("move", (Point(1, 1.0), {"x": "far"})),
        ("move", ((1, 1.0), {})),
        ("mirror", (1, "text")),
    ]
    for name, arguments in wrong:
        with pytest.raises(BadMessageError):
            await getattr(small.probe, name)(*arguments)
    assert small.generation("probe") == 0


async def test_wrong_types_for_an_operation_that_waits_end_nobody(small: Small) -> None:
    slow: Any = small.slow
    with pytest.raises(BadMessageError):
        await slow.typed("1", ["a"])
    with pytest.raises(BadMessageError):
        await slow.typed(1, [2])
    assert await small.slow.typed(1, ["a"]) == 2
    assert small.generation("slow") == 0


async def test_refused_carries_number_and_text(small: Small) -> None:
    with pytest.raises(Refused) as refused:
        await small.probe.refuse(errno.ENOSPC, "")
    assert refused.value.errno == errno.ENOSPC
    assert refused.value.detail == os.strerror(errno.ENOSPC)
    with pytest.raises(Refused, match="no, really"):
        await small.probe.refuse(errno.EPERM, "no, really")


async def test_refused_with_an_absurd_number_is_refused_all_the_same(small: Small) -> None:
    for number in (-1, 2**31, 2**63):
        with pytest.raises(Refused):
            await small.probe.refuse(number, "")
    assert small.generation("probe") == 0


async def test_a_reply_of_the_wrong_type_blames_the_server(small: Small) -> None:
    if small.isolated:
        with pytest.raises(ServerFaultError):
            await small.probe.wrong_reply()
    assert (await small.probe.echo(1, ""))[0] == 1


async def test_fields_beyond_a_packet_are_refused(small: Small) -> None:
    if not small.isolated:
        pytest.skip("within one process fields are not encoded, so there is no packet")
    with pytest.raises(MessageTooLargeError):
        await small.probe.echo(1, "x" * 70_000)
    with pytest.raises(MessageTooLargeError):
        await small.probe.long_reply(70_000)
    assert await small.probe.long_reply(60_000) == "x" * 60_000


async def test_descriptors_go_both_ways(small: Small) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"lent")
    os.close(writing)
    with_reading = Descriptor(reading)
    assert await small.probe.read_from(10, with_reading) == b"lent"
    with_reading.close()
    lent = await small.probe.lend("given")
    assert os.read(lent.fileno(), 10) == b"given"
    lent.close()


async def test_several_carried_things_come_in_order(small: Small) -> None:
    word, first, second = await small.probe.two()
    assert word == "two"
    assert (await small.on(Probe, first).seen()).badge == 501
    assert (await small.on(Probe, second).seen()).badge == 502


async def test_a_message_without_reply_arrives_in_order_with_calls(small: Small) -> None:
    spec, right = Probe.named("remember"), small.probe.right  # type: ignore[attr-defined]
    for number in range(50):
        small.user.send(right, spec, (f"sent {number}",))
        if number % 10 == 9:
            await small.probe.remember(f"called {number}")
    expected = []
    for number in range(50):
        expected.append(f"sent {number}")
        if number % 10 == 9:
            expected.append(f"called {number}")
    lines = [line for line in small.journal.lines() if line.startswith(("sent", "called"))]
    assert lines == expected


async def test_notifications_coalesce_and_arrive(small: Small) -> None:
    right = small.probe.right  # type: ignore[attr-defined]
    small.user.notify(right, 1)
    small.user.notify(right, 4)
    await small.until(
        lambda: (
            sum(int(line.split()[1]) for line in small.journal.lines() if line.startswith("bits"))
            == 5
        )
    )


async def test_one_client_cannot_fill_a_port(small: Small) -> None:
    refused: list[QueueFullError] = []

    async def one() -> None:
        try:
            await small.slow.wait(1)
        except QueueFullError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(CLIENT_LIMIT + 1):
            nursery.start_soon(one)
        await small.until(lambda: len(refused) == 1)
        await small.journaled("waits 1", CLIENT_LIMIT)
        other: Slow = small.system.connect(Slow, "slow", "other")
        assert await other.release(2) == 0
        nursery.cancel_scope.cancel()
    assert refused[0].retry
    await small.until(lambda: not small.port("slow").in_flight)


async def test_full_port_refuses_the_next_message(small: Small) -> None:
    clients = [
        small.system.connect(Slow, "slow", f"client {number}")
        for number in range(QUEUE_LIMIT // CLIENT_LIMIT)
    ]
    async with trio.open_nursery() as nursery:
        for client in clients:
            for _ in range(CLIENT_LIMIT):
                nursery.start_soon(client.wait, 1)
        await small.journaled("waits 1", QUEUE_LIMIT)
        with pytest.raises(QueueFullError) as refused:
            await small.slow.wait(1)
        assert refused.value.retry
        nursery.cancel_scope.cancel()
    await small.until(lambda: not small.port("slow").in_flight)
    assert await small.slow.release(1) == 0


async def test_a_right_to_another_port_does_not_reach_this_one(small: Small) -> None:
    right = await small.probe.mint(9, ["echo"])
    narrow: Probe = small.on(Probe, right)
    assert await narrow.echo(1, "a") == (1, "a")
    with pytest.raises(WrongRightError):
        await narrow.seen()
    small.user.drop(right)
    with pytest.raises(NoRightError):
        await narrow.echo(1, "a")
