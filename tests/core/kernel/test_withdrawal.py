"""Calls that are cancelled or late, and requests that are passed on."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from core.abi import HOPS_LIMIT
from core.errors import DeadlineError, Refused, ServerFaultError
from core.userlib.interface import Descriptor
from core.userlib.stub import with_deadline
from tests.support.servers import Relay, Seen
from tests.support.small_system import Small


async def test_a_cancelled_call_reaches_the_server_and_the_next_one_works(small: Small) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(small.slow.wait, 1)
        await small.journaled("waits 1")
        nursery.cancel_scope.cancel()
    await small.journaled("withdrawn 1")
    port = small.system.task("slow").main_port
    assert port is not None
    await small.until(lambda: not port.in_flight)
    assert await small.slow.release(1) == 0
    assert small.generation("slow") == 0


async def test_a_call_cancelled_at_once_is_withdrawn_before_its_handler_runs(small: Small) -> None:
    port = small.system.task("slow").main_port
    assert port is not None
    for _ in range(200):
        with trio.move_on_after(0):
            await small.slow.mirror(1, 8192, b"x" * 8192)
    await small.until(lambda: not port.in_flight and not port.queue)
    assert await small.slow.release(1) == 0
    engine = small.system.task("slow").engine
    if small.isolated:
        assert len(engine.slots) == 1024  # type: ignore[union-attr]


async def test_a_withdrawn_request_that_waits_at_its_port_is_never_delivered(small: Small) -> None:
    if not small.isolated:
        pytest.skip("a promoted server cannot be stopped")
    os.kill(small.pid("supervisor"), signal.SIGSTOP)
    os.kill(small.pid("slow"), signal.SIGKILL)
    await small.until(lambda: small.system.task("slow").engine is None)
    with trio.move_on_after(0):
        await small.slow.wait(1)
    os.kill(small.pid("supervisor"), signal.SIGCONT)
    await small.slow.seen()
    assert small.journal.count("waits 1") == 0


async def test_a_deadline_ends_the_call_and_aborts_the_server(small: Small) -> None:
    with pytest.raises(DeadlineError):
        await with_deadline(small.slow, 0.02).wait(1)
    await small.journaled("withdrawn 1")
    hurried = with_deadline(with_deadline(small.slow, 0.01), 1000.0)
    assert await hurried.typed(1, []) == 1
    assert len(small.kernel.timers) == 0


async def test_a_deadline_that_is_kept_leaves_no_timer(small: Small) -> None:
    for _ in range(10):
        assert await with_deadline(small.probe, 100.0).echo(1, "") == (1, "")
    assert len(small.kernel.timers) == 0


async def test_a_deadline_passes_while_the_server_is_down(small: Small) -> None:
    if not small.isolated:
        pytest.skip("a promoted server cannot be stopped")
    os.kill(small.pid("probe"), signal.SIGSTOP)
    with pytest.raises(DeadlineError):
        await with_deadline(small.probe, 0.02).echo(1, "")
    os.kill(small.pid("probe"), signal.SIGCONT)
    assert await small.probe.echo(1, "") == (1, "")


async def test_a_forwarded_request_is_answered_by_the_other_server(small: Small) -> None:
    assert await small.relay.echo(21, "x") == (42, "x")
    seen = await small.relay.seen()
    assert seen.badge == small.system.task("relay").badge
    assert (await small.relay.later()).badge == seen.badge


async def test_a_forwarded_request_takes_its_bulk_along(small: Small) -> None:
    for size in (0, 1, 4096, 4097, 300_000):
        data = os.urandom(size)
        assert bytes(await small.relay.mirror(size, data)) == data


async def test_a_forwarded_request_takes_its_descriptor_along(small: Small) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"lent")
    os.close(writing)
    assert await small.relay.read_from(10, Descriptor(reading)) == b"lent"


async def test_a_forwarded_request_is_refused_by_the_other_server(small: Small) -> None:
    with pytest.raises(Refused, match="why not"):
        await small.relay.refuse(1, "why not")


async def test_a_forwarded_message_without_reply_arrives(small: Small) -> None:
    right = small.relay.right  # type: ignore[attr-defined]
    small.user.send(right, Relay.named("remember"), ("passed on",))
    await small.journaled("passed on")


async def test_a_request_cannot_be_passed_to_what_replies_something_else(small: Small) -> None:
    with pytest.raises(ServerFaultError, match="does not reply"):
        await small.relay.wrong_kind()
    assert small.generation("relay") == 0


async def test_a_request_that_goes_in_circles_ends(small: Small) -> None:
    with pytest.raises(ServerFaultError, match=f"{HOPS_LIMIT} times"):
        await small.relay.in_circles()
    assert small.generation("relay") == 0


async def test_a_forwarded_request_outlives_the_server_that_passed_it_on(small: Small) -> None:
    answers: list[Seen] = []

    async def wait() -> None:
        answers.append(await small.relay.wait(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await small.journaled("waits 1")
        await small.end("relay")
        await small.end("slow")
        await small.journaled("waits 1", 2)
        await small.slow.release(1)
    assert answers[0].redelivered


async def test_a_forwarded_request_is_withdrawn_where_it_is(small: Small) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(small.relay.wait, 1)
        await small.journaled("waits 1")
        nursery.cancel_scope.cancel()
    await small.journaled("withdrawn 1")
