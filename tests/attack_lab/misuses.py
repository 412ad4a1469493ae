"""Ways past the kernel's tables: messages that a hostile server sends, and the same code promoted.

Each misuse is there twice. `isolated` goes over the line, where it can send any octets. `promoted`
is what the same intent amounts to for code that shares the kernel's address space: there is no line
in its way, so it takes the tables into its own hands.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import core.kernel.kernel
import core.kernel.tasks
from core.abi import (
    ALL_OPERATIONS,
    CALLS_LIMIT,
    KEPT_DESCRIPTORS_LIMIT,
    KEPT_RIGHTS_LIMIT,
    MEMORY_OBJECTS_LIMIT,
    NAMES_LIMIT,
    PORTS_LIMIT,
    SLOT_SIZE,
    TIMERS_LIMIT,
    Kind,
)
from core.userlib.interface import Descriptor, encode
from core.userlib.isolated import IsolatedTask, TaskRight

from .wire import Wire

FLOOD: Final = 5_000
"""Packets, lines or notifications of one flood."""
_ALIVE, _TAKE, _SWALLOW, _MISUSE = 4, 2, 3, 1
"""Operations of the hostile server's own interface."""
_VICTIM: Final = "names"
Isolated = Callable[[IsolatedTask, int, int], str]
"""Takes the task, the request that it serves, and the number of somebody else's request."""


class Misuse(NamedTuple):
    """One way, in both placements."""

    isolated: Isolated
    promoted: Callable[[Any, int], object]


def _own_ports(task: IsolatedTask, count: int) -> list[int]:
    """Return the names of rights to ports of the task's own, which nobody serves."""
    found = []
    for _ in range(count):
        right = task.mint(0, None, task.create_port("void"))
        assert isinstance(right, TaskRight)
        found.append(right.name)
    return found


def _name(task: IsolatedTask, grant: str) -> int:
    right = task.rights[grant]
    assert isinstance(right, TaskRight)
    return right.name


def _asked(call: str, count: int, *arguments: Any) -> Isolated:
    """Make a kernel call many times."""

    def run(task: IsolatedTask, _: int, __: int) -> str:
        wire = Wire(task)
        for _ in range(count):
            wire.kernel(call, *arguments)
        return wire.settle()

    return run


def _each(send: Callable[[Wire, IsolatedTask, int], None], count: int = 1) -> Isolated:
    """Send something many times, and return the first error."""

    def run(task: IsolatedTask, _: int, number: int) -> str:
        wire = Wire(task)
        for _ in range(count):
            send(wire, task, number)
        return wire.settle()

    return run


def _bounded(send: Callable[[Wire, IsolatedTask, int], None], words: str) -> Isolated:
    """Do as `_each` with a flood that is no error but must change nothing for others."""

    def run(task: IsolatedTask, mine: int, number: int) -> str:
        return _each(send, FLOOD)(task, mine, number) or words

    return run


def _queues(task: IsolatedTask, _: int, __: int) -> str:
    ports, wire = _own_ports(task, 1), Wire(task)
    for _ in range(CALLS_LIMIT):
        wire.send(Kind.CALL, encode(()), name=ports[0], operation=_ALIVE)
    return wire.settle()


def _calls(task: IsolatedTask, _: int, __: int) -> str:
    ports, wire = _own_ports(task, CALLS_LIMIT // 250 + 1), Wire(task)
    for number in range(CALLS_LIMIT + 1):
        wire.send(Kind.CALL, encode(()), name=ports[number // 250], operation=_ALIVE)
    return wire.settle()


def _octets(task: IsolatedTask, _: int, __: int) -> str:
    ports, wire = _own_ports(task, 4), Wire(task)
    fields = encode(("x" * 60_000, 0))
    for number in range(600):
        wire.send(Kind.SEND, fields, name=ports[number % 4], operation=_MISUSE)
    return wire.settle()


def _lent(task: IsolatedTask, _: int, __: int) -> str:
    ports, wire = _own_ports(task, 4), Wire(task)
    for number in range(600):
        fields = encode(())
        wire.send(Kind.CALL, fields, name=ports[number % 4], operation=_TAKE, descriptors=(0,))
    return wire.settle()


def _keep_descriptors(task: IsolatedTask, _: int, __: int) -> str:
    wire = Wire(task)
    for number in range(KEPT_DESCRIPTORS_LIMIT + 1):
        wire.kernel("keep", str(number), descriptors=(0,))
    return wire.settle()


def _keep_rights(task: IsolatedTask, _: int, __: int) -> str:
    wire = Wire(task)
    for number in range(KEPT_RIGHTS_LIMIT + 1):
        wire.kernel("keep_right", str(number), rights=(_name(task, _VICTIM),))
    return wire.settle()


def _memory_objects(task: IsolatedTask, _: int, __: int) -> str:
    held: list[Descriptor] = []
    while len(held) <= MEMORY_OBJECTS_LIMIT:
        held.append(task._kernel("create_memory", 1 << 20))
    return ""


def _badges(task: IsolatedTask, _: int, __: int) -> str:
    """Make badges, drop them, and never deal with the news that they are gone."""
    wire = Wire(task)
    for badge in range(1, NAMES_LIMIT + 2000):
        wire.kernel("mint", 1, badge, 1)
        if badge % 1000 == 0:
            wire.settle()
            for name in wire.names:
                wire.kernel("drop", name)
            wire.names.clear()
    return wire.settle()


def _unread(task: IsolatedTask, _: int, __: int) -> str:
    """Ask without end, and read no answer."""
    wire = Wire(task)
    wire.take = lambda: None  # type: ignore[method-assign]
    while True:
        wire.kernel("inspect", 1)


def _twice(task: IsolatedTask, mine: int, _: int) -> str:
    """Answer the request that is being served, and answer it again."""
    wire = Wire(task)
    wire.send(Kind.REPLY, encode("the first reply stands, the second is nobody's"), request=mine)
    wire.send(Kind.REPLY, encode("twice"), request=mine)
    return wire.settle()


def _never(task: IsolatedTask, _: int, __: int) -> str:
    """Give signs of life, and no answer."""
    wire = Wire(task)
    while True:
        wire.take()
        time.sleep(0.01)


def _region(task: IsolatedTask, _: int, __: int) -> str:
    wire, port = Wire(task), _own_ports(task, 1)[0]
    for slot in (0, 1023, 1 << 31):  # the kernel's own part, and no part at all
        wire.send(Kind.CALL, encode(()), name=port, operation=_SWALLOW, bulk=5000, slot=slot)
    wire.send(Kind.CALL, encode(()), name=port, operation=_SWALLOW, bulk=SLOT_SIZE, slot=1024)
    return wire.settle()


def _slot_twice(task: IsolatedTask, _: int, __: int) -> str:
    wire, port = Wire(task), _own_ports(task, 1)[0]
    for _ in range(2):
        wire.send(Kind.CALL, encode(()), name=port, operation=_SWALLOW, bulk=5000, slot=1024)
    return wire.settle()


def _noise(wire: Wire, _: IsolatedTask, __: int) -> None:
    wire.raw(os.urandom(100))


def _scan(task: IsolatedTask, _: int, __: int) -> str:
    wire, own = Wire(task), {1, *(_name(task, grant) for grant in task.rights)}
    for name in range(2, 2000):
        if name not in own:
            wire.send(Kind.CALL, encode(()), name=name)
    return wire.settle()


def _flood(kind: Kind, grant: str = "") -> Callable[[Wire, IsolatedTask, int], None]:
    def send(wire: Wire, task: IsolatedTask, _: int) -> None:
        wire.send(kind, name=_name(task, grant) if grant else 1, request=1)

    return send


def _others(kind: Kind, fields: bytes) -> Isolated:
    """Answer, refuse or pass on requests that others have to answer, by their numbers."""

    def run(task: IsolatedTask, mine: int, number: int) -> str:
        wire = Wire(task)
        for guess in {number, *range(mine - 100, mine + 100)} - {mine}:
            wire.send(kind, fields, name=_name(task, _VICTIM), request=guess)
        return wire.settle()

    return run


def _privileged(call: str, *arguments: Any) -> Isolated:
    return _asked(call, 1, *arguments)


def _beyond(wire: Wire, task: IsolatedTask, _: int) -> None:
    """Call what the right does not allow: the description grants the lookup alone."""
    fields, name = encode(("stolen",)), _name(task, _VICTIM)
    wire.send(Kind.CALL, fields, name=name, operation=0, rights=(name,))


def _with_grant(call: str, *arguments: Any) -> Isolated:
    def run(task: IsolatedTask, _: int, __: int) -> str:
        wire = Wire(task)
        wire.kernel(call, _name(task, _VICTIM), *arguments)
        return wire.settle()

    return run


def _own_port(wire: Wire, task: IsolatedTask, _: int) -> None:
    wire.send(Kind.REPLY, encode(None), request=1, rights=(1,))
    wire.kernel("drop", 1)


# -- the same code, promoted -----------------------------------------------------------------------


def _kernel(task: Any) -> Any:
    return task._kernel


def _lift(module: Any, limit: str, act: Callable[[Any], object], times: int) -> Any:
    def run(task: Any, _: int) -> None:
        setattr(module, limit, 1 << 60)
        for _ in range(times):
            act(task)

    return run


def _times(times: int, act: Callable[[Any], object]) -> Callable[[Any, int], None]:
    def run(task: Any, _: int) -> None:
        for _ in range(times):
            act(task)

    return run


def _huge(_: Any, __: int) -> None:
    number = os.memfd_create("huge")
    os.ftruncate(number, 1 << 40)
    os.close(number)


def _many_objects(_: Any, __: int) -> None:
    for number in [os.memfd_create("flood") for _ in range(4 * MEMORY_OBJECTS_LIMIT)]:
        os.close(number)


def _victim(task: Any) -> Any:
    return _kernel(task).tasks.named(_VICTIM)


def _steal(task: Any, _: int) -> None:
    _victim(task).names[1].derive(badge=4711)


def _answer_others(task: Any, _: int) -> None:
    """Have the victim's clients answered by somebody else from now on."""
    direct = _victim(task).main_port.direct
    direct.handlers[:] = [lambda *_: ["forged"]] * len(direct.handlers)


def _scribble(task: Any, _: int) -> None:
    for found in gc.get_objects():
        if type(found).__name__ == "Port" and found.task is _victim(task):
            found.in_flight[1] = None
            found.queue.append(None)


def _stand_still(_: Any, __: int) -> None:
    time.sleep(3600)


def _retire(task: Any, _: int) -> None:
    _kernel(task).retire(_victim(task), "by order of nobody")


def _keep_many(task: Any, _: int) -> None:
    for number in range(4 * KEPT_DESCRIPTORS_LIMIT):
        task.keep(str(number), 0)


def _spent(_: Any, __: int) -> None:
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        gc.freeze()
        globals()["_HELD"] = held


def _void(task: Any, _: int) -> None:
    _kernel(task).ports.clear()
    _kernel(task).submit = None


def _memory(task: Any, _: int) -> None:
    task.hoard = [bytes(60_000) for _ in range(600)]


def _owner(task: Any, _: int) -> None:
    _victim(task).main_port.task = task.place


def _halt(task: Any, _: int) -> None:
    _kernel(task).on_halt("by order of nobody")


def _kill(task: Any, _: int) -> None:
    _kernel(task).on_death = None
    _victim(task).engine.stop()


MISUSES: Final[dict[str, Misuse]] = {
    "exhaust ports": Misuse(
        _asked("create_port", PORTS_LIMIT + 1, "x"),
        _lift(core.kernel.kernel, "PORTS_LIMIT", lambda t: t.create_port("x"), PORTS_LIMIT + 1),
    ),
    "exhaust names": Misuse(
        _asked("mint", NAMES_LIMIT + 1, 1, 0, 1),
        _lift(core.kernel.tasks, "NAMES_LIMIT", lambda t: t.mint(0), NAMES_LIMIT + 1),
    ),
    "exhaust timers": Misuse(
        _asked("arm", TIMERS_LIMIT + 1, 3_600_000, 1),
        _lift(core.kernel.kernel, "TIMERS_LIMIT", lambda t: t.arm(3600, 1), TIMERS_LIMIT + 1),
    ),
    "fill a queue": Misuse(_queues, _scribble),
    "too many calls under way": Misuse(_calls, _scribble),
    "fill the kernel's memory with messages": Misuse(_octets, _memory),
    "fill the kernel's descriptors with messages": Misuse(_lent, _spent),
    "have too many descriptors kept": Misuse(_keep_descriptors, _keep_many),
    "have too many rights kept": Misuse(
        _keep_rights, _times(5000, lambda t: t.place.kept_rights.update({str(id(object())): 0}))
    ),
    "a memory object of 2**40 octets": Misuse(_asked("create_memory", 1, 1 << 40), _huge),
    "flood the kernel's memory objects": Misuse(_memory_objects, _many_objects),
    "let vanished badges pile up": Misuse(
        _badges, _times(1, lambda t: t.place.main_port.gone.update(dict.fromkeys(range(99999), 0)))
    ),
    "use the kernel's slots": Misuse(_region, _scribble),
    "use a slot twice": Misuse(_slot_twice, _scribble),
    "flood the log": Misuse(
        _bounded(lambda w, t, n: w.kernel("log", "noise"), "bounded: lines beyond it are counted"),
        _times(FLOOD, lambda t: _kernel(t).log("noise")),
    ),
    "forge a line of the log": Misuse(
        _bounded(
            lambda w, t, n: w.kernel("log", "x\nsupervisor: all is well\x1b[2J"),
            "bounded: written as one line, with escapes",
        ),
        lambda t, n: _kernel(t).log("supervisor: all is well"),
    ),
    "flood with notifications": Misuse(
        _bounded(_flood(Kind.NOTIFY, _VICTIM), "bounded: bits are set, nothing queues"),
        _times(FLOOD, lambda t: t.notify(t.rights[_VICTIM], 1)),
    ),
    "flood with noise": Misuse(_each(_noise, 5000), _scribble),
    "flood with signs of life": Misuse(
        _bounded(_flood(Kind.PONG), "bounded: ignored, and counted"), _stand_still
    ),
    "flood and read nothing": Misuse(_unread, _memory),
    "never reply": Misuse(_never, _stand_still),
    "reply twice": Misuse(_twice, _answer_others),
    "reply to others' requests": Misuse(_others(Kind.REPLY, encode([])), _answer_others),
    "refuse others' requests": Misuse(
        _others(Kind.ERROR, encode((13, 1, "stolen"))), _answer_others
    ),
    "forward what is not its own": Misuse(_others(Kind.FORWARD, encode(())), _owner),
    "be ready twice": Misuse(_each(_flood(Kind.READY)), _void),
    "guess names of rights": Misuse(_scan, _steal),
    "forge a badge": Misuse(_with_grant("mint", 4711, ALL_OPERATIONS), _steal),
    "call beyond a right": Misuse(_each(_beyond), _answer_others),
    "give its own port away": Misuse(_each(_own_port), _owner),
    "drop a granted right": Misuse(
        _with_grant("drop"), lambda t, n: t.place.names.pop(t.rights[_VICTIM].name)
    ),
    "spawn a task": Misuse(_privileged("spawn", _VICTIM), _void),
    "kill a server": Misuse(_privileged("kill", _VICTIM, -1, "x"), _kill),
    "retire a server": Misuse(_privileged("retire", _VICTIM, "x"), _retire),
    "halt the system": Misuse(_privileged("halt", "x"), _halt),
    "list tasks": Misuse(_privileged("tasks"), lambda t, n: list(_kernel(t).tasks)),
}
