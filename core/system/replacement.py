"""Replacing a server's incarnation on purpose: by one of the same code, or of changed code.

The old incarnation serves on while a fresh zygote loads the changed code (`core.kernel.fresh`).
Only then it is stopped in good order; requests wait at the port; the new one starts and fetches its
state in the way that every incarnation does: from its store, and from what the kernel keeps.

Nothing is believed of a new version. One whose code cannot be loaded, or whose interfaces do not
fit (`core.system.fitness`), never gets to stop the old one. One that does not say in time that it
is ready, or that fails while it is on *probation*, is replaced by the old version again, from the
zygote that is still there. Clients only see time pass.

Invariants:
1. A death that a replacement brings about, or that its new version is to blame for, is not the
   supervisor's to hear of: it counts neither against the intensity nor as poison.
2. Until a new version has served, what the kernel keeps for the server stays as the old one left
   it: labels that the new one gave away or set anew are put back.
3. From the end of its probation a version is like any other. The zygote of the version before ends
   then, unless another server is forked from it.

A version that fails on probation may have changed what it keeps. The old one has to cope with that,
as it has to cope with whatever an older incarnation has left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from core.errors import AtollError, TaskError
from core.kernel.endings import Death, Ending, Order, last_line
from core.kernel.fresh import Version, describe, project_files
from core.kernel.tasks import KernelTask, Placement, State
from core.userlib.kernel_calls import Restarted
from core.userlib.task import RETURN, UPGRADE

from .fitness import misfit, new_operations
from .kept import Kept
from .zygotes import Zygote

if TYPE_CHECKING:
    from .boot import System

LOAD_TIMEOUT_S: Final = 30.0
"""How long the loading of changed code may take; the old version serves meanwhile."""
_ON_ITS_WAY: Final = (State.STARTING, State.ENDING)
"""How it ended is not known before it has: a closed line is no reason yet."""
_STOP_TRIES: Final = 3
_LINES: Final = 12
"""Lines of a traceback that a command shows; all of it is in the log."""


class Replacements:
    """The replacements of a system, at most one for each server at a time."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._current: dict[str, Replacement] = {}
        self._last: dict[str, Replacement] = {}
        self._latest: dict[str, int] = {}
        self._booted = Version()
        self._own: Version | None = None

    def note_files(self) -> None:
        """Note the state of the source files. Called when they have just been loaded."""
        programs = [server.program for server in self.system.description.servers.values()]
        self._booted = Version(files=project_files(programs))

    def own(self) -> Version:
        """Return the version that the kernel itself speaks; the first zygote has it too."""
        if self._own is None:
            self._own = describe({}, self._booted.files)
        return self._own

    def version_of(self, zygote: Zygote) -> Version:
        """Return what a zygote has loaded."""
        return zygote.version or self.own()

    def died(self, death: Death) -> bool:
        """Tell whether the death of an incarnation is a replacement's to deal with."""
        current = self._current.get(death.task.name)
        return current is not None and current.died(death)

    def concern(self, name: str) -> bool:
        """Tell whether a server is being replaced, or on trial after it was."""
        return name in self._current

    def lost(self, servers: list[str]) -> None:
        """The zygote of these servers is gone: they have the code again that was booted."""
        for name in servers:
            self.system.task(name).version = 1
            self.system.kernel.log(
                f"{name}: the zygote of its version has ended; version 1 starts instead"
            )

    def stop(self) -> None:
        """Begin nothing any more: the system ends."""
        for replacement in self._current.values():
            replacement.scope.cancel()

    async def restart(self, name: str, patience_s: float) -> Restarted:
        """Replace a server's incarnation by one of the same code, and say how that went.

        Raises:
            TaskError: it cannot be restarted now; nothing was changed.
        """
        return await self._begin(name, patience_s, lambda one: one.restart())

    async def reload(self, name: str, patience_s: float, probation_s: float) -> Restarted:
        """Replace a server's code by what its source files hold now, and say how that went.

        Returns as soon as the new version serves or the old one does again; `probation` waits for
        the verdict. The replacement goes on when the caller is cancelled.

        Args:
            patience_s: how long clients wait for the new version before the old one returns.
            probation_s: how long a failure of the new version brings the old one back.

        Raises:
            TaskError: it cannot be reloaded; nothing was changed, and the old version serves on.
        """
        if self.system.task(name).program.placement is not Placement.PROCESS:
            raise TaskError(
                f"{name} is promoted into the kernel's process, whose code cannot be exchanged; "
                'give it a process of its own (placement = "process"), or start the system again'
            )
        return await self._begin(name, patience_s, lambda one: one.reload(probation_s))

    async def probation(self, name: str) -> str:
        """Wait until a server is on probation no more; return why it failed, "" if it did not."""
        last = self._last.get(name)
        if last is None:
            return ""
        await last.over.wait()
        return last.verdict

    async def _begin(
        self, name: str, patience_s: float, steps: Callable[[Replacement], Awaitable[None]]
    ) -> Restarted:
        task = self.system.task(name)
        if task.state is State.RETIRED:
            raise TaskError(f"{name} was given up, and its port with it; start the system again")
        before = self._current.get(name)
        if before is not None:
            before.pass_probation()
            if name in self._current:
                raise TaskError(f"{name} is just being restarted")
        replacement = Replacement(self, task, patience_s)
        self._current[name] = self._last[name] = replacement
        self.system.start_soon(replacement.run, steps)
        await replacement.answered.wait()
        return replacement.result()

    def end(self, replacement: Replacement) -> None:
        """Forget a replacement that is over."""
        if self._current.get(replacement.task.name) is replacement:
            del self._current[replacement.task.name]

    def next_version(self, name: str) -> int:
        """Return the number of a server's next version."""
        self._latest[name] = self._latest.get(name, 1) + 1
        return self._latest[name]


class Replacement:
    """One of them. See the module head.

    Attributes:
        answered: who asked for it can be told how it went.
        over: nothing is left to be done.
        verdict: why the new version failed on probation; "" if it did not.
    """

    def __init__(self, all_: Replacements, task: KernelTask, patience_s: float) -> None:
        self.task = task
        self.scope = trio.CancelScope()
        self.answered = trio.Event()
        self.over = trio.Event()
        self.verdict = ""
        self._all = all_
        self._system = all_.system
        self._patience_s = patience_s
        self._result: Restarted | None = None
        self._error: AtollError | None = None
        self._replacing = False
        self._on_trial = False
        self._failed = False
        self._passed = trio.Event()
        self._kept: Kept | None = None
        self._stopped_at = 0.0

    async def run(self, steps: Callable[[Replacement], Awaitable[None]]) -> None:
        """Carry it out."""
        try:
            with self.scope:
                await steps(self)
        except AtollError as error:
            self._error = error
        finally:
            self._replacing = False
            if self._kept is not None:
                self._kept.close()
            self._all.end(self)
            self.answered.set()
            self.over.set()

    def result(self) -> Restarted:
        """Return how it went; TaskError when nothing was changed."""
        if self._result is not None:
            return self._result
        raise self._error or TaskError("the system ends")

    def died(self, death: Death) -> bool:
        """Tell whether this death is to be dealt with here."""
        if self._replacing:
            return True
        if not self._on_trial or death.ending.orderly or death.ending.outside:
            return False
        death.acquit()  # its code is to blame, and no request
        self._failed = True
        return True

    # -- the same code -----------------------------------------------------------------------------

    async def restart(self) -> None:
        """Stop the incarnation and start the next from the same zygote."""
        if self.task.engine is None:
            raise TaskError(f"{self.task.name} is {self.task.state.value}; it starts by itself")
        generation = self.task.id.generation
        self._replacing = True
        await self._stop()
        failure = await self._start(self._zygote)
        self._replacing = False
        self._tell(generation, failure=failure)
        if failure:
            self._hand_over(failure)

    # -- changed code ------------------------------------------------------------------------------

    async def reload(self, probation_s: float) -> None:
        """Load the code as it is now, and replace the incarnation by one that runs it."""
        task, old = self.task, self._zygote
        new = await self._load()
        try:
            notes = self._check(new)
        except TaskError:
            self._system.zygotes.let_go(new)
            raise
        changed = self._changed(old, new)
        generation, number = task.id.generation, task.version
        self._replacing = True
        await self._stop()
        self._kept = Kept(task)
        task.version = self._all.next_version(task.name)
        failure = await self._start(new, UPGRADE)
        if failure:
            await self._roll_back(old, number, failure)
            self._tell(generation, changed=changed, failure=failure)
            return
        self._kept.close()
        self._kept = None
        self._replacing = False
        self._tell(generation, changed=changed, probation_s=probation_s, notes=notes)
        await self._watch(probation_s)
        if self._failed:
            await self._fail_probation(old, number)
        self._system.zygotes.let_go(old)

    @property
    def _zygote(self) -> Zygote:
        return self._system.zygotes.of(self.task.name)

    async def _load(self) -> Zygote:
        """Return a zygote that has loaded the code; TaskError when that cannot be done."""
        zygote = self._system.zygotes.fresh([self.task.program.server])
        loaded, cause = False, "it was not waited for"
        try:
            with trio.move_on_after(LOAD_TIMEOUT_S):
                while zygote.version is None and not zygote.failure:
                    await self._system.wait_changed()
            loaded = zygote.version is not None and not zygote.failure
        finally:
            if not loaded:
                cause = zygote.failure or f"loading it takes longer than {LOAD_TIMEOUT_S:g} s"
                self._system.zygotes.let_go(zygote)
        if loaded:
            return zygote
        self._system.kernel.log(f"{self.task.name}: the changed code cannot be loaded\n{cause}")
        raise TaskError(f"the changed code of {self.task.name} cannot be loaded:\n{_last(cause)}")

    def _check(self, new: Zygote) -> list[str]:
        """Return what is to be said of a version that fits; TaskError if it does not."""
        if self.task.state is State.RETIRED:
            raise TaskError(f"{self.task.name} was given up meanwhile")
        task, own, version = self.task, self._all.own(), self._all.version_of(new)
        assert task.main_port is not None
        served = task.main_port.interface, version.serves[task.program.server]
        calls = [task.names[name].port.interface for name in task.grants.values()]
        others = [port.interface for port in self._system.kernel.ports.values()]
        reason = misfit(own, version, served, calls, others)
        if reason:
            raise TaskError(
                f"the changed code of {self.task.name} does not fit the system that runs: "
                f"{reason}; end the system and start it again to have it"
            )
        grown = new_operations(own, version, served)
        if not grown:
            return []
        return [f"nobody can call {', '.join(grown)} before the system is started again"]

    def _changed(self, old: Zygote, new: Zygote) -> list[str]:
        before = self._all.version_of(old).files
        after = self._all.version_of(new).files
        return sorted(path for path, stamp in after.items() if before.get(path) != stamp)

    async def _watch(self, probation_s: float) -> None:
        """Wait until the new version has failed or the probation is over."""
        self._on_trial = True
        with trio.move_on_after(probation_s):
            while not (self._passed.is_set() or self._failed):
                await self._system.wait_changed()
        self._on_trial = self._failed

    async def _fail_probation(self, old: Zygote, number: int) -> None:
        task = self.task
        self._replacing = True
        self.verdict = task.last_words[-1]
        await self._roll_back(old, number, self.verdict)

    async def _roll_back(self, old: Zygote, number: int, failure: str) -> None:
        """Let the old version serve again; `failure` says why the new one does not."""
        task, failed = self.task, self._zygote
        version, task.version = task.version, number
        self._system.kernel.log(
            f"{task.name}: version {version} failed, version {number} returns\n{failure}"
        )
        await self._stop()
        if self._kept is not None:
            self._kept.restore()
        again = await self._start(old, RETURN)
        self._replacing = False
        self._system.zygotes.let_go(failed)
        if again:
            self._hand_over(again)

    def pass_probation(self) -> None:
        """End the probation now: who replaces a version that serves has accepted it."""
        if self._result is not None and not (self._replacing or self._failed):
            self._passed.set()
            self._on_trial = False
            self._all.end(self)
            self._system.wake()

    # -- steps of both -----------------------------------------------------------------------------

    async def _stop(self) -> None:
        """End the incarnation in good order. Afterwards none runs, whoever else starts some."""
        self._stopped_at = self._stopped_at or time.monotonic()
        for _ in range(_STOP_TRIES):
            if self.task.engine is None:
                return
            await self._system.stop_task(self.task)
        if self.task.engine is not None:
            raise TaskError(f"{self.task.name} does not end, not even by SIGKILL")

    async def _start(self, zygote: Zygote, succession: str = "") -> str:
        """Start the next incarnation; return why it does not serve, "" when it does."""
        self.task.succession = succession
        try:
            return await self._start_from(zygote)
        finally:
            self.task.succession = ""

    async def _start_from(self, zygote: Zygote) -> str:
        task, system = self.task, self._system
        system.zygotes.use(task.name, zygote)
        ends = len(task.last_words), task.id.generation
        try:
            system.kernel.spawn(task)
        except TaskError as error:
            return error.detail
        with trio.move_on_after(self._patience_s):
            while task.state in _ON_ITS_WAY and task.id.generation == ends[1]:
                await system.wait_changed()
        if task.state is State.RUNNING:
            return ""
        if task.engine is None:
            return task.last_words[-1]
        reason = f"it was not ready within {self._patience_s:g} s, and was killed"
        await system.kill_task(task, Order(reason))
        return reason

    def _hand_over(self, reason: str) -> None:
        """Let the supervisor go on with a server that does not start."""
        if self.task.state is State.DOWN:
            death = Death(self.task, Ending(last_line(reason)))
            death.generation -= 1
            self._system.mending.follow(death, started=False)

    def _tell(
        self,
        generation: int,
        *,
        changed: list[str] | None = None,
        failure: str = "",
        probation_s: float = 0.0,
        notes: list[str] | None = None,
    ) -> None:
        """Let the answer go to who asked."""
        task = self.task
        serves = task.state is State.RUNNING
        self._result = Restarted(
            task.name,
            generation,
            task.id.generation,
            task.version,
            serves,
            1e3 * (time.monotonic() - self._stopped_at),
            [_short(path) for path in changed or []],
            probation_s,
            _last(failure),
            notes or [],
        )
        if serves and not failure:
            self._system.kernel.log(
                f"{task.name}: generation {task.id.generation} serves, version {task.version}, "
                f"after {self._result.pause_ms:.1f} ms"
            )
        self.answered.set()


def _last(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-_LINES:])


def _short(path: str) -> str:
    """Return a file's path, relative where it lies below the working directory."""
    below = os.path.relpath(path)
    return path if below.startswith("..") else below
