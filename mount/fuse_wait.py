"""How the workers of a FUSE session wait for requests: poll(2) first, trio if nothing is there.

Stock pyfuse3 parks in trio before every request: five system calls and two passes of the scheduler,
77% of what a request costs. Here a worker polls the descriptor first. While requests keep coming
it never leaves its turn, so a request whose handler does not suspend crosses no scheduling step.

Theory of operation. At most one worker, the *watcher*, is parked in `trio.lowlevel.wait_readable`;
the others rest in a stack, the last one on top, because its buffer is warm. A worker that takes a
request does not name a successor. Only if its handler suspends (it asked a server in another
process) must somebody else watch: `Workers.drive` steps every worker's coroutine and sees each
suspension, so this costs nothing where none happens.

Invariants:

1. Between a poll that says "readable" and pyfuse3's read there is no checkpoint, so the request is
   still there, unless its sender withdrew it. The descriptor is non-blocking for that case: the
   read fails with EAGAIN, and `drive` begins the worker again.
2. While any worker is suspended in a handler, another one watches, or all of them are in handlers.
3. A worker gives way to other tasks after `BURST_REQUESTS` requests or `BURST_S` seconds.

Bounded linger. A client that works through small calls comes back within microseconds, and waking
an idle CPU costs tens of them. So a worker that found nothing looks again for `linger_s` before it
parks, and gives the CPU away (sched_yield) between two looks, so that a client or a server that
waits for this CPU runs. It stops at once when trio has something to do (it looks at trio's own
epoll set, too), and does not begin while a handler is suspended, since it would delay the answer;
it stops after `MISSES` in vain, until requests follow one another closely again. Measured,
microseconds for a getattr: one CPU 15 with and without; two CPUs 29 against 116; with both CPUs
also kept busy by others 40 against 72 and 99. Blocking in poll(2) instead gains nothing.
"""

from __future__ import annotations

import os
import select
import time
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

import trio

from core.userlib.trio_epoll import trio_epoll

BURST_REQUESTS: Final = 64
"""Requests that a worker takes before it lets other tasks run."""
BURST_S: Final = 2e-3
"""Seconds that a worker works before it lets other tasks run.

A pass of the scheduler costs as much as a request to an isolated server. With 200 µs, one for every
two such requests, a getattr took 1.3 times as long.
"""
MISSES: Final = 8
"""Lingers in vain after which a worker parks at once."""


class Workers:
    """The waiting side of one session's workers.

    Args:
        descriptor: the session's /dev/fuse; it is made non-blocking, and stays the session's.
        linger_s: seconds that a worker looks for a request before it parks; 0: it looks once.
    """

    def __init__(self, descriptor: int, linger_s: float = 0.0) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        self._poll = poll.poll
        glance = select.poll()
        glance.register(descriptor, select.POLLIN)
        if (others := trio_epoll()) >= 0:
            glance.register(others, select.POLLIN)
        self._glance = glance.poll
        self._linger_s = linger_s
        self._misses = 0
        self._resting: list[trio.lowlevel.Task] = []
        self._watching = False
        self._summoned = False
        self._in_wait = False
        self._suspended = 0
        self._served = 0
        self._since = 0.0
        self.ended = False
        self.requests = 0
        self.parks = 0
        self.lingers = 0

    def restore(self) -> None:
        """Make the descriptor blocking again: pyfuse3's own wait takes EAGAIN for the end."""
        os.set_blocking(self._descriptor, True)

    async def wait_readable(self) -> bool:
        """Return True when a request can be read, False when the session is over."""
        self._served += 1
        if self._served < BURST_REQUESTS and time.perf_counter() - self._since < BURST_S:
            ready = self._poll(0)
            if ready:
                return self._take(ready)
        else:
            await self._give_way()
        return await self._wait_slowly()

    def _take(self, ready: list[tuple[int, int]]) -> bool:
        """Return if the descriptor holds a request; an error on it is the end of the session."""
        if ready[0][1] & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            self.end()
            return False
        self.requests += 1
        return True

    def end(self) -> None:
        """End the session for all workers: those that rest are woken to see it."""
        self.ended = True
        while self._resting:
            trio.lowlevel.reschedule(self._resting.pop())

    async def _give_way(self) -> None:
        self._in_wait = True
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._in_wait = False
        self._served = 0
        self._since = time.perf_counter()

    async def _wait_slowly(self) -> bool:
        while not self.ended:
            ready = self._poll(0) or self._lingered()
            if ready:
                return self._take(ready)
            self._in_wait = True
            try:
                await (self._rest() if self._watching else self._watch())
            finally:
                self._in_wait = False
            self._served = 0
            self._since = time.perf_counter()
        return False

    def _lingered(self) -> list[tuple[int, int]]:
        """Look again for a moment, if that is likely to be worth it. Returns what poll(2) would."""
        if not self._linger_s or self._suspended or self._misses >= MISSES:
            return []
        glance, give_way, now = self._glance, os.sched_yield, time.perf_counter
        self.lingers += 1
        until = now() + self._linger_s
        while now() < until:
            give_way()
            if glance(0):
                ready = self._poll(0)  # none: it is trio that has something to do
                if ready:
                    self._misses = 0
                return ready
        self._misses += 1
        return []

    async def _watch(self) -> None:
        """Park until the descriptor is readable. Only one worker may be here."""
        self._watching = True
        self.parks += 1
        began = time.perf_counter()
        try:
            await trio.lowlevel.wait_readable(self._descriptor)
        except trio.ClosedResourceError:
            self.end()
        finally:
            self._watching = False
        if time.perf_counter() - began < 2 * self._linger_s:
            self._misses = 0  # a linger would have caught this one

    async def _rest(self) -> None:
        """Sleep until another worker needs a watcher."""
        task = trio.lowlevel.current_task()
        self._resting.append(task)

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._resting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self._summoned = False

    @types.coroutine
    def drive(self, loop: Awaitable[None]) -> Generator[Any, Any, None]:
        """Run a worker's loop, and have another worker watch whenever a handler of it suspends."""
        steps = loop.__await__()
        step: Callable[[Any], Any] = steps.send
        value: Any = None
        while True:
            try:
                trap = step(value)
            except StopIteration:
                return
            in_handler = not self._in_wait
            self._in_wait = False
            if in_handler:
                self._suspended += 1
                if self._resting and not self._watching and not self._summoned:
                    self._summoned = True
                    trio.lowlevel.reschedule(self._resting.pop())
            try:
                value = yield trap
            except BaseException as error:  # noqa: BLE001 - belongs to the worker, which gets it
                step, value = steps.throw, error
            else:
                step = steps.send
            if in_handler:
                self._suspended -= 1
