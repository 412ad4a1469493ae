"""Zygotes, as the kernel sees them: which one forks which server, and what has become of the forks.

A `Zygote` is the kernel's account of one process that forks tasks: orders under way by token, lines
of living children by pid. A report finds its line here, and nowhere else.

The *first* zygote was forked before trio ran and holds the code that the system was booted with. It
stays for as long as the system does, because it is the last one out. Others are its children, with
code that was loaded later, each for the servers that `use` has assigned to it; one that is let go
of ends. `Zygotes` says which zygote a server is forked from.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import sys
from collections.abc import Callable

from core.errors import TaskError
from core.kernel.endings import OutOfMemory
from core.kernel.fresh import Loaded, Version
from core.kernel.line import KernelLine
from core.kernel.rim import Rim
from core.kernel.zygote import AtEnd, Exited, Fresh, Kill, Report, Spawn, Spawned, ZygoteLine
from core.userlib.confine import Confinement
from core.userlib.isolated import Birth
from core.userlib.last_stack import DUMP_SIGNAL


class Zygote:
    """One zygote: orders go in, reports come out. See the module head.

    Attributes:
        pid: its process; 0 until that is known.
        version: what it has loaded, once that is known.
        failure: why it is of no use; "" while it is.
        closed: it is gone, or was let go of.

    Args:
        connection: the kernel's end of the socket to it; owned.
        on_change: called after every report.
        on_end: called once when the zygote is gone, and nothing can be forked from it any more.
    """

    def __init__(
        self,
        pid: int,
        connection: socket.socket,
        rim: Rim,
        on_change: Callable[[], None],
        on_end: Callable[[Zygote], None],
    ) -> None:
        self.pid = pid
        self.version: Version | None = None
        self.failure = ""
        self.closed = False
        self._line = ZygoteLine(connection)
        self._line.on_report = self._hear
        self._line.on_end = self._ended
        self._rim = rim
        self._on_change = on_change
        self._on_end = on_end
        self._token = itertools.count(1).__next__
        self._starting: dict[int, KernelLine | Zygote] = {}
        self._children: dict[int, KernelLine | Zygote] = {}
        self._out_of_memory = OutOfMemory()

    def watch(self) -> None:
        """Take reports from now on."""
        self._rim.add(self._line)

    def spawn(
        self,
        birth: Birth,
        user_namespace: bool,
        descriptors: tuple[int, ...],
        confinement: Confinement | None = None,
    ) -> int:
        """Order a task to be forked; return the order's token, for `expect`.

        Args:
            confinement: what it is left with; None: all that this user has.
            descriptors: the task's end of its line, its transfer region, the memory that its last
                stack goes into, and those that `birth.kept` names. They stay the caller's.

        Raises:
            TaskError: the zygote takes no orders.
        """
        token = self._token()
        try:
            self._line.order(Spawn(token, birth, user_namespace, confinement), descriptors)
        except OSError as error:
            raise TaskError(f"the zygote takes no orders: {error.strerror}") from None
        return token

    def start_fresh(self, programs: list[str], connection: int) -> int:
        """Order a zygote with fresh code; return the order's token. TaskError as for `spawn`."""
        token = self._token()
        try:
            self._line.order(Fresh(token, programs, sys.path), (connection,))
        except OSError as error:
            raise TaskError(f"the zygote takes no orders: {error.strerror}") from None
        return token

    def expect(self, token: int, child: KernelLine | Zygote) -> None:
        """Say whose process an order makes."""
        self._starting[token] = child

    def kill(self, pid: int) -> None:
        """Have a child killed; one that is gone is ignored."""
        with contextlib.suppress(OSError):
            self._line.order(Kill(pid))

    def dump(self, pid: int) -> None:
        """Have a child write its stack into the memory that it was given for that."""
        with contextlib.suppress(OSError):
            self._line.order(Kill(pid, DUMP_SIGNAL))

    def at_end(self, commands: list[list[str]], remove: list[str]) -> None:
        """Have things undone when this process is gone, however it ends."""
        self._line.order(AtEnd(commands, remove))

    def close(self, reason: str) -> None:
        """Let the zygote go, which ends what it has forked."""
        if self._line.socket.fileno() >= 0:
            self.failure = self.failure or reason
            self.closed = True
            self._rim.remove(self._line)
            self._line.socket.close()
            self._leave_children()

    def _hear(self, report: Report) -> None:
        if isinstance(report, Spawned):
            self._spawned(report)
        elif isinstance(report, Exited):
            self._exited(report)
        elif isinstance(report, Loaded):
            self.failure, self.version = report.error, report.version
        self._on_change()

    def _spawned(self, report: Spawned) -> None:
        child = self._starting.pop(report.token)
        if not report.pid:
            words = "the host has no room for another process"
            if isinstance(child, Zygote):
                child.close(words)
            else:
                child.never_lived(words)
            return
        child.pid = report.pid
        self._children[report.pid] = child
        if child.closed:
            self.kill(report.pid)

    def _exited(self, report: Exited) -> None:
        line = self._children.pop(report.pid)
        if isinstance(line, Zygote):
            line.failure = line.failure or how(report.status)
            return
        unexplained = report.status == -signal.SIGKILL and line.evidence.order is None
        line.exited(report.status, out_of_memory=unexplained and self._out_of_memory.look())

    def _ended(self) -> None:
        if not self.closed:
            self.closed = True
            self._rim.remove(self._line)
            self._leave_children()
            self._on_end(self)

    def _leave_children(self) -> None:
        """Nothing will be reported any more: let each child's own line tell of its end."""
        for child in [*self._starting.values(), *self._children.values()]:
            if isinstance(child, KernelLine):
                child.orphaned()
        self._starting.clear()
        self._children.clear()


class Zygotes:
    """All zygotes of a system.

    Attributes:
        first: the one that has the code the system was booted with.

    Args:
        on_change: called when something has become of a zygote.
        on_lost: called when a zygote is gone that these servers were assigned to; they are
            the first one's again.
    """

    def __init__(
        self,
        first: Zygote,
        rim: Rim,
        on_change: Callable[[], None],
        on_lost: Callable[[list[str]], None],
    ) -> None:
        self.first = first
        self._of: dict[str, Zygote] = {}
        self._rim = rim
        self._on_change = on_change
        self._on_lost = on_lost

    def of(self, server: str) -> Zygote:
        """Return the zygote that a server is forked from."""
        return self._of.get(server, self.first)

    def fresh(self, programs: list[str]) -> Zygote:
        """Start a zygote that loads these programs' code anew; its `version` comes later.

        Raises:
            TaskError: none can be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                token = self.first.start_fresh(programs, theirs.fileno())
            except TaskError:
                ours.close()
                raise
        zygote = Zygote(0, ours, self._rim, self._on_change, self._ended)
        self.first.expect(token, zygote)
        zygote.watch()
        return zygote

    def use(self, server: str, zygote: Zygote) -> None:
        """Fork a server from this zygote from now on; from the first one if this is gone."""
        self._of.pop(server, None)
        if zygote is not self.first and not zygote.closed:
            self._of[server] = zygote

    def let_go(self, zygote: Zygote) -> None:
        """End a zygote that no server is forked from any more; another one stays."""
        if zygote is not self.first and zygote not in self._of.values():
            zygote.close("it was let go of")
            if zygote.pid:
                self.first.kill(zygote.pid)

    def close(self) -> None:
        """Let all zygotes go."""
        for zygote in {*self._of.values(), self.first}:
            zygote.close("the system was stopped")

    def _ended(self, zygote: Zygote) -> None:
        zygote.close("it ended")
        lost = [server for server, other in self._of.items() if other is zygote]
        for server in lost:
            del self._of[server]
        if lost:
            self._on_lost(lost)
        self._on_change()


def how(status: int) -> str:
    """Say how a process ended, from its status as os.waitstatus_to_exitcode gives it."""
    if status < 0:
        try:
            return f"it was ended by {signal.Signals(-status).name}"
        except ValueError:  # a real-time signal has no name
            return f"it was ended by signal {-status}"
    return "it ended" if status == 0 else f"it exited with status {status}"
