"""Calls that outlive their client: a clerk dies between an entry in a ledger and his answer."""

from __future__ import annotations

import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio

from core.abi import RESUMABLE_PLACES, RESUMABLE_STEPS
from core.kernel.tasks import KernelTask, State
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from tests.support.resuming_servers import DESCRIPTION, REFUSED, Clerk, Ledger
from tests.support.servers import Journal


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes bring about."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


class Office:
    """A booted system with a clerk and a ledger."""

    def __init__(self, system: System, journal: Journal, *, isolated: bool) -> None:
        self.system = system
        self.journal = journal
        self.isolated = isolated
        self.clerk: Clerk = system.connect(Clerk, "clerk", "user")
        self.ledger: Ledger = system.connect(Ledger, "ledger", "user")

    def place(self) -> KernelTask:
        return self.system.task("clerk")

    async def journaled(self, line: str, times: int = 1) -> None:
        await until(lambda: self.journal.count(line) >= times)

    async def end(self, server: str) -> None:
        """End an incarnation, and wait for the next one."""
        task = self.system.task(server)
        engine, generation = task.engine, task.id.generation
        assert engine is not None
        if self.isolated:
            os.kill(engine.pid, 9)
        else:
            engine._note(RuntimeError("ended by a test"), 0)  # type: ignore[attr-defined]
        await until(lambda: task.id.generation > generation and task.state is State.RUNNING)


@pytest.fixture
def keeps_promise() -> bool:
    return True


@pytest.fixture
def prepared(placement: str, tmp_path: Path, keeps_promise: bool) -> Iterator[Prepared]:
    text = DESCRIPTION.format(
        placement=placement,
        journal=tmp_path / "journal",
        directory=tmp_path,
        keeps_promise=str(keeps_promise).lower(),
    )
    made = Prepared(parse_description(text, "office"))
    yield made
    made.close()


@pytest.fixture
async def office(prepared: Prepared, placement: str, tmp_path: Path) -> AsyncIterator[Office]:
    log: list[str] = []
    async with booted(prepared, log.append) as system:
        journal = Journal(str(tmp_path / "journal"))
        yield Office(system, journal, isolated=placement == "process")
    assert not [line for line in log if line.startswith("kernel: a packet")], log


async def answered_after_death(office: Office, words: list[str]) -> list[int]:
    """Ask, kill the clerk when he stays, and return what the next one answers."""
    found: list[list[int]] = []

    async def ask() -> None:
        found.append(await office.clerk.ask(3, 1001, words))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await office.journaled("stays")
        await office.end("clerk")
    return found[0]


async def test_what_was_done_is_not_done_again(office: Office) -> None:
    words = ["one", "!two", "two", "stay", "three"]
    assert await answered_after_death(office, words) == [1, -REFUSED, 1, 1]
    assert [office.journal.count(word) for word in ("one", "!two", "two", "three")] == [1] * 4


@pytest.mark.parametrize("keeps_promise", [False])
async def test_plain_calls_are_made_again(office: Office) -> None:
    assert await answered_after_death(office, ["one", "stay"]) == [2]


async def test_call_in_flight_is_waited_for_by_the_next_incarnation(office: Office) -> None:
    found: list[list[int]] = []

    async def ask() -> None:
        found.append(await office.clerk.ask(0, 7, ["gate"]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await office.journaled("at the gate")
        await office.end("clerk")
        await office.ledger.open()
    assert found == [[1]]
    assert office.journal.count("at the gate") == 1
    assert office.journal.count("gate") == 1


async def test_call_that_ended_while_nobody_was_there_is_answered(office: Office) -> None:
    found: list[list[int]] = []

    async def ask() -> None:
        found.append(await office.clerk.ask(0, 7, ["gate"]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await office.journaled("at the gate")
        supervisor = office.system.task("supervisor").engine
        assert supervisor is not None
        os.kill(supervisor.pid, 19)
        clerk = office.place().engine
        assert clerk is not None
        if office.isolated:
            os.kill(clerk.pid, 9)
        else:
            clerk._note(RuntimeError("ended by a test"), 0)  # type: ignore[attr-defined]
        await until(lambda: office.place().state is State.DOWN)
        await office.ledger.open()
        await office.journaled("gate")
        os.kill(supervisor.pid, 18)
    assert found == [[1]]
    assert office.journal.count("gate") == 1


@pytest.mark.parametrize("size", [100, 300_000])
async def test_octets_of_a_call_outlive_both_ends(office: Office, size: int) -> None:
    """The ledger dies, too, so they are delivered again; the next clerk uses his memory anew."""
    found: list[int] = []

    async def weigh(place: int, octet: int) -> None:
        found.append(await office.clerk.weigh(place, octet, octet, size))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(weigh, 0, 1)
        await office.journaled("weighs")
        await office.end("clerk")
        nursery.start_soon(weigh, 1, 2)
        await office.journaled("weighs", 2)
        await office.end("ledger")
        await office.journaled("weighs", 4)
        await office.ledger.open()
    assert set(found) == {zlib.crc32(bytes([octet]) * size) for octet in (1, 2)}


async def test_another_tag_says_that_the_former_is_dealt_with(office: Office) -> None:
    assert await office.clerk.ask(4, 1, ["a"]) == [1]
    assert await office.clerk.kept() == [(4, 1)]
    assert await office.clerk.ask(4, 2, ["b"]) == [1]
    assert await office.clerk.kept() == [(4, 2)]
    assert await office.clerk.ask(4, 1, ["a"]) == [2]


async def test_cancelled_call_goes_on_until_its_place_is_used_again(office: Office) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(office.clerk.give_up, 0, 1)
        await office.journaled("at the gate")
        office.journal.add("given up")
    port = office.system.task("ledger").main_port
    assert port is not None
    assert len(port.in_flight) == 1
    assert await office.clerk.ask(0, 2, ["next"]) == [1]
    await until(lambda: not port.in_flight)
    await office.ledger.open()
    assert not office.journal.count("gate")


async def test_flood_of_tags_costs_its_sender_alone(office: Office) -> None:
    await office.clerk.flood(3000)
    port = office.system.task("ledger").main_port
    assert port is not None
    await until(lambda: len(port.in_flight) + len(port.queue) <= RESUMABLE_PLACES)
    task = office.place()
    assert sum(len(place.steps) for place in task.places.values()) == RESUMABLE_PLACES
    assert len(task.calls) <= RESUMABLE_PLACES
    assert await office.ledger.enter("somebody else") == 1
    await office.end("clerk")
    assert len(await office.clerk.kept()) == RESUMABLE_PLACES


async def test_what_cannot_be_kept_is_refused(office: Office) -> None:
    assert await office.clerk.misuse("place") == "BadMessageError"
    assert await office.clerk.misuse("bulk") == "BadMessageError"
    assert await office.clerk.misuse("once") == "WrongRightError"
    assert await office.clerk.misuse("steps") == "LimitError"
    assert office.journal.count("many") == RESUMABLE_STEPS
    assert await office.clerk.ask(0, 6, ["after"]) == [1]


async def test_other_question_under_the_same_tag_is_refused(office: Office) -> None:
    assert await office.clerk.ask(0, 1, ["a", "b"]) == [1, 1]
    await office.end("clerk")
    with pytest.raises(Exception, match="under this tag"):
        await office.clerk.ask(0, 1, ["!a"])


async def test_retired_task_leaves_no_call(office: Office) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(office.clerk.give_up, 0, 1)
        await office.journaled("at the gate")
        office.journal.add("given up")
    port = office.system.task("ledger").main_port
    assert port is not None
    office.system.kernel.retire(office.place(), "by a test")
    await until(lambda: not port.in_flight)
    assert not office.place().places
