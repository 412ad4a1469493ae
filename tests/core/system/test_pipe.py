"""Pipes: streams that lose nothing and repeat nothing, whatever happens to their server."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.abi import Right
from core.errors import Refused
from core.system.pipe import RING_SIZE, Pipes, PipeServer
from core.userlib.task import Task
from tests.support.small_system import Small


async def write_all(end: Pipes, data: bytes) -> None:
    """Write everything."""
    sent = 0
    while sent < len(data):
        sent += await end.write(data[sent : sent + 100_000])


async def read_all(end: Pipes, size: int = 65_536) -> bytes:
    """Read to the end of the stream."""
    found = bytearray()
    while part := await end.read(size):
        found += part
    return bytes(found)


async def test_a_stream_arrives_whole_and_ends(small: Small) -> None:
    data = random.Random(1).randbytes(1_500_000)
    reading, writing = await small.pipes.create()

    async def write() -> None:
        await write_all(small.on(Pipes, writing), data)
        small.user.drop(writing)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        assert await read_all(small.on(Pipes, reading)) == data


async def test_a_stream_survives_a_storm_of_kills(small: Small) -> None:
    data = random.Random(2).randbytes(3_000_000)
    reading, writing = await small.pipes.create()
    found = b""
    done = False

    async def write() -> None:
        await write_all(small.on(Pipes, writing), data)
        small.user.drop(writing)

    async def read() -> None:
        nonlocal found, done
        found = await read_all(small.on(Pipes, reading), 30_000)
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(read)
        kills = 0
        while not done and kills < 15:
            await small.end("pipe")
            kills += 1
    assert kills > 3
    assert found == data


async def test_a_reader_that_left_is_told_to_the_writer(small: Small) -> None:
    reading, writing = await small.pipes.create()
    end: Pipes = small.on(Pipes, writing)
    assert await end.write(b"x") == 1
    small.user.drop(reading)
    with pytest.raises(Refused):
        await write_all(end, b"x" * 3 * RING_SIZE)


async def test_both_ends_of_a_named_pipe_meet(small: Small) -> None:
    writing = await small.pipes.attach("p", True)
    assert await small.on(Pipes, writing).write(b"hello") == 5
    await small.end("pipe")
    reading = await small.pipes.attach("p", False)
    assert bytes(await small.on(Pipes, reading).read(100)) == b"hello"
    small.user.drop(writing)
    assert await small.on(Pipes, reading).read(100) == b""
    for name in ("", "a/b", "a\0b", "x" * 256):
        with pytest.raises(Refused):
            await small.pipes.attach(name, True)


async def test_many_blocked_readers_keep_no_writer_out(small: Small) -> None:
    ends = [await small.pipes.create() for _ in range(100)]
    found: list[bytes] = []

    async def read(right: Right) -> None:
        found.append(bytes(await small.on(Pipes, right).read(1_000_000)))

    async with trio.open_nursery() as nursery:
        for reading, _ in ends:
            nursery.start_soon(read, reading)
        port = small.system.task("pipe").main_port
        assert port is not None
        await small.until(lambda: len(port.in_flight) == 100)
        for _, writing in ends:
            assert await small.on(Pipes, writing).write(b"y" * 10_000) == 10_000
    assert found == [b"y" * 10_000] * 100


class FakeTask(Task):
    """As much of a task as the pipe server needs: it keeps one memory object."""

    def __init__(self) -> None:
        self.name = "pipe"
        self.options = {}
        self.generation = 0
        self.memory: int | None = None
        self.badges: list[int] = []

    def keep(self, label: str, descriptor: int) -> None:
        """Keep it."""
        self.memory = os.dup(descriptor)

    def kept(self, label: str) -> int | None:
        """Return a duplicate."""
        return None if self.memory is None else os.dup(self.memory)

    def mint(
        self, badge: int, operations: list[str] | None = None, port: Right | None = None
    ) -> Right:
        """Note the badge."""
        self.badges.append(badge)
        return Right()


FakeTask.__abstractmethods__ = frozenset()


class PipeRecords(RuleBasedStateMachine):
    """One pipe; between any two steps the server may die and the last request come again."""

    def __init__(self) -> None:
        super().__init__()
        self.task = FakeTask()  # type: ignore[abstract]
        self.server = PipeServer(self.task)
        self.server.create()
        self.reading, self.writing = self.task.badges
        self.written = bytearray()
        self.read_so_far = bytearray()
        self.ids = 0
        self.last: tuple[str, int, Any, Any] | None = None

    def request(self, name: str, number: int, badge: int, argument: Any) -> Any:
        about = self.server.request
        about.id, about.badge = number, badge
        call = getattr(self.server, name)(argument)
        try:
            call.send(None)
        except StopIteration as stop:
            return stop.value
        call.close()
        raise AssertionError("it would have waited")

    @rule(data=st.binary(min_size=1, max_size=300), times=st.integers(1, 400))
    def write(self, data: bytes, times: int) -> None:
        if len(self.written) - len(self.read_so_far) >= RING_SIZE - 300 * 400:
            return
        self.ids += 1
        count = self.request("write", self.ids, self.writing, data * times)
        self.written += (data * times)[:count]
        self.last = ("write", self.ids, data * times, count)

    @precondition(lambda self: len(self.written) > len(self.read_so_far))
    @rule(size=st.integers(1, 200_000))
    def read(self, size: int) -> None:
        self.ids += 1
        found = bytes(self.request("read", self.ids, self.reading, size))
        assert found
        self.read_so_far += found
        self.last = ("read", self.ids, size, found)

    @rule()
    def die(self) -> None:
        self.task.generation += 1
        self.server = PipeServer(self.task)

    @precondition(lambda self: self.last is not None)
    @rule()
    def die_and_deliver_again(self) -> None:
        self.die()
        assert self.last is not None
        name, number, argument, outcome = self.last
        badge = self.writing if name == "write" else self.reading
        again = self.request(name, number, badge, argument)
        assert (bytes(again) if name == "read" else again) == outcome

    @invariant()
    def nothing_is_lost_or_repeated(self) -> None:
        assert self.written.startswith(self.read_so_far)

    def teardown(self) -> None:
        self.server.no_senders(self.reading)
        self.server.no_senders(self.writing)
        self.task.generation += 1
        assert not PipeServer(self.task)._pipes
        assert self.task.memory is not None
        os.close(self.task.memory)


TestPipeRecords = PipeRecords.TestCase
TestPipeRecords.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
