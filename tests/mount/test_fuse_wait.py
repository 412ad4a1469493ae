"""The workers' wait, driven with a socket in place of /dev/fuse."""

from __future__ import annotations

import errno
import os
import socket
import types
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mount.fuse_wait import BURST_REQUESTS, Workers
from mount.patched_wait import patched

Handler = Callable[[bytes], Awaitable[None]]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


async def work(workers: Workers, descriptor: int, handle: Handler) -> None:
    """Take and handle requests as one of pyfuse3's workers does."""
    while await workers.wait_readable():
        await handle(os.read(descriptor, 100))


async def drive(workers: Workers, descriptor: int, handle: Handler) -> None:
    """Be one worker of several."""
    await workers.drive(work(workers, descriptor, handle))


async def test_requests_that_are_there_are_taken_without_parking(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    workers = Workers(ours.fileno())
    taken: list[bytes] = []

    async def handle(request: bytes) -> None:
        taken.append(request)
        if request == b"last":
            workers.end()

    for request in (b"1", b"2", b"3", b"last"):
        theirs.send(request)
    await drive(workers, ours.fileno(), handle)
    assert taken == [b"1", b"2", b"3", b"last"]
    assert workers.requests == 4
    assert workers.parks == 0


async def test_other_tasks_run_while_requests_never_cease(
    ends: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    ours, theirs = ends
    workers = Workers(ours.fileno())

    async def handle(request: bytes) -> None:
        theirs.send(request)  # the next one is there at once, for ever

    theirs.send(b"x")
    with trio.CancelScope() as scope:

        async def other() -> None:
            scope.cancel()

        nursery.start_soon(other)
        await drive(workers, ours.fileno(), handle)
    assert scope.cancelled_caught
    assert workers.requests <= BURST_REQUESTS


async def test_another_worker_watches_while_a_handler_is_suspended(
    ends: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    ours, theirs = ends
    workers = Workers(ours.fileno())
    answer = trio.Event()
    order: list[bytes] = []

    async def handle(request: bytes) -> None:
        if request == b"slow":
            await answer.wait()
        order.append(request)

    for _ in range(3):
        nursery.start_soon(drive, workers, ours.fileno(), handle)
    await wait_all_tasks_blocked()
    theirs.send(b"slow")
    await wait_all_tasks_blocked()
    theirs.send(b"quick")
    await wait_all_tasks_blocked()
    assert order == [b"quick"]
    answer.set()
    await wait_all_tasks_blocked()
    assert order == [b"quick", b"slow"]
    nursery.cancel_scope.cancel()


async def test_every_worker_may_be_in_a_handler_and_the_next_request_waits(
    ends: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    ours, theirs = ends
    workers = Workers(ours.fileno())
    gates = {b"a": trio.Event(), b"b": trio.Event(), b"c": trio.Event()}
    begun: list[bytes] = []

    async def handle(request: bytes) -> None:
        begun.append(request)
        await gates[request].wait()

    for _ in range(2):
        nursery.start_soon(drive, workers, ours.fileno(), handle)
    for request in gates:
        theirs.send(request)
    await wait_all_tasks_blocked()
    assert begun == [b"a", b"b"]
    gates[b"b"].set()
    await wait_all_tasks_blocked()
    assert begun == [b"a", b"b", b"c"]
    nursery.cancel_scope.cancel()


async def test_end_of_the_session_ends_all_workers(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    workers = Workers(ours.fileno(), 50e-6)

    async def handle(request: bytes) -> None:
        raise AssertionError("nothing was sent")

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(drive, workers, ours.fileno(), handle)
        await wait_all_tasks_blocked()
        theirs.close()
    assert workers.ended


async def test_cancelled_workers_leave_nothing_behind(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    workers = Workers(ours.fileno())
    taken: list[bytes] = []

    async def handle(request: bytes) -> None:
        taken.append(request)

    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(drive, workers, ours.fileno(), handle)
            await wait_all_tasks_blocked()
            theirs.send(b"x")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert taken == [b"x", b"x"]


async def test_linger_takes_a_request_that_comes_shortly_after(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    workers = Workers(ours.fileno(), linger_s=30.0)
    theirs.send(b"x")
    assert await workers.wait_readable()
    os.read(ours.fileno(), 100)
    await trio.to_thread.run_sync(theirs.send, b"y")
    assert await workers.wait_readable()
    assert workers.parks == 0


async def test_lingers_in_vain_stop(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = ends
    workers = Workers(ours.fileno(), linger_s=1e-4)
    for _ in range(30):
        with trio.move_on_after(0):
            await workers.wait_readable()
    assert workers.lingers < 20


def pyfuse3_like(loop: object, wait: object) -> types.ModuleType:
    module = types.ModuleType("pyfuse3_like")
    module._session_loop = loop  # type: ignore[attr-defined]
    module._wait_fuse_readable = wait  # type: ignore[attr-defined]
    return module


async def stock_wait() -> bool:
    return True


async def test_withdrawn_request_begins_the_worker_again(
    ends: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    begun: list[int] = []

    async def loop(nursery: object, min_tasks: int, max_tasks: int) -> None:
        begun.append(max_tasks)
        if len(begun) < 3:
            raise OSError(errno.EAGAIN, "nothing to read")

    module = pyfuse3_like(loop, stock_wait)
    with patched(Workers(ends[0].fileno()), module) as known:
        assert known
        await module._session_loop(nursery, 1, 7)
    assert begun == [7, 7, 7]
    assert module._session_loop is loop
    assert module._wait_fuse_readable is stock_wait


async def test_unknown_pyfuse3_keeps_its_own_wait(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    async def loop(session: object) -> None:
        pass

    for module in (pyfuse3_like(loop, stock_wait), types.ModuleType("empty")):
        before = dict(vars(module))
        workers = Workers(ends[0].fileno())
        with patched(workers, module) as known:
            assert not known
            assert vars(module) == before
            assert os.get_blocking(ends[0].fileno())
