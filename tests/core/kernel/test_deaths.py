"""Servers that die: nothing is lost, nothing is done twice unnoticed, and nobody else is hurt."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import trio

from core.abi import POISON_LIMIT
from core.errors import DeadPortError, PoisonError
from core.kernel.tasks import State
from tests.support.servers import Seen
from tests.support.small_system import Small


async def test_a_request_in_flight_is_delivered_again_with_its_id(small: Small) -> None:
    answers: list[Seen] = []

    async def wait(key: int) -> None:
        answers.append(await small.slow.wait(key))

    async with trio.open_nursery() as nursery:
        for key in (1, 2, 3):
            nursery.start_soon(wait, key)
            await small.journaled(f"waits {key}")
        port = small.system.task("slow").main_port
        assert port is not None
        ids = list(port.in_flight)
        await small.end("slow")
        for key in (1, 2, 3):
            await small.journaled(f"waits {key}", 2)
            assert await small.slow.release(key) == 1
    assert sorted(seen.id for seen in answers) == ids
    assert all(seen.redelivered and seen.generation == 1 for seen in answers)
    assert not (await small.slow.seen()).redelivered


async def test_clients_of_others_do_not_notice_a_death(small: Small) -> None:
    done = 0

    async def use_others() -> None:
        nonlocal done
        while True:
            assert await small.relay.echo(1, "x") == (2, "x")
            done += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use_others)
        for _ in range(5):
            before = done
            await small.end("slow")
            await small.until(lambda before=before: done > before + 5)  # type: ignore[misc]
        nursery.cancel_scope.cancel()
    assert small.generation("probe") == small.generation("relay") == 0


async def test_a_fault_is_told_and_the_request_is_tried_again(small: Small) -> None:
    assert await small.probe.fault(2) == 3
    assert small.generation("probe") == 2
    assert "told to fail" in small.system.task("probe").last_words[0]
    assert await small.slow.fault(2) == 3
    assert small.generation("slow") == 2


@pytest.mark.parametrize("server", ["probe", "slow"])
async def test_a_request_that_always_kills_its_server_is_poison(small: Small, server: str) -> None:
    with pytest.raises(PoisonError):
        await getattr(small, server).fault(100)
    assert small.generation(server) == POISON_LIMIT
    assert (await getattr(small, server).seen()).generation == POISON_LIMIT


async def test_a_crash_without_a_word_is_poison_too(small: Small) -> None:
    if not small.isolated:
        pytest.skip("a promoted server that exits takes the kernel along")
    assert await small.probe.exit(2) == 3
    with pytest.raises(PoisonError):
        await small.probe.exit(100)


async def _kill_and_stop_the_next(small: Small) -> None:
    task = small.system.task("probe")
    generation = task.id.generation
    os.kill(small.pid("probe"), signal.SIGKILL)

    def stopped_again() -> bool:
        engine = task.engine
        if task.id.generation > generation and engine is not None and engine.pid:
            os.kill(engine.pid, signal.SIGSTOP)
            return True
        return False

    await small.until(stopped_again)


async def test_kills_from_outside_poison_nothing(small: Small) -> None:
    if not small.isolated:
        pytest.skip("a promoted server cannot be killed")
    os.kill(small.pid("probe"), signal.SIGSTOP)
    async with trio.open_nursery() as nursery:
        answers: list[tuple[int, str]] = []

        async def call() -> None:
            answers.append(await small.probe.echo(1, "innocent"))

        nursery.start_soon(call)
        port = small.system.task("probe").main_port
        assert port is not None
        await small.until(lambda: bool(port.in_flight))
        for _ in range(POISON_LIMIT + 2):
            await _kill_and_stop_the_next(small)
        os.kill(small.pid("probe"), signal.SIGCONT)
    assert answers == [(1, "innocent")]


async def test_a_message_that_waited_for_a_dead_server_is_served_in_order(small: Small) -> None:
    task = small.system.task("probe")
    spec = type(small.probe).named("remember")
    if small.isolated:
        os.kill(small.pid("probe"), signal.SIGSTOP)
        generation = task.id.generation
        os.kill(small.pid("probe"), signal.SIGKILL)
        await small.until(lambda: task.id.generation > generation)
    else:
        task.engine._note(RuntimeError("ended"), 0)  # type: ignore[union-attr]
    for number in range(20):
        small.user.send(small.probe.right, spec, (f"sent {number}",))  # type: ignore[attr-defined]
    await small.probe.echo(1, "")
    lines = [line for line in small.journal.lines() if line.startswith("sent")]
    assert lines == [f"sent {number}" for number in range(20)]


async def test_kept_descriptors_outlive_the_server(small: Small) -> None:
    await small.probe.keep("a", b"first")
    await small.probe.keep("b", b"second")
    await small.end("probe")
    assert await small.probe.kept("a") == b"first"
    await small.probe.keep("a", b"again")
    await small.end("probe")
    assert await small.probe.kept("a") == b"again"
    assert await small.probe.kept("b") == b"second"


async def test_timers_of_a_dead_incarnation_do_not_ring(small: Small) -> None:
    await small.probe.arm(0.0, 1)
    await small.journaled("bits 1")
    timer = await small.probe.arm(0.2, 2)
    await small.probe.disarm(timer)
    await small.probe.arm(1000.0, 4)
    assert len(small.system.task("probe").timers) == 1
    await small.end("probe")
    assert not small.system.task("probe").timers
    await small.probe.arm(0.2, 8)  # so it rings after the one that was disarmed would have
    await small.journaled("bits 8")
    assert small.journal.count("bits 2") == 0


async def test_a_registered_name_survives_the_name_server(small: Small) -> None:
    await small.names.register("probe", small.probe.right)  # type: ignore[attr-defined]
    await small.end("names")
    assert await small.names.entries() == ["probe"]
    found = await small.names.lookup("probe")
    assert await type(small.probe).echo(small.on(type(small.probe), found), 1, "") == (1, "")
    await small.names.unregister("probe")
    await small.end("names")
    assert await small.names.entries() == []


async def test_the_supervisors_own_death_forgets_nobody(small: Small) -> None:
    supervisor = small.system.task("supervisor")
    for _ in range(3):
        generation = supervisor.id.generation
        if small.isolated:
            pid, other = small.pid("supervisor"), small.pid("probe")
            os.kill(pid, signal.SIGKILL)
            os.kill(other, signal.SIGKILL)
        else:
            supervisor.engine._note(RuntimeError("x"), 0)  # type: ignore[union-attr]
            small.system.task("probe").engine._note(RuntimeError("x"), 0)  # type: ignore[union-attr]
        await small.until(
            lambda generation=generation: (
                supervisor.id.generation > generation  # type: ignore[misc]
                and supervisor.state is State.RUNNING
            )
        )
        assert await small.probe.echo(1, "x") == (1, "x")
    assert small.generation("probe") == 3


async def test_a_stopped_supervisor_delays_only_restarts(small: Small) -> None:
    if not small.isolated:
        pytest.skip("a promoted server cannot be stopped")
    os.kill(small.pid("supervisor"), signal.SIGSTOP)
    os.kill(small.pid("probe"), signal.SIGKILL)
    for _ in range(20):
        assert (await small.slow.seen()).generation == 0
    os.kill(small.pid("supervisor"), signal.SIGCONT)
    assert (await small.probe.seen()).generation == 1


class TestTemporary:
    """A server that is never restarted."""

    @pytest.fixture
    def policy(self) -> dict[str, Any]:
        return {"restart": "temporary"}

    async def test_its_clients_get_an_error_in_place_of_waiting(self, small: Small) -> None:
        with pytest.raises(DeadPortError):
            await small.mortal.die()
        with pytest.raises(DeadPortError):
            await small.mortal.generation()
        assert small.system.task("mortal").state is State.RETIRED


class TestTransient:
    """A server that is restarted after a fault only."""

    @pytest.fixture
    def policy(self) -> dict[str, Any]:
        return {"restart": "transient"}

    async def test_a_fault_is_mended_and_an_orderly_end_is_final(self, small: Small) -> None:
        with pytest.raises(PoisonError):
            await small.mortal.die()
        assert await small.mortal.generation() == POISON_LIMIT
        engine = small.system.task("mortal").engine
        assert engine is not None
        engine.stop()
        await small.until(lambda: small.system.task("mortal").state is State.RETIRED)
        with pytest.raises(DeadPortError):
            await small.mortal.generation()


class TestIntensity:
    """A server that may die four times."""

    @pytest.fixture
    def policy(self) -> dict[str, Any]:
        return {"intensity": 4}

    async def test_too_many_deaths_give_it_up(self, small: Small) -> None:
        with pytest.raises(PoisonError):
            await small.mortal.die()
        with pytest.raises(DeadPortError):
            await small.mortal.die()
        assert small.system.task("mortal").state is State.RETIRED
        assert small.generation("mortal") == 5
        assert any("given up" in line for line in small.log)
