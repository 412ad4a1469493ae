"""What a system holds: of the host, and in every table of its kernel, which runs in this process.

Nothing is listed by hand that could be forgotten: all objects of the project's classes are counted
that the collector knows, and the lengths of all containers that hang on them, by class and
attribute. Besides, the descriptors of the kernel and of all its processes by kind, the processes by
name and state, the network namespaces that they are in, and the mounts.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import mmap
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .door import descriptors, resident_kib

_OURS: Final = ("core.", "mount.", "fs_server.", "net_server.")
_CONTAINERS: Final = (dict, list, set, frozenset, collections.deque, bytearray)
_BOUNDS: Final = {
    "Outage": 16 * 512,  # each task remembers its last 512
    "Outages._over": 16 * 512,
    "Composition.lines": 2000,  # the last lines of the log
    "ControlServer._log": 2000,
    "KernelTask.last_words": 16 * 32,  # each task remembers its last 32
    "KernelTask.recent": 16 * 16,  # each task remembers its last 16 messages
    "FaultLog._records": 257,
    "FaultLog._ends": 16,
    "FaultRecord": 257,
    "FaultRecord.messages": 257 * 32,
}
"""Tables that are bounded, and fill up by and by. They are compared with their bound."""

Counts = collections.Counter[str]


def _slots(kind: type[Any]) -> list[str]:
    return [name for cls in kind.__mro__ for name in getattr(cls, "__slots__", ())]


def _fields(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield an object's attributes by name."""
    kept = getattr(thing, "__dict__", None)
    if isinstance(kept, dict):
        yield from kept.items()
    for name in _slots(type(thing)):
        with contextlib.suppress(AttributeError):
            yield name, getattr(thing, name)


def objects() -> Counts:
    """Return how many objects of each class there are, and how much their containers hold."""
    gc.collect()
    counts: Counts = collections.Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if kind in {socket.socket, mmap.mmap}:
            counts[kind.__name__] += 1
        elif str(kind.__module__).startswith(_OURS):
            counts[kind.__name__] += 1
            for name, value in _fields(thing):
                if isinstance(value, _CONTAINERS) and len(value):
                    counts[f"{kind.__name__}.{name}"] += len(value)
    return counts


def processes(root: int) -> dict[int, str]:
    """Return all processes below one, by pid, as name and state; it itself is not among them."""
    found: dict[int, str] = {}
    queue = [root]
    while queue:
        pid = queue.pop()
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                stat = Path(f"/proc/{child}/stat").read_text()
                state = "zombie" if stat[stat.rindex(")") + 2] == "Z" else "process"
                found[int(child)] = f"{state} {stat[stat.index('(') + 1 : stat.rindex(')')]}"
                queue.append(int(child))
    return found


class Standing:
    """What this process and all below it hold now, and what is mounted below `top`.

    Attributes:
        counts: everything that must be the same again later.
        memory_kib: anonymous memory of the kernel.
    """

    def __init__(self, top: Path) -> None:
        me = os.getpid()
        below = processes(me)
        counts: Counts = collections.Counter()
        for kind in descriptors(me):
            counts[f"kernel's descriptor of {_plain(kind)}"] += 1
        spaces = set()
        for pid, name in below.items():
            counts[name] += 1
            with contextlib.suppress(OSError):
                if "zygote" in name:  # the others are as young as their last death
                    for kind in descriptors(pid):
                        counts[f"zygote's descriptor of {_plain(kind)}"] += 1
                spaces.add(os.readlink(f"/proc/{pid}/ns/net"))
        counts["network namespaces"] = len(spaces)
        counts["mounts"] = Path("/proc/self/mountinfo").read_text().count(str(top))
        self.counts = counts + objects()
        self.memory_kib = resident_kib(me)

    @property
    def timers(self) -> int:
        """Timers that are armed: some of what is held is given up when they fire."""
        return self.counts["Timer"]

    def excess(self, before: Standing) -> list[str]:
        """Return what there is more of than before, or than its bound."""
        grown = []
        for what, count in sorted(self.counts.items()):
            most = max(before.counts[what], _BOUNDS.get(what, 0))
            if count > most:
                grown.append(f"{what}: {count}, before {before.counts[what]}")
        return grown

    def lack(self, before: Standing) -> list[str]:
        """Return what there is less of than before."""
        return [
            f"{what}: {self.counts[what]}, before {count}"
            for what, count in sorted(before.counts.items())
            if self.counts[what] < count and what not in _BOUNDS
        ]


def _plain(kind: str) -> str:
    """Return what a descriptor is for, without numbers that differ from one to the next."""
    return "/proc" if kind.startswith("/proc/") else kind
