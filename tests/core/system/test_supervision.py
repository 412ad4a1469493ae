"""Every way in which a server ends or hangs: it is mended, and the fault log names what it was."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from core.abi import POISON_LIMIT
from core.errors import AtollError, DeadlineError, DeadPortError, PoisonError
from core.kernel.tasks import State, Watch
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from core.system.faults import FaultRecord, read_faults
from tests.support.afflicted import Afflicted, AfflictedSlow

_TEXT = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"
silence_s = 0.5

[server.sick]
confined = false
class = "tests.support.afflicted:AfflictedServer"
options = {{ journal = "{journal}" }}
{more}

[server.slow]
confined = false
class = "tests.support.afflicted:AfflictedSlowServer"
options = {{ journal = "{journal}" }}
silence_s = 0.5

[server.friend]
confined = false
class = "tests.support.afflicted:AfflictedServer"
options = {{ journal = "{journal}" }}

[server.relative]
confined = false
class = "tests.support.afflicted:AfflictedServer"
options = {{ journal = "{journal}" }}
"""


class Ward:
    """A booted system of afflicted servers."""

    def __init__(self, system: System, log: list[str], top: Path) -> None:
        self.system = system
        self.log = log
        self.top = top
        self.sick: Afflicted = system.connect(Afflicted, "sick", "user")
        self.slow: AfflictedSlow = system.connect(AfflictedSlow, "slow", "user")
        self.friend: Afflicted = system.connect(Afflicted, "friend", "user")

    def faults(self, server: str) -> list[FaultRecord]:
        """Return the records of a server."""
        log = self.system.mending.faults
        return [record for number in log.numbers(server) if (record := log.record(number))]

    async def decided(self, server: str) -> list[FaultRecord]:
        """Return the records of a server, when something has been decided for each."""
        await self.until(lambda: all(record.decision for record in self.faults(server)))
        return self.faults(server)

    def pid(self, server: str) -> int:
        """Return the pid of a server's process."""
        engine = self.system.task(server).engine
        assert engine is not None
        assert engine.pid > 0  # 0 would be this test's own process group
        return engine.pid

    def generation(self, server: str) -> int:
        """Return how many incarnations a server had before this one."""
        return self.system.task(server).id.generation

    async def until(self, condition: object) -> None:
        """Wait until something has come about in another process."""
        assert callable(condition)
        with trio.fail_after(20):
            while not condition():  # noqa: ASYNC110 - another process brings it about
                await trio.sleep(0.002)

    async def serving(self, server: str, generation: int) -> None:
        """Wait until an incarnation serves."""
        task = self.system.task(server)

        def serves() -> bool:
            engine = task.engine
            serves = task.id.generation >= generation and task.state is State.RUNNING
            return serves and engine is not None and engine.pid > 0

        await self.until(serves)


@pytest.fixture
def more() -> str:
    """Further keys of the server `sick`."""
    return ""


@pytest.fixture
def prepared(tmp_path: Path, more: str) -> Iterator[Prepared]:
    """A forked zygote."""
    quick = "" if "silence_s" in more else "silence_s = 0.5"
    text = _TEXT.format(journal=tmp_path / "journal", more=f"{more}\n{quick}")
    made = Prepared(parse_description(text, "ward"))
    yield made
    made.close()


@pytest.fixture
async def ward(prepared: Prepared, tmp_path: Path) -> AsyncIterator[Ward]:
    """A booted ward."""
    log: list[str] = []
    async with booted(prepared, log.append, tmp_path / "faults") as system:
        yield Ward(system, log, tmp_path)
    assert not [line for line in log if line.startswith("kernel: a packet")], log


WAYS = {
    "halt": r"stopped by a signal \(SIGSTOP\) for 0\.\d s; ended by the supervisor",
    "spin": r"spun for \d\.\d s of processor time, in Afflicted\.spin of request \d+; ended by",
    "hog": r"ran out of memory \(MemoryError: under a limit of \d+ MiB\), in Afflicted\.hog",
    "fail": r"exception ZeroDivisionError: .*, in Afflicted\.fail",
    "leave": r"exited by itself with status 3",
    "crash": r"segmentation fault \(SIGSEGV\)",
}
IN_TRACE = {"spin": "in spin", "hog": "in hog_now", "fail": "in fail", "crash": "in crash_now"}


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_to_fail_is_mended_and_named(ward: Ward, way: str) -> None:
    with trio.fail_after(30):
        assert await getattr(ward.sick, way)(1) == 2
    assert ward.generation("sick") == 1
    (record,) = await ward.decided("sick")
    assert re.match(WAYS[way], record.cause), record.cause
    assert IN_TRACE.get(way, "") in record.detail
    assert record.decision == "started again at once"
    assert record.restart_s is not None
    (message,) = [each for each in record.messages if each.state != "answered"]
    assert message.operation == f"Afflicted.{way}"
    assert message.client == "user"
    assert (message.state, message.deaths) == (("in flight", 0) if way == "halt" else ("blamed", 1))


@pytest.mark.parametrize("way", ["spin", "hog", "fail", "leave", "crash"])
async def test_a_request_that_does_so_every_time_is_poison_and_reported(
    ward: Ward, way: str
) -> None:
    with trio.fail_after(30), pytest.raises(PoisonError, match=f"Afflicted.{way} ended its server"):
        await getattr(ward.sick, way)(100)
    records = ward.faults("sick")
    assert len(records) == POISON_LIMIT
    assert [each.state for each in records[-1].messages][-1] == "poison"
    assert any(line.startswith("poison: ") for line in ward.log)
    assert await ward.sick.generation() == POISON_LIMIT


async def test_a_kill_from_outside_is_named_and_blames_nobody(ward: Ward) -> None:
    for number in range(POISON_LIMIT + 1):
        os.kill(ward.pid("sick"), signal.SIGKILL)
        await ward.serving("sick", number + 1)
    assert {record.cause for record in ward.faults("sick")} == {
        "killed by SIGKILL (not by this system)"
    }


async def test_other_signals_are_named(ward: Ward) -> None:
    os.kill(ward.pid("sick"), signal.SIGTERM)
    await ward.serving("sick", 1)
    os.kill(ward.pid("sick"), signal.SIGRTMIN + 3)
    await ward.serving("sick", 2)
    first, second = ward.faults("sick")
    assert first.cause == "killed by SIGTERM (not by this system)"
    assert second.cause == f"killed by signal {signal.SIGRTMIN + 3} (not by this system)"


async def test_an_idle_server_that_is_stopped_is_found(ward: Ward) -> None:
    os.kill(ward.pid("slow"), signal.SIGSTOP)
    await ward.serving("slow", 1)
    assert ward.faults("slow")[0].cause.startswith("stopped by a signal")


async def test_a_server_that_waits_and_spins_is_found(ward: Ward) -> None:
    with trio.fail_after(30):
        assert await ward.slow.spin(1) == 2
    record = ward.faults("slow")[0]
    assert record.cause.startswith("spun for")
    assert "in AfflictedSlow.spin of request" in record.cause
    assert "in spin" in record.detail


async def test_honest_work_is_not_held_to_be_a_hang(ward: Ward) -> None:
    assert await ward.sick.work(0.4) >= 0.4
    with trio.move_on_after(1.5):  # three times the limit: it would have been ended by then
        while True:
            await ward.sick.work(0.2)
    assert not ward.faults("sick")


async def test_a_server_that_starves_is_not_held_to_spin(ward: Ward) -> None:
    pid = ward.pid("sick")
    os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
    os.setpriority(os.PRIO_PROCESS, pid, 19)
    burn = "while True: sum(range(10000))"
    processor = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", processor, sys.executable, "-c", burn]
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(functools.partial(trio.run_process, command))
        with trio.fail_after(60):
            await ward.sick.work(0.25)
        nursery.cancel_scope.cancel()
    assert not ward.faults("sick")


@pytest.mark.parametrize("more", ["host_s = 1.0"])
async def test_a_long_wait_in_the_host_is_named(ward: Ward) -> None:
    with trio.fail_after(30):
        assert await ward.sick.doze(1) == 2
    (record,) = ward.faults("sick")
    assert record.cause.startswith("waited for 1.")
    assert "in Afflicted.doze of request" in record.cause
    assert "in doze" in record.detail


async def test_a_wait_in_the_host_is_given_longer_than_a_spin(ward: Ward) -> None:
    user, right = ward.system.client("user"), ward.sick.right  # type: ignore[attr-defined]
    with pytest.raises(DeadlineError):
        await user.call(right, Afflicted.named("doze"), (1,), deadline_s=2.0)
    assert not ward.faults("sick")
    os.kill(ward.pid("sick"), signal.SIGKILL)


@pytest.mark.parametrize("more", ["silence_s = 0"])
async def test_a_server_whose_silence_is_allowed_is_left_alone(ward: Ward) -> None:
    os.kill(ward.pid("sick"), signal.SIGSTOP)
    os.kill(ward.pid("slow"), signal.SIGSTOP)
    await ward.serving("slow", 1)
    os.kill(ward.pid("sick"), signal.SIGCONT)
    assert await ward.sick.generation() == 0


async def test_signs_of_life_in_masses_hurt_nobody(ward: Ward) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ward.sick.flood, 20_000)
        for _ in range(50):
            assert await ward.friend.generation() == 0
    assert ward.generation("sick") == 0


async def test_who_lives_and_does_not_answer_is_left_to_its_clients_deadlines(ward: Ward) -> None:
    user, right = ward.system.client("user"), ward.sick.right  # type: ignore[attr-defined]
    with pytest.raises(DeadlineError):
        await user.call(right, Afflicted.named("deaf"), (), deadline_s=1.5)
    assert await ward.friend.generation() == 0
    assert not ward.faults("sick")
    os.kill(ward.pid("sick"), signal.SIGKILL)


async def test_a_server_that_waits_for_a_hanging_one_is_not_ended(ward: Ward) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ward.slow.wait, 1)
        nursery.start_soon(ward.sick.halt, 1)
        await ward.serving("sick", 1)
        assert await ward.slow.release(1) == 1
    assert not ward.faults("slow")


# -- the supervisor itself -------------------------------------------------------------------------


async def test_a_stopped_supervisor_is_mended_by_the_kernel(ward: Ward) -> None:
    os.kill(ward.pid("supervisor"), signal.SIGSTOP)
    with trio.fail_after(20):
        assert await ward.sick.crash(1) == 2
    assert ward.faults("supervisor")[0].cause.endswith("ended by the kernel")
    assert ward.faults("supervisor")[0].decision.startswith("started again by the kernel")
    assert (await ward.decided("sick"))[0].decision == "started again at once"


@pytest.mark.parametrize("more", ["period_s = 0.5"])
async def test_with_leave_a_server_comes_back_while_the_supervisor_cannot_decide(
    ward: Ward,
) -> None:
    system, sick = ward.system, ward.system.task("sick")
    os.kill(ward.pid("sick"), signal.SIGKILL)
    await ward.serving("sick", 1)
    await ward.until(lambda: sick.leave)  # it was given with the answer to the first death
    system.task("supervisor").watch = Watch()  # nobody ends it for its silence
    supervisor = ward.pid("supervisor")
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(ward.pid("sick"), signal.SIGKILL)
    await ward.serving("sick", 2)
    assert not sick.leave  # it was good for one death
    os.kill(supervisor, signal.SIGCONT)
    await ward.until(lambda: sick.leave)
    decisions = [record.decision for record in await ward.decided("sick")]
    assert decisions == ["started again at once"] * 2


async def test_a_supervisor_that_dies_at_every_death_forgets_nobody(ward: Ward) -> None:
    for number in range(1, 6):
        os.kill(ward.pid("supervisor"), signal.SIGKILL)
        os.kill(ward.pid("sick"), signal.SIGKILL)
        os.kill(ward.pid("slow"), signal.SIGKILL)
        for server in ("supervisor", "sick", "slow"):
            await ward.serving(server, number)
    await ward.decided("sick")
    assert ward.generation("sick") == ward.generation("slow") == 5


@pytest.mark.parametrize("more", ["intensity = 3"])
async def test_death_counts_survive_the_supervisor(ward: Ward) -> None:
    for number in range(1, 4):
        os.kill(ward.pid("sick"), signal.SIGKILL)
        await ward.serving("sick", number)
        os.kill(ward.pid("supervisor"), signal.SIGKILL)
        await ward.serving("supervisor", number)
    os.kill(ward.pid("sick"), signal.SIGKILL)
    with pytest.raises(DeadPortError, match=r"sick is given up: it ended 4 times in 10 s"):
        await ward.sick.generation()


# -- policies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ['dependents = ["friend", "relative"]'])
async def test_dependents_are_restarted_with_it_in_order(ward: Ward) -> None:
    assert await ward.sick.crash(1) == 2
    for server in ("friend", "relative"):
        await ward.serving(server, 1)
        assert ward.faults(server)[0].cause == "restarted with sick"
        await ward.until(
            lambda server=server: ward.faults(server)[0].decision == "restarted with sick"
        )
    assert ward.generation("slow") == 0
    friend, relative = (ward.faults(server)[0] for server in ("friend", "relative"))
    assert (await ward.decided("sick"))[
        0
    ].decision == "started again at once, and friend, relative with it"
    assert friend.restart_s is not None
    assert relative.restart_s is not None


@pytest.mark.parametrize("more", ['intensity = 2\nescalation = "restart-all"'])
async def test_too_many_deaths_restart_all_once_and_then_give_up(ward: Ward) -> None:
    for number in range(1, 4):
        os.kill(ward.pid("sick"), signal.SIGKILL)
        await ward.serving("sick", number)
    for server in ("friend", "relative", "slow"):
        await ward.serving(server, 1)
    assert ward.generation("supervisor") == 0
    for number in range(4, 6):
        os.kill(ward.pid("sick"), signal.SIGKILL)
        await ward.serving("sick", number)
    os.kill(ward.pid("sick"), signal.SIGKILL)
    with pytest.raises(DeadPortError, match="sick is given up"):
        await ward.sick.generation()
    assert ward.generation("friend") == 1
    await ward.until(lambda: ward.faults("sick")[-1].decision.startswith("given up"))


@pytest.mark.parametrize("more", ['intensity = 1\nescalation = "end-system"'])
async def test_too_many_deaths_end_the_system_when_it_is_said_so(ward: Ward) -> None:
    os.kill(ward.pid("sick"), signal.SIGKILL)
    await ward.serving("sick", 1)
    os.kill(ward.pid("sick"), signal.SIGKILL)
    with trio.fail_after(20):
        await ward.system.failed.wait()
    assert ward.system.failure.startswith("sick cannot be mended: it ended 2 times in 10 s")


@pytest.mark.parametrize("more", ['restart = "temporary"'])
async def test_clients_of_a_temporary_server_are_told_how_it_ended(ward: Ward) -> None:
    with pytest.raises(DeadPortError, match=r"segmentation fault .* is temporary: not restarted"):
        await ward.sick.crash(1)


class TestStart:
    """Servers that hang before they serve."""

    @pytest.fixture
    def prepared(self, tmp_path: Path) -> Iterator[Prepared]:
        text = _TEXT.format(journal=tmp_path / "journal", more="start_s = 0.5\nsilence_s = 0.5")
        hang = f'journal = "{tmp_path / "journal"}", hang_at_start = 1'
        head, mark, rest = text.partition("[server.sick]")
        rest = rest.replace(f'journal = "{tmp_path / "journal"}"', hang, 1)
        made = Prepared(parse_description(head + mark + rest, "ward"))
        yield made
        made.close()

    async def test_one_that_hangs_at_its_start_is_started_again(self, ward: Ward) -> None:
        assert await ward.sick.generation() == 1
        cause = ward.faults("sick")[0].cause
        assert cause.startswith("spun for")
        assert "while starting" in cause


# -- poison among many -----------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "after_s"), [("crash", 0.0), ("leave", 0.0), ("leave", 0.15)])
async def test_one_guilty_among_many_that_wait_is_found(
    ward: Ward, way: str, after_s: float
) -> None:
    poisoned: list[AtollError] = []
    released: list[int] = []

    async def kill() -> None:
        try:
            await getattr(ward.slow, way)(after_s)
        except AtollError as error:
            poisoned.append(error)

    async def wait(key: int) -> None:
        released.append(await ward.slow.wait(key))

    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for key in range(6):
                nursery.start_soon(wait, key)
                if key == 2:
                    nursery.start_soon(kill)
            await ward.until(lambda: poisoned)
            for key in range(6):
                while not await ward.slow.release(key):  # noqa: ASYNC110
                    await trio.sleep(0.01)
    (error,) = poisoned
    assert isinstance(error, PoisonError)
    assert len(released) == 6
    assert ward.generation("slow") <= 12
    records = ward.faults("slow")
    assert any(message.state == "suspect" for message in records[0].messages)
    assert [message.state for message in records[-1].messages].count("poison") == 1
    assert await ward.slow.echo("still there") == "still there"


async def test_newcomers_are_answered_while_the_guilty_one_is_sought(ward: Ward) -> None:
    answers: list[str] = []

    async def ask(number: int) -> None:
        for step in range(20):
            answer = await ward.slow.echo(f"{number} {step}")
            answers.append(answer)

    async def kill() -> None:
        with pytest.raises(PoisonError):
            await ward.slow.leave(0.0)

    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(ask, number)
            nursery.start_soon(kill)
    assert sorted(answers) == sorted(f"{n} {step}" for n in range(5) for step in range(20))


async def test_two_guilty_ones_are_both_found(ward: Ward) -> None:
    async def kill(way: str) -> None:
        with pytest.raises(PoisonError):
            await getattr(ward.slow, way)(0.0)

    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for way in ("leave", "crash"):
                nursery.start_soon(kill, way)
    assert await ward.slow.echo("x") == "x"


async def test_the_fault_log_is_a_file_that_tells_the_same(ward: Ward) -> None:
    assert await ward.sick.crash(1) == 2
    assert await ward.sick.fail(1) == 2
    records = await ward.decided("sick")  # which may be after the answer
    assert read_faults(ward.top / "faults") == records
