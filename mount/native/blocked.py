"""Operations on streams that wait: out of the workers' way until the stream has moved.

An operation is tried at once, by the worker that has its request. If the server says EAGAIN the
worker goes back to the device (`Later`), and the operation lies in a line: readers, writers and
those who are opening, for each stream. When a stream moves, one trio task works off a line from its
head, until the server says EAGAIN again. So what waits costs a record and no task, no call and no
request at the server, and whoever came first is served first.

That a stream has moved is known from this front end's own operations when they are answered, and
from the server's notifications for all others. `Line.moves` counts it: an operation that was
refused although the line moved since it was tried is tried again, so that no wake-up is lost.

Signals. The host says INTERRUPT when any signal has come for the process that waits. The wait ends
at once: EINTR, or how many octets were written. The protocol has no "start the call again" in it
(ERESTARTSYS), so a program whose handler has SA_RESTART, or that was only stopped and continued,
gets EINTR too, as signal(7) tells of inotify's reads. Most programs go on reading then.

Bounds. `BLOCKED_LIMIT` operations may wait; the data that they want written is copied, up to
`DATA_LIMIT` octets in all. Once that is full, one more keeps a first part only, and its write(2)
returns a short count.
"""

from __future__ import annotations

import collections
import errno
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from core.errors import Refused
from core.userlib.interface import Bulk
from core.userlib.streams import WHOLE
from mount.error_numbers import error_number

from .protocol import requests
from .protocol.opcodes import Opcode

BLOCKED_LIMIT: Final = 8192
"""Operations that may wait; one more is refused with ENOMEM."""
DATA_LIMIT: Final = 64 << 20
"""Octets of waiting writes that are kept."""
TASKS_LIMIT: Final = 64
"""Lines that are worked off at once: with the workers, far fewer calls than a port takes."""


Key = Any
"""Which line: whatever can be hashed."""


class Later(Exception):  # noqa: N818 - not an error: the request will be answered, not now
    """The handler's request waits, and belongs to `Blocked`."""


class Blocking:
    """One operation that may have to wait.

    Attributes:
        request: what it answers.
        wait: False: with O_NONBLOCK.
        attempt: tries it; Refused with EAGAIN: not yet.
        partial: called when it ends early: returns what it has achieved as a reply's body, None if
            that is nothing.
        keep: called before it waits, with the octets of data that may be kept; returns how many
            it does keep.
    """

    __slots__ = (
        "attempt",
        "interrupted",
        "keep",
        "kept",
        "key",
        "partial",
        "request",
        "trying",
        "wait",
    )

    def __init__(
        self,
        request: requests.Request,
        attempt: Callable[[], Awaitable[Bulk]],
        *,
        wait: bool,
        partial: Callable[[], Bulk | None] = lambda: None,
        keep: Callable[[int], int] = lambda room: 0,
    ) -> None:
        self.request = request
        self.attempt = attempt
        self.wait = wait
        self.partial = partial
        self.keep = keep
        self.kept = 0
        self.key: Key = None
        self.interrupted = False
        self.trying = True

    def given_up(self, number: int) -> Bulk:
        """Return the reply of an operation that ends early. Refused, with `number`: none."""
        achieved = self.partial()
        if achieved is None:
            raise Refused(number)
        return achieved


class Line:
    """Those who wait for one thing at one stream.

    Attributes:
        moves: how often the stream has moved.
        served: a task works the line off.
        users: operations that look at `moves`, or wait.
    """

    __slots__ = ("moves", "queue", "served", "users")

    def __init__(self) -> None:
        self.queue: collections.deque[Blocking] = collections.deque()
        self.moves = 0
        self.served = False
        self.users = 0


class Blocked:
    """All lines of a session.

    Args:
        answer: sends a request's reply.
        fail: sends its error number.
    """

    def __init__(
        self,
        answer: Callable[[requests.Request, Bulk], None],
        fail: Callable[[int, int, int], None],
    ) -> None:
        self._answer = answer
        self._fail = fail
        self._lines: dict[Key, Line] = {}
        self._active: dict[int, Blocking] = {}
        self._expected: dict[int, bool] = {}
        self._kept = 0
        self._waiting = 0
        self._nursery: trio.Nursery | None = None
        self._todo: collections.deque[Callable[[], Awaitable[None]]] = collections.deque()
        self._tasks = 0

    @property
    def waiting(self) -> int:
        """How many operations wait."""
        return self._waiting

    async def run(self) -> None:
        """Work lines off until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._start_tasks()
            await trio.sleep_forever()

    def expect(self, unique: int) -> None:
        """Take note of interrupts of a request whose operation has still to be prepared."""
        self._expected[unique] = False

    def expected(self, unique: int) -> bool:
        """Return whether it was interrupted, and end that."""
        return self._expected.pop(unique, False)

    async def do(self, key: Key, operation: Blocking) -> Bulk:
        """Do an operation now, or let it wait in the line `key`: Later."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line()
        line.users += 1
        unique = operation.request.unique
        self._active[unique] = operation
        operation.interrupted = self.expected(unique)
        waits = False
        try:
            if not operation.wait or not (line.queue or line.served):
                body = await self._try(line, operation)
                if body is not None:
                    return body
            if not operation.wait:
                return operation.given_up(errno.EAGAIN)
            if operation.interrupted:
                return operation.given_up(errno.EINTR)
            self._enter(line, operation)
            operation.key = key
            waits = True
        finally:
            if not waits:
                del self._active[unique]
                self._leave(key, line)
        raise Later

    async def _try(self, line: Line, operation: Blocking) -> Bulk | None:
        """Try until it is done (returns the reply), or refused while nothing moved (None)."""
        operation.trying = True
        try:
            while True:
                moves = line.moves
                try:
                    return await operation.attempt()
                except Refused as refusal:
                    if refusal.errno != errno.EAGAIN:
                        raise
                if operation.interrupted or moves == line.moves:
                    return None
        finally:
            operation.trying = False

    def _enter(self, line: Line, operation: Blocking) -> None:
        if self._waiting >= BLOCKED_LIMIT:
            raise Refused(errno.ENOMEM, f"{BLOCKED_LIMIT} operations on streams wait already")
        operation.trying = False
        operation.kept = operation.keep(max(WHOLE, DATA_LIMIT - self._kept))
        self._kept += operation.kept
        self._waiting += 1
        line.queue.append(operation)

    def _leave(self, key: Key, line: Line) -> None:
        line.users -= 1
        if not line.users:
            del self._lines[key]

    def aside(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something in a task of its own, soon, for as long as the session works."""
        self._todo.append(work)
        self._start_tasks()

    def _start_tasks(self) -> None:
        if self._todo and self._tasks < TASKS_LIMIT and self._nursery is not None:
            self._tasks += 1
            self._nursery.start_soon(self._do_aside)

    async def _do_aside(self) -> None:
        try:
            while self._todo:
                await self._todo.popleft()()
        finally:
            self._tasks -= 1

    # What lets them go on

    def moved(self, key: Key) -> None:
        """Be told that those who wait in a line may succeed."""
        line = self._lines.get(key)
        if line is None:
            return
        line.moves += 1
        if line.queue and not line.served:
            line.served = True
            self.aside(functools.partial(self._work_off, line))

    def moved_any(self) -> None:
        """Be told that anything may have moved."""
        for key in list(self._lines):
            self.moved(key)

    async def _work_off(self, line: Line) -> None:
        try:
            while line.queue:
                operation = line.queue[0]
                try:
                    body = await self._try(line, operation)
                    if body is None and operation.interrupted:
                        body = operation.given_up(errno.EINTR)
                except Exception as error:  # noqa: BLE001 - every request is answered
                    self._end(operation)
                    request = operation.request
                    number = error_number(Opcode(request.opcode).name, error)
                    self._fail(request.opcode, request.unique, number)
                else:
                    if body is None:
                        return
                    self._end(operation)
                    self._answer(operation.request, body)
        finally:
            line.served = False

    def _end(self, operation: Blocking) -> None:
        """Take an operation that waits out of its line."""
        line = self._lines[operation.key]
        line.queue.remove(operation)
        self._waiting -= 1
        self._kept -= operation.kept
        del self._active[operation.request.unique]
        self._leave(operation.key, line)

    def interrupt(self, unique: int) -> bool:
        """End an operation's wait: a signal has come. Returns if the request is one of these."""
        operation = self._active.get(unique)
        if operation is None:
            if unique in self._expected:
                self._expected[unique] = True
            return unique in self._expected
        operation.interrupted = True
        if operation.trying:
            return True  # whoever tries it looks at it afterwards
        self._end(operation)
        try:
            self._answer(operation.request, operation.given_up(errno.EINTR))
        except Refused as refusal:
            self._fail(operation.request.opcode, unique, refusal.errno)
        return True
