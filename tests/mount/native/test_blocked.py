"""Operations that wait: order, bounds, and that nobody who could go on is forgotten."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from core.errors import Refused
from core.userlib.interface import Bulk
from mount.native import blocked as module
from mount.native.blocked import Blocked, Blocking, Later
from mount.native.protocol import requests
from mount.native.protocol.opcodes import Opcode

KEY = (0, 1, 0)


class Stream:
    """A number of things to be had by whoever asks, and what became of those who asked."""

    def __init__(self) -> None:
        self.things = 0
        self.asked = 0
        self.gate = trio.Event()
        self.gate.set()
        self.answers: list[tuple[int, bytes | int]] = []
        self.blocked = Blocked(
            lambda request, body: self.answers.append((request.unique, bytes(body))),
            lambda opcode, unique, number: self.answers.append((unique, number)),
        )

    async def attempt(self) -> Bulk:
        self.asked += 1
        found = self.things > 0
        await self.gate.wait()
        if not found:
            raise Refused(errno.EAGAIN)
        self.things -= 1
        return b"thing"

    def operation(self, unique: int, *, wait: bool = True) -> Blocking:
        request = requests.Request(Opcode.READ.value, unique, 1, 0, 0, 0)
        return Blocking(request, self.attempt, wait=wait)

    async def wait_in_line(self, unique: int) -> None:
        with pytest.raises(Later):
            await self.blocked.do(KEY, self.operation(unique))

    def offer(self, count: int = 1) -> None:
        self.things += count
        self.blocked.moved(KEY)


@pytest.fixture
async def stream() -> AsyncIterator[Stream]:
    found = Stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.blocked.run)
        await trio.testing.wait_all_tasks_blocked()
        yield found
        nursery.cancel_scope.cancel()


async def test_who_came_first_is_served_first(stream: Stream) -> None:
    for unique in (2, 4, 6):
        await stream.wait_in_line(unique)
    assert stream.asked == 1
    stream.offer(2)
    await trio.testing.wait_all_tasks_blocked()
    assert stream.answers == [(2, b"thing"), (4, b"thing")]
    assert stream.blocked.waiting == 1
    stream.offer()
    await trio.testing.wait_all_tasks_blocked()
    assert stream.answers[2:] == [(6, b"thing")]
    assert stream.blocked.waiting == 0


async def test_move_while_an_attempt_is_refused_is_not_lost(stream: Stream) -> None:
    stream.gate = trio.Event()
    found: list[Bulk] = []

    async def do() -> None:
        found.append(await stream.blocked.do(KEY, stream.operation(2)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(do)
        await trio.testing.wait_all_tasks_blocked()
        stream.offer()
        stream.gate.set()
    assert found == [b"thing"]
    assert stream.asked == 2


async def test_interrupt_ends_one_wait_and_no_other(stream: Stream) -> None:
    for unique in (2, 4):
        await stream.wait_in_line(unique)
    assert stream.blocked.interrupt(2)
    assert stream.answers == [(2, errno.EINTR)]
    assert not stream.blocked.interrupt(2)
    assert not stream.blocked.interrupt(8)
    stream.offer()
    await trio.testing.wait_all_tasks_blocked()
    assert stream.answers[1:] == [(4, b"thing")]


@pytest.mark.parametrize("things", [0, 1])
async def test_interrupt_during_an_attempt_counts_if_that_fails(
    stream: Stream, things: int
) -> None:
    await stream.wait_in_line(2)
    stream.gate = trio.Event()
    stream.things = things
    stream.blocked.moved(KEY)
    await trio.testing.wait_all_tasks_blocked()
    assert stream.blocked.interrupt(2)
    assert stream.answers == []
    stream.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert stream.answers == [(2, b"thing" if things else errno.EINTR)]


async def test_who_must_not_wait_is_refused(stream: Stream) -> None:
    with pytest.raises(Refused) as refused:
        await stream.blocked.do(KEY, stream.operation(2, wait=False))
    assert refused.value.errno == errno.EAGAIN
    assert stream.blocked.waiting == 0


async def test_one_too_many_is_refused_and_the_others_wait_on(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCKED_LIMIT", 3)
    for unique in (2, 4, 6):
        await stream.wait_in_line(unique)
    with pytest.raises(Refused) as refused:
        await stream.blocked.do(KEY, stream.operation(8))
    assert refused.value.errno == errno.ENOMEM
    stream.offer(3)
    await trio.testing.wait_all_tasks_blocked()
    assert len(stream.answers) == 3


async def test_kept_data_are_bounded(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DATA_LIMIT", 10_000)
    kept = []

    def keep(room: int) -> int:
        kept.append(min(room, 8000))
        return kept[-1]

    for unique in (2, 4, 6):
        operation = stream.operation(unique)
        operation.keep = keep
        with pytest.raises(Later):
            await stream.blocked.do(KEY, operation)
    assert kept == [8000, 4096, 4096]
    stream.offer(3)
    await trio.testing.wait_all_tasks_blocked()
    operation = stream.operation(8)
    operation.keep = keep
    with pytest.raises(Later):
        await stream.blocked.do(KEY, operation)
    assert kept[3] == 8000


async def test_failure_of_the_server_is_answered_to_each(stream: Stream) -> None:
    async def fail() -> Bulk:
        raise Refused(errno.EPIPE)

    for unique in (2, 4):
        operation = stream.operation(unique)
        with pytest.raises(Later):
            await stream.blocked.do(KEY, operation)
        operation.attempt = fail
    stream.blocked.moved_any()
    await trio.testing.wait_all_tasks_blocked()
    assert stream.answers == [(2, errno.EPIPE), (4, errno.EPIPE)]


async def test_what_moves_before_the_start_is_done_at_the_start() -> None:
    stream = Stream()
    await stream.wait_in_line(2)
    await stream.wait_in_line(4)
    stream.offer(2)
    await trio.testing.wait_all_tasks_blocked()
    assert stream.answers == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.blocked.run)
        await trio.testing.wait_all_tasks_blocked()
        assert stream.answers == [(2, b"thing"), (4, b"thing")]
        nursery.cancel_scope.cancel()
