"""Ports and rights: who may send what to whom.

A port is a bounded message queue with one receiver. It belongs to the kernel, not to the receiver:
queue and requests in flight outlive the receiver's death. A right is the only way to name a port.
Rights form a
tree: each was derived from another one, and revoking a right makes all that were derived from it
useless, wherever they went.

Invariants:
1. A port has exactly one receive right, held by the task in `port.task`.
2. `port.senders[badge]` counts the live send rights with that badge, those travelling in messages
   included.
3. The mask of a right is 0 while its badge is in `port.lost`: who holds it has to be told first.
4. A right that was revoked or released points at `DEAD`, whose `direct` is None: one comparison on
   the hot path tells both "no hand-off here" and "look closer".
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from core.abi import ALL_OPERATIONS, CLIENT_LIMIT, QUEUE_LIMIT, Right, RightKind
from core.errors import DeadPortError, LostError, NoRightError, QueueFullError, WrongRightError
from core.userlib.interface import Interface, Operation
from core.userlib.server import NoOperations
from core.userlib.server import Request as ServerRequest

if TYPE_CHECKING:
    from .requests import Request
    from .suspicion import Trial
    from .tasks import KernelTask


class Direct:
    """What a stub needs to call a co-located server on the caller's turn.

    See `core.userlib.stub`.
    """

    __slots__ = ("fault", "handlers", "next_id", "request")

    def __init__(
        self,
        handlers: list[Callable[..., Any] | None],
        request: ServerRequest,
        next_id: Callable[[], int],
        fault: Callable[..., Any],
    ) -> None:
        self.handlers = handlers
        self.request = request
        self.next_id = next_id
        self.fault = fault


class Port:
    """A message queue and what is known of its receiver."""

    __slots__ = (
        "alive",
        "bits",
        "direct",
        "end",
        "gone",
        "handled",
        "id",
        "in_flight",
        "interface",
        "label",
        "lost",
        "name",
        "operations",
        "queue",
        "senders",
        "task",
        "told",
        "trial",
    )

    def __init__(
        self, number: int, label: str, interface: type[Interface], task: KernelTask | None
    ) -> None:
        self.id = number
        self.label = label
        self.interface = interface
        self.operations = len(interface.OPERATIONS)
        self.name = 1  # what its receiver calls it; 1 is a task's main port
        self.task = task
        self.alive = True
        self.direct: Direct | None = None
        self.queue: collections.deque[Request] = collections.deque()
        self.in_flight: dict[int, Request] = {}
        self.senders: dict[int, int] = {}
        self.end: Callable[[Port, str], None] = lambda port, reason: None
        self.bits = 0
        self.gone: dict[int, int] = {}
        self.told: dict[int, int] = {}
        self.lost: dict[int, str] = {}
        self.trial: Trial | None = None
        self.handled = 0

    def check_room(self, client: KernelTask | None) -> None:
        """QueueFullError when the port may take no further message, or none of this client."""
        held = len(self.queue) + len(self.in_flight)
        if held < CLIENT_LIMIT:
            return
        if held >= QUEUE_LIMIT:
            raise QueueFullError(f"port {self.label} holds {QUEUE_LIMIT} messages")
        # Counted only when a port is crowded, so that a message costs nothing otherwise.
        waiting = itertools.chain(self.queue, self.in_flight.values())
        if sum(request.client is client for request in waiting) >= CLIENT_LIMIT:
            raise QueueFullError(f"port {self.label} holds {CLIENT_LIMIT} messages of one client")

    def tell_again(self, limit: int) -> None:
        """Have the next incarnation told what this one was told of and did not live to deal with.

        Args:
            limit: deaths after which one is not told of the same badge again.
        """
        for badge, deaths in self.told.items():
            if deaths + 1 < limit:
                self.gone[badge] = deaths + 1
        self.told.clear()

    def lose(self, receiver: KernelRight, detail: str) -> None:
        """Have everybody who holds a send right now told once, by `KernelRight.hear`.

        Until then their rights have mask 0, which leads every call there.
        """
        self.lost = {badge: detail for badge in self.senders if badge}
        for right in receiver.descendants():
            if right.badge:
                right.mask = 0

    def take_back(self) -> list[Request]:
        """Move what was in flight back to the queue's head, oldest first; return what moved."""
        moved = sorted(self.in_flight.values(), key=lambda request: request.id)
        self.in_flight.clear()
        self.queue.extendleft(reversed(moved))
        return moved

    def __repr__(self) -> str:
        return f"<port {self.id} {self.label}>"


DEAD: Final = Port(0, "dead", NoOperations, None)
DEAD.alive = False


class KernelRight(Right):
    """A right. Made by `Port`'s owner through `receive_right`, by `derive`, and by nothing else."""

    __slots__ = ("badge", "children", "kind", "mask", "name", "parent", "port", "reach")

    def __init__(
        self, port: Port, kind: RightKind, reach: int, badge: int, parent: KernelRight | None
    ) -> None:
        self.port = port
        self.kind = kind
        self.reach = reach
        # A receive or send-once right never allows hand-off: mask 0 sends the stub to the full
        # check.
        self.mask = reach if kind is RightKind.SEND and badge not in port.lost else 0
        self.badge = badge
        self.name = 0  # where it stands in its holder's name space
        self.parent = parent
        self.children: set[KernelRight] | None = None
        if kind is not RightKind.RECEIVE:
            port.senders[badge] = port.senders.get(badge, 0) + 1

    def derive(
        self,
        kind: RightKind = RightKind.SEND,
        reach: int = ALL_OPERATIONS,
        badge: int | None = None,
    ) -> KernelRight:
        """Return a new right to the same port that reaches no further than this one.

        Args:
            kind: SEND or SEND_ONCE.
            reach: mask of operations; cut to this right's own.
            badge: only a receive right may choose one; else the badge is inherited.

        Raises:
            NoRightError: this right was revoked or its port is gone.
            WrongRightError: a right that may not be copied, or a badge that may not be chosen.
        """
        if not self.port.alive:
            raise NoRightError("the right was revoked, or its port is gone")
        if self.kind is RightKind.SEND_ONCE:
            raise WrongRightError("a send-once right cannot be copied")
        if self.kind is RightKind.SEND and badge is not None and badge != self.badge:
            raise WrongRightError("only the receiver of a port chooses badges")
        child = KernelRight(
            self.port, kind, reach & self.reach, self.badge if badge is None else badge, self
        )
        if self.children is None:
            self.children = set()
        self.children.add(child)
        return child

    def descendants(self) -> Iterator[KernelRight]:
        """Yield all rights derived from this one, at any depth."""
        todo = list(self.children or ())
        while todo:
            right = todo.pop()
            yield right
            todo.extend(right.children or ())

    def revoke(self) -> int:
        """Make all rights derived from this one useless; return how many they were."""
        victims = list(self.descendants())
        count = sum(right.port is not DEAD for right in victims)  # the others are joints
        self.children = None
        for right in victims:
            right.children = None
            right.die()
        return count

    def release(self) -> None:
        """Give this right up. What was derived from it lives on, and can be revoked as before.

        If that is more than one right, this one stays in the tree as a *joint*, so that giving up
        takes the same short time however much was derived. A joint has two children or more.
        """
        if self.children is None or len(self.children) < 2:
            self._leave_tree()
        self.die()

    def _leave_tree(self) -> None:
        """Have the only child, if there is one, take this right's place."""
        parent, children = self.parent, self.children
        self.children = None
        child = next(iter(children)) if children else None
        if child is not None:
            child.parent = parent
        if parent is None or parent.children is None:
            return
        parent.children.discard(self)
        if child is not None:
            parent.children.add(child)
        elif parent.port is DEAD and len(parent.children) < 2:
            parent._leave_tree()  # noqa: SLF001 - of its own kind

    def die(self) -> None:
        """Point nowhere, and tell the port that a sender is gone."""
        port, self.port = self.port, DEAD
        self.mask = 0
        if port is DEAD:
            return
        if self.kind is RightKind.RECEIVE:
            if port.alive:
                port.end(port, "its receive right was given up")
            return
        left = port.senders[self.badge] - 1
        if left:
            port.senders[self.badge] = left
            return
        del port.senders[self.badge]
        if self.badge and port.alive and port.task is not None:
            port.task.no_senders(port, self.badge)

    def check(self, operation: int) -> Operation:
        """Return the operation that this right lets its holder call.

        Raises:
            NoRightError, DeadPortError, WrongRightError: it does not.
        """
        port = self.port
        if not port.alive:
            if port is DEAD:
                raise NoRightError("the right was revoked, or its port is gone")
            raise DeadPortError(f"port {port.label} is gone")
        if self.kind is RightKind.RECEIVE:
            raise WrongRightError("a receive right does not send")
        specs = port.interface.OPERATIONS
        if not 0 <= operation < len(specs):
            raise WrongRightError(f"{port.interface.__name__} has no operation {operation}")
        if not self.reach >> operation & 1:
            raise WrongRightError(f"this right does not allow {specs[operation]}")
        return specs[operation]

    def hear(self) -> None:
        """Hear of a loss before a call is made, if this right's mask is 0.

        Raises:
            LostError: the receiver gave something up, and this badge has not been told yet.
        """
        detail = self.port.lost.pop(self.badge, None)
        if self.kind is RightKind.SEND:
            self.mask = self.reach
        if detail is not None:
            raise LostError(detail)


def receive_right(port: Port) -> KernelRight:
    """Return the receive right of a new port."""
    return KernelRight(port, RightKind.RECEIVE, ALL_OPERATIONS, 0, None)
