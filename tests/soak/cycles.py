"""`cycles`: servers are killed and started, clients join and are killed, thousands of times.

The shipped system runs with its kernel in this process, mount, network and control socket included.
Each cycle ends one thing with SIGKILL: a server, all of them in turn, or a program that has joined
and holds something of every server. In the end the system must hold what it held near the start,
see `standing`, and its memory must not have grown with the number of cycles.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Final

import trio

from core.kernel.tasks import Placement, State
from core.system.boot import Prepared, System
from core.system.names import Names
from fs_server.interface import FileSystem
from mount.composition import Composition, describe_system
from mount.run_directory import RunDirectory
from mount.settings import SYSTEM, Settings
from net_server.network import Network
from tests.support.processes import running_process

from .door import resident_kib
from .run import Run
from .standing import Standing
from .visitors import Farm

WARM_CYCLES: Final = 60
"""Cycles before the baseline is taken: what is made once for each server has been made then."""
RARELY: Final = 40
"""Out of so many cycles one ends the supervisor, which the kernel starts again more slowly when it
dies often, and one is a visitor's."""
MEMORY_LIMIT_KIB: Final = 4096
"""By how much the kernel may have grown after the first thousand cycles, whatever their number."""
_QUIET_TIMEOUT_S: Final = 30.0
_LOOK_AGAIN_S: Final = 0.5
_SERVERS: Final = ("names", "disk", "fs", "pipe", "tap", "net", "echo")


class _Composition(Composition):
    """The shipped composition, which lets its system be taken hold of."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.up = trio.Event()
        self.system: System | None = None

    def _announce(self, system: System, ready: int | None) -> None:
        self.system = system
        self.up.set()


def _description(top: Path) -> Path:
    """Write the shipped description with policies that never give a server up; return its path."""
    lines = []
    for line in SYSTEM.read_text().splitlines():
        lines.append(line)
        if line.startswith("class = "):
            lines += ["intensity = 1000000", "period_s = 0.001"]
    path = top / "system.toml"
    path.write_text("\n".join(lines))
    return path


class _Cycles:
    def __init__(self, run: Run, system: System, farm: Farm, run_directory: RunDirectory) -> None:
        self._run = run
        self._system = system
        self._farm = farm
        self._chance = run.random("cycles")
        self._number = 0
        self._top = run_directory.path.parent
        self._names = system.connect(Names, "names")
        self._net = system.connect(Network, "net")
        self._fs = system.connect(FileSystem, "fs")

    async def cycle(self) -> None:
        """End one thing, and wait until everything is up again."""
        self._number += 1
        turn = self._number % RARELY
        if turn == RARELY // 2:
            await self._kill("supervisor")
        elif turn % 8 == 7:
            await self._visit()
        else:
            await self._kill(self._chance.choice(_SERVERS))
        self._run.count("cycles")

    async def _kill(self, name: str) -> None:
        task = self._system.task(name)
        pid = await running_process(self._system, name)
        generation = task.id.generation
        os.kill(pid, signal.SIGKILL)
        while task.id.generation == generation or task.state is not State.RUNNING:
            await self._system.wait_changed()

    async def _visit(self) -> None:
        self._run.check(await self._farm.visit(), "a program could not join and work")
        self._run.count("visitors")

    async def quiet(self) -> None:
        """Wait until no visitor is known any more, and the servers have dealt with the last one."""
        system = self._system
        while any(task.program.placement is Placement.JOINED for task in system.kernel.tasks):
            await system.wait_changed()
        await system.wait_running([*_SERVERS, "supervisor"])
        while await self._names.entries():  # noqa: ASYNC110 - it is told when servers have done
            await trio.sleep(0.01)
        await self._net.sockets()
        await self._fs.sync()
        await self._fs.sync()

    async def standing(self, wanted: Standing | None = None) -> Standing:
        """Return what is held when all is quiet; wait a while for it to be what is wanted."""
        await self.quiet()
        found = Standing(self._top)
        with trio.move_on_after(_QUIET_TIMEOUT_S):
            while True:
                await trio.sleep(_LOOK_AGAIN_S)
                last, found = found, Standing(self._top)
                if wanted is not None:
                    settled = not found.excess(wanted) + found.lack(wanted)
                else:
                    settled = not found.timers and found.counts == last.counts
                if settled:
                    break
        return found


async def _main(
    run: Run, composition: _Composition, prepared: Prepared, farm: Farm, count: int
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(composition.run, prepared, None)
        await composition.up.wait()
        assert composition.system is not None
        cycles = _Cycles(run, composition.system, farm, composition.settings.run)
        try:
            await _all(run, cycles, count)
        finally:
            composition._end.set()


async def _all(run: Run, cycles: _Cycles, count: int) -> None:
    for _ in range(WARM_CYCLES):
        await cycles.cycle()
    before = await cycles.standing()
    run.begin_now()
    memory: dict[int, int] = {}
    done = 0
    while done < count and not run.over():
        await cycles.cycle()
        done += 1
        if done % 1000 == 0:
            memory[done] = resident_kib(os.getpid())
            run.facts.append(f"{memory[done] // 1024} MiB after {done}")
    after = await cycles.standing(before)
    for excess in after.excess(before):
        run.lose(f"more than before: {excess}")
    for lack in after.lack(before):
        run.lose(f"less than before: {lack}")
    grown = after.memory_kib - memory.get(1000, before.memory_kib)
    run.facts.append(f"kernel grew by {grown} KiB; {sum(after.counts.values())} things counted")
    run.check(grown <= MEMORY_LIMIT_KIB, f"the kernel grew by {grown} KiB")


def cycles(run: Run, count: int = 1 << 60) -> None:
    """Go through so many cycles, or as many as there is time for; see the module head."""
    top = Path(tempfile.mkdtemp(prefix="atoll-soak-cycles-"))
    directory = RunDirectory(top / "run")
    directory.path.mkdir()
    settings = Settings(
        name="cycles", state=top / "state", mountpoint=top / "mnt", net="private",
        system=_description(top), run=directory, volume_size=64 << 20,
    )  # fmt: skip
    try:
        settings.state.mkdir()
        (top / "mnt").mkdir()
        farm = Farm(directory.control_path)
        try:
            prepared = Prepared(describe_system(settings))
            composition = _Composition(settings)
            trio.run(_main, run, composition, prepared, farm, count)
            for line in directory.log_path.read_text().splitlines():
                if "Traceback" in line or "poison" in line or "given up" in line:
                    run.lose(f"the log says: {line}")
        finally:
            farm.close()
    finally:
        shutil.rmtree(top, ignore_errors=True)
