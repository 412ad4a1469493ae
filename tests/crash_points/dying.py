"""Servers that end themselves with SIGKILL at a chosen point of the next request.

The point is set in a `Cell`, a few octets of memory that the test and the server's process share.
The server takes the point away before it ends, so its next incarnation lives. The hooks are in the
server's own end of the line, which every request and every reply passes, and in the observer of the
volume's writes: a server that dies there is ended by the host in the middle of what it was doing,
and nobody has to guess how long anything takes.
"""

from __future__ import annotations

import enum
import mmap
import os
import signal
import struct
from pathlib import Path
from typing import Any, Final

from core.abi import Kind
from core.userlib.isolated import IsolatedTask
from core.userlib.line import Line, Packet
from core.userlib.task import Task
from fs_server.disk import DiskServer
from fs_server.opens import Opens
from fs_server.reserve import Reserve
from fs_server.server import FileServer
from fs_server.volume import Volume

_NOW: Final = struct.Struct("<Q")
_SIZE: Final = 4096


class Point(enum.IntEnum):
    """Where a server ends."""

    NOWHERE = 0
    DELIVERED = 1
    """A request has arrived, its handler has not begun."""
    WRITING = 2
    """The handler is about to make its first change to the store."""
    COMMITTED = 3
    """The handler has returned, the reply has not been sent."""
    REPLIED = 4
    """The reply has been sent."""


class Cell:
    """Shared memory: the time, and where each of the two servers shall end.

    Args:
        path: a file, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            self._memory = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)

    @property
    def now(self) -> int:
        """The time, in nanoseconds."""
        return int(_NOW.unpack_from(self._memory)[0])

    @now.setter
    def now(self, now: int) -> None:
        _NOW.pack_into(self._memory, 0, now)

    def point(self, server: int) -> Point:
        """Return where a server (0: fs, 1: disk) shall end."""
        return Point(self._memory[8 + server])

    def arm(self, server: int, point: Point) -> None:
        """Have a server end when it comes to that point next."""
        self._memory[8 + server] = point

    def deaths(self, server: int) -> int:
        """Return how often a server has ended itself, modulo 256."""
        return self._memory[16 + server]

    def reached(self, server: int, point: Point) -> None:
        """End this process if this is the point."""
        if self._memory[8 + server] == point:
            self._memory[8 + server] = Point.NOWHERE
            self._memory[16 + server] = (self._memory[16 + server] + 1) & 0xFF
            os.kill(os.getpid(), signal.SIGKILL)


class _DyingLine(Line):
    """A server's line, on which it may end."""

    cell: Cell
    server: int

    def _reached(self, point: Point) -> None:
        self.cell.reached(self.server, point)

    def receive_soon(self) -> Packet:
        packet = super().receive_soon()
        if packet.kind == Kind.CALL:
            self._reached(Point.DELIVERED)
        return packet

    def reply_simple(self, number: int, fields: bytes) -> None:
        self._reached(Point.COMMITTED)
        super().reply_simple(number, fields)
        self._reached(Point.REPLIED)

    def refuse_simple(self, number: int, fields: bytes) -> None:
        self._reached(Point.COMMITTED)
        super().refuse_simple(number, fields)
        self._reached(Point.REPLIED)

    def send(self, kind: Kind, **fields: Any) -> None:
        if kind == Kind.REPLY:
            self._reached(Point.COMMITTED)
        super().send(kind, **fields)
        if kind == Kind.REPLY:
            self._reached(Point.REPLIED)


def _attach(task: Task, server: int) -> Cell:
    """Put the hooks into a task's line."""
    assert isinstance(task, IsolatedTask)
    cell = Cell(Path(task.options["cell"]))
    task.line.__class__ = _DyingLine
    assert isinstance(task.line, _DyingLine)
    task.line.cell, task.line.server = cell, server
    return cell


class _DyingObserver:
    """Ends the process before the first change to the store."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def _reached(self) -> None:
        self._cell.reached(0, Point.WRITING)

    def write(self, file: str, offset: int, data: bytes) -> bool:
        self._reached()
        return True

    def truncate(self, file: str, size: int) -> None:
        self._reached()

    def punch(self, file: str, offset: int, size: int) -> None:
        self._reached()

    def sync(self, file: str) -> bool:
        self._reached()
        return True

    def remove(self, file: str) -> None:
        self._reached()


class DyingFileServer(FileServer):
    """The file server, under a clock that is told."""

    def __init__(self, task: Task) -> None:
        self._cell = _attach(task, 0)
        super().__init__(task)

    def open_volume(self, directory: Path, data: int, opens: Opens, reserve: Reserve) -> Volume:
        observer, cell = _DyingObserver(self._cell), self._cell
        return Volume(
            directory, data, opens=opens, reserve=reserve, clock=lambda: cell.now, observer=observer
        )


class DyingDiskServer(DiskServer):
    """The disk server."""

    def __init__(self, task: Task) -> None:
        _attach(task, 1)
        super().__init__(task)
