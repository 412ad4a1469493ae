"""Hostile tasks: whatever one sends, it gets typed errors, and nobody else notices."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from core.abi import HEADER, NO_SLOT, RIGHTS_LIMIT, Kind
from core.kernel.tasks import State
from core.system.boot import Prepared
from core.system.names import Names
from core.system.pipe import Pipes
from core.userlib.interface import encode
from core.userlib.kernel_calls import KernelCalls
from tests.support.hostile import Hostile
from tests.support.servers import Probe, Slow
from tests.support.small_system import Small, prepare, running

PACKETS = 10_000
INTERFACES = {"probe": Probe, "slow": Slow, "names": Names, "pipe": Pipes}
PROMPT = "intensity = 10_000\nfirst_delay_s = 0.001\nlongest_delay_s = 0.001"
"""The hostile task may end `probe` as often as it likes: nobody waits for it longer and longer."""
SERVERS = ("names", "pipe", "relay", "supervisor", "mortal")


@pytest.fixture(params=["process", "colocated"])
def placement(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def prepared(placement: str, tmp_path: Path) -> Iterator[Prepared]:
    made = prepare(placement, tmp_path / "journal", intensity=10_000, probe=PROMPT)
    yield made
    made.close()


@pytest.fixture
async def small(prepared: Prepared, placement: str, tmp_path: Path) -> AsyncIterator[Small]:
    async with running(prepared, placement, tmp_path / "journal") as found:
        yield found


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
async def test_random_packets_earn_errors_and_change_nothing_for_others(small: Small) -> None:
    done = 0

    async def innocent() -> None:
        nonlocal done
        while True:
            assert await small.relay.echo(done, "x") == (2 * done, "x")
            small.user.drop(await small.names.lookup("mine"))
            done += 1
            await trio.lowlevel.checkpoint()  # a hand-off is none

    await small.names.register("mine", small.relay.right)  # type: ignore[attr-defined]
    open_before = descriptors()
    errors = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(innocent)
        for seed in range(10):
            hostile = Hostile(small.system, seed, INTERFACES)
            for number in range(PACKETS // 10):
                hostile.attack()
                if number % 20 == 0:
                    await trio.lowlevel.checkpoint()
                    hostile.read()
                if hostile.task.state is not State.RUNNING:
                    break
            before = done
            await small.until(lambda before=before: done > before)  # type: ignore[misc]
            hostile.read()
            errors += hostile.errors
            hostile.close()
            await small.until(lambda hostile=hostile: hostile.task.state is State.RETIRED)  # type: ignore[misc]
        nursery.cancel_scope.cancel()
    assert errors > PACKETS // 10
    for server in SERVERS:
        assert small.generation(server) == 0, (server, small.log)
    for label in list(small.system.task("probe").kept):
        small.system.task("probe").keep(label, os.open(os.devnull, os.O_RDONLY))
    kept = len(small.system.task("probe").kept)
    await small.until(lambda: descriptors() <= open_before + kept)


def packet(kind: int, fields: bytes = b"", **values: int) -> bytes:
    """Return a packet with the given header."""
    return (
        HEADER.pack(
            kind,
            values.get("flags", 0),
            values.get("operation", 0),
            values.get("name", 0),
            values.get("request", 1),
            0,
            values.get("size", len(fields)),
            values.get("bulk", 0),
            values.get("slot", NO_SLOT),
            values.get("room", 0),
            0,
            values.get("rights", 0),
            values.get("lent", 0),
        )
        + fields
    )


async def test_replies_to_requests_of_others_are_not_taken(small: Small) -> None:
    hostile = Hostile(small.system, 1, INTERFACES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(small.slow.wait, 1)
        await small.journaled("waits 1")
        port = small.system.task("slow").main_port
        assert port is not None
        (victim,) = port.in_flight
        for kind in (Kind.REPLY, Kind.ERROR, Kind.FORWARD, Kind.ABORT, Kind.FAULT):
            fields = encode((13, 1, "stolen")) if kind == Kind.ERROR else encode(None)
            hostile.send(packet(kind, fields, request=victim, name=2))
        await small.probe.echo(1, "")
        await small.until(lambda: hostile.read() is None and hostile.errors >= 3)  # type: ignore[func-returns-value]
        assert list(port.in_flight) == [victim]
        await small.slow.release(1)
    hostile.close()


async def test_a_reply_to_a_request_of_ones_own_is_no_reply(small: Small) -> None:
    hostile = Hostile(small.system, 1, INTERFACES)
    name = hostile.task.grants["slow"]
    hostile.send(packet(Kind.CALL, encode((3,)), name=name, request=5))
    await small.journaled("waits 3")
    hostile.send(packet(Kind.CALL, encode((3,)), name=name, request=5))
    await small.until(lambda: hostile.read() is None and hostile.errors == 1)  # type: ignore[func-returns-value]
    hostile.close()
    await small.journaled("withdrawn 3")


async def test_who_floods_and_never_reads_is_ended_alone(small: Small) -> None:
    hostile = Hostile(small.system, 1, INTERFACES)
    ask = packet(
        Kind.CALL,
        encode((hostile.task.grants["probe"],)),
        operation=KernelCalls.named("inspect").index,
    )
    sent = 0
    while hostile.task.state is State.RUNNING:
        hostile.send(ask)
        sent += 1
        if sent % 200 == 0:
            assert await small.probe.echo(sent, "") == (sent, "")
            await trio.lowlevel.checkpoint()
        assert sent < 2_000_000
    await small.until(lambda: hostile.task.state is State.RETIRED)
    assert "unread" in hostile.task.last_words[-1]
    for server in (*SERVERS, "probe", "slow"):
        assert small.generation(server) == 0
    hostile.close()


async def test_who_asks_for_descriptors_and_never_reads_does_not_exhaust_them(small: Small) -> None:
    before = descriptors()
    hostile = Hostile(small.system, 1, INTERFACES)
    ask = packet(Kind.CALL, encode((4096,)), operation=KernelCalls.named("create_memory").index)
    sent = 0
    while hostile.task.state is State.RUNNING:
        hostile.send(ask)
        sent += 1
        if sent % 50 == 0:
            await trio.lowlevel.checkpoint()
            assert descriptors() < before + 400
        assert sent < 100_000
    hostile.close()
    assert await small.probe.echo(1, "") == (1, "")
    await small.until(lambda: descriptors() <= before)


async def test_an_empty_packet_with_descriptors_leaks_none(small: Small) -> None:
    before = descriptors()
    hostile = Hostile(small.system, 1, INTERFACES)
    socket.send_fds(hostile.socket, [b""], [0] * RIGHTS_LIMIT)
    await small.until(lambda: hostile.task.state is State.RETIRED)
    hostile.close()
    assert descriptors() <= before


async def test_a_last_word_of_nothing_does_not_hurt_who_lists_tasks(small: Small) -> None:
    from core.kernel.calls import task_infos

    hostile = Hostile(small.system, 1, INTERFACES)
    hostile.send(packet(Kind.FAULT, encode(" \n ")))
    await trio.lowlevel.checkpoint()
    hostile.close()
    await small.until(lambda: hostile.task.state is State.RETIRED)
    small.system.task("probe").remember_end("  \n")
    assert any(info.name == "probe" and info.last_end == "" for info in task_infos(small.kernel))


async def test_a_stopped_server_delays_only_its_own_clients(small: Small) -> None:
    if not small.isolated:
        pytest.skip("a promoted server cannot be stopped")
    os.kill(small.pid("probe"), signal.SIGSTOP)
    waiting = 0
    answered = 0

    async def own_client(number: int) -> None:
        nonlocal waiting, answered
        waiting += 1
        assert await small.probe.echo(number, "late") == (number, "late")
        answered += 1

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(own_client, number)
        await small.until(lambda: waiting == 200)
        for number in range(500):
            assert await small.slow.typed(number, []) == number
            assert await small.names.entries() == []
        assert answered == 0
        os.kill(small.pid("probe"), signal.SIGCONT)
    assert answered == 200
    assert small.generation("probe") == 0
