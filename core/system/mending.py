"""What the kernel's process does so that the supervisor can do its work.

It tells the supervisor of every death and every hang, and enters both, with the supervisor's
decision, in the fault log. News are *calls*: they stay in flight until they are answered, so they
outlive the supervisor's own death like any other request.

A task that the supervisor has given leave for is started before the supervisor is even told: that
takes a few switches between processes out of the time for which clients wait. The leave is good for
one death, and comes with the supervisor's answer to the one before. The supervisor is told when
the task serves again: until then nobody shall take the processor from it.

The supervisor itself is mended here, because nobody else could: when it dies it is started again,
when it hangs it is killed. What it was in the midst of it finds in its kept memory.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from core.errors import AtollError, DeadPortError, QueueFullError, TaskError
from core.kernel.colocated import ColocatedTask
from core.kernel.endings import Death, Order
from core.kernel.heartbeat import Heartbeat, Silence
from core.kernel.kernel import Kernel
from core.kernel.rim import Rim
from core.kernel.tasks import KernelTask, Placement, State
from core.userlib.interface import Operation
from core.userlib.kernel_calls import Supervision, Verdict

from .faults import FaultLog

SUPERVISOR: Final = "supervisor"
_DEATHS_AT_ONCE: Final = 20
"""Deaths of the supervisor within `_PERIOD_S` after which the kernel waits before it mends it."""
_PERIOD_S: Final = 10.0
_LATER_S: Final = 1.0
"""How long the kernel waits before it mends the supervisor, or tells it again, after trouble."""
_TELL_S: Final = 0.1
"""How long a task that was started again may take to serve before the supervisor is told."""
_FULL_S: Final = 0.1
"""How long it waits when the supervisor's port is full."""
_DIED: Final = Supervision.named("died")
_SILENT: Final = Supervision.named("silent")


class Mending:
    """See the module head.

    Args:
        client: returns the task that the news come from.
        changed: waits until some task has started, served or ended.
        fail: ends the system, for a reason.
        at_rest: tells whether the system is being ended, so that nothing is mended any more.
    """

    def __init__(
        self,
        kernel: Kernel,
        rim: Rim,
        client: Callable[[], ColocatedTask],
        changed: Callable[[], Awaitable[None]],
        fail: Callable[[str], None],
        at_rest: Callable[[], bool],
    ) -> None:
        self._kernel = kernel
        self._rim = rim
        self._client = client
        self._changed = changed
        self._fail = fail
        self._at_rest = at_rest
        self._nursery: trio.Nursery | None = None
        self._recent_deaths = 0
        self._untold: dict[str, collections.deque[tuple[Death, bool]]] = {}
        self.faults = FaultLog()
        self.heartbeat = Heartbeat(kernel, time.monotonic, self._silent)

    def start(self, nursery: trio.Nursery) -> None:
        """Watch from now on; what takes time runs in the nursery."""
        self._nursery = nursery
        nursery.start_soon(self.heartbeat.run)

    def enter(self, death: Death) -> None:
        """Enter an incarnation's end into the fault log."""
        number = death.number = self.faults.fault(death)
        for request in death.withdrawn:
            name = death.task.name
            self._kernel.log(f"{request} of {name} is answered as poison; fault {number}")

    def start_again(self, task: KernelTask) -> bool:
        """Start a task whose incarnation has just ended, if there is leave to; tell if it was."""
        leave, task.leave = task.leave, False
        if not leave or task.program.placement is not Placement.PROCESS:
            return False  # a promoted one's incarnation may have tasks that are yet to be cancelled
        try:
            self._kernel.spawn(task)
        except TaskError as error:
            self._kernel.log(f"{task.name} was not started: {error.detail}")
            return False
        return True

    def follow(self, death: Death, *, started: bool) -> None:
        """Have a death followed by what the supervisor decides.

        Args:
            started: the next incarnation has been started already.
        """
        task = death.task
        if task.name == SUPERVISOR:
            self._mend_supervisor(task, death)
            return
        if self._kernel.tasks.named(SUPERVISOR) is None:
            self._kernel.log(f"{task.name} ended and nobody supervises: {death.ending.cause}")
            self._kernel.retire(task, "it ended, and there is no supervisor")
            return
        untold = self._untold.get(task.name)
        if untold is not None:
            untold.append((death, started))  # told in their order
            return
        self._untold[task.name] = collections.deque([(death, started)])
        self._later(self._tell_deaths, task)

    def _later(self, step: Callable[..., object], *arguments: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(step, *arguments)  # type: ignore[arg-type]

    async def _tell_deaths(self, task: KernelTask) -> None:
        """Tell of a task's deaths, one after the other."""
        untold = self._untold[task.name]
        while untold:
            with trio.move_on_after(_TELL_S):
                while task.state is State.STARTING:
                    await self._changed()
            await self._tell_death(*untold[0])
            untold.popleft()
        del self._untold[task.name]

    async def _tell_death(self, death: Death, started: bool) -> None:
        """Tell of a death until the supervisor has decided, or there is none any more."""
        task, ending, number = death.task, death.ending, death.number
        arguments = (task.name, death.generation, ending.cause, ending.orderly, started)
        while started or (task.state is State.DOWN and task.id.generation == death.generation + 1):
            if self._at_rest() or task.state is State.RETIRED:
                return
            try:
                verdict: Verdict = await self._ask(_DIED, arguments)
                self.faults.decided(number, verdict.decision)
                task.leave = verdict.leave
            except DeadPortError as error:
                self.faults.decided(number, f"nothing follows: {error.detail}")
            except QueueFullError:
                await trio.sleep(_FULL_S)
                continue
            except AtollError as error:
                self._kernel.log(f"the supervisor did not hear of {task.name}: {error.detail}")
                await trio.sleep(_LATER_S)
                continue
            return

    async def _ask(self, spec: Operation, arguments: tuple[object, ...]) -> Any:
        supervisor = self._kernel.tasks.named(SUPERVISOR)
        if supervisor is None or supervisor.state is State.RETIRED:
            raise DeadPortError("there is no supervisor")
        right = supervisor.names[1].derive()
        try:
            return await self._client().call(right, spec, arguments)
        finally:
            right.release()

    def _silent(self, task: KernelTask, silence: Silence) -> None:
        """A task counts as hung: the supervisor decides, but for itself."""
        if self._at_rest():
            return
        if task.name == SUPERVISOR or self._kernel.tasks.named(SUPERVISOR) is None:
            self._kernel.log(f"{task.name} {silence.how}; the kernel ends it")
            reason = f"{silence.how}; ended by the kernel"
            self._kernel.kill(task, Order(reason, silence.blames))
        else:
            self._later(self._tell_silence, task, task.id.generation, silence.how)

    async def _tell_silence(self, task: KernelTask, generation: int, how: str) -> None:
        """Tell of a hang; if that fails, the next beat tells again."""
        try:
            await self._ask(_SILENT, (task.name, generation, how))
        except AtollError as error:
            self._kernel.log(f"the supervisor did not hear that {task.name} {how}: {error.detail}")

    def _mend_supervisor(self, task: KernelTask, death: Death) -> None:
        """Start the supervisor again. News that it had not answered are delivered again."""
        self._kernel.log(f"{SUPERVISOR} ended ({death.ending.cause}); the kernel starts it again")
        self._recent_deaths += 1
        delay_s = 0.0 if self._recent_deaths < _DEATHS_AT_ONCE else _LATER_S
        self.faults.decided(death.number, f"started again by the kernel in {delay_s:.2f} s")

        def again() -> None:
            if self._at_rest() or task.state is not State.DOWN:
                return
            try:
                self._kernel.spawn(task)
            except TaskError as error:
                self._fail(f"the {SUPERVISOR} cannot be started again: {error.detail}")

        self._rim.timers.arm(delay_s, again)
        self._rim.timers.arm(_PERIOD_S, self._forgive)

    def _forgive(self) -> None:
        self._recent_deaths -= 1
