"""The kernel calls of an isolated task: what a message to the name SELF does.

Each function takes the line and the checked arguments, and returns what the operation's reply
carries. They never wait. `core.userlib.kernel_calls` says what each one means.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from core.abi import (
    KEPT_DESCRIPTORS_LIMIT,
    KEPT_RIGHTS_LIMIT,
    MEMORY_LIMIT,
    MEMORY_OBJECTS_LIMIT,
    NAMES_LIMIT,
    RightKind,
)
from core.errors import (
    AtollError,
    BadMessageError,
    LimitError,
    NoRightError,
    TaskError,
    WrongRightError,
)
from core.userlib.interface import encode
from core.userlib.kernel_calls import PRIVILEGED, KernelCalls, PortInfo, RightInfo, TaskInfo
from core.userlib.line import Packet

from .attempts import printable
from .descriptors import give_up
from .endings import Order
from .kernel import Kernel
from .ports import KernelRight, receive_right
from .reports import memory_objects_of
from .resumable import resumable
from .tasks import KernelTask, Placement

if TYPE_CHECKING:
    from .line import KernelLine

_TEXT_LIMIT: Final = 4096
_LABEL_LIMIT: Final = 1024
_F_ADD_SEALS: Final = 1033
_SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8
"""F_SEAL_SEAL, SHRINK, GROW and WRITE (fcntl(2))."""

_SPECS: Final = KernelCalls.OPERATIONS
_PRIVILEGED_MASK: Final = sum(1 << KernelCalls.named(name).index for name in PRIVILEGED)
ORDINARY_MASK: Final = ~_PRIVILEGED_MASK & (1 << len(_SPECS)) - 1
"""The kernel calls that every task may make."""
_KEEPING_MASK: Final = sum(1 << KernelCalls.named(name).index for name in ("keep", "keep_right"))
JOINED_MASK: Final = ORDINARY_MASK & ~_KEEPING_MASK
"""Those of a program of the host, which has no later incarnation to keep anything for."""
FULL_MASK: Final = (1 << len(_SPECS)) - 1


class _Given:
    """What a kernel call's reply carries beside its fields."""

    def __init__(self, right: KernelRight | None = None, descriptor: int | None = None) -> None:
        self.right = right
        self.descriptor = descriptor


def serve_kernel_call(line: KernelLine, packet: Packet) -> None:
    """Serve a packet addressed to the kernel.

    Raises:
        AtollError: the call is refused; the line answers with it.
    """
    if not 0 <= packet.operation < len(_SPECS):
        raise WrongRightError(f"the kernel has no call {packet.operation}")
    spec = _SPECS[packet.operation]
    if not line.task.kernel_mask >> packet.operation & 1:
        raise WrongRightError(f"task {line.task.name} may not call {spec}")
    if (
        packet.bulk_size
        or len(packet.rights) != spec.rights
        or len(packet.descriptors) != spec.descriptors
    ):
        raise BadMessageError(
            f"{spec} carries {spec.rights} rights, {spec.descriptors} descriptors"
        )
    arguments = spec.decode_request(packet.fields)
    result = _CALLS[packet.operation](line.kernel, line.task, packet, *arguments)
    given = result if isinstance(result, _Given) else _Given()
    descriptors = (given.descriptor,) if given.descriptor is not None else ()
    try:
        names = (line.task.hold(given.right),) if given.right is not None else ()
        fields = b"" if isinstance(result, _Given) else encode(result)
        line.answer(packet.request, fields, names=names, descriptors=descriptors)
    except AtollError:
        if given.right is not None:
            line.task.forget(given.right)
            given.right.release()
        raise
    finally:
        for number in descriptors:
            give_up(number)


def _create_port(kernel: Kernel, task: KernelTask, _: Packet, label: str) -> int:
    assert task.main_port is not None
    interface = task.main_port.interface
    port = kernel.create_port(task, f"{task.name}:{label[:64]}", interface)
    return task.hold(receive_right(port))


def _mint(_: Kernel, task: KernelTask, __: Packet, name: int, badge: int, mask: int) -> _Given:
    right = task.right(name)
    if not (0 <= badge < 1 << 64 and 0 <= mask < 1 << 64):
        raise BadMessageError("badge and mask are unsigned 64-bit numbers")
    if right.kind is not RightKind.RECEIVE and badge not in (0, right.badge):
        raise WrongRightError("only the receiver of a port chooses badges")
    _room_for_badges(right)
    chosen = badge if right.kind is RightKind.RECEIVE else None
    return _Given(right.derive(RightKind.SEND, mask, chosen))


def _room_for_badges(right: KernelRight) -> None:
    """LimitError when a receiver lets too many vanished badges wait and wants to make more."""
    waiting = len(right.port.told) + len(right.port.gone)
    if right.kind is RightKind.RECEIVE and waiting >= NAMES_LIMIT:
        raise LimitError(f"{NAMES_LIMIT} badges that are gone have not been dealt with")


def _mint_once(_: Kernel, task: KernelTask, __: Packet, name: int, badge: int) -> _Given:
    if not 0 <= badge < 1 << 64:
        raise BadMessageError("a badge is an unsigned 64-bit number")
    right = task.right(name)
    if right.kind is not RightKind.RECEIVE:
        raise WrongRightError("send-once rights are made by the receiver")
    _room_for_badges(right)
    return _Given(right.derive(RightKind.SEND_ONCE, badge=badge))


def _revoke(_: Kernel, task: KernelTask, __: Packet, name: int) -> int:
    return task.right(name).revoke()


def drop(task: KernelTask, name: int) -> None:
    """Give up a right by name; a receive right takes its port with it."""
    right = task.right(name)
    if name == 1:
        raise WrongRightError("a task's main port stays with it")
    if name in task.grants.values():
        raise WrongRightError("a right that the system description grants stays with its task")
    del task.names[name]
    right.release()


def _drop(_: Kernel, task: KernelTask, __: Packet, name: int) -> None:
    drop(task, name)


def right_info(name: int, right: KernelRight) -> RightInfo:
    """Describe a right."""
    specs = right.port.interface.OPERATIONS
    return RightInfo(
        name,
        right.kind.name.lower(),
        right.port.id,
        right.port.label,
        right.port.interface.__name__,
        right.badge,
        [spec.name for spec in specs if right.reach >> spec.index & 1],
    )


def _abandoned(_: Kernel, task: KernelTask, __: Packet, name: int, badge: int) -> bool:
    right = task.right(name)
    if right.kind is not RightKind.RECEIVE:
        raise WrongRightError("only the receiver asks who is left")
    port = right.port
    if badge not in port.senders:
        return True
    port.told.pop(badge, None)
    return False


def _inspect(_: Kernel, task: KernelTask, __: Packet, name: int) -> RightInfo:
    return right_info(name, task.right(name))


def _create_memory(_: Kernel, task: KernelTask, __: Packet, size: int) -> _Given:
    if not 0 <= size <= MEMORY_LIMIT:
        raise LimitError(f"a memory object has up to {MEMORY_LIMIT} octets")
    pid = task.engine.pid if task.engine is not None else 0
    if memory_objects_of(pid) >= MEMORY_OBJECTS_LIMIT:
        raise LimitError(f"task {task.name} has {MEMORY_OBJECTS_LIMIT} memory objects open")
    number = os.memfd_create("atoll-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(number, size)
    except OSError:
        os.close(number)
        raise
    return _Given(descriptor=number)


def _seal(_: Kernel, __: KernelTask, packet: Packet) -> None:
    try:
        fcntl.fcntl(packet.descriptors[0], _F_ADD_SEALS, _SEALS)
    except OSError as error:
        raise WrongRightError(f"the memory object cannot be sealed: {error.strerror}") from None


def _room_to_keep(label: str, kept: Collection[str], limit: int) -> None:
    if len(label) > _LABEL_LIMIT:
        raise LimitError(f"a label has up to {_LABEL_LIMIT} characters")
    if len(kept) >= limit and label not in kept:
        raise LimitError(f"{limit} of these are kept for the task already")


def _keep(_: Kernel, task: KernelTask, packet: Packet, label: str) -> None:
    _room_to_keep(label, task.kept, KEPT_DESCRIPTORS_LIMIT)
    task.keep(label, packet.descriptors.pop())


def _kept(_: Kernel, task: KernelTask, __: Packet, label: str) -> _Given:
    number = task.kept.get(label)
    if number is None:
        raise NoRightError(f"nothing is kept under {label!r}")
    return _Given(descriptor=os.dup(number))


def keep_right(task: KernelTask, label: str, right: KernelRight) -> None:
    """Keep a copy of a right; what was kept under the label is released."""
    _room_to_keep(label, task.kept_rights, KEPT_RIGHTS_LIMIT)
    kept = right.derive()
    old = task.kept_rights.pop(label, None)
    if old is not None:
        old.release()
    task.kept_rights[label] = kept


def _keep_right(_: Kernel, task: KernelTask, packet: Packet, label: str) -> None:
    keep_right(task, label, task.right(packet.rights[0]))


def _kept_right(_: Kernel, task: KernelTask, __: Packet, label: str) -> _Given:
    right = task.kept_rights.get(label)
    if right is None:
        raise NoRightError(f"no right is kept under {label!r}")
    return _Given(right.derive())


def kept_labels(task: KernelTask) -> list[str]:
    """Return the labels of the rights that are kept; one that was revoked is kept no longer."""
    for label in [label for label, right in task.kept_rights.items() if not right.port.alive]:
        task.kept_rights.pop(label).release()
    return list(task.kept_rights)


def _kept_labels(_: Kernel, task: KernelTask, __: Packet) -> list[str]:
    return kept_labels(task)


def forget(task: KernelTask, label: str) -> None:
    """Drop what is kept under the label."""
    number = task.kept.pop(label, None)
    if number is not None:
        give_up(number)
    right = task.kept_rights.pop(label, None)
    if right is not None:
        right.release()


def lost(kernel: Kernel, task: KernelTask, detail: str) -> None:
    """Have each client of the task's main port told once."""
    assert task.main_port is not None
    say(task, f"lost something: {detail}")
    kernel.lost(task.main_port, task.names[1], detail[:_TEXT_LIMIT])


def _lost(kernel: Kernel, task: KernelTask, _: Packet, detail: str) -> None:
    lost(kernel, task, detail)


def _forget(_: Kernel, task: KernelTask, __: Packet, label: str) -> None:
    forget(task, label)


def _resumable(_: Kernel, task: KernelTask, __: Packet) -> list[tuple[int, int]]:
    return resumable(task)


def _arm(kernel: Kernel, task: KernelTask, _: Packet, delay_ms: int, bits: int) -> int:
    if not (0 <= bits < 1 << 64 and 0 <= delay_ms < 1 << 40):
        raise BadMessageError("bits are unsigned 64-bit, a delay is 0 to 2**40 ms")
    return kernel.arm(task, delay_ms / 1000, bits)


def _disarm(kernel: Kernel, task: KernelTask, _: Packet, timer: int) -> None:
    kernel.disarm(task, timer)


def say(task: KernelTask, text: str) -> None:
    """Write a line of a task's into the log."""
    task.voice.say(text, trusted=task.kernel_mask == FULL_MASK)


def _log(_: Kernel, task: KernelTask, __: Packet, text: str) -> None:
    say(task, text)


def named_task(kernel: Kernel, name: str) -> KernelTask:
    """Return the task of that name; TaskError names those that there are."""
    task = kernel.tasks.named(name)
    if task is None:
        known = ", ".join(sorted(other.name for other in kernel.tasks))
        raise TaskError(f"there is no task {name!r}; there are {known}")
    return task


def _spawn(kernel: Kernel, _: KernelTask, __: Packet, name: str) -> None:
    kernel.spawn(named_task(kernel, name))


def kill(kernel: Kernel, name: str, generation: int, reason: str) -> None:
    """End an incarnation; TaskError if it is not the one that is meant, or none runs."""
    task = named_task(kernel, name)
    if generation not in (-1, task.id.generation):
        raise TaskError(f"task {name} is at generation {task.id.generation} by now")
    if task.engine is None:
        raise TaskError(f"task {name} is {task.state.value}")
    if task.program.placement is Placement.COLOCATED:
        task.engine.stop()
        return
    hung = task.hung
    kernel.kill(task, Order(printable(reason, _TEXT_LIMIT), hung is not None and hung.blames))


def _kill(
    kernel: Kernel, _: KernelTask, __: Packet, name: str, generation: int, reason: str
) -> None:
    named_task(kernel, name).leave = False  # who has it killed will say what follows
    kill(kernel, name, generation, reason)


def _retire(kernel: Kernel, _: KernelTask, __: Packet, name: str, reason: str) -> None:
    kernel.retire(named_task(kernel, name), reason[:_TEXT_LIMIT])


def _halt(kernel: Kernel, _: KernelTask, __: Packet, reason: str) -> None:
    kernel.on_halt(reason[:_TEXT_LIMIT])


def _last_line(task: KernelTask) -> str:
    lines = task.last_words[-1].strip().splitlines() if task.last_words else []
    return lines[-1] if lines else ""


def task_infos(kernel: Kernel) -> list[TaskInfo]:
    """Describe all tasks."""
    return [
        TaskInfo(
            task.name,
            task.id.index,
            task.id.generation,
            task.program.placement.value,
            task.state.value,
            task.engine.pid if task.engine is not None else 0,
            len(task.names),
            len(task.ports),
            len(task.calls),
            sum(port.handled for port in task.ports),
            _last_line(task),
            task.version,
        )
        for task in kernel.tasks
    ]


def port_infos(kernel: Kernel) -> list[PortInfo]:
    """Describe all ports."""
    return [
        PortInfo(
            port.id,
            port.label,
            port.interface.__name__,
            port.task.name if port.task is not None else "",
            len(port.queue),
            len(port.in_flight),
            sum(port.senders.values()),
            port.handled,
        )
        for port in kernel.ports.values()
    ]


def _tasks(kernel: Kernel, _: KernelTask, __: Packet) -> list[TaskInfo]:
    return task_infos(kernel)


def _ports(kernel: Kernel, _: KernelTask, __: Packet) -> list[PortInfo]:
    return port_infos(kernel)


_BY_NAME: Final[dict[str, Callable[..., Any]]] = {
    "create_port": _create_port,
    "mint": _mint,
    "mint_once": _mint_once,
    "revoke": _revoke,
    "drop": _drop,
    "abandoned": _abandoned,
    "inspect": _inspect,
    "create_memory": _create_memory,
    "seal": _seal,
    "keep": _keep,
    "kept": _kept,
    "keep_right": _keep_right,
    "kept_right": _kept_right,
    "kept_labels": _kept_labels,
    "lost": _lost,
    "forget": _forget,
    "resumable": _resumable,
    "arm": _arm,
    "disarm": _disarm,
    "log": _log,
    "spawn": _spawn,
    "kill": _kill,
    "retire": _retire,
    "halt": _halt,
    "tasks": _tasks,
    "ports": _ports,
}
_CALLS: Final = [_BY_NAME[spec.name] for spec in _SPECS]
