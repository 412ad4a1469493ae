"""The laboratory: the system that ships with a hostile server in it, and clients that notice.

`isolated` boots it, has the hostile server try every way out while four clients ask the others
without pause, and looks from outside at what became of it: how it was stopped, what was written
down, and whether the kernel's tables are as they were once the incarnation is gone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from core.abi import Right
from core.errors import AtollError, DeadPortError
from core.kernel.tasks import State
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from core.system.names import Names
from core.system.pipe import Pipes
from fs_server.interface import ROOT_INODE, Caller, FileSystem
from net_server.network import Network

from .doomed import Doomed
from .hostile import WAYS, Hostile
from .misuses import MISUSES

SHIPPED: Final = Path(__file__).parents[2] / "mount" / "system.toml"
HOSTILE: Final = """
[server.hostile]
class = "tests.attack_lab.hostile:HostileServer"
grants = { names = { server = "names", operations = ["lookup"] } }
memory_mib = 256
intensity = 1000000
first_delay_s = 0.001
longest_delay_s = 0.001
"""
LIVES: Final = {
    "die in every start": "die",
    "hang in every start": "hang",
    "be deaf to STOP": "deaf",
}
"""What a server may do with its own life, and how `doomed` calls it."""
_DOOMED: Final = """
[server.doomed-{how}]
class = "tests.attack_lab.doomed:DoomedServer"
start_s = 0.3
silence_s = 0.5
intensity = 1
first_delay_s = 0.001
longest_delay_s = 0.001
"""
DEVICES: Final = ("tap", "net", "echo")
UNTOLD: Final = {
    "fill memory": "RLIMIT_AS stops it in the host, which tells nobody",
    "fill descriptors": "RLIMIT_NOFILE, likewise",
    "fill a queue": "an honest client is told the same when it asks too much",
    "flood with notifications": "they are or-ed into one number, and cost nobody anything",
    "never reply": "silence; its clients' deadlines end it",
}
"""Ways of which nothing is written down, and why."""
_WAY_S: Final = 60.0
_NEVER_S: Final = 0.5
_ME: Final = Caller(0, 0, (), 0)


Ask = Callable[[int], Awaitable[None]]
"""Asks once, for the given time, and checks the answer."""


class Outcome(msgspec.Struct):
    """What became of one way.

    Args:
        stopped: in what way it was, "" if it succeeded.
        logged: what was written down of it.
        harm: what was found amiss afterwards, "" if nothing.
    """

    way: str
    stopped: str
    logged: str = ""
    harm: str = ""


class Clients:
    """They ask the servers beside the hostile one, and check every answer."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.answers: dict[str, int] = {}
        self._progress = trio.Condition()

    async def prepare(self, nursery: trio.Nursery) -> None:
        """Begin to ask."""
        system = self._system
        names: Names = system.connect(Names, "names")
        pipes: Pipes = system.connect(Pipes, "pipe")
        right: Right = system.client().mint(1)
        await names.register("mine", right)
        asks: dict[str, Ask] = {
            "names": functools.partial(_ask_names, names),
            "pipe": await _pipe_asker(system, pipes),
            "fs": await _fs_asker(system.connect(FileSystem, "fs")),
        }
        if "net" in system.description.servers:
            asks["net"] = await _net_asker(system.connect(Network, "net"))
        for name, ask in asks.items():
            self.answers[name] = 0
            nursery.start_soon(self._go_on, name, ask)

    async def _go_on(self, name: str, ask: Ask) -> None:
        while True:
            await ask(self.answers[name])
            self.answers[name] += 1
            async with self._progress:
                self._progress.notify_all()
            await trio.sleep(0.002)

    async def each_once(self) -> None:
        """Wait until every one of them has got a right answer to something asked from now on."""
        before = dict(self.answers)
        async with self._progress:
            while any(self.answers[name] < count + 2 for name, count in before.items()):
                await self._progress.wait()


async def _ask_names(names: Names, _: int) -> None:
    found = await names.entries()
    assert found == ["mine"], found


async def _pipe_asker(system: System, pipes: Pipes) -> Ask:
    ends = [system.client().connect(Pipes, end) for end in await pipes.create()]

    async def ask(number: int) -> None:
        octets = number.to_bytes(8, "big")
        assert await ends[1].write(octets) == len(octets)
        found = bytes(await ends[0].read(64))
        assert found == octets, found

    return ask


async def _fs_asker(files: FileSystem) -> Ask:
    inode = (await files.create(_ME, ROOT_INODE, b"innocent", 0o600, 0)).inode

    async def ask(number: int) -> None:
        octets = number.to_bytes(8, "big") * 1000
        assert await files.write(_ME, inode, 0, octets) == len(octets)
        assert bytes(await files.read(inode, 0, len(octets))) == octets

    return ask


async def _net_asker(net: Network) -> Ask:
    expected = await net.addresses()

    async def ask(_: int) -> None:
        assert await net.addresses() == expected

    return ask


class Tables:
    """How much stands in the kernel's tables: what a gone incarnation must have left no trace in.

    Requests and answers of the clients come and go, so only what belongs to the hostile task and
    what nothing else changes is counted.
    """

    def __init__(self, system: System) -> None:
        kernel, task = system.kernel, system.task("hostile")
        self._counts = {
            "ports": len(kernel.ports),
            "names": len(task.names),
            "calls": len(task.calls),
            "timers": len(task.timers),
            "messages": task.burden.messages,
            "octets": task.burden.octets,
            "descriptors lent": task.burden.descriptors,
            "descriptors kept": len(task.kept),
            "rights kept": len(task.kept_rights),
            "descriptors open": len(os.listdir("/proc/self/fd")),
            "senders": sum(task.main_port.senders.values()) if task.main_port else -1,
        }

    def more_than(self, other: Tables) -> str:
        """Return what there is more of here, in words; "" if nothing."""
        more = {
            name: count - other._counts[name]
            for name, count in self._counts.items()
            if count > other._counts[name]
        }
        return ", ".join(f"{count} more {name}" for name, count in more.items())


class Isolated:
    """One run in the system that ships."""

    def __init__(self, system: System, log: list[str], directory: Path) -> None:
        self._system = system
        self._log = log
        self._target = directory / "target"
        self._victim = directory / "target.victim"
        self._hostile: Hostile = system.connect(Hostile, "hostile")
        self.clients = Clients(system)

    async def run(self, ways: list[str]) -> list[Outcome]:
        """Try the ways, one after the other, each in an incarnation of its own."""
        outcomes = []
        async with trio.open_nursery() as nursery:
            await self.clients.prepare(nursery)
            baseline = await self._renewed(None)
            for way in ways:
                if way in LIVES:
                    outcomes.append(await self._live(way, LIVES[way]))
                    continue
                outcomes.append(await self._try(way))
                baseline_now = await self._renewed(baseline)
                outcomes[-1].harm = outcomes[-1].harm or baseline_now.more_than(baseline)
            nursery.cancel_scope.cancel()
        return outcomes

    async def _try(self, way: str) -> Outcome:
        task = self._system.task("hostile")
        kinds, lines = dict(task.attempts.kinds), len(self._log)
        suppressed = task.voice.suppressed
        self._victim.write_text("kept")
        stopped = await self._ask(way)
        harm = ""
        with trio.move_on_after(_WAY_S) as scope:
            await self.clients.each_once()
        if scope.cancelled_caught:
            harm = "others got no answers"
        if os.listdir(self._target.parent) != [self._victim.name]:
            harm = "a file was made or removed"
        found = [
            f"{kind} x{count - kinds.get(kind, 0)}"
            for kind, count in task.attempts.kinds.items()
            if count > kinds.get(kind, 0)
        ]
        if task.voice.suppressed > suppressed:
            found.append(f"{task.voice.suppressed - suppressed} lines suppressed")
        if stopped.startswith("ended"):
            found.append(f"end: {task.last_words[-1].splitlines()[-1]}")
        written = len(self._log) - lines
        logged = ", ".join(found)
        return Outcome(way, stopped, f"{logged} ({written} lines)" if logged else "", harm)

    async def _live(self, way: str, how: str) -> Outcome:
        """Have a server die, hang, or be deaf, until the system is done with it."""
        task, kernel = self._system.task(f"doomed-{how}"), self._system.kernel
        doomed: Doomed = self._system.connect(Doomed, task.name)
        lines = len(self._log)
        await doomed.doom(how)
        if how == "deaf":
            await self._system.replacements.restart(task.name, 0.3)
            await doomed.doom("")
        else:
            kernel.kill(task)
            with contextlib.suppress(DeadPortError):
                while True:  # the first may be answered still, by the one that is being killed
                    await doomed.alive()
            assert task.state is State.RETIRED
            assert not task.ports
            assert not task.names
            assert not task.kept
        stopped = f"ended: {task.last_words[-1].splitlines()[-1]}"
        if how != "deaf":
            stopped += f"; given up after {len(task.last_words)}"
        await self.clients.each_once()
        return Outcome(way, stopped, f"{len(self._log) - lines} lines")

    async def _ask(self, way: str) -> str:
        hostile = self._hostile
        try:
            with trio.move_on_after(_NEVER_S if way == "never reply" else _WAY_S):
                if way in WAYS:
                    return await hostile.attempt(way, str(self._target), os.getpid())
                return await hostile.misuse(way, self._somebodys_request())
        except AtollError as error:
            return f"ended: {type(error).__name__}"
        return "bounded: its client stopped waiting"

    def _somebodys_request(self) -> int:
        """Return the number of a request that another server has to answer, if there is one."""
        for port in self._system.kernel.ports.values():
            for number in port.in_flight:
                if port.task is not self._system.task("hostile"):
                    return number
        return self._system.kernel.next_id()

    async def _renewed(self, baseline: Tables | None) -> Tables:
        """Have a new incarnation; return the tables as soon as they are as they were."""
        task = self._system.task("hostile")
        for label in list(task.kept):
            os.close(task.kept.pop(label))
        for label in list(task.kept_rights):
            task.kept_rights.pop(label).release()
        while task.state is not State.RUNNING:  # it may have ended by itself a moment ago
            await self._system.wait_changed()
        generation = task.id.generation
        self._system.kernel.kill(task)
        while task.id.generation == generation or task.state is not State.RUNNING:
            await self._system.wait_changed()
        tables = Tables(self._system)
        with trio.move_on_after(5):
            while baseline is not None and tables.more_than(baseline):
                await trio.sleep(0.01)
                tables = Tables(self._system)
        return tables


def description(state: str, *, devices: bool) -> Any:
    """Return the system that ships, with the hostile server beside the others."""
    options: dict[str, dict[str, Any]] = {
        "disk": {"state": state, "size": 64 << 20},
        "fs": {"state": state},
    }
    without = () if devices else DEVICES
    doomed = "".join(_DOOMED.format(how=how) for how in LIVES.values())
    text = SHIPPED.read_text().replace("[joined]", f"{HOSTILE}{doomed}\n[joined]")
    return parse_description(text, str(SHIPPED), options, without)


def has_devices() -> bool:
    """Tell whether this user can have a network here."""
    return os.geteuid() == 0 and os.access("/dev/net/tun", os.R_OK | os.W_OK)


def isolated(ways: list[str] | None = None) -> tuple[list[Outcome], list[str]]:
    """Run the laboratory; return what became of every way, and the kernel's log."""
    log: list[str] = []
    outcomes: list[Outcome] = []
    chosen = [*WAYS, *MISUSES, *LIVES] if ways is None else ways

    async def main(prepared: Prepared, directory: Path) -> None:
        async with booted(prepared, log.append) as system:
            outcomes.extend(await Isolated(system, log, directory).run(chosen))

    with (
        tempfile.TemporaryDirectory(prefix="atoll-lab-state-") as state,
        tempfile.TemporaryDirectory(prefix="atoll-lab-") as directory,
    ):
        trio.run(main, Prepared(description(state, devices=has_devices())), Path(directory))
    return outcomes, log
