"""Zygotes, as the kernel sees them: which one forks which server, and what has become of the forks.

A `Zygote` is the kernel's account of one process that forks tasks: orders under way by token, lines
of living children by pid. A report finds its line here, and nowhere else.

The *first* zygote was forked before trio ran and holds the code that the system was booted with. It
stays for as long as the system does, because it is the last one out. `Zygotes` says which zygote a
server is forked from.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
from collections.abc import Callable

from core.errors import TaskError
from core.kernel.line import PROCESS_ENDED, KernelLine
from core.kernel.rim import Rim
from core.kernel.zygote import AtEnd, Exited, Kill, Report, Spawn, Spawned, ZygoteLine
from core.userlib.isolated import Birth


class Zygote:
    """One zygote: orders go in, reports come out. See the module head.

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
        self._line = ZygoteLine(connection)
        self._line.on_report = self._hear
        self._line.on_end = self._ended
        self._rim = rim
        self._on_change = on_change
        self._on_end = on_end
        self._token = itertools.count(1).__next__
        self._starting: dict[int, KernelLine] = {}
        self._children: dict[int, KernelLine] = {}

    def watch(self) -> None:
        """Take reports from now on."""
        self._rim.add(self._line)

    def spawn(self, birth: Birth, user_namespace: bool, descriptors: tuple[int, int]) -> int:
        """Order a task to be forked; return the order's token, for `expect`.

        Args:
            descriptors: the task's end of its line, and its transfer region. They stay the
                caller's.

        Raises:
            TaskError: the zygote takes no orders.
        """
        token = self._token()
        try:
            self._line.order(Spawn(token, birth, user_namespace), descriptors)
        except OSError as error:
            raise TaskError(f"the zygote takes no orders: {error.strerror}") from None
        return token

    def expect(self, token: int, line: KernelLine) -> None:
        """Say whose process an order makes."""
        self._starting[token] = line

    def kill(self, pid: int) -> None:
        """Have a child killed; one that is gone is ignored."""
        with contextlib.suppress(OSError):
            self._line.order(Kill(pid))

    def at_end(self, commands: list[list[str]], remove: list[str]) -> None:
        """Have things undone when this process is gone, however it ends."""
        self._line.order(AtEnd(commands, remove))

    def close(self) -> None:
        """Let the zygote go, which ends what it has forked."""
        self._rim.remove(self._line)
        self._line.socket.close()

    def _hear(self, report: Report) -> None:
        if isinstance(report, Spawned):
            self._spawned(report)
        elif isinstance(report, Exited):
            self._exited(report)
        self._on_change()

    def _spawned(self, report: Spawned) -> None:
        line = self._starting.pop(report.token)
        if not report.pid:
            line.close("the host has no room for another process")
            return
        line.pid = report.pid
        self._children[report.pid] = line
        if line.closed:
            self.kill(report.pid)

    def _exited(self, report: Exited) -> None:
        line = self._children.pop(report.pid)
        if not line.closed:
            while line.readable():
                pass
            line.close(how(report.status))
        if report.status == -signal.SIGKILL:
            line.forgive()
        words = line.task.last_words
        if words and words[-1] == PROCESS_ENDED:
            words[-1] = how(report.status)
            line.task.outages.explain(words[-1])

    def _ended(self) -> None:
        self._rim.remove(self._line)
        self._on_end(self)


class Zygotes:
    """All zygotes of a system.

    Attributes:
        first: the one that has the code the system was booted with.
    """

    def __init__(self, first: Zygote) -> None:
        self.first = first
        self._of: dict[str, Zygote] = {}

    def of(self, server: str) -> Zygote:
        """Return the zygote that a server is forked from."""
        return self._of.get(server, self.first)


def how(status: int) -> str:
    """Say how a process ended, from its status as os.waitstatus_to_exitcode gives it."""
    if status < 0:
        try:
            return f"it was ended by {signal.Signals(-status).name}"
        except ValueError:  # a real-time signal has no name
            return f"it was ended by signal {-status}"
    return "it ended" if status == 0 else f"it exited with status {status}"
