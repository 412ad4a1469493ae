"""How an incarnation ended: what is known of it, put into words, and who may be to blame.

Evidence comes from four sides: the task's own last report (an exception), what the kernel or the
supervisor ordered, the status that the zygote reaped, and the stack that a signal handler left in
the kernel's memory. `ending_of` weighs them once, when all of it is there; nothing is guessed
before.

Blame: a request is *guilty* when the task itself named it. Where nothing was said, and the death is
of a kind that a request can bring about, the requests in flight are *suspects* (`suspicion`). A
death that came from outside (SIGKILL, SIGSTOP) blames nobody.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from .requests import Request
    from .tasks import KernelTask

RECENT_MESSAGES: Final = 16
"""Messages that are remembered for each task, for the account of its end."""
_FATAL: Final = {
    signal.SIGSEGV: "segmentation fault (SIGSEGV)",
    signal.SIGBUS: "bus error (SIGBUS)",
    signal.SIGABRT: "abort by its own C code (SIGABRT)",
    signal.SIGFPE: "arithmetic fault in C code (SIGFPE)",
    signal.SIGILL: "illegal instruction (SIGILL)",
    signal.SIGSYS: "a system call that is forbidden to it (SIGSYS)",
    signal.SIGXCPU: "processor time beyond its limit (SIGXCPU)",
    signal.SIGXFSZ: "a file beyond its size limit (SIGXFSZ)",
    signal.SIGTRAP: "trap (SIGTRAP)",
    signal.SIGSTKFLT: "stack fault (SIGSTKFLT)",
}
"""Signals that a process brings upon itself, in words."""
_LEAVING: Final = ("SystemExit", "KeyboardInterrupt", "GeneratorExit")
"""Exceptions that no handler's guard catches, so that the request they come from is not named."""


class Order(msgspec.Struct, frozen=True):
    """Somebody had an incarnation killed.

    Attributes:
        reason: why, in words that stand for the cause.
        blames: whether what was in flight may be the reason.
    """

    reason: str
    blames: bool = False


class Ending(msgspec.Struct, frozen=True):
    """How an incarnation ended.

    Attributes:
        cause: one line.
        detail: a traceback or a stack; empty if there is none.
        orderly: it ended because it was told to, without a fault.
        guilty: the request that the task itself named, 0 if it named none.
        suspects: what was in flight may be to blame.
        outside: it was ended by somebody, and nothing that it did is to blame.
    """

    cause: str
    detail: str = ""
    orderly: bool = False
    guilty: int = 0
    suspects: bool = False
    outside: bool = False

    @property
    def words(self) -> str:
        """Detail and cause, the cause last."""
        return f"{self.detail.strip()}\n{self.cause}" if self.detail.strip() else self.cause


class Evidence(msgspec.Struct):
    """What has been gathered of an incarnation by the time it is over.

    Attributes:
        fault: the trace that the task reported, empty if it reported none.
        guilty: the request that it named with it.
        where: in which operation that was, or when.
        stopping: it had been told to stop.
        order: somebody had it killed.
        closed: why the kernel closed the line by itself; empty if the task's end did.
        stack: what signal handlers left.
    """

    fault: str = ""
    guilty: int = 0
    where: str = "outside any request"
    stopping: bool = False
    order: Order | None = None
    closed: str = ""
    stack: str = ""


class Death:
    """An incarnation's end, as the kernel tells it to boot, before the next one has begun.

    Attributes:
        in_flight: what it had been given and had not answered, in the order of delivery.
        blamed: those of them that count this death.
        withdrawn: those of them that were answered as poison.
        suspects: those of them that may be to blame, where that is not known better.
        number: of its record in the fault log, 0 before there is one.
        recent: the messages it was given last, oldest first: id, operation, client, badge, time.
    """

    def __init__(self, task: KernelTask, ending: Ending) -> None:
        self.task = task
        self.generation = task.id.generation
        self.ending = ending
        self.in_flight: list[Request] = []
        self.blamed: list[Request] = []
        self.suspects: list[Request] = []
        self.withdrawn: list[Request] = []
        self.recent = list(task.recent)
        self.number = 0

    def acquit(self) -> None:
        """It was no request's fault."""
        for request in self.blamed:
            request.deaths -= 1
        for request in self.suspects:
            request.suspect = False
        self.blamed, self.suspects = [], []


def ending_of(evidence: Evidence, status: int, *, out_of_memory: bool = False) -> Ending:
    """Weigh the evidence.

    Args:
        status: as os.waitstatus_to_exitcode gives it.
        out_of_memory: the host has killed some process for want of memory since the last look.
    """
    if evidence.fault:
        return _by_exception(evidence)
    order = evidence.order
    if order is not None and status == -signal.SIGKILL:
        outside = not order.blames
        return Ending(order.reason, evidence.stack, suspects=order.blames, outside=outside)
    if evidence.closed:
        return Ending(evidence.closed, evidence.stack)
    if evidence.stopping and status == 0:
        return Ending("stopped in good order", orderly=True)
    if status < 0:
        return _by_signal(-status, evidence.stack, out_of_memory=out_of_memory)
    return Ending(f"exited by itself with status {status}", evidence.stack, suspects=True)


def _by_exception(evidence: Evidence) -> Ending:
    what = last_line(evidence.fault)
    kind = what.partition(":")[0]
    where = f", {evidence.where}"
    if kind.rpartition(".")[2] == "MemoryError":
        cause = f"ran out of memory ({what}){where}"
    elif kind in _LEAVING:
        return Ending(f"left by {what}", evidence.fault, suspects=True)
    else:
        cause = f"exception {what}{where}"
    return Ending(cause, evidence.fault, guilty=evidence.guilty)


def _by_signal(number: int, stack: str, *, out_of_memory: bool) -> Ending:
    try:
        name = signal.Signals(number)
    except ValueError:  # a real-time signal has no name
        cause = f"killed by signal {number} (not by this system)"
        return Ending(cause, stack, outside=True)
    if name in _FATAL:
        return Ending(_FATAL[name], stack, suspects=True)
    if name is signal.SIGKILL and out_of_memory:
        return Ending("killed by the host for want of memory (SIGKILL)", suspects=True)
    return Ending(f"killed by {name.name} (not by this system)", stack, outside=True)


def last_line(text: str) -> str:
    """Return the last line that says something, "unknown" if none does."""
    lines = text.strip().splitlines()
    return lines[-1].strip()[:500] if lines else "unknown"


class OutOfMemory:
    """Notices that the host has killed processes for want of memory.

    Args:
        path: the host's counters; `oom_kill` is one of them (Linux 4.13).
    """

    def __init__(self, path: str = "/proc/vmstat") -> None:
        self._path = path
        self._seen = self._count()

    def _count(self) -> int:
        try:
            with open(self._path, encoding="ascii") as file:  # noqa: PTH123 - on the way of a death
                for line in file:
                    name, _, value = line.partition(" ")
                    if name == "oom_kill":
                        return int(value)
        except (OSError, ValueError):
            pass
        return 0

    def look(self) -> bool:
        """Tell whether there were any since the last look."""
        seen, self._seen = self._seen, self._count()
        return self._seen > seen
