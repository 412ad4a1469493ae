"""The server behind the control port. It is co-located: it reads the kernel's tables directly."""

from __future__ import annotations

import collections
import errno
import os
from collections.abc import Callable
from typing import Final

from core.abi import Right
from core.errors import Refused, TaskError
from core.kernel.audit import Audit, audit
from core.kernel.calls import port_infos, task_infos
from core.kernel.endings import Order
from core.kernel.tasks import KernelTask, Placement
from core.kernel.trusted import Loaded, loaded
from core.system.boot import System
from core.system.faults import FaultCount, FaultRecord
from core.userlib.interface import Descriptor
from core.userlib.kernel_calls import Outage, PortInfo, Restarted, TaskInfo
from core.userlib.server import Server
from core.userlib.task import Task

from .control import Attempted, Control, Status

UNCONFINED: Final = ("mount.composition",)
"""What runs in the kernel's process begins here, but for promoted servers."""


class ControlServer(Server):
    """Serves `Control` for one system.

    Args:
        system: the running system.
        status: describes it.
        log: its last lines.
        shut_down: makes the composition end the system.
    """

    interface = Control

    def __init__(
        self,
        task: Task,
        system: System,
        status: Callable[[], Status],
        log: collections.deque[str],
        shut_down: Callable[[], None],
    ) -> None:
        super().__init__(task)
        self._system = system
        self._status = status
        self._log = log
        self._shut_down = shut_down

    def status(self) -> Status:
        """Describe the system."""
        return self._status()

    def tasks(self) -> list[TaskInfo]:
        """List the tasks."""
        return task_infos(self._system.kernel)

    def ports(self) -> list[PortInfo]:
        """List the ports."""
        return port_infos(self._system.kernel)

    def _server(self, name: str) -> KernelTask:
        """Return a task of the description; TaskError names those that there are."""
        if name not in self._system.description.servers:
            known = ", ".join(self._system.description.servers)
            raise TaskError(f"there is no server {name!r}; there are {known}")
        return self._system.task(name)

    def kill(self, server: str) -> int:
        """Kill a server's process."""
        task = self._server(server)
        pid = task.engine.pid if task.engine is not None else 0
        self._system.kernel.kill(task, Order("killed with SIGKILL by `atoll kill`"))
        return pid

    async def restart(self, server: str, patience_s: float) -> Restarted:
        """Restart a server in good order."""
        name = self._server(server).name
        return await self._system.replacements.restart(name, patience_s)

    async def reload(self, server: str, patience_s: float, probation_s: float) -> Restarted:
        """Reload a server's code."""
        name = self._server(server).name
        return await self._system.replacements.reload(name, patience_s, probation_s)

    async def probation(self, server: str) -> str:
        """Wait for the verdict on a server's new code."""
        return await self._system.replacements.probation(self._server(server).name)

    def last_words(self, server: str) -> list[str]:
        """Say why a server's incarnations ended."""
        return self._server(server).last_words

    def outages(self, server: str, generation: int) -> list[Outage]:
        """Say when a server was away."""
        return self._server(server).outages.since(generation)

    def fault_counts(self) -> list[FaultCount]:
        """Say how often each server's incarnations ended."""
        tasks = [self._system.task(name) for name in self._system.description.servers]
        return self._system.mending.faults.counts(tasks)

    def fault_numbers(self, server: str) -> list[int]:
        """List a server's records."""
        return self._system.mending.faults.numbers(self._server(server).name)

    def fault(self, number: int) -> FaultRecord:
        """Return a record."""
        found = self._system.mending.faults.record(number)
        if found is None:
            raise Refused(errno.ENOENT, f"the fault log has no record {number} any more")
        return found

    def audit(self) -> list[Audit]:
        """Say what every server holds and may do."""
        return audit(self._system.kernel)

    def loaded(self) -> Loaded:
        """Say what runs unconfined."""
        promoted = [
            task.program.server.partition(":")[0]
            for task in self._system.kernel.tasks
            if task.program.placement is Placement.COLOCATED and task.program.server
        ]
        return loaded([*UNCONFINED, *promoted])

    def attempts(self, server: str) -> Attempted:
        """Say what a server tried."""
        task = self._server(server)
        found = task.attempts
        return Attempted(
            dict(found.kinds), list(found.newest), found.suppressed, task.voice.suppressed
        )

    def log(self, lines: int) -> list[str]:
        """Return the log's last lines."""
        return list(self._log)[-max(0, lines) :] if lines > 0 else []

    def shut_down(self) -> None:
        """End the system, after this answer."""
        self._shut_down()

    def network_namespace(self) -> Descriptor:
        """Return the namespace that the link's driver keeps with the kernel."""
        tap = self._system.kernel.tasks.named("tap")
        number = tap.kept.get("netns") if tap is not None else None
        if number is None:
            raise Refused(errno.ENONET, "this system has no network namespace of its own")
        return Descriptor(os.dup(number))

    def badges(self) -> dict[int, str]:
        """Say which badge is whose."""
        return {task.badge: task.name for task in self._system.kernel.tasks}

    def port_of(self, server: str) -> Right:
        """Return a right to a server's port, with the caller's badge."""
        right = self._server(server).names[1].derive(badge=self.request.badge)
        self._system.task(self.task.name).hold(right)  # who gives something away has had it
        return right
