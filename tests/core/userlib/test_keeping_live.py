"""Servers with state keep their word, whenever they end and wherever they run."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio

from core.abi import FIELDS_LIMIT
from core.errors import LimitError, LostError, PoisonError, Refused
from core.kernel.tasks import State
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from core.userlib.keeping import LABEL
from tests.support.keeping_servers import POINTS, Counting, Counts, Tickets

_SERVER = """
[server.{name}]
class = "tests.support.keeping_servers:{cls}"
placement = "{placement}"
intensity = 100000
period_s = 0.05
{more}
"""
_SUPERVISOR = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"
"""


def describe(placement: str) -> str:
    storm = "options = {{ storm = 180, forgetful = {} }}"
    servers = [
        ("counting", "CountingServer", 'grants = { other = "other" }'),
        ("other", "CountingServer", ""),
        ("storm", "CountingServer", storm.format("false")),
        ("forgetful", "CountingServer", storm.format("true")),
        ("tickets", "TicketServer", ""),
    ]
    return _SUPERVISOR + "".join(
        _SERVER.format(name=name, cls=cls, placement=placement, more=more)
        for name, cls, more in servers
    )


class Keeping:
    """A system of servers with state, and who asks them."""

    def __init__(self, system: System, placement: str) -> None:
        self.system = system
        self.isolated = placement == "process"
        self.counting: Counting = system.connect(Counting, "counting", "user")
        self.other: Counting = system.connect(Counting, "other", "user")
        self.tickets: Tickets = system.connect(Tickets, "tickets", "user")

    def on(self, server: str) -> Counting:
        stub: Counting = self.system.connect(Counting, server, "user")
        return stub

    def generation(self, server: str) -> int:
        return self.system.task(server).id.generation

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not condition():  # noqa: ASYNC110 - another process brings it about
                await trio.sleep(0.001)

    async def end(self, server: str) -> None:
        """End an incarnation and wait for the next."""
        task = self.system.task(server)
        generation = task.id.generation
        engine: Any = task.engine
        if self.isolated:
            os.kill(engine.pid, signal.SIGKILL)
        else:
            engine._note(RuntimeError("ended by a test"), 0)
        await self.until(lambda: task.id.generation > generation and task.state is State.RUNNING)

    def damage(self, server: str) -> None:
        """Overwrite what the kernel keeps of a server's state."""
        number = self.system.task(server).kept[LABEL]
        os.pwrite(number, os.urandom(os.fstat(number).st_size), 0)


@pytest.fixture
def forked(placement: str) -> Iterator[Prepared]:
    made = Prepared(parse_description(describe(placement), "keeping"))
    yield made
    made.close()


@pytest.fixture
async def keeping(forked: Prepared, placement: str) -> AsyncIterator[Keeping]:
    async with booted(forked, lambda line: None) as system:
        yield Keeping(system, placement)


@pytest.mark.parametrize("point", POINTS)
async def test_a_request_is_applied_once_wherever_its_server_ends(
    keeping: Keeping, point: str
) -> None:
    if point == "replied" and not keeping.isolated:
        pytest.skip("a promoted server replies by returning")
    counting = keeping.counting
    assert await counting.add(1) == 1
    await counting.die(point)
    assert await counting.add(10) == 11
    await keeping.until(lambda: keeping.generation("counting") == 1)
    assert (await counting.counts()).total == 11
    assert await counting.add(100) == 111


async def test_state_is_there_after_deaths_between_requests(keeping: Keeping) -> None:
    for total in range(1, 6):
        assert await keeping.counting.add(1) == total
        await keeping.end("counting")
    assert (await keeping.counting.counts()).total == 5


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_additions_through_a_hundred_deaths_count_each_once(
    keeping: Keeping,
) -> None:
    storm = keeping.on("storm")
    for count in range(1, 10_001):
        assert await storm.add(1) == count
    assert (await storm.counts()).total == 10_000
    assert keeping.generation("storm") > 80


@pytest.mark.slow
async def test_without_the_record_the_same_storm_counts_some_twice(keeping: Keeping) -> None:
    forgetful = keeping.on("forgetful")
    for _ in range(2000):
        await forgetful.add(1)
    assert (await forgetful.counts()).total > 2000


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_additions_through_kills_at_any_instant_count_each_once(
    keeping: Keeping,
) -> None:
    if not keeping.isolated:
        pytest.skip("a promoted server cannot be killed")
    counting, task = keeping.counting, keeping.system.task("counting")
    chance, done = random.Random(7), threading.Event()

    def kill() -> None:
        kills = 0
        while kills < 100 and not done.wait(chance.uniform(0.001, 0.012)):
            engine = task.engine
            if engine is not None and engine.pid and task.state is State.RUNNING:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(engine.pid, signal.SIGKILL)
                    kills += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for count in range(1, 10_001):
            assert await counting.add(1) == count
    finally:
        done.set()
        killer.join()
    assert (await counting.counts()).total == 10_000
    assert keeping.generation("counting") > 20


async def test_a_refusal_leaves_the_state_as_it_was(keeping: Keeping) -> None:
    await keeping.counting.add(1)
    with pytest.raises(Refused):
        await keeping.counting.refuse(1000)
    assert await keeping.counting.add(1) == 2
    with pytest.raises(Refused):
        await keeping.tickets.change_and_decline()
    assert (await keeping.tickets.seen()).made == 0


async def test_who_passes_a_request_on_keeps_nothing_of_it(keeping: Keeping) -> None:
    assert await keeping.counting.pass_on(5) == 5
    assert (await keeping.counting.counts()).total == 0
    assert (await keeping.other.counts()).total == 5


@pytest.mark.parametrize("how", ["type", "unencodable"])
async def test_a_state_that_could_not_be_read_back_is_a_fault_and_never_kept(
    keeping: Keeping, how: str
) -> None:
    await keeping.counting.add(7)
    with pytest.raises(PoisonError):
        await keeping.counting.spoil(how)
    assert (await keeping.counting.counts()).total == 7


async def test_a_state_beyond_the_limit_is_refused_and_stays_as_it_was(keeping: Keeping) -> None:
    await keeping.counting.add(7)
    with pytest.raises(LimitError, match="the limit is"):
        await keeping.counting.spoil("5000000")
    assert keeping.generation("counting") == 0
    assert (await keeping.counting.counts()).text == ""
    assert await keeping.counting.spoil("1000000") == 0
    await keeping.end("counting")
    assert await keeping.counting.add(1) == 8


async def test_a_reply_too_large_to_send_changes_nothing(keeping: Keeping) -> None:
    if not keeping.isolated:
        pytest.skip("a promoted server's reply to the kernel's process is not limited by a packet")
    await keeping.counting.spoil(str(FIELDS_LIMIT))
    assert await keeping.counting.add(1) == 1


@pytest.mark.parametrize("point", ["changed", "committed"])
async def test_bulk_of_a_reply_is_recorded_with_it(keeping: Keeping, point: str) -> None:
    await keeping.counting.write("abc" * 3000)
    await keeping.counting.die(point)
    assert bytes(await keeping.counting.cut(6000)) == b"abc" * 2000
    assert bytes(await keeping.counting.cut(6000)) == b"abc" * 1000
    assert keeping.generation("counting") == 1


async def test_a_reply_with_a_right_is_made_again_upon_the_changed_state(keeping: Keeping) -> None:
    await keeping.counting.add(1)
    await keeping.counting.die("committed")
    total, right = await keeping.counting.right(77)
    assert total == 3  # as an idempotent operation may: it says that repeating does no harm
    stub = keeping.system.client("user").connect(Counting, right)
    assert (await stub.counts()).total == 3


async def test_what_has_no_reply_is_kept_as_well(keeping: Keeping) -> None:
    counting = keeping.counting
    _, right = await counting.right(77)
    keeping.system.client("user").drop(right)
    await counting.arm(6)
    with trio.fail_after(10):
        while (await counting.counts()).bits != 6:
            await trio.lowlevel.checkpoint()
    await keeping.end("counting")
    assert await counting.counts() == Counts(1, [77], 6)


async def test_handlers_that_wait_hand_out_each_ticket_once_through_deaths(
    keeping: Keeping,
) -> None:
    taken: list[int] = []

    async def take() -> None:
        taken.append(await keeping.tickets.take())

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(take)
        for part in range(4):
            await keeping.until(lambda part=part: len(taken) == 5 * part)  # type: ignore[misc]
            await keeping.end("tickets")
            await keeping.tickets.put(5)
    assert sorted(taken) == list(range(1, 21))
    seen = await keeping.tickets.seen()
    assert (seen.made, seen.taken) == (20, 20)


async def test_what_run_changes_is_kept_when_it_waits(keeping: Keeping) -> None:
    for lives in range(1, 4):
        with trio.fail_after(10):
            while (await keeping.tickets.seen()).ticks != lives:
                await trio.lowlevel.checkpoint()
        await keeping.end("tickets")


async def test_to_change_the_state_and_then_wait_is_a_fault(keeping: Keeping) -> None:
    with pytest.raises(PoisonError):
        await keeping.tickets.change_and_wait()
    assert (await keeping.tickets.seen()).made == 0
    assert "changed the state and then waited" in keeping.system.task("tickets").last_words[-1]


async def test_an_orderly_end_keeps_what_it_changed(keeping: Keeping) -> None:
    task = keeping.system.task("tickets")
    await keeping.tickets.put(1)
    assert task.engine is not None
    task.engine.stop()
    await keeping.until(lambda: task.id.generation == 1 and task.state is State.RUNNING)
    seen = await keeping.tickets.seen()
    assert (seen.made, seen.stops) == (1, 1)


async def test_a_state_that_is_lost_is_told_to_each_client_once(keeping: Keeping) -> None:
    stranger = keeping.system.connect(Counting, "counting", "stranger")
    await keeping.counting.add(3)
    await stranger.add(4)
    keeping.damage("counting")
    await keeping.end("counting")
    for client in (keeping.counting, stranger):
        with pytest.raises(LostError, match="counting lost its state"):
            await client.counts()
    assert await keeping.counting.add(1) == 1
    assert await stranger.add(1) == 2
    newcomer = keeping.system.connect(Counting, "counting", "newcomer")
    assert await newcomer.add(1) == 3
    await keeping.end("counting")
    assert await keeping.counting.add(1) == 4


async def test_a_request_that_waits_for_the_next_incarnation_is_told_of_the_loss(
    keeping: Keeping,
) -> None:
    await keeping.counting.add(3)
    await keeping.counting.die("changed")
    keeping.damage("counting")
    with pytest.raises(LostError):
        await keeping.counting.add(10)
    assert await keeping.counting.add(1) == 1


async def test_a_server_says_itself_what_it_lost(keeping: Keeping) -> None:
    stranger = keeping.system.connect(Counting, "counting", "stranger")
    await keeping.counting.lose("the third shelf")
    with pytest.raises(LostError, match="the third shelf"):
        await stranger.add(1)
    assert await stranger.add(1) == 1
    with pytest.raises(LostError, match="the third shelf"):
        await keeping.counting.add(1)
    assert await keeping.counting.add(1) == 2
