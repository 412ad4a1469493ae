"""The rim: where the kernel waits for its lines and its timers.

Theory of operation: the lines stand in an epoll set of their own, so that taking a packet needs no trio
scheduling step. The rim's trio task takes packets for as long as there are any, then lingers: it waits
at the epoll set itself for a moment, because the answer to what it just passed on is usually a few
microseconds away, and only then parks under trio. Lingering ends at once when trio itself has something
to do; where trio's own epoll set cannot be found, a linger may delay other trio tasks by `_LINGER_S` at most.

Bounds: at most `_TURN_PACKETS` packets or `_TURN_S` seconds are spent before other trio tasks run.
"""

from __future__ import annotations

import math
import select
import socket
import time
from typing import Any, Final, Protocol

import trio

from .kernel import Kernel
from .requests import Request
from .timers import Timers
from core.errors import DeadlineError

_LINGER_S: Final = 60e-6
_TURN_PACKETS: Final = 64
_TURN_S: Final = 500e-6


class Watched(Protocol):
    """What the rim watches: a socket, and what to do when it is ready."""

    socket: socket.socket

    def readable(self) -> bool:
        """Take one packet; False when none was there."""

    def writable(self) -> None:
        """Send what waits."""


def _trio_epoll() -> int:
    """Return the descriptor of trio's own epoll set, -1 where this trio does not show it."""
    try:
        runner: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner  # type: ignore[attr-defined]  # noqa: SLF001
        return int(runner.io_manager._epoll.fileno())  # noqa: SLF001
    except AttributeError:
        return -1


class Rim:
    """Watches lines and fires timers. One per kernel, run by one trio task."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        self._parked: trio.lowlevel.Task | None = None
        self._earlier = trio.Event()
        self.timers = Timers(time.monotonic, self._wake_timers)
        self._turns = 0

    def add(self, watched: Watched) -> None:
        """Watch a socket from now on."""
        number = watched.socket.fileno()
        self._watched[number] = watched
        self._epoll.register(number, select.EPOLLIN)

    def remove(self, watched: Watched) -> None:
        """Stop watching; call it before the socket is closed."""
        number = watched.socket.fileno()
        if self._watched.pop(number, None) is not None:
            self._epoll.unregister(number)

    def watch_writable(self, watched: Watched) -> None:
        """Call `writable` once the socket takes data again."""
        number = watched.socket.fileno()
        if number in self._watched:
            self._epoll.modify(number, select.EPOLLIN | select.EPOLLOUT)

    def expire(self, request: Request, delay_s: float) -> None:
        """End a request with DeadlineError if it is not answered in time."""
        kernel = self.kernel
        timer = self.timers.arm(
            delay_s, lambda: kernel.abort(request, DeadlineError(f"{request.spec} took too long"))
        )
        request.timer = timer

    kernel: Kernel
    """Set by boot, before `run`."""

    def sometimes(self) -> bool:
        """Return True once in sixteen times."""
        self._turns += 1
        return self._turns & 15 == 0

    async def run(self) -> None:
        """Serve lines and timers until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_timers)
            await self._run_lines()

    async def _run_lines(self) -> None:
        epoll, trio_epoll = self._epoll, _trio_epoll()
        both = (epoll.fileno(), trio_epoll) if trio_epoll >= 0 else (epoll.fileno(),)
        if max(both) >= 1024:  # noqa: PLR2004 - select(2) goes no further
            both = ()
        while True:
            taken = 0
            began = time.monotonic()
            while True:
                events = epoll.poll(0)
                if not events:
                    if not taken or not both:
                        break
                    if not select.select(both, (), (), _LINGER_S)[0]:
                        break
                    events = epoll.poll(0)
                    if not events:
                        break  # trio has something to do
                for number, event in events:
                    self._serve(number, event)
                taken += 1
                if taken >= _TURN_PACKETS or time.monotonic() - began > _TURN_S:
                    break
            if events:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(epoll.fileno())

    def _serve(self, number: int, event: int) -> None:
        watched = self._watched.get(number)
        if watched is None:
            return
        if event & select.EPOLLOUT:
            self._epoll.modify(number, select.EPOLLIN)
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
        """Close the epoll set."""
        self._epoll.close()
