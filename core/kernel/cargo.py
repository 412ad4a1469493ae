"""Cargo: what a message carries beside its fields, and how it changes hands.

Bulk is checked against the limits and against the room that the caller made. Rights go from one
name space to another: a request takes a copy of a send right, and the receive and send-once rights
themselves; a reply takes whatever it carries, but for the rights that a task never loses. Whatever
fails half-way is put back, so a refused message costs its sender nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from core.abi import (
    BULK_LIMIT,
    INLINE_LIMIT,
    KERNEL_SLOTS,
    NO_SLOT,
    SLOT_SIZE,
    TASK_SLOTS,
    RightKind,
)
from core.errors import (
    AtollError,
    BadMessageError,
    LimitError,
    LostError,
    MessageTooLargeError,
    ServerFaultError,
    WrongRightError,
    from_wire,
)
from core.userlib.interface import Bulk, Descriptor, octets
from core.userlib.line import Packet, Region, aligned

from .descriptors import give_up
from .requests import Reply, Request

_decode_error: Final = msgspec.msgpack.Decoder(tuple[int, int, str]).decode

if TYPE_CHECKING:
    from .ports import KernelRight
    from .tasks import KernelTask


# -- requests on their way in ----------------------------------------------------------------------


def check_bulk(packet: Packet, request: Request, region: Region, taken: set[int]) -> None:
    """Give the request the packet's bulk and room, after they were checked.

    Args:
        region: the sender's transfer region.
        taken: the sender's slots that calls under way use.

    Raises:
        BadMessageError, MessageTooLargeError: the sender's fault.
    """
    spec, calls = request.spec, request.wants_reply
    size, room, slot = packet.bulk_size, packet.room, packet.slot
    if size and not spec.bulk:
        raise BadMessageError(f"{spec} takes no bulk")
    if room and (spec.room is None or not calls or room != spec.room_of(request.plain)):
        raise BadMessageError(f"{spec}: room of {room} octets was not asked for")
    check_sizes(size, room)
    if slot == NO_SLOT:
        if room > INLINE_LIMIT or size > INLINE_LIMIT:
            raise BadMessageError("bulk above the inline limit needs a slot")
        request.bulk = packet.bulk
    elif not (calls and KERNEL_SLOTS <= slot < KERNEL_SLOTS + TASK_SLOTS) or slot in taken:
        raise BadMessageError(f"slot {slot} is not the sender's to use now")
    else:
        request.client_slot = slot
        request.bulk = region.view(slot, 0, size)
    request.room = room


def check_sizes(size: int, room: int) -> None:
    """MessageTooLargeError unless bulk of `size` octets and room for `room` fit one slot."""
    if size > BULK_LIMIT or aligned(size) + room > SLOT_SIZE:
        raise MessageTooLargeError(f"bulk of {size} and {room} octets; the limit is {BULK_LIMIT}")


def load(task: KernelTask, names: Iterable[int]) -> tuple[KernelRight, ...]:
    """Take rights out of the sender's name space: send rights are copied, other kinds move.

    Raises:
        NoRightError, WrongRightError: nothing has been taken then.
    """
    loaded: list[KernelRight] = []
    names = list(names)
    try:
        for name in names:
            right = task.right(name)
            if right.kind is RightKind.SEND:
                loaded.append(right.derive())
            elif name == 1:
                raise WrongRightError("a task's main port stays with it")
            else:
                loaded.append(task.names.pop(name))
    except AtollError:
        unload(task, names, loaded)
        raise
    return tuple(loaded)


def unload(task: KernelTask, names: Iterable[int], loaded: Iterable[KernelRight]) -> None:
    """Undo `load` for a message that is not taken."""
    for name, right in zip(names, loaded, strict=False):
        if right.kind is RightKind.SEND:
            right.release()
        else:
            task.names[name] = right


def carry(request: Request, arguments: tuple[Any, ...]) -> None:
    """Fill in what a call made from Python objects carries.

    Raises:
        AtollError: it may not carry that; nothing has been taken.
    """
    spec = request.spec
    carried = arguments[spec.fields :]
    if len(arguments) != len(spec.parameters):
        raise BadMessageError(f"{spec} takes {len(spec.parameters)} arguments")
    if spec.bulk:
        request.bulk, carried = octets(carried[0]), carried[1:]
    if spec.room is not None and request.wants_reply:
        request.room = spec.room_of(arguments)
    check_sizes(len(request.bulk), request.room)
    if carried:
        request.rights = _load_objects(request.client, carried[: spec.rights])
        request.descriptors = duplicates([value.fileno() for value in carried[spec.rights :]])


def give_back(request: Request) -> None:
    """Undo `carry` for a message that is not taken."""
    for right in request.rights:
        if right.kind is not RightKind.SEND and request.client is not None:
            request.client.hold(right)
        else:
            right.release()
    request.rights = ()
    request.end()


def duplicates(numbers: Iterable[int]) -> tuple[int, ...]:
    """Return new descriptors for the same open files. LimitError when the process has no more."""
    made: list[int] = []
    try:
        made.extend(os.dup(number) for number in numbers)
    except OSError as error:
        for number in made:
            give_up(number)
        raise LimitError(f"a descriptor cannot be passed on: {error.strerror}") from None
    return tuple(made)


def _load_objects(task: KernelTask | None, rights: Iterable[Any]) -> tuple[KernelRight, ...]:
    loaded: list[KernelRight] = []
    try:
        for right in rights:
            if right.kind is RightKind.SEND:
                loaded.append(right.derive())
            elif task is None or task.names.get(1) is right:
                raise WrongRightError("a task's main port stays with it")
            else:
                task.forget(right)
                loaded.append(right)
    except AtollError:
        for right in loaded:
            if right.kind is RightKind.SEND:
                right.release()
            elif task is not None:
                task.hold(right)
        raise
    return tuple(loaded)


# -- requests on their way out ---------------------------------------------------------------------


def enter(task: KernelTask, request: Request) -> list[KernelRight]:
    """Enter copies of the request's rights into the receiver's name space; return them.

    Send rights are copied, so that the request can be delivered again. Other kinds move: call
    `keep_copies` once the receiver has the message, `leave` when it could not be handed over.

    Raises:
        LimitError: the name space is full.
        LostError: an earlier receiver died with what can be delivered only once.
    """
    if len(request.rights) != request.spec.rights:
        raise LostError("a right that the request carried died with its first receiver")
    entered: list[KernelRight] = []
    try:
        for right in request.rights:
            moves = right.kind is not RightKind.SEND or not right.port.alive
            entered.append(right if moves else right.derive())
            task.hold(entered[-1])
    except AtollError:
        leave(task, request, entered)
        raise
    return entered


def check_receiver(task: KernelTask | None, right: KernelRight) -> None:
    """WrongRightError unless the task can receive from the port, if this is a receive right."""
    main = task.main_port if task is not None else None
    if right.kind is RightKind.RECEIVE and (
        main is None or right.port.interface is not main.interface
    ):
        raise WrongRightError(f"its receiver does not serve {right.port.interface.__name__}")


def leave(task: KernelTask, request: Request, entered: list[KernelRight]) -> None:
    """Undo `enter`."""
    for right in entered:
        task.forget(right)
        if right not in request.rights:
            right.release()


def keep_copies(task: KernelTask, request: Request) -> None:
    """Let go of what moved with the request; a receive right's port has its new receiver now."""
    for right in request.rights:
        if right.kind is RightKind.RECEIVE and right.port.alive:
            port = right.port
            if port.task is not None:
                port.task.ports.discard(port)
            port.task = task
            task.ports.add(port)
    request.rights = tuple(right for right in request.rights if right.kind is RightKind.SEND)


def arguments_of(task: KernelTask, request: Request) -> tuple[Any, ...]:
    """Return what a co-located handler is called with; carried descriptors are duplicated."""
    spec = request.spec
    if len(spec.parameters) == spec.fields:
        return request.plain
    bulk = (request.bulk,) if spec.bulk else ()
    rights = enter(task, request)
    keep_copies(task, request)
    lent = [Descriptor(number) for number in duplicates(request.descriptors)]
    return (*request.plain, *bulk, *rights, *lent)


# -- replies ---------------------------------------------------------------------------------------


def read_reply(task: KernelTask, region: Region, packet: Packet, request: Request) -> Reply:
    """Return the reply that a server's packet holds.

    Raises:
        ServerFaultError: it is not what the interface promises; nothing has been taken.
    """
    spec = request.reply_spec
    plain = spec.decode_reply(packet.fields) if spec.reply_has_field else None
    reply = Reply(plain, packet.fields if spec.reply_has_field else b"")
    size = packet.bulk_size
    if (size and not spec.reply_bulk) or (len(packet.rights), len(packet.descriptors)) != (
        spec.reply_rights,
        spec.reply_descriptors,
    ):
        raise ServerFaultError(f"reply to {spec} carries what it should not")
    if size > max(request.room, INLINE_LIMIT):
        raise ServerFaultError(f"reply to {spec} exceeds the room made for it")
    if packet.slot == NO_SLOT:
        reply.bulk = packet.bulk
    elif packet.slot != request.slot or size > request.room:
        raise ServerFaultError(f"reply to {spec} lies outside the room made for it")
    else:
        reply.bulk = region.view(packet.slot, aligned(len(request.bulk)), size)
    reply.rights = give_away(task, packet.rights)
    reply.descriptors, packet.descriptors = tuple(packet.descriptors), []
    return reply


def give_away(task: KernelTask, names: tuple[int, ...]) -> tuple[KernelRight, ...]:
    """Take the rights that a reply carries out of the server's name space.

    The rights that the description granted stay; a copy of them goes.

    Raises:
        ServerFaultError: the server does not have such a right; nothing has been taken.
    """
    if not names:
        return ()
    granted = task.grants.values()
    if len(set(names)) != len(names) or any(name == 1 or name not in task.names for name in names):
        raise ServerFaultError(f"task {task.name} replies with a right that it cannot give")
    if any(task.names[name].kind is RightKind.RECEIVE for name in names):
        raise ServerFaultError("a receive right travels in requests, not in replies")
    dead = [name for name in names if name in granted and not task.names[name].port.alive]
    if dead:
        raise ServerFaultError(f"task {task.name} replies with a right that was revoked")
    return tuple(
        task.names[name].derive() if name in granted else task.names.pop(name) for name in names
    )


def give_objects(task: KernelTask, rights: list[Any]) -> tuple[KernelRight, ...]:
    """Do as `give_away` for a co-located server, which has objects in place of names."""
    names = tuple(right.name for right in rights)
    if any(task.names.get(right.name) is not right for right in rights):
        raise ServerFaultError(f"task {task.name} replies with a right that it cannot give")
    return give_away(task, names)


def read_error(fields: Bulk) -> AtollError:
    """Return the error that a server declined with; a malformed one is the server's fault."""
    try:
        return from_wire(*_decode_error(fields))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return ServerFaultError(f"an error that cannot be read: {error}")
