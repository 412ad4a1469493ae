"""The way into a running system for a thread that asks it things: joining over its control socket.

A joined program's calls wait in place, one at a time, so threads that ask at the same time have a
door each, or share one whose lock they take in turn.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from core.abi import Right
from core.userlib.interface import Interface
from core.userlib.isolated import IsolatedTask
from core.userlib.joined import join
from core.userlib.kernel_calls import TaskInfo
from core.userlib.task import complete
from mount.control import Control

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

    def server(self, interface: type[InterfaceT], name: str) -> InterfaceT:
        """Return a stub for any server's own port."""
        return self.connect(interface, self.ask(self.control.port_of(name)))

    def tasks(self) -> dict[str, TaskInfo]:
        """Return all tasks by name."""
        return {task.name: task for task in self.ask(self.control.tasks())}

    def servers(self) -> dict[str, TaskInfo]:
        """Return the tasks that have a process of their own, by name: those that can be killed."""
        return {name: task for name, task in self.tasks().items() if task.placement == "process"}

    def namespace(self) -> int:
        """Return a descriptor of the system's network namespace, which the caller closes."""
        return self.ask(self.control.network_namespace()).take()


@contextlib.contextmanager
def opened(control_path: Path) -> Iterator[Door]:
    """Join the system whose control socket that is, for a while. TaskError: it does not answer."""
    with join(control_path) as task:
        yield Door(task)
