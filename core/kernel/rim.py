"""The rim: where the kernel waits for its lines and its timers.

Theory of operation: the lines stand in an epoll set of their own, `_lines`, so that taking a packet
needs no trio scheduling step. The rim's trio task takes packets for as long as there are any, then
*lingers*: it waits outside trio for a moment, because the answer to what it just passed on is
usually a few microseconds away, and only then parks under trio. A co-located caller lingers in the
same way for the answer to its own call.

Lingering delays nobody: it waits at a second set, `_all`, that holds the lines and trio's own epoll
set, so it ends as soon as trio has something to do, and it does not begin while a trio task is
known to be runnable. Only trio's timers may be late, by `_LINGER_S`. Where trio's set cannot be
found, there is no lingering.

Bounds: at most `_TURN_PACKETS` packets or `_TURN_S` seconds are spent before other trio tasks run.
"""

from __future__ import annotations

import math
import select
import time
from typing import Final, Protocol

import trio

from core.userlib.spin import Spin
from core.userlib.trio_epoll import trio_epoll

from .kernel import Kernel
from .requests import Waiter
from .timers import Timers

_LINGER_S: Final = 1e-3
_EVENTS: Final = 16
"""Events taken from an epoll set at once."""
_TURN_PACKETS: Final = 64
_TURN_S: Final = 2e-3


class Descriptor(Protocol):
    """What has a host descriptor and can close it, such as a socket."""

    def fileno(self) -> int:
        """Return the descriptor's number."""

    def close(self) -> None:
        """Close it."""


class Watched(Protocol):
    """What the rim watches: a socket or its like, and what to do when it is ready."""

    @property
    def socket(self) -> Descriptor:
        """What is watched."""

    def readable(self) -> bool:
        """Take one packet; False when none was there."""

    def writable(self) -> None:
        """Send what waits."""


class Rim:
    """Watches lines and fires timers. One per kernel, run by one trio task."""

    def __init__(self) -> None:
        self._lines = select.epoll()
        self._all = select.epoll()
        self._trio = -1
        self._watched: dict[int, Watched] = {}
        self._earlier = trio.Event()
        self.timers = Timers(time.monotonic, self._wake_timers)
        self._turns = 0
        self._seen: list[tuple[int, int]] = []
        self._spin = Spin(self._look)

    def add(self, watched: Watched) -> None:
        """Watch a socket from now on."""
        number = watched.socket.fileno()
        self._watched[number] = watched
        self._watch(number, select.EPOLLIN)

    def _watch(self, number: int, events: int) -> None:
        for epoll in (self._lines, self._all):
            try:
                epoll.register(number, events)
            except FileExistsError:
                epoll.modify(number, events)

    def remove(self, watched: Watched) -> None:
        """Stop watching; call it before the socket is closed."""
        number = watched.socket.fileno()
        if self._watched.pop(number, None) is not None:
            self._lines.unregister(number)
            self._all.unregister(number)

    def watch_writable(self, connection: Descriptor) -> None:
        """Call `writable` of whoever is watched at this socket once it takes data again."""
        number = connection.fileno()
        if number in self._watched:
            self._watch(number, select.EPOLLIN | select.EPOLLOUT)

    kernel: Kernel
    """Set by boot, before `run`."""

    def sometimes(self) -> bool:
        """Return True once in sixteen times."""
        self._turns += 1
        return self._turns & 15 == 0

    async def run(self) -> None:
        """Serve lines and timers until cancelled."""
        self._trio = trio_epoll()
        if self._trio >= 0:
            self._all.register(self._trio, select.EPOLLIN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_timers)
            await self._run_lines()

    async def _run_lines(self) -> None:
        lines = self._lines
        while True:
            if self._take_turn():
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(lines.fileno())

    def _take_turn(self) -> bool:
        """Serve lines until nothing comes for a while; True if there may be more."""
        events = self._lines.poll(0, _EVENTS)
        if not events:
            return False
        began = time.monotonic()
        for _ in range(_TURN_PACKETS):
            runnable = Waiter.woken
            if not self._serve_all(events):
                return False
            if Waiter.woken != runnable or time.monotonic() - began > _TURN_S:
                return True
            if self._trio < 0:
                return True
            events = self._wait()
        return True

    def _wait(self) -> list[tuple[int, int]]:
        """Return the next events at the lines or at trio's set; none when time is over."""
        if self._spin.look():
            return self._seen
        events = self._all.poll(_LINGER_S, _EVENTS)
        if events:
            self._spin.woke()
        return events

    def _look(self) -> bool:
        self._seen = self._all.poll(0, _EVENTS)
        return bool(self._seen)

    def _serve_all(self, events: list[tuple[int, int]]) -> bool:
        """Serve what the events name; False if no line was among them."""
        served = False
        for number, event in events:
            if number != self._trio:
                self._serve(number, event)
                served = True
        return served

    def linger(self, waiter: Waiter) -> bool:
        """Serve lines until the waiter has its answer, trio has something to do, or time is over.

        Returns:
            Whether the answer came.
        """
        if self._trio < 0:
            return False
        runnable = Waiter.woken
        for _ in range(_TURN_PACKETS):
            if not self._serve_all(self._wait()):
                return False
            if waiter.done:
                return True
            if Waiter.woken != runnable:
                return False
        return False

    def _serve(self, number: int, event: int) -> None:
        watched = self._watched.get(number)
        if watched is None:
            return
        if event & select.EPOLLOUT:
            self._watch(number, select.EPOLLIN)
            watched.writable()
        if event & ~select.EPOLLOUT:
            watched.readable()

    def _wake_timers(self) -> None:
        self._earlier.set()

    async def _run_timers(self) -> None:
        while True:
            self._earlier = trio.Event()
            deadline = self.timers.next_deadline()
            wait_s = deadline - time.monotonic() if deadline < math.inf else math.inf
            with trio.move_on_after(max(0.0, wait_s)):
                await self._earlier.wait()
            self.timers.fire()

    def close(self) -> None:
        """Close the epoll sets, and the sockets of those whose end was never seen."""
        for watched in self._watched.values():
            watched.socket.close()
        self._watched.clear()
        self._lines.close()
        self._all.close()
