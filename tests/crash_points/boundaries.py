"""Deaths at every message boundary of a running, isolated system.

A history is performed through the file server's port. At each operation the file server's process,
or the disk server's, is ended with SIGKILL at one boundary; see `Boundary`. Then the client's call
must return exactly what the model says, and all of the volume must be the model after the
operation: done once, neither lost nor repeated.

The file server asks the disk server once in a boot, when it starts for the first time. For the
boundaries of that message there is `start_while_disk_dies`.
"""

from __future__ import annotations

import enum
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from core.errors import Refused
from core.kernel.tasks import KernelTask, State
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from fs_server.interface import ROOT_INODE, FileSystem
from fs_server.mkfs import make_volume
from tests.support.processes import running_process

from .dying import Cell, Point
from .history import BLOCKS, OWN_WORK, START_NS, STEP_NS, History
from .looking import Binding, expected, look, looked_at
from .model import Model, perform
from .table import Table


class Boundary(enum.Enum):
    """Which server ends where."""

    QUEUED = "fs is down when the request comes"
    DELIVERED = "fs has the request, the handler has not begun"
    WRITING = "fs is about to make the first change to the store"
    COMMITTED = "fs has handled the request, the reply is not sent"
    REPLIED = "fs has sent the reply"
    DISK_GONE = "the disk server is down while the request is served"
    BOTH_GONE = "fs has the request and dies; the disk server is down when the next one starts"


_FS_POINTS: Final = {
    Boundary.DELIVERED: Point.DELIVERED,
    Boundary.WRITING: Point.WRITING,
    Boundary.COMMITTED: Point.COMMITTED,
    Boundary.REPLIED: Point.REPLIED,
    Boundary.BOTH_GONE: Point.DELIVERED,
}
_FS, _DISK = 0, 1
_DOWN: Final = {
    Boundary.QUEUED: _FS,
    Boundary.DISK_GONE: _DISK,
    Boundary.BOTH_GONE: _DISK,
}
"""Which server is down already when the request is made."""
_NAMES: Final = ("fs", "disk")
_STEP_TIMEOUT_S: Final = 40

_DESCRIPTION: Final = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.disk]
class = "tests.crash_points.dying:DyingDiskServer"
intensity = 1000000
period_s = 0.001
options = {{ state = "{state}", cell = "{cell}" }}
writes = ["{{state}}", "{{cell}}"]
file_mib = 0

[server.fs]
class = "tests.crash_points.dying:DyingFileServer"
intensity = 1000000
period_s = 0.001
grants = {{ disk = "disk" }}
options = {{ state = "{state}", cell = "{cell}" }}
writes = ["{{state}}", "{{cell}}"]
file_mib = 0
"""

Plan = Callable[[int], Boundary | None]
"""Says at which boundary of a step a server is to end; None: at none."""


class _Gate:
    """Stands before the start of incarnations: one server can be held down."""

    def __init__(self, system: System) -> None:
        self._start = system.kernel.start_incarnation
        system.kernel.start_incarnation = self._come
        self._held = ""
        self._waiting: list[KernelTask] = []
        self.came = trio.Event()
        """The server that is held down would start now."""

    def hold(self, name: str) -> None:
        """From now on this server does not start."""
        self._held = name
        self.came = trio.Event()

    def release(self) -> None:
        """Let it start."""
        self._held = ""
        while self._waiting:
            self._start(self._waiting.pop())

    def _come(self, task: KernelTask) -> None:
        if task.name == self._held:
            self._waiting.append(task)
            self.came.set()
        else:
            self._start(task)


class _Boundaries:
    """One history in one system."""

    def __init__(self, system: System, cell: Cell, of: History, table: Table) -> None:
        self._system = system
        self._cell = cell
        self._history = of
        self._table = table
        self._model = Model(BLOCKS, START_NS)
        self._binding = Binding()
        self._gate = _Gate(system)
        self._fs: Any = system.connect(FileSystem, "fs")

    async def run(self, plan: Plan) -> None:
        """Perform all steps."""
        for index, step in enumerate(self._history.steps):
            if step.operation in OWN_WORK:
                continue
            with trio.fail_after(_STEP_TIMEOUT_S):
                await self._step(index, plan(index))

    async def _step(self, index: int, boundary: Boundary | None) -> None:
        step = self._history.steps[index]
        self._cell.now = self._model.now = self._history.now(index)
        wanted = perform(self._model, step.operation, step.arguments)
        deaths = [self._cell.deaths(server) for server in (_FS, _DISK)]
        killed = await self._prepare(boundary)
        generations = [self._system.task(name).id.generation for name in _NAMES]
        reply = await self._call_in_time(index, boundary)
        died = []
        if boundary in _FS_POINTS and boundary is not Boundary.WRITING:
            await self._wait(_FS, generations[_FS] + 1)  # a reply may overtake the death
        for server in (_FS, _DISK):
            self._cell.arm(server, Point.NOWHERE)
            died.append((self._cell.deaths(server) - deaths[server]) & 0xFF)
            await self._wait(server, generations[server] + died[server])
        problems = []
        if not self._binding.same(wanted, reply):
            problems.append(f"replied {reply}, should be {wanted}")
        if boundary is None:
            assert not problems, f"undisturbed, step {index}, {step}: {problems}"
            return
        self._cell.now = self._model.now = self._history.now(index) + STEP_NS // 2
        after = expected(self._model)
        problems.append((await look(self._fs, self._binding.orphans())).difference(after))
        looked_at(self._model)
        row = self._table.row(step.operation)
        row.boundaries += 1
        row.deaths += killed + sum(died)
        if any(problems):
            text = "; ".join(problem for problem in problems if problem)
            self._table.lose(step.operation, f"step {index}, {step}, {boundary.value}: {text}")

    async def _prepare(self, boundary: Boundary | None) -> int:
        """Arm what shall happen, and end what must be down already; return how many that were."""
        if boundary is None:
            return 0
        self._cell.arm(_FS, _FS_POINTS.get(boundary, Point.NOWHERE))
        down = _DOWN.get(boundary)
        if down is None:
            return 0
        pid = await running_process(self._system, _NAMES[down])
        self._gate.hold(_NAMES[down])
        os.kill(pid, signal.SIGKILL)
        await self._gate.came.wait()
        return 1

    async def _call_in_time(self, index: int, boundary: Boundary | None) -> Any:
        """Make the call, and let what is down start when the boundary says so."""
        down = None if boundary is None else _DOWN.get(boundary)
        if down is None:
            return await self._call(index)
        if down == _DISK:
            reply = await self._call(index)
            self._gate.release()
            return reply
        found: list[Any] = []

        async def call() -> None:
            found.append(await self._call(index))

        port = self._system.task(_NAMES[down]).main_port
        assert port is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            while not port.queue:
                await trio.lowlevel.checkpoint()
            self._gate.release()
        return found[0]

    async def _wait(self, server: int, generation: int) -> None:
        """Wait until an incarnation of at least that generation serves."""
        task = self._system.task(_NAMES[server])
        while task.id.generation < generation or task.state is not State.RUNNING:
            await self._system.wait_changed()

    async def _call(self, index: int) -> Any:
        step = self._history.steps[index]
        try:
            return await getattr(self._fs, step.operation)(*self._binding.arguments(step))
        except Refused as error:
            return errno.errorcode[error.errno]


def _prepare(directory: Path) -> tuple[Cell, Prepared]:
    """Make a volume, and prepare a system for it. The directory must not exist yet."""
    make_volume(directory, BLOCKS * 4096, mode=0o777, now=START_NS)
    cell = Cell(directory / "cell")
    cell.now = START_NS
    text = _DESCRIPTION.format(state=directory, cell=directory / "cell")
    return cell, Prepared(parse_description(text, "crash points"))


def start_while_disk_dies(directory: Path, point: Point) -> tuple[int, int]:
    """Boot a system whose disk server dies at a point of the file server's only request to it.

    Returns:
        How often the disk server died and the file server did, by the time it has served.
    """
    cell, prepared = _prepare(directory)
    cell.arm(_DISK, point)

    async def main() -> tuple[int, int]:
        async with booted(prepared, lambda _: None) as system:
            fs = system.connect(FileSystem, "fs")
            with trio.fail_after(_STEP_TIMEOUT_S):
                await fs.getattr(ROOT_INODE)
                while cell.deaths(_DISK) == 0:  # a reply may overtake the death
                    await system.wait_changed()
            return cell.deaths(_DISK), system.task("fs").id.generation

    return trio.run(main)


def run_boundaries(of: History, table: Table, directory: Path, plan: Plan) -> list[str]:
    """Perform a history in a system of its own; return the kernel's log.

    Args:
        directory: for the volume; it must not exist yet.
    """
    cell, prepared = _prepare(directory)
    log: list[str] = []

    async def main() -> None:
        async with booted(prepared, log.append) as system:
            await _Boundaries(system, cell, of, table).run(plan)

    trio.run(main)
    return log
