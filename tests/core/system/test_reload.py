"""Changed code comes into a running system, or does not, and clients only see time pass."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing

from core.errors import TaskError
from core.kernel.tasks import State
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from core.userlib.interface import Interface, operation
from core.userlib.kernel_calls import Restarted

from .test_life import children, descriptors

_TURNS: Final = 3
_DESCRIPTION: Final = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.greeting]
class = "{module}:GreetingServer"
options = {{ directory = "{directory}" }}

[server.other]
class = "{module}:GreetingServer"
options = {{ directory = "{directory}" }}
"""

_SOURCE: Final = '''
import os, sys, time
import trio
import trio.testing
from core.abi import Right
from core.errors import Refused
from core.userlib.interface import Descriptor, Interface, operation
from core.userlib.server import Server
{head}

class Greeting(Interface):
    @operation
    async def greet(self, name: str, times: int) -> str:
        """Return a greeting."""

    @operation
    async def fail(self) -> int:
        """Fail, in some versions."""

    @operation
    async def count(self) -> int:
        """Return how often this was asked, ever."""
{operations}

class GreetingServer(Server):
    interface = Greeting

    def __init__(self, task):
        super().__init__(task)
        number = task.kept("count")
        if number is None:
            number = os.memfd_create("count")
            os.ftruncate(number, 8)
            task.keep("count", number)
        self.number = number
{init}

    async def start(self):
        pass
{start}

    def greet(self, name, times):
        return "{word} " + name

    def fail(self):
        {fail}

    def count(self):
        value = int.from_bytes(os.pread(self.number, 8, 0), "little") + 1
        os.pwrite(self.number, value.to_bytes(8, "little"), 0)
        return value
{handlers}
'''


class Greeting(Interface):
    """What the server serves at first, as its clients here know it."""

    @operation
    async def greet(self, name: str, times: int) -> str:
        """Return a greeting."""

    @operation
    async def fail(self) -> int:
        """Fail, in some versions."""

    @operation
    async def count(self) -> int:
        """Return how often this was asked, ever."""


class Place:
    """A module of a server, in versions, and the system that runs it."""

    _names = itertools.count()

    def __init__(self, directory: Path) -> None:
        self.name = f"greeting_{os.getpid()}_{next(self._names)}"
        self.path = directory / f"{self.name}.py"
        self.directory = directory
        self.log: list[str] = []
        self.write()
        self.prepared: Prepared

    def write(self, **parts: str) -> None:
        """Write a version of the source. Two may well have the same size and time."""
        defaults = {"word": "hello", "fail": "return 1"}
        names = ("head", "operations", "init", "start", "handlers")
        text = _SOURCE.format(**{**dict.fromkeys(names, ""), **defaults, **parts})
        self.path.write_text(text)

    def greeting(self, server: str = "greeting") -> Greeting:
        """Return a client's stub."""
        found: Greeting = self.system.connect(Greeting, server)
        return found

    system: System

    async def reload(
        self, server: str = "greeting", patience_s: float = 20, probation_s: float = 5
    ) -> Restarted:
        """Reload a server."""
        with trio.fail_after(60):
            return await self.system.replacements.reload(server, patience_s, probation_s)

    async def refused(self, match: str, server: str = "greeting") -> None:
        """Reload a server in vain: the incarnation that runs goes on."""
        task = self.system.task(server)
        engine = task.engine
        with pytest.raises(TaskError, match=match):
            await self.reload(server)
        assert task.engine is engine
        assert task.version == 1
        assert await self.greeting(server).greet("you", 1) == "hello you"

    async def stands(self, failure: Restarted, match: str) -> None:
        """See that a failed new version has gone and the old one serves, from its own zygote."""
        assert failure.serves
        assert failure.version == 1
        assert match in failure.failure
        assert await self.greeting().greet("you", 1) == "hello you"
        os.kill(self.pid(), signal.SIGKILL)
        assert await self.greeting().greet("you", 1) == "hello you"

    def pid(self, server: str = "greeting") -> int:
        """Return the pid of a server's process."""
        engine = self.system.task(server).engine
        assert engine is not None
        return engine.pid

    async def until(self, condition: Any) -> None:
        """Wait until something has come about in another process."""
        with trio.fail_after(20):
            while not condition():  # noqa: ASYNC110 - another process brings it about
                await trio.sleep(0.002)


@pytest.fixture
def unbooted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A place whose zygote is forked; this fixture is no async one, so trio does not run yet."""
    monkeypatch.syspath_prepend(tmp_path)
    place = Place(tmp_path)
    text = _DESCRIPTION.format(module=place.name, directory=tmp_path)
    place.prepared = Prepared(parse_description(text, "reload"))
    yield place
    place.prepared.close()


@pytest.fixture
async def place(unbooted: Place) -> AsyncIterator[Place]:
    """A place with a running system."""
    async with booted(unbooted.prepared, unbooted.log.append) as system:
        unbooted.system = system
        yield unbooted


async def test_changed_code_serves_after_a_reload_and_again_after_a_death(place: Place) -> None:
    assert await place.greeting().greet("you", 1) == "hello you"
    place.write(word="adieu")
    done = await place.reload()
    assert (done.serves, done.failure, done.version) == (True, "", 2)
    assert done.generation == done.old_generation + 1
    assert [Path(path).name for path in done.changed] == [place.path.name]
    assert await place.greeting().greet("you", 1) == "adieu you"
    os.kill(place.pid(), signal.SIGKILL)
    assert await place.greeting().greet("you", 1) == "adieu you"
    assert await place.greeting("other").greet("you", 1) == "hello you"


async def test_a_restart_without_reload_keeps_the_code(place: Place) -> None:
    place.write(word="adieu")
    done = await place.system.replacements.restart("greeting", 20)
    assert (done.serves, done.version, done.generation) == (True, 1, 1)
    assert await place.greeting().greet("you", 1) == "hello you"


async def test_two_versions_within_one_second_of_the_same_size_are_told_apart(place: Place) -> None:
    for word in ("adieu", "salut", "howdy", "hallo"):
        place.write(word=word)
        await place.reload()
        assert await place.greeting().greet("you", 1) == f"{word} you"


async def test_what_was_kept_reaches_the_new_version(place: Place) -> None:
    greeting = place.greeting()
    assert [await greeting.count() for _ in range(3)] == [1, 2, 3]
    place.write(word="adieu")
    await place.reload()
    assert await greeting.count() == 4


async def test_no_call_fails_or_is_lost_while_versions_come_and_go(place: Place) -> None:
    counts: list[int] = []
    words = ["adieu", "salut", "hello"]

    async def ask(scope: trio.CancelScope) -> None:
        greeting = place.greeting()
        while not scope.cancel_called:
            counts.append(await greeting.count())
            assert (await greeting.greet("you", 1)).split()[0] in words

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, nursery.cancel_scope)
        for word in words:
            place.write(word=word)
            await place.reload()
        before = len(counts)
        await place.until(lambda: len(counts) > before)
        nursery.cancel_scope.cancel()
    assert counts == sorted(counts)
    assert counts[0] == 1


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"head": "def ("}, "SyntaxError"),
        ({"head": "import no_such_module"}, "No module named 'no_such_module'"),
        ({"head": "sys.exit(3)"}, "asked the interpreter to exit"),
        ({"head": "os._exit(3)"}, "ended"),
        ({"head": "raise KeyboardInterrupt"}, "KeyboardInterrupt"),
        ({"operations": "    @operation\n    async def more(self) -> int: ..."}, "no method more"),
    ],
)
async def test_code_that_cannot_be_loaded_leaves_the_old_version_untouched(
    place: Place, parts: dict[str, str], match: str
) -> None:
    place.write(**parts)
    await place.refused(match)
    await place.until(lambda: len(children()) == 5)  # zygote, its spare, servers


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("name: str, times: int)", "times: int, name: str)", r"greet took \(name: str, times"),
        ("times: int) -> str", "times: float) -> str", r"takes \(name: str, times: float\)"),
        ("async def count(self) -> int", "async def count(self) -> str", "returned int and return"),
        ("def count(", "def counted(", "operation 2 was count and is counted"),
        (
            "    @operation\n    async def fail",
            "    @operation(idempotent=True)\n    async def fail",
            "operation fail was declared with no word and is with idempotent",
        ),
    ],
)
async def test_a_changed_interface_is_refused_by_name(
    place: Place, old: str, new: str, match: str
) -> None:
    text = place.path.read_text()
    assert old in text
    text = text.replace(old, new)
    if "times: int, name" in new:
        text = text.replace("def greet(self, name, times)", "def greet(self, times, name)")
    place.path.write_text(text)
    await place.refused(match)


async def test_an_operation_that_vanishes_is_refused(place: Place) -> None:
    text = place.path.read_text()
    start, end = text.index("    @operation\n    async def count"), text.index("class GreetingS")
    place.path.write_text(text[:start] + text[end:])
    await place.refused("operation count is gone")


async def test_operations_that_follow_all_known_ones_are_accepted_and_said(place: Place) -> None:
    more = "    @operation\n    async def more(self) -> int:\n        '''Return a number.'''\n"
    place.write(operations=more, handlers="    def more(self): return 1\n", word="adieu")
    done = await place.reload()
    assert done.serves
    assert done.notes == ["nobody can call more before the system is started again"]
    assert await place.greeting().greet("you", 1) == "adieu you"


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"init": "        raise ValueError('of init')"}, "ValueError: of init"),
        ({"start": "        raise ValueError('of start')"}, "ValueError: of start"),
        ({"start": "        sys.exit(5)"}, "SystemExit: 5"),
        ({"start": "        os._exit(5)"}, "status 5"),
        ({"start": "        time.sleep(1000)"}, "not ready within 0.5 s"),
    ],
)
async def test_a_version_that_does_not_start_is_rolled_back(
    place: Place, parts: dict[str, str], match: str
) -> None:
    greeting = place.greeting()
    await greeting.count()
    place.write(word="adieu", **parts)
    done = await place.reload(patience_s=0.5)
    await place.stands(done, match)
    assert await greeting.count() == 2
    assert not [line for line in place.log if "again in" in line and "version" in line]


async def test_requests_that_wait_through_failed_starts_are_no_poison(place: Place) -> None:
    place.write(start="        os._exit(5)")
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await place.greeting().count())

    for _ in range(4):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            done = await place.reload()
            assert done.failure
    assert sorted(answers) == list(range(1, 81))
    assert not [line for line in place.log if "poison" in line]


async def test_what_a_failed_start_gave_away_is_kept_again(place: Place) -> None:
    greeting = place.greeting()
    assert await greeting.count() == 1
    place.write(
        start="        number = os.memfd_create('other')\n        os.ftruncate(number, 8)\n"
        "        self.task.keep('count', number)\n        raise ValueError('afterwards')"
    )
    assert (await place.reload()).failure
    assert await greeting.count() == 2


async def test_a_fault_on_probation_brings_the_old_version_back_and_its_answer(
    place: Place,
) -> None:
    place.write(word="adieu", fail="raise RuntimeError('of the new version')")
    done = await place.reload(probation_s=60)
    assert (done.serves, done.probation_s) == (True, 60)
    assert await place.greeting().greet("you", 1) == "adieu you"
    assert await place.greeting().fail() == 1  # the new version faults, the old one answers
    assert await place.greeting().greet("you", 1) == "hello you"
    verdict = await place.system.replacements.probation("greeting")
    assert "of the new version" in verdict
    assert place.system.task("greeting").version == 1
    assert [line for line in place.log if "version 2 failed, version 1 returns" in line]


async def test_who_waits_for_the_probation_hears_its_verdict(place: Place) -> None:
    place.write(fail="os._exit(7)")
    await place.reload(probation_s=60)
    verdicts: list[str] = []

    async def wait() -> None:
        verdicts.append(await place.system.replacements.probation("greeting"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert await place.greeting().fail() == 1
    assert "status 7" in verdicts[0]


async def test_a_kill_on_probation_is_not_the_new_versions_fault(place: Place) -> None:
    place.write(word="adieu")
    await place.reload(probation_s=60)
    for _ in range(3):
        os.kill(place.pid(), signal.SIGKILL)
        assert await place.greeting().greet("you", 1) == "adieu you"
    assert place.system.task("greeting").version == 2


async def test_after_its_probation_a_version_stays_whatever_happens(place: Place) -> None:
    place.write(word="adieu", fail="raise RuntimeError('now and then')")
    await place.reload(probation_s=0.01)
    assert await place.system.replacements.probation("greeting") == ""
    with pytest.raises(Exception, match="ended its server 3 times"):
        await place.greeting().fail()
    assert await place.greeting().greet("you", 1) == "adieu you"


async def test_the_supervisor_can_be_reloaded_and_still_supervises(place: Place) -> None:
    done = await place.reload("supervisor")
    assert (done.serves, done.version) == (True, 2)
    os.kill(place.pid(), signal.SIGKILL)
    assert await place.greeting().greet("you", 1) == "hello you"


async def test_a_server_that_is_down_is_reloaded_with_its_cure(place: Place) -> None:
    task = place.system.task("greeting")
    os.kill(place.pid("supervisor"), signal.SIGSTOP)
    os.kill(place.pid(), signal.SIGKILL)
    await place.until(lambda: task.state is State.DOWN)
    place.write(word="adieu")
    done = await place.reload()
    assert done.serves
    os.kill(place.pid("supervisor"), signal.SIGCONT)
    assert await place.greeting().greet("you", 1) == "adieu you"


async def test_a_dead_fresh_zygote_costs_its_servers_their_new_version_only(place: Place) -> None:
    place.write(word="adieu")
    await place.reload(probation_s=0.01)
    assert await place.system.replacements.probation("greeting") == ""
    os.kill(place.system.zygotes.of("greeting").pid, signal.SIGKILL)
    await place.until(lambda: place.system.task("greeting").version == 1)
    assert await place.greeting().greet("you", 1) == "hello you"
    assert not place.system.failed.is_set()


async def test_many_reloads_leave_no_process_and_no_descriptor(place: Place) -> None:
    place.write(word="adieu")
    await place.reload(probation_s=0)
    await place.reload("other", probation_s=0)
    await place.until(lambda: len(children()) == 9)  # zygotes, a spare each, servers
    before = descriptors()
    for turn in range(_TURNS):
        place.write(word=f"w{turn}")
        await place.reload(probation_s=60)
        assert await place.greeting().greet("you", 1) == f"w{turn} you"
        place.write(start="        os._exit(5)")
        assert (await place.reload()).failure
    place.write(word="last")
    await place.reload(probation_s=0)
    await place.system.replacements.probation("greeting")
    await place.until(lambda: len(children()) == 9)  # zygotes, a spare each, servers
    assert descriptors() == before


_STATE = """
class State(msgspec.Struct):
    {fields}

GreetingServer_ = GreetingServer

class GreetingServer(GreetingServer_):
    state: State

    def count(self):
        self.state.{field} += 1
        return self.state.{field}
"""


def _stateful(fields: str, field: str = "total", **parts: str) -> dict[str, str]:
    """Return the parts of a version that declares its state."""
    handlers = _STATE.format(fields=fields, field=field)
    return {"head": "import msgspec", "handlers": handlers, **parts}


class TestDeclaredState:
    """A version finds the state of the one before it, or does not come to serve."""

    async def test_a_new_field_begins_with_its_default(self, place: Place) -> None:
        greeting = place.greeting()
        place.write(**_stateful("total: int = 0"))
        assert (await place.reload()).serves
        assert [await greeting.count() for _ in range(3)] == [1, 2, 3]
        place.write(**_stateful("total: int = 0\n    more: int = 7"))
        assert (await place.reload()).version == 3
        assert await greeting.count() == 4

    async def test_a_version_that_would_lose_the_state_is_rolled_back(self, place: Place) -> None:
        greeting = place.greeting()
        place.write(**_stateful("total: int = 0"))
        await place.reload()
        assert [await greeting.count() for _ in range(3)] == [1, 2, 3]
        place.write(**_stateful("sum: int = 0", field="sum"))
        done = await place.reload()
        assert done.version == 2
        assert "loses the state" in done.failure
        assert await greeting.count() == 4

    async def test_a_version_that_returns_keeps_what_it_knows_of(self, place: Place) -> None:
        greeting = place.greeting()
        place.write(**_stateful("total: int = 0"))
        await place.reload()
        assert await greeting.count() == 1
        fail = "os._exit(7)"
        place.write(**_stateful("total: int = 0\n    more: int = 7", fail=fail))
        await place.reload(probation_s=60)
        assert await greeting.count() == 2
        assert await greeting.fail() == 1
        assert place.system.task("greeting").version == 2
        assert await greeting.count() == 3
