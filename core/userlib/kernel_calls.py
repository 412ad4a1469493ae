"""The kernel calls, as the interface of the port that every task has from its birth.

Together with what a line carries by itself (call, send, receive, reply, forward, notify;
`core.abi.Kind`) these are all the ways to ask something of the kernel. `names` are the caller's own
numbers for its rights. What an ordinary task may not do (spawn, kill, restart and look at others)
is masked out of its right.
"""

from __future__ import annotations

from typing import Final

import msgspec

from core.abi import Right

from .interface import Descriptor, Interface, operation


class RightInfo(msgspec.Struct, frozen=True, array_like=True):
    """What the kernel tells of a right: which kind, to which port, how far it reaches."""

    name: int
    kind: str
    port: int
    label: str
    interface: str
    badge: int
    operations: list[str]


class PortInfo(msgspec.Struct, frozen=True, array_like=True):
    """What the kernel tells of a port."""

    port: int
    label: str
    interface: str
    receiver: str
    queued: int
    in_flight: int
    senders: int
    handled: int


class TaskInfo(msgspec.Struct, frozen=True, array_like=True):
    """What the kernel tells of a task. `pid` is 0 while it has no process of its own."""

    name: str
    index: int
    generation: int
    placement: str
    state: str
    pid: int
    rights: int
    ports: int
    calls: int
    handled: int
    last_end: str
    version: int


class Restarted(msgspec.Struct, frozen=True, array_like=True):
    """What has become of a server that was replaced on purpose.

    Attributes:
        old_generation, generation: of the incarnations before and after.
        version: which version of its code it has now; the one it was booted with is 1.
        serves: whether it serves again; if not, the supervisor has it in hand.
        pause_ms: from the end of the old incarnation's service to the beginning of the new one's.
        changed: source files that are not what they were when the old version was loaded.
        probation_s: how long from now on a failure brings the old version back.
        failure: why the new incarnation does not serve; "" if it does. If there was changed code,
            the old version is back.
        notes: what else is to be said.
    """

    name: str
    old_generation: int
    generation: int
    version: int
    serves: bool
    pause_ms: float
    changed: list[str]
    probation_s: float
    failure: str
    notes: list[str]


class Outage(msgspec.Struct, array_like=True):
    """A time for which a task was away, on the host's monotonic clock, in seconds.

    Attributes:
        generation: the incarnation that ended.
        reason: why, in one line.
        orderly: it was asked to, and did.
        ended_s: when the kernel learned of it.
        ready_s: when a later incarnation served; 0: none does yet.
    """

    generation: int
    reason: str
    orderly: bool
    ended_s: float
    ready_s: float


class KernelCalls(Interface):
    """What a task may ask of the kernel beyond sending messages."""

    @operation
    async def create_port(self, label: str) -> int:
        """Make another port and return the name of its receive right. LimitError at PORTS_LIMIT.

        It serves what the caller's first port serves, and ends with the incarnation.
        """

    @operation
    async def mint(self, name: int, badge: int, mask: int) -> Right:
        """Return a send right derived from the right `name`.

        From a receive right any badge may be given; from a send right the badge stays, and the mask
        can only lose operations.
        """

    @operation
    async def mint_once(self, name: int, badge: int) -> Right:
        """Return a send-once right derived from a receive right."""

    @operation
    async def revoke(self, name: int) -> int:
        """Make all rights derived from `name` useless; return how many they were."""

    @operation
    async def drop(self, name: int) -> None:
        """Give up a right. A receive right takes its port with it."""

    @operation(idempotent=True)
    async def abandoned(self, name: int, badge: int) -> bool:
        """Tell whether no right with this badge is left to the port of the receive right `name`.

        Asked before vanished senders are dealt with: such a right may have been made meanwhile.
        If one was, the kernel will tell again.
        """

    @operation(idempotent=True)
    async def inspect(self, name: int) -> RightInfo:
        """Return what a right is."""

    @operation
    async def create_memory(self, size: int) -> Descriptor:
        """Return a memory object of `size` octets, as a descriptor to map."""

    @operation
    async def seal(self, memory: Descriptor) -> None:
        """Make a memory object unchangeable for everyone.

        Refused while somebody has it mapped to write.
        """

    @operation
    async def keep(self, label: str, descriptor: Descriptor) -> None:
        """Keep a host descriptor or memory object for later incarnations of this task."""

    @operation(idempotent=True)
    async def kept(self, label: str) -> Descriptor:
        """Return a kept descriptor; NoRightError if nothing is kept under the label."""

    @operation
    async def keep_right(self, label: str, right: Right) -> None:
        """Keep a right for later incarnations of this task."""

    @operation(idempotent=True)
    async def kept_right(self, label: str) -> Right:
        """Return a kept right."""

    @operation(idempotent=True)
    async def kept_labels(self) -> list[str]:
        """Return the labels of the kept rights."""

    @operation
    async def forget(self, label: str) -> None:
        """Drop what is kept under a label."""

    @operation
    async def lost(self, detail: str) -> None:
        """Say that something that clients rely on is gone.

        Whoever holds a right to the caller's first port is told once: the next request that comes
        with its badge is answered with LostError.
        """

    @operation(idempotent=True)
    async def resumable(self) -> list[tuple[int, int]]:
        """Return place and tag of what is kept of resumable calls (see `core.abi.FLAG_RESUMABLE`).

        A call there under that tag is not made again, but answered as it was the first time.
        """

    @operation
    async def arm(self, delay_ms: int, bits: int) -> int:
        """Arm a timer that notifies the caller's first port; return its number."""

    @operation
    async def disarm(self, timer: int) -> None:
        """Cancel a timer; a fired or unknown one is ignored."""

    @operation
    async def log(self, text: str) -> None:
        """Write a line into the kernel's log."""

    @operation
    async def spawn(self, name: str) -> None:
        """Start a described task that does not run."""

    @operation
    async def kill(self, name: str, generation: int, reason: str) -> None:
        """End a task's incarnation at once, for a reason that `atoll why` will show.

        A promoted one, which cannot be killed, is stopped in good order.

        Args:
            generation: the incarnation that is meant, -1 for any; TaskError if another one runs.
        """

    @operation
    async def retire(self, name: str, reason: str) -> None:
        """Give a task up: its ports die, and what waits at them is answered with DeadPortError.

        Args:
            reason: what the clients are told.
        """

    @operation
    async def halt(self, reason: str) -> None:
        """End the whole system in good order."""

    @operation(idempotent=True)
    async def tasks(self) -> list[TaskInfo]:
        """Return all tasks."""

    @operation(idempotent=True)
    async def ports(self) -> list[PortInfo]:
        """Return all ports."""


PRIVILEGED: Final = ("spawn", "kill", "retire", "halt", "tasks", "ports")
"""Operations that only the supervisor's and the composition's right allows."""


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """What the supervisor decides upon a death.

    Attributes:
        decision: what follows, in words.
        leave: the next time, the kernel shall start the task again before it tells of the death:
            whatever the cause will be, that is what would be decided. Good for one death.
    """

    decision: str
    leave: bool


class Supervision(Interface):
    """What the kernel tells the supervisor, and the supervisor's decision."""

    @operation
    async def died(
        self, name: str, generation: int, cause: str, orderly: bool, started: bool
    ) -> Verdict:
        """A task's incarnation has ended; return what follows.

        Args:
            generation: of the incarnation that ended.
            cause: one line.
            orderly: it ended because it was told to, without a fault.
            started: the kernel had leave to start it again, and has.
        """

    @operation
    async def silent(self, name: str, generation: int, how: str) -> str:
        """A task's incarnation counts as hung, by the limits that its description sets."""
