"""A task in an address space of its own: `Task` over a line.

Calls are numbered by the task. In a *blocking* task a call waits inside, and packets that arrive
meanwhile and are not its answer are put aside for the serve loop. Under trio a call parks its trio
task until the reader finds the answer. The kernel answers every call exactly once, also one that
was aborted, so a slot of the transfer region is free again when the answer is there, not before.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import msgspec
import outcome
import trio

from core.abi import (
    ALL_OPERATIONS,
    BULK_LIMIT,
    FLAG_RESUMABLE,
    INLINE_LIMIT,
    NO_SLOT,
    PLACE_SHIFT,
    RESUMABLE_PLACES,
    SELF,
    SLOT_SIZE,
    Kind,
    Right,
)
from core.errors import (
    BadMessageError,
    DeadPortError,
    MessageTooLargeError,
    NoRightError,
    from_wire,
)

from .interface import Descriptor, Interface, Operation, encode, octets
from .kernel_calls import KernelCalls
from .left import Left
from .line import ClosedError, Line, Packet, aligned
from .task import Task, complete, operations_mask

_REPLY: Final = int(Kind.REPLY)
_decode_error: Final = msgspec.msgpack.Decoder(tuple[int, int, str]).decode
MAIN_PORT: Final = 1
"""The name of the receive right of a server's own port, in every task that serves one."""
_LONGEST_DEADLINE_S: Final = 4e6
"""A header has 32 bits for a deadline in milliseconds."""


class _NoPort:
    """Stands where the kernel's rights have their port: no hand-off from here."""

    direct: ClassVar[None] = None


class TaskRight(Right):
    """A right in a task's own address space: nothing but its name."""

    __slots__ = ("name",)
    port: ClassVar[type[_NoPort]] = _NoPort
    mask: ClassVar[int] = ALL_OPERATIONS

    def __init__(self, name: int) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<right {self.name}>"


class _Waiter:
    """A call that waits for its answer under trio."""

    __slots__ = ("slot", "spec", "start", "task")

    def __init__(self, spec: Operation, slot: int, start: int) -> None:
        self.spec = spec
        self.slot = slot
        self.start = start
        self.task: trio.lowlevel.Task | None = None


class Birth(msgspec.Struct, array_like=True):
    """What the kernel tells a new task about itself.

    Attributes:
        kept: labels of the descriptors kept for it, which come along in this order; None: they do
            not, because they are many, and are to be asked for.
        kept_rights: labels of the rights kept for it.
    """

    name: str
    program: str
    boot_id: int
    generation: int
    options: dict[str, Any]
    grants: dict[str, int]
    succession: str = ""
    kept: list[str] | None = None
    kept_rights: list[str] | None = None


class IsolatedTask(Task):
    """See the module head. `blocking` is decided by the serve loop before the first call."""

    def __init__(self, line: Line, birth: Birth, kept: Sequence[int] = ()) -> None:
        """Be born.

        Args:
            kept: the descriptors that came along; owned.
        """
        self.line = line
        self.left = Left(birth.kept, kept)
        self._kept_labels = birth.kept_rights
        self.name = birth.name
        self.options = birth.options
        self.boot_id = birth.boot_id
        self.generation = birth.generation
        self.succession = birth.succession
        self.rights: dict[str, Right] = {
            name: TaskRight(number) for name, number in birth.grants.items()
        }
        self.blocking = True
        self.set_aside: collections.deque[Packet] = collections.deque()
        self.on_set_aside: Callable[[], None] | None = None
        self._next = itertools.count(1).__next__
        self._waiters: dict[int, _Waiter] = {}
        self._without_slot = trio.lowlevel.ParkingLot()
        self.kernel = self.connect(KernelCalls, TaskRight(SELF))

    # -- calls ------------------------------------------------------------------------------------

    def _send_call(
        self,
        right: Right,
        spec: Operation,
        arguments: tuple[Any, ...],
        kind: Kind,
        deadline_s: float | None = None,
        mark: tuple[int, int] | None = None,
    ) -> tuple[int, int, int]:
        """Send a request; return its number, its slot, and where the reply's bulk starts there.

        Args:
            mark: place and tag of a resumable call.
        """
        if len(arguments) != len(spec.parameters):
            raise BadMessageError(f"{spec} takes {len(spec.parameters)} arguments")
        name = _name_of(right)
        fields = _encoded(spec, arguments[: spec.fields])
        carried = arguments[spec.fields :]
        bulk: Any = b""
        if spec.bulk:
            bulk, carried = octets(carried[0]), carried[1:]
        room = spec.room_of(arguments) if kind is Kind.CALL else 0
        rights = tuple(_name_of(right) for right in carried[: spec.rights])
        descriptors = tuple(value.fileno() for value in carried[spec.rights :])
        slot, start, size = NO_SLOT, aligned(len(bulk)), len(bulk)
        if size > BULK_LIMIT or start + room > SLOT_SIZE:
            raise MessageTooLargeError(f"bulk of {size} and {room} octets; a slot has {SLOT_SIZE}")
        if size > INLINE_LIMIT or room > INLINE_LIMIT:
            slot = self._take_slot(kind)
            self.line.region.view(slot, 0, size)[:] = bulk
            bulk = b""
        number = self._next()
        try:
            self.line.send(
                kind,
                operation=spec.index,
                name=name,
                request=number,
                fields=fields,
                bulk=bulk,
                bulk_size=size,
                slot=slot,
                room=room,
                rights=rights,
                descriptors=descriptors,
                deadline_ms=_milliseconds(deadline_s),
                flags=0 if mark is None else FLAG_RESUMABLE | mark[0] << PLACE_SHIFT,
                badge=0 if mark is None else mark[1],
            )
        except BaseException:
            self.line.slots.give(slot)
            raise
        return number, slot, start

    def _take_slot(self, kind: Kind) -> int:
        if kind is not Kind.CALL:
            raise MessageTooLargeError(f"a message without reply carries {INLINE_LIMIT} octets")
        return self.line.slots.take()

    async def call(  # noqa: D102
        self,
        right: Right,
        spec: Operation,
        arguments: tuple[Any, ...],
        deadline_s: float | None = None,
    ) -> Any:
        if self.blocking:
            return self.call_blocking(right, spec, arguments, deadline_s)
        while not (spec.simple or len(self.line.slots)):
            await self._without_slot.park()
        number, slot, start = self._send_call(right, spec, arguments, Kind.CALL, deadline_s)
        waiter = self._waiters[number] = _Waiter(spec, slot, start)
        waiter.task = trio.lowlevel.current_task()

        def abort(_: Any) -> trio.lowlevel.Abort:
            waiter.task = None
            with contextlib.suppress(ClosedError):  # the kernel is gone, and the call with it
                self.line.send(Kind.ABORT, request=number)
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    async def call_resumable(  # noqa: D102
        self, right: Right, spec: Operation, arguments: tuple[Any, ...], place: int, tag: int
    ) -> Any:
        if not (0 <= place < RESUMABLE_PLACES and 0 <= tag < 1 << 64):
            raise BadMessageError(f"there are {RESUMABLE_PLACES} places, and a tag has 64 bits")
        while not (self.blocking or spec.simple or len(self.line.slots)):
            await self._without_slot.park()
        mark = (place, tag)
        number, slot, start = self._send_call(right, spec, arguments, Kind.CALL, None, mark)
        if self.blocking:
            return self._wait_blocking(number, spec, slot, start)
        waiter = self._waiters[number] = _Waiter(spec, slot, start)
        waiter.task = trio.lowlevel.current_task()

        def leave(_: Any) -> trio.lowlevel.Abort:
            waiter.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(leave)

    def call_blocking(
        self,
        right: Right,
        spec: Operation,
        arguments: tuple[Any, ...],
        deadline_s: float | None = None,
    ) -> Any:
        """Make a call and wait for it right here; other packets are set aside."""
        if spec.simple and deadline_s is None and isinstance(right, TaskRight):
            number, slot, start = self._next(), NO_SLOT, 0
            self.line.call_simple(right.name, spec.index, number, _encoded(spec, arguments))
        else:
            number, slot, start = self._send_call(right, spec, arguments, Kind.CALL, deadline_s)
        return self._wait_blocking(number, spec, slot, start)

    def _wait_blocking(self, number: int, spec: Operation, slot: int, start: int) -> Any:
        receive = self.line.receive_soon
        while True:
            packet = receive()
            if packet.request == number and packet.kind == _REPLY and spec.simple:
                return spec.decode_reply(packet.fields)
            if packet.request == number and packet.kind in (Kind.REPLY, Kind.ERROR):
                return self._answer(packet, spec, slot, start)
            if packet.kind in (Kind.REPLY, Kind.ERROR):
                self.answered(packet)
            elif packet.kind == Kind.PING:
                self.line.send(Kind.PONG)  # who waits for another server is alive
            else:
                self.set_aside.append(packet)
                if self.on_set_aside is not None:
                    self.on_set_aside()

    def answered(self, packet: Packet) -> None:
        """Take an answer that the serve loop has read, and wake the trio task that waits for it."""
        waiter = self._waiters.pop(packet.request, None)
        if waiter is None or waiter.task is None:
            # Too late: the call was cancelled. What the answer carries is nobody's.
            self._give(waiter.slot if waiter is not None else NO_SLOT)
            self.give_up(packet)
            return
        result = outcome.capture(self._answer, packet, waiter.spec, waiter.slot, waiter.start)
        trio.lowlevel.reschedule(waiter.task, result)

    def give_up(self, packet: Packet) -> None:
        """Close and drop what a packet carries, without waiting for anything."""
        for number in packet.descriptors:
            os.close(number)
        for name in packet.rights:
            self._send_call(TaskRight(SELF), KernelCalls.named("drop"), (name,), Kind.CALL)

    def system_ended(self) -> None:
        """Let every call under trio that still waits fail, because the kernel is gone."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            if waiter.task is not None:
                error = DeadPortError("the system has ended")
                trio.lowlevel.reschedule(waiter.task, outcome.Error(error))

    def _answer(self, packet: Packet, spec: Operation, slot: int, start: int) -> Any:
        try:
            if packet.kind == Kind.ERROR:
                raise from_wire(*_decode_error(packet.fields))
            plain = spec.decode_reply(packet.fields) if spec.reply_has_field else None
            if not spec.reply_carried:
                return plain
            carried: list[Any] = []
            if spec.reply_bulk:
                inline = packet.slot == NO_SLOT
                bulk = packet.bulk
                if not inline:
                    bulk = bytes(self.line.region.view(slot, start, packet.bulk_size))
                carried.append(bulk)
            carried += [TaskRight(name) for name in packet.rights]
            carried += [Descriptor(number) for number in packet.descriptors]
            return spec.join_reply(plain, carried)
        finally:
            self._give(slot)

    def _give(self, slot: int) -> None:
        self.line.slots.give(slot)
        self._without_slot.unpark()

    def send(self, right: Right, spec: Operation, arguments: tuple[Any, ...]) -> None:  # noqa: D102
        self._send_call(right, spec, arguments, Kind.SEND)

    def notify(self, right: Right, bits: int) -> None:  # noqa: D102
        if not isinstance(right, TaskRight):
            raise NoRightError(f"{right!r} is not a right of this task")
        self.line.send(Kind.NOTIFY, name=right.name, request=bits)

    # -- kernel calls that plain code makes --------------------------------------------------------

    def _kernel(self, name: str, *arguments: Any) -> Any:
        return self.call_blocking(TaskRight(SELF), KernelCalls.named(name), arguments)

    def create_port(self, label: str) -> TaskRight:  # noqa: D102
        return TaskRight(self._kernel("create_port", label))

    def mint(  # noqa: D102
        self, badge: int, operations: list[str] | None = None, port: Right | None = None
    ) -> Right:
        mask = operations_mask(self._interface(), operations)
        name = MAIN_PORT if port is None else _name_of(port)
        right: Right = self._kernel("mint", name, badge, mask)
        return right

    def _interface(self) -> type[Interface]:
        return self.interface

    interface: type[Interface] = Interface
    """What the task's own port serves; set by the serve loop."""

    def attenuate(  # noqa: D102
        self, right: Right, operations: list[str], interface: type[Interface]
    ) -> Right:
        mask = operations_mask(interface, operations)
        result: Right = self._kernel("mint", _name_of(right), 0, mask)
        return result

    def copy(self, right: Right) -> Right:  # noqa: D102
        result: Right = self._kernel("mint", _name_of(right), 0, ALL_OPERATIONS)
        return result

    def drop(self, right: Right) -> None:  # noqa: D102
        self._kernel("drop", _name_of(right))

    def revoke(self, right: Right) -> None:  # noqa: D102
        self._kernel("revoke", _name_of(right))

    def mint_once(self, badge: int) -> Right:  # noqa: D102
        right: Right = self._kernel("mint_once", MAIN_PORT, badge)
        return right

    def keep(self, label: str, descriptor: int) -> None:  # noqa: D102
        self.left.touch(label)
        duplicate = Descriptor(os.dup(descriptor))
        self._kernel("keep", label, duplicate)
        duplicate.close()

    def kept(self, label: str) -> int | None:  # noqa: D102
        if self.left.knows(label):
            return self.left.take(label)
        try:
            descriptor: Descriptor = self._kernel("kept", label)
        except NoRightError:
            return None
        return descriptor.take()

    def abandoned(self, name: int, badge: int) -> bool:
        """Tell whether no right to the task's own port with this badge is left."""
        return bool(self._kernel("abandoned", name, badge))

    def keep_right(self, label: str, right: Right) -> None:  # noqa: D102
        self._kept_labels = None
        self._kernel("keep_right", label, right)

    def kept_rights(self) -> dict[str, Right]:  # noqa: D102
        found: dict[str, Right] = {}
        labels, self._kept_labels = self._kept_labels, None
        for label in self._kernel("kept_labels") if labels is None else labels:
            with contextlib.suppress(NoRightError):  # revoked a moment ago
                found[label] = self._kernel("kept_right", label)
        return found

    def lost(self, detail: str) -> None:  # noqa: D102
        self._kernel("lost", detail[:4096])

    def forget(self, label: str) -> None:  # noqa: D102
        self.left.touch(label)
        self._kernel("forget", label)

    def resumable(self) -> list[tuple[int, int]]:  # noqa: D102
        found: list[tuple[int, int]] = self._kernel("resumable")
        return found

    def arm(self, delay_s: float, bits: int) -> int:  # noqa: D102
        return int(self._kernel("arm", math.ceil(max(0.0, delay_s) * 1000), bits))

    def disarm(self, timer: int) -> None:  # noqa: D102
        self._kernel("disarm", timer)

    def spawn(self, name: str) -> None:  # noqa: D102
        self._kernel("spawn", name)

    def kill(self, name: str, generation: int, reason: str) -> None:  # noqa: D102
        self._kernel("kill", name, generation, reason)

    def retire(self, name: str, reason: str) -> None:  # noqa: D102
        self._kernel("retire", name, reason)

    def halt(self, reason: str) -> None:  # noqa: D102
        self._kernel("halt", reason)

    def log(self, text: str) -> None:  # noqa: D102
        self._kernel("log", text[:4096])


def _encoded(spec: Operation, arguments: tuple[Any, ...]) -> bytes:
    try:
        return encode(arguments)
    except (TypeError, OverflowError, ValueError, msgspec.MsgspecError) as error:
        raise BadMessageError(f"{spec}: {error}") from None


def _milliseconds(deadline_s: float | None) -> int:
    """Return a deadline as it stands in a header: 0 for none, never less than one millisecond."""
    if deadline_s is None:
        return 0
    return max(1, math.ceil(min(max(deadline_s, 0.0), _LONGEST_DEADLINE_S) * 1000))


def _name_of(right: Right) -> int:
    if not isinstance(right, TaskRight):
        raise NoRightError(f"{right!r} is not a right of this task")
    return right.name


__all__ = ["MAIN_PORT", "Birth", "IsolatedTask", "TaskRight", "complete"]
