"""The way into a running system for what is not a command: joining it over its control socket."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from core.abi import Right
from core.userlib.interface import Interface
from core.userlib.isolated import IsolatedTask
from core.userlib.joined import join
from core.userlib.kernel_calls import TaskInfo
from core.userlib.task import complete
from mount.control import Control
from tests.support.live_system import LiveSystem

SERVERS: Final = ("names", "supervisor", "disk", "fs", "pipe", "tap", "net", "echo")
T = TypeVar("T")
InterfaceT = TypeVar("InterfaceT", bound=Interface)


class Door:
    """A joined program. Calls wait in place; one thread at a time makes one."""

    def __init__(self, task: IsolatedTask) -> None:
        self.task = task
        self.control = task.connect(Control, "control")
        self._lock = threading.Lock()

    def ask(self, call: Coroutine[Any, Any, T]) -> T:
        """Make a call and return its answer."""
        with self._lock:
            return complete(call)

    def connect(self, interface: type[InterfaceT], right: str | Right) -> InterfaceT:
        """Return a stub."""
        return self.task.connect(interface, right)

    def tasks(self) -> dict[str, TaskInfo]:
        """Return all tasks by name."""
        return {task.name: task for task in self.ask(self.control.tasks())}

    def servers(self) -> dict[str, TaskInfo]:
        """Return the servers of the description."""
        return {name: task for name, task in self.tasks().items() if name in SERVERS}

    def namespace(self) -> int:
        """Return a descriptor of the system's network namespace, which the caller closes."""
        return self.ask(self.control.network_namespace()).take()


@contextlib.contextmanager
def opened(system: LiveSystem) -> Iterator[Door]:
    """Join a system for a while."""
    with join(system.run.control_path) as task:
        yield Door(task)


def descriptors(pid: int) -> list[str]:
    """Return what the descriptors of a process stand for, sorted."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry).partition(":[")[0])
    return sorted(found)


def more_than(now: list[str], before: list[str]) -> list[str]:
    """Return what there is more of now than before."""
    return sorted((collections.Counter(now) - collections.Counter(before)).elements())


def resident_kib(pid: int) -> int:
    """Return how much anonymous memory a process has, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def belonging(system: LiveSystem) -> list[int]:
    """Return all processes of a system: those that were started with its run directory."""
    mark = f"ATOLL_RUN={system.top / 'run'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return sorted(found)


def using_namespace(inode: int) -> list[int]:
    """Return the processes that are in a network namespace, or hold a descriptor of it."""
    wanted = f"net:[{inode}]"
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            links = [entry / "ns" / "net", *(entry / "fd").iterdir()]
            for link in links:
                with contextlib.suppress(OSError):
                    if os.readlink(link) == wanted:
                        found.add(int(entry.name))
    return sorted(found)
