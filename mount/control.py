"""The control port: what the `atoll` command asks of a running system.

The command joins the system over its control socket and becomes a task like any other; among the
rights it is given is one to this port. The server behind it is co-located, because it speaks for
the kernel itself.
"""

from __future__ import annotations

import msgspec

from core.abi import Right
from core.kernel.audit import Audit
from core.kernel.trusted import Loaded
from core.system.faults import FaultCount, FaultRecord
from core.userlib.interface import Descriptor, Interface, operation
from core.userlib.kernel_calls import Outage, PortInfo, Restarted, TaskInfo


class Status(msgspec.Struct, frozen=True):
    """What `atoll status` shows. Paths are absolute; empty ones: there is none."""

    name: str
    pid: int
    state_directory: str
    mountpoint: str
    placement_file: str
    net: str
    address: str
    host_address: str
    interface: str
    uptime_s: float
    boot_id: int
    servers_running: int
    servers: int


class Attempted(msgspec.Struct, frozen=True, array_like=True):
    """What a server tried that it may not, over all its incarnations.

    Attributes:
        kinds: how often what was tried: system calls, and errors that only a mistake or an attacker
            gets.
        newest: the last ones in words, oldest first.
        unwritten: attempts that were counted but not written into the log.
        unsaid: lines of its own that were not.
    """

    kinds: dict[str, int]
    newest: list[str]
    unwritten: int
    unsaid: int


class Control(Interface):
    """Ask about a system, and change what runs in it."""

    @operation(idempotent=True)
    async def status(self) -> Status:
        """Return what the system is and where."""

    @operation(idempotent=True)
    async def tasks(self) -> list[TaskInfo]:
        """Return all tasks."""

    @operation(idempotent=True)
    async def ports(self) -> list[PortInfo]:
        """Return all ports."""

    @operation
    async def kill(self, server: str) -> int:
        """End a server's process with SIGKILL; return its pid. TaskError: unknown, or promoted."""

    @operation(waits=True)
    async def restart(self, server: str, patience_s: float) -> Restarted:
        """Stop a server in good order, start it again, and say how that went.

        TaskError: it cannot be restarted now.
        """

    @operation(waits=True)
    async def reload(self, server: str, patience_s: float, probation_s: float) -> Restarted:
        """Replace a server's code by what its source files hold now, and say how that went.

        TaskError: it cannot be; the old code serves on as if nothing had been.
        """

    @operation(waits=True)
    async def probation(self, server: str) -> str:
        """Wait until new code is on probation no more; return why it failed, or nothing."""

    @operation(idempotent=True)
    async def last_words(self, server: str) -> list[str]:
        """Return why the server's incarnations ended, oldest first."""

    @operation(idempotent=True)
    async def outages(self, server: str, generation: int) -> list[Outage]:
        """Return when the server was away since the end of that generation, oldest first."""

    @operation(idempotent=True)
    async def fault_counts(self) -> list[FaultCount]:
        """Return a line for each server: how often its incarnations ended, and the last end."""

    @operation(idempotent=True)
    async def fault_numbers(self, server: str) -> list[int]:
        """Return the numbers of the server's records in the fault log, oldest first."""

    @operation(idempotent=True)
    async def fault(self, number: int) -> FaultRecord:
        """Return a record of the fault log. Refused: ENOENT, when it is there no longer."""

    @operation(idempotent=True)
    async def audit(self) -> list[Audit]:
        """Return what every server holds and may do, as the host sees it."""

    @operation(idempotent=True)
    async def log(self, lines: int) -> list[str]:
        """Return the last lines of the system's log."""

    @operation
    async def shut_down(self) -> None:
        """End the system in good order; the answer comes before the end."""

    @operation
    async def network_namespace(self) -> Descriptor:
        """Return the network namespace that the host's side of the link is in. Refused: ENONET."""

    @operation(idempotent=True)
    async def badges(self) -> dict[int, str]:
        """Return the names of all tasks by the badge that servers see on their rights."""

    @operation
    async def port_of(self, server: str) -> Right:
        """Return a right to any server's port, for tests and tools of the system's owner."""

    @operation(idempotent=True)
    async def loaded(self) -> Loaded:
        """Return what runs unconfined: the modules of the kernel's process, and where to begin."""

    @operation(idempotent=True)
    async def attempts(self, server: str) -> Attempted:
        """Return what a server's incarnations tried that they may not."""
