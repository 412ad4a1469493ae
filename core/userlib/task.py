"""What a program knows of its own task: its rights, its options, and the kernel calls.

`Task` is what a server is given at its start. Two classes implement it, one for each placement:
`core.userlib.isolated` over the line, `core.kernel.colocated` by calling the kernel directly. A
server written against `Task` therefore runs unchanged in both.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from core.abi import ALL_OPERATIONS, Right
from core.errors import NoRightError

from .interface import Interface, Operation
from .stub import stub_class

InterfaceT = TypeVar("InterfaceT", bound=Interface)
T = TypeVar("T")
UPGRADE: Final = "upgrade"
"""The incarnation is the first of changed code; if it fails, the code before it returns."""
RETURN: Final = "return"
"""The incarnation has the code again that was there before newer code failed."""


class Task(abc.ABC):
    """A task as its own program sees it.

    Attributes:
        name: the name in the system description.
        options: the options of the system description, with what the composition added.
        rights: the rights granted at the start, by their name in the description.
        boot_id: a number that no other boot of a kernel has; request ids are unique within it.
        generation: how many incarnations the task had before this one.
        succession: UPGRADE or RETURN if the code is not that of the incarnation before, else "".
    """

    name: str
    options: dict[str, Any]
    rights: dict[str, Right]
    boot_id: int
    generation: int
    succession: str = ""

    def connect(self, interface: type[InterfaceT], right: str | Right) -> InterfaceT:
        """Return a client of the port behind `right`: an instance of the interface.

        Args:
            interface: what the port serves.
            right: a send right, or the name of one that was granted.

        Raises:
            NoRightError: no right was granted under that name.
        """
        if isinstance(right, str):
            granted = self.rights.get(right)
            if granted is None:
                raise NoRightError(f"task {self.name}: no right was granted under {right!r}")
            right = granted
        return stub_class(interface)(self, right)

    @abc.abstractmethod
    async def call(
        self,
        right: Right,
        spec: Operation,
        arguments: tuple[Any, ...],
        deadline_s: float | None = None,
    ) -> Any:
        """Make a call and return the reply's value. The derived stubs end here.

        Args:
            deadline_s: seconds from now after which it fails with DeadlineError; None: never.
        """

    @abc.abstractmethod
    async def call_resumable(
        self, right: Right, spec: Operation, arguments: tuple[Any, ...], place: int, tag: int
    ) -> Any:
        """Make a call that outlives this incarnation; see `core.userlib.resuming` for its use.

        Under a tag that an earlier incarnation has used at this place, the first call returns (or
        raises) what its first call came to, the second call the second, and so on: nothing is
        called again. A call under another tag says that the former one is dealt with. Who is
        cancelled does not withdraw the call.

        Args:
            place: 0 to `RESUMABLE_PLACES` - 1; one call at a time is made at each.
            tag: what the call is made for: 64 bits that mean the same to every incarnation.
        """

    @abc.abstractmethod
    def resumable(self) -> list[tuple[int, int]]:
        """Return place and tag of all calls that are kept."""

    @abc.abstractmethod
    def send(self, right: Right, spec: Operation, arguments: tuple[Any, ...]) -> None:
        """Send a message that gets no reply. A full queue drops it; a missing right is an error."""

    @abc.abstractmethod
    def notify(self, right: Right, bits: int) -> None:
        """Set notification bits at a port; they coalesce until the receiver takes them."""

    @abc.abstractmethod
    def create_port(self, label: str) -> Right:
        """Return the receive right of another port that serves what the task's own port serves.

        The right has a `name`, which is what `request.port` shows of what comes to that port. The
        port ends with this incarnation, or when the right is dropped.
        """

    @abc.abstractmethod
    def mint(
        self, badge: int, operations: list[str] | None = None, port: Right | None = None
    ) -> Right:
        """Return a new send right to a port of the task.

        Args:
            badge: what the server will see in `request.badge`; choose it unequal 0.
            operations: the names of the only operations allowed; None: all.
            port: a receive right; None: the task's own port.
        """

    @abc.abstractmethod
    def mint_once(self, badge: int) -> Right:
        """Return a new right to the task's own port that is used up by one message."""

    @abc.abstractmethod
    def attenuate(self, right: Right, operations: list[str], interface: type[Interface]) -> Right:
        """Return a copy of `right` that allows only `operations`."""

    @abc.abstractmethod
    def copy(self, right: Right) -> Right:
        """Return a copy of a send right."""

    @abc.abstractmethod
    def drop(self, right: Right) -> None:
        """Give up a right."""

    @abc.abstractmethod
    def revoke(self, right: Right) -> None:
        """Make every right that was derived from this one useless, wherever it went."""

    @abc.abstractmethod
    def keep(self, label: str, descriptor: int) -> None:
        """Have the kernel keep a duplicate of a host descriptor for later incarnations."""

    @abc.abstractmethod
    def kept(self, label: str) -> int | None:
        """Return a new duplicate of a kept descriptor, the caller's own; None if there is none."""

    @abc.abstractmethod
    def keep_right(self, label: str, right: Right) -> None:
        """Have the kernel keep a copy of a right for later incarnations."""

    @abc.abstractmethod
    def kept_rights(self) -> dict[str, Right]:
        """Return all kept rights by label."""

    @abc.abstractmethod
    def lost(self, detail: str) -> None:
        """Have each client's next request to the task's own port answered with LostError, once."""

    @abc.abstractmethod
    def forget(self, label: str) -> None:
        """Drop what is kept under the label, descriptor or right."""

    @abc.abstractmethod
    def arm(self, delay_s: float, bits: int) -> int:
        """Arm a timer that sets notification bits at the task's own port; return its number."""

    @abc.abstractmethod
    def disarm(self, timer: int) -> None:
        """Cancel a timer; one that has fired is ignored."""

    @abc.abstractmethod
    def spawn(self, name: str) -> None:
        """Start a described task that does not run; only the supervisor may."""

    @abc.abstractmethod
    def kill(self, name: str, generation: int, reason: str) -> None:
        """End a task's incarnation at once; only the supervisor may. See `KernelCalls.kill`."""

    @abc.abstractmethod
    def retire(self, name: str, reason: str) -> None:
        """Give a task up for good; only the supervisor may."""

    @abc.abstractmethod
    def halt(self, reason: str) -> None:
        """End the whole system; only the supervisor may."""

    @abc.abstractmethod
    def log(self, text: str) -> None:
        """Write a line into the kernel's log."""


def operations_mask(interface: type[Interface], operations: list[str] | None) -> int:
    """Return the mask of a right that allows just these operations."""
    if operations is None:
        return ALL_OPERATIONS
    return sum(1 << interface.named(name).index for name in set(operations))


def complete(call: Coroutine[Any, Any, T]) -> T:
    """Run a call that does not suspend, from plain code, and return its result.

    In a blocking task every call blocks inside instead of suspending; in the kernel's process a
    call to a co-located server's plain operation does not suspend either.

    Raises:
        RuntimeError: the call would have suspended.
    """
    with contextlib.closing(call):
        try:
            call.send(None)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        raise RuntimeError("this call waits: make it from an async function")
