"""Tasks: the units of restart, with the name space of rights that each one holds.

A `KernelTask` is a place in the kernel's table. Its incarnations come and go: each has an *engine*,
which is a line to a process or a server promoted into the kernel's own. What belongs to the place
survives them: the main port with its queue, the rights granted by the system description, and
whatever was kept.

Invariants:
1. `names[1]` is the receive right of the main port, for as long as the place exists.
2. `engine` is None exactly while no incarnation runs; no port of the task has a `direct` then.
3. A request made by the task is in `calls`, under the task's own number, until it is answered.
4. `badge`, which servers see on requests through granted rights, is never used again within a boot.
"""

from __future__ import annotations

import collections
import enum
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from core.abi import NAMES_LIMIT, RightKind, TaskId
from core.errors import LimitError, NoRightError

from .burden import Burden
from .descriptors import give_up
from .endings import RECENT_MESSAGES
from .outages import Outages

if TYPE_CHECKING:
    from .attempts import Attempts
    from .endings import Order
    from .heartbeat import Silence
    from .ports import KernelRight, Port
    from .requests import Request, Waiter
    from .resumable import Place
    from .timers import Timer
    from .voice import Voice

FIRST_FREE_NAME: Final = 2
LAST_WORDS: Final = 32
"""Ends of incarnations that are remembered."""


class Placement(enum.Enum):
    """Where a task's program runs."""

    PROCESS = "process"
    """In an address space of its own, behind a line."""
    COLOCATED = "colocated"
    """In the kernel's process: promoted, for speed."""
    JOINED = "joined"
    """A program of the host that joined over the control socket; it is never restarted."""


class State(enum.Enum):
    """What an incarnation is doing."""

    DOWN = "down"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    """Its line is closed; how its process ended is not known yet."""
    RETIRED = "retired"


class Program(msgspec.Struct, frozen=True):
    """What a task runs, from the system description."""

    name: str
    server: str
    placement: Placement
    options: dict[str, Any] = {}


class Watch(msgspec.Struct, frozen=True):
    """How long an incarnation may be silent before it counts as hung. 0: for ever.

    Attributes:
        silence_s: stopped by a signal, or at work in its own code: processor time then, so that one
            that is not given a processor is not held to be hung.
        host_s: waiting in the host, as for a disk; or the host at work for it.
        start_s: at work in its own code before it has served.
    """

    silence_s: float = 0.0
    host_s: float = 60.0
    start_s: float = 20.0


class Engine(Protocol):
    """One incarnation, as the kernel drives it. None of these waits."""

    pid: int
    lingers: bool
    """Whether a co-located caller may wait for an answer at the engine itself, for a moment."""

    def linger(self, waiter: Waiter) -> None:
        """Wait for the answer, for a moment."""

    def deliver(self, request: Request) -> bool:
        """Take a request; False when the incarnation cannot take it now."""

    def abort(self, request: Request) -> None:
        """Tell the server that nobody waits for this request any more."""

    def notify(self, port: Port, bits: int) -> bool:
        """Deliver notification bits; False when that is not possible now."""

    def no_senders(self, port: Port, badge: int) -> bool:
        """Tell that the last right with this badge is gone; False when that is not possible now."""

    def stop(self) -> None:
        """Ask for an orderly end."""

    def kill(self, order: Order) -> None:
        """End at once. TaskError when the placement does not allow it."""


Message = tuple[int, Any, str, int, float]
"""What is remembered of a message: id, operation, client's name, badge, time of delivery."""


class KernelTask:
    """A place in the task table. See the module head.

    `version` counts the versions of its code that were tried; the one it was booted with is 1.
    `attempts` is what its incarnations tried that they may not, `voice` what they write into the
    log; set by the kernel that enters it. `burden` is what its messages cost the kernel. `leave` is
    the supervisor's, to start it again before the supervisor has heard of the next death.
    """

    attempts: Attempts
    voice: Voice

    def __init__(self, task_id: TaskId, program: Program, badge: int) -> None:
        self.id = task_id
        self.badge = badge
        self.program = program
        self.name = program.name
        self.state = State.DOWN
        self.engine: Engine | None = None
        self.main_port: Port | None = None
        self.ports: set[Port] = set()
        self.names: dict[int, KernelRight] = {}
        self.grants: dict[str, int] = {}
        self.calls: dict[int, Request] = {}
        self.places: dict[int, Place] = {}
        self.burden = Burden()
        self.timers: dict[int, Timer] = {}
        self.kept: dict[str, int] = {}
        self.kept_rights: dict[str, KernelRight] = {}
        self.kernel_mask = 0
        self.last_words: list[str] = []
        self.outages = Outages()
        self.watch = Watch()
        self.hung: Silence | None = None
        self.recent: collections.deque[Message] = collections.deque(maxlen=RECENT_MESSAGES)
        self.has_served = False
        self.version = 1
        self.leave = False
        self.succession = ""
        self._next_name = FIRST_FREE_NAME

    def hold(self, right: KernelRight) -> int:
        """Enter a right into the name space and return its name. LimitError at NAMES_LIMIT."""
        if len(self.names) >= NAMES_LIMIT:
            raise LimitError(f"task {self.name} holds {NAMES_LIMIT} rights")
        name = self._next_name
        while name in self.names:
            name += 1
        self._next_name = name + 1 if name < (1 << 31) else FIRST_FREE_NAME
        self.names[name] = right
        right.name = name
        if right.kind is RightKind.RECEIVE:
            right.port.name = name
        return name

    def right(self, name: int) -> KernelRight:
        """Return the right of that name. NoRightError if there is none."""
        right = self.names.get(name)
        if right is None:
            raise NoRightError(f"task {self.name} holds no right named {name}")
        return right

    def forget(self, right: KernelRight) -> None:
        """Take a right out of the name space, if it stands there."""
        if self.names.get(right.name) is right:
            del self.names[right.name]

    def keep(self, label: str, number: int) -> None:
        """Keep a descriptor, owned from now on; what was kept under the label is closed."""
        old = self.kept.get(label)
        self.kept[label] = number
        if old is not None:
            give_up(old)

    def no_senders(self, port: Port, badge: int) -> None:
        """Tell the incarnation, or remember until there is one."""
        engine = self.engine
        port.told[badge] = 0
        if self.state is not State.RUNNING or engine is None or not engine.no_senders(port, badge):
            port.gone[badge] = port.told.pop(badge, 0)

    def remember_end(self, reason: str, *, orderly: bool = False) -> None:
        """Note why an incarnation ended."""
        self.last_words = [*self.last_words[-LAST_WORDS + 1 :], reason]
        self.outages.ended(self.id.generation, reason, orderly=orderly)

    def __repr__(self) -> str:
        return f"<task {self.id} {self.name}>"


class TaskTable:
    """All tasks, by place and by name. A place is used again under the next generation."""

    def __init__(self) -> None:
        self._by_name: dict[str, KernelTask] = {}
        self._generations: list[int] = []
        self._free: list[int] = []
        self._badges = itertools.count(1).__next__

    def add(self, program: Program) -> KernelTask:
        """Make a task. LimitError when the name is taken."""
        if program.name in self._by_name:
            raise LimitError(f"there is a task {program.name} already")
        if self._free:
            index = self._free.pop()
        else:
            index = len(self._generations)
            self._generations.append(0)
        task = KernelTask(TaskId(index, self._generations[index]), program, self._badges())
        self._by_name[program.name] = task
        return task

    def renew(self, task: KernelTask) -> None:
        """Give the task's place to its next incarnation."""
        self._generations[task.id.index] += 1
        task.id = TaskId(task.id.index, self._generations[task.id.index])

    def remove(self, task: KernelTask) -> None:
        """Free the task's place."""
        if self._by_name.get(task.name) is task:
            del self._by_name[task.name]
            self._generations[task.id.index] += 1
            self._free.append(task.id.index)

    def named(self, name: str) -> KernelTask | None:
        """Return the task of that name."""
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[KernelTask]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)
