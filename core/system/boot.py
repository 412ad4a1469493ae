"""Boot: from a checked description to a running system, and back to nothing.

`prepare` forks the zygote and must run before trio. `booted` makes the kernel, enters every task
and every right of the description, and only then starts the servers, each after those it has rights
to. Since ports belong to the kernel, a server may call another one that has not started yet: it
simply waits.

A system ends in the reverse order, so that a server can still use what it depends on while it
closes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from core.errors import TaskError
from core.kernel.calls import FULL_MASK, JOINED_MASK, ORDINARY_MASK, kept_labels, named_task
from core.kernel.colocated import Colocated, ColocatedTask
from core.kernel.endings import Death, Order
from core.kernel.kernel import Kernel
from core.kernel.line import KernelLine
from core.kernel.rim import Rim
from core.kernel.tasks import KernelTask, Placement, Program, State
from core.kernel.zygote import start_zygote
from core.userlib.confine import lacks
from core.userlib.interface import Interface, encode
from core.userlib.isolated import Birth
from core.userlib.last_stack import LastStack
from core.userlib.line import Region, new_region
from core.userlib.server import NoOperations, Server
from core.userlib.task import Task

from .description import Grant, ServerDescription, SystemDescription
from .mending import SUPERVISOR, Mending
from .replacement import Replacements
from .zygotes import Zygote, Zygotes

START_TIMEOUT_S: Final = 20.0
START_TRIES: Final = 3
"""Times that a server may fail to start before boot gives up; the reason may be a passing one."""
STOP_TIMEOUT_S: Final = 5.0
JOINED_LIMIT: Final = 256
"""Programs that may be joined at the same time."""
KEPT_AT_BIRTH: Final = 8
"""Kept descriptors, and labels of kept rights, that come along with a birth. Others are fetched."""


class BootError(Exception):
    """The system could not be started; the text says which server failed and how."""


class Prepared:
    """What must exist before trio runs: the zygote."""

    def __init__(self, description: SystemDescription) -> None:
        self.description = description
        self.zygote_pid, self.zygote_socket = start_zygote(description.modules())

    def close(self) -> None:
        """Let the zygote go, if the system was never booted."""
        self.zygote_socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.zygote_pid, 0)


class System:
    """A running system, as its composition sees it."""

    def __init__(self, prepared: Prepared, log: Callable[[str], None]) -> None:
        self.description = prepared.description
        self.zygote_pid = prepared.zygote_pid
        self.rim = Rim()
        self.kernel = Kernel(secrets.randbits(63), log, self.rim.timers)
        self.rim.kernel = self.kernel
        self.zygotes = Zygotes(
            Zygote(
                prepared.zygote_pid,
                prepared.zygote_socket,
                self.rim,
                self.wake,
                self._first_zygote_ended,
            ),
            self.rim,
            self.wake,
            self._lost,
        )
        self._joined = itertools.count(1).__next__
        self._regions: dict[str, tuple[int, Region]] = {}
        self._stacks: dict[str, LastStack] = {}
        self.mending = Mending(
            self.kernel,
            self.rim,
            self.client,
            self.wait_changed,
            self._fail,
            lambda: self._stopping or bool(self.failure),
        )
        self._makers: dict[str, Callable[[Task], Server]] = {}
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self._changed = trio.Event()
        self.replacements = Replacements(self)
        self.replacements.note_files()
        self.failed = trio.Event()
        self.failure = ""
        self.kernel.start_incarnation = self._start_incarnation
        self.kernel.on_death = self._on_death
        self.kernel.on_ready = self._on_ready
        self.kernel.on_halt = self._fail

    # -- tasks -------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Enter all tasks and rights of the description into the kernel's tables."""
        servers = self.description.servers
        for server in servers.values():
            options = dict(server.options)
            if server.name == SUPERVISOR:
                options["policies"] = {
                    other.name: msgspec.to_builtins(other.policy) for other in servers.values()
                }
            task = self.kernel.add_task(
                Program(server.name, server.program, Placement(server.placement), options),
                server.cls.interface,
            )
            task.kernel_mask = FULL_MASK if server.privileged else ORDINARY_MASK
            task.watch = server.watch
            self._makers[server.name] = server.cls
        for server in servers.values():
            self.grant(self.task(server.name), server.grants)

    def task(self, name: str) -> KernelTask:
        """Return a task by name; TaskError if there is none."""
        return named_task(self.kernel, name)

    def grant(self, task: KernelTask, grants: dict[str, Grant]) -> None:
        """Give a task the send rights that the description grants it, badged with its place."""
        for name, grant in grants.items():
            target = self.task(grant.server)
            right = target.names[1].derive(reach=grant.mask, badge=task.badge)
            task.grants[name] = task.hold(right)

    def add_colocated(
        self, name: str, make: Callable[[Task], Server], interface: type[Interface] = NoOperations,
        grants: dict[str, Grant] | None = None, options: dict[str, Any] | None = None,
    ) -> KernelTask:  # fmt: skip
        """Enter a task that composition brings along, such as the front end, and start it."""
        task = self.kernel.add_task(
            Program(name, "", Placement.COLOCATED, options or {}), interface
        )
        task.kernel_mask = FULL_MASK
        self._makers[name] = make
        self.grant(task, grants or {})
        self.kernel.spawn(task)
        return task

    def client(self, name: str = "kernel") -> ColocatedTask:
        """Return a task in the kernel's process that only makes calls."""
        task = self.kernel.tasks.named(name)
        if task is None:
            program = Program(name, "", Placement.COLOCATED)
            task = self.kernel.add_task(program, NoOperations)
            task.kernel_mask = FULL_MASK
            task.state = State.RUNNING
        return ColocatedTask(self.kernel, task)

    def connect(self, interface: type[Any], server: str, client: str = "kernel") -> Any:
        """Return a stub for a server's port, with full rights, for a client in this process."""
        user = self.client(client)
        right = self.task(server).names[1].derive(badge=user.place.badge)
        user.place.hold(right)
        return user.connect(interface, right)

    # -- incarnations ------------------------------------------------------------------------------

    def _start_incarnation(self, task: KernelTask) -> None:
        if task.program.placement is Placement.COLOCATED:
            engine = Colocated(self.kernel, task, self._makers[task.name])
            task.engine = engine
            assert self._nursery is not None
            self._nursery.start_soon(engine.run)
        else:
            self._start_process(task)

    def _start_process(self, task: KernelTask) -> None:
        if self.failure:
            raise TaskError(self.failure)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if task.name not in self._regions:
            descriptor = new_region()
            self._regions[task.name] = (descriptor, Region(descriptor))
            self._stacks[task.name] = LastStack()
        descriptor, region = self._regions[task.name]
        stack = self._stacks[task.name]
        stack.clear()
        server = self.description.servers[task.name]
        zygote = self.zygotes.of(task.name)
        with theirs:
            try:
                birth, declared = self._birth(task), server.confinement
                if len(task.kept) <= KEPT_AT_BIRTH:
                    birth.kept = list(task.kept)
                if len(task.kept_rights) <= KEPT_AT_BIRTH:
                    birth.kept_rights = kept_labels(task)
                kept = [task.kept[label] for label in birth.kept or ()]
                ends = (theirs.fileno(), descriptor, stack.descriptor, *kept)
                token = zygote.spawn(birth, server.user_namespace, ends, declared)
            except TaskError:
                ours.close()
                raise
        task.engine = line = KernelLine(self.kernel, task, ours, region, self.rim, zygote.kill)
        line.last_stack, line.dump_stack = stack, zygote.dump
        line.declared = server.confinement
        zygote.expect(token, line)

    def _birth(self, task: KernelTask) -> Birth:
        program = task.program
        return Birth(
            task.name,
            program.server,
            self.kernel.boot_id,
            task.id.generation,
            program.options,
            task.grants,
            task.succession,
        )

    def _first_zygote_ended(self, _: Zygote) -> None:
        self._fail("the zygote ended, so no server can be started any more")
        for task in self.kernel.tasks:
            if task.program.placement is Placement.PROCESS and task.state is not State.RETIRED:
                self.kernel.retire(task, self.failure)

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        self.failed.set()
        self.wake()

    def _on_death(self, death: Death) -> None:
        self.wake()
        if death.task.program.placement is Placement.JOINED:
            self.kernel.retire(death.task, "the program left")
            return
        mended = not (self._stopping or self.failure)
        started = mended and not self.replacements.concern(death.task.name)
        started = started and self.mending.start_again(death.task)  # first of all: clients wait
        self.mending.enter(death)
        if not mended:
            return
        if not started and self.replacements.died(death):
            self.mending.faults.decided(death.number, "left to who restarts or reloads it")
        else:
            self.mending.follow(death, started=started)

    def _on_ready(self, task: KernelTask) -> None:
        self.wake()
        self.mending.faults.serving(task)

    # -- joining -----------------------------------------------------------------------------------

    def join(
        self, connection: socket.socket, pid: int, grants: dict[str, Grant] | None = None
    ) -> KernelTask:
        """Make a program that connected to the control socket a task.

        Args:
            grants: rights beyond those that the description gives to joined programs.

        Raises:
            TaskError: JOINED_LIMIT programs are joined already, or this one has left.
        """
        joined = [task for task in self.kernel.tasks if task.program.placement is Placement.JOINED]
        if len(joined) >= JOINED_LIMIT:
            raise TaskError(f"{JOINED_LIMIT} programs are joined already")
        program = Program(f"joined-{pid}-{self._joined()}", "", Placement.JOINED)
        task = self.kernel.add_task(program, NoOperations)
        task.kernel_mask = JOINED_MASK
        self.grant(task, {**self.description.joined, **(grants or {})})
        descriptor = new_region()
        try:
            socket.send_fds(connection, [encode(self._birth(task))], [descriptor])
            region = Region(descriptor)
        except OSError as error:
            self.kernel.retire(task, "it never joined")
            raise TaskError(f"the program left at once: {error.strerror}") from None
        finally:
            os.close(descriptor)
        task.state = State.STARTING
        line = KernelLine(self.kernel, task, connection, region, self.rim, lambda pid: None)
        line.pid = pid
        task.engine = line
        self.kernel.ready(task)
        return task

    # -- life --------------------------------------------------------------------------------------

    def at_end(self, commands: list[list[str]], remove: list[str]) -> None:
        """Have the zygote undo things when this process is gone, however it ends."""
        self.zygotes.first.at_end(commands, remove)

    def _lost(self, servers: list[str]) -> None:
        self.replacements.lost(servers)

    def start_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run something beside the system until it ends."""
        assert self._nursery is not None
        self._nursery.start_soon(function, *arguments)

    def wake(self) -> None:
        """Wake all that wait for a change."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_changed(self) -> None:
        """Wait until some task has started, served or ended."""
        await self._changed.wait()

    async def wait_running(self, names: list[str], timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until these tasks serve. BootError when one was given up or time is over."""
        with trio.move_on_after(timeout_s):
            while True:
                states = {name: self.task(name).state for name in names}
                for name, state in states.items():
                    if state is State.RETIRED or self._never_starts(name):
                        raise BootError(f"{name} did not start: {self._why(name)}")
                if self.failure:
                    raise BootError(self.failure)
                if all(state is State.RUNNING for state in states.values()):
                    return
                await self._changed.wait()
        late = [name for name in names if self.task(name).state is not State.RUNNING]
        reasons = "; ".join(f"{name}: {self._why(name)}" for name in late)
        raise BootError(f"not running after {timeout_s:g} s: {reasons}")

    def _never_starts(self, name: str) -> bool:
        """Tell whether a task has failed START_TRIES times and has never served yet."""
        task = self.task(name)
        return not task.has_served and len(task.last_words) >= START_TRIES

    def _why(self, name: str) -> str:
        words = self.task(name).last_words
        return _last_line(words[-1]) if words else "it has not said why"

    async def run(self, nursery: trio.Nursery) -> None:
        """Start the rim and every server, and return when all serve."""
        self._nursery = nursery
        self.zygotes.first.watch()
        nursery.start_soon(self.rim.run)
        self.mending.start(nursery)
        for lack in lacks():
            self.kernel.log(f"this host lacks {lack}")
        order = self.description.start_order()
        try:
            for name in order:
                self.kernel.spawn(self.task(name))
        except TaskError as error:
            raise BootError(error.detail) from None
        await self.wait_running(order)

    async def stop(self) -> None:
        """End every task, in the reverse order of the start; kill what does not end in time."""
        self._stopping = True
        self.replacements.stop()
        started = self.description.start_order()
        brought = [task.name for task in self.kernel.tasks if task.name not in started]
        for name in [*reversed(brought), *reversed(started)]:
            task = self.kernel.tasks.named(name)
            if task is not None and task.engine is not None:
                await self.stop_task(task)
        for task in self.kernel.tasks:
            if task.state is not State.RETIRED:
                self.kernel.retire(task, "the system was stopped")

    async def stop_task(self, task: KernelTask) -> None:
        """End an incarnation in good order; kill it if that takes longer than STOP_TIMEOUT_S."""
        engine = task.engine
        if engine is None:
            return
        if task.program.placement is Placement.JOINED:
            engine.kill(
                Order("the system was stopped")
            )  # it sees its line closed; nobody waits for a program of the host
            return
        engine.stop()
        with trio.move_on_after(STOP_TIMEOUT_S):
            while task.engine is engine:
                await self._changed.wait()
        if task.engine is engine:
            self.kernel.log(f"{task.name} did not end within {STOP_TIMEOUT_S:g} s and is killed")
            await self.kill_task(task, Order(f"did not stop within {STOP_TIMEOUT_S:g} s"))

    async def kill_task(self, task: KernelTask, order: Order) -> None:
        """Kill an incarnation, and wait a moment for its end."""
        engine = task.engine
        if engine is None:
            return
        with contextlib.suppress(TaskError):
            engine.kill(order)
        with trio.move_on_after(1):
            while task.engine is engine:
                await self._changed.wait()

    def close(self) -> None:
        """Let the zygote go, which ends what is left, and wait for it."""
        self.zygotes.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.zygote_pid, 0)
        for descriptor, region in self._regions.values():
            region.close()
            os.close(descriptor)
        for stack in self._stacks.values():
            stack.close()
        self.rim.close()


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "unknown"


def log_to_stderr(text: str) -> None:
    """Write a log line to standard error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the log


@contextlib.asynccontextmanager
async def booted(
    prepared: Prepared,
    log: Callable[[str], None] = log_to_stderr,
    faults: Path | None = None,
    begin: Callable[[System], None] = lambda system: None,
) -> AsyncIterator[System]:
    """Boot a prepared system, yield it while it runs, and stop it.

    Args:
        faults: where the fault log is written; None: it stays in memory.
        begin: called before any server starts.

    Raises:
        BootError: a server could not be started. What had started is stopped again.
    """
    system = System(prepared, log)
    system.mending.faults.path = faults
    failure: Exception | None = None
    try:
        system.enter()
        begin(system)
        async with trio.open_nursery() as nursery:
            try:
                await system.run(nursery)
                yield system
            except Exception as error:  # noqa: BLE001 - raised again below, not in a group
                failure = error
            finally:
                with trio.CancelScope(shield=True):
                    await system.stop()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        system.close()


__all__ = ["BootError", "Prepared", "ServerDescription", "System", "booted", "log_to_stderr"]
