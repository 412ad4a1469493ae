"""Servers that fail in every way there is, when told to: one that waits, and one that does not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import threading
import time

import trio

from core.abi import Kind
from core.userlib.interface import Interface, operation
from core.userlib.isolated import IsolatedTask
from core.userlib.server import Server
from core.userlib.task import Task

from .servers import Journal

MEMORY_LIMIT = 64 << 20
"""Octets of address space that `hog` may take beyond what it has."""


class Afflicted(Interface):
    """Every operation takes how many deaths it brings; after those it returns how often it came."""

    @operation
    async def halt(self, deaths: int) -> int:
        """Stop the process, as SIGSTOP from outside would."""

    @operation
    async def spin(self, deaths: int) -> int:
        """Run for ever."""

    @operation
    async def hog(self, deaths: int) -> int:
        """Use up all memory under a limit."""

    @operation
    async def fail(self, deaths: int) -> int:
        """Raise."""

    @operation
    async def leave(self, deaths: int) -> int:
        """End the process, with status 3."""

    @operation
    async def crash(self, deaths: int) -> int:
        """Read from address 0."""

    @operation
    async def doze(self, deaths: int) -> int:
        """Sleep in the host for an hour."""

    @operation
    async def work(self, cpu_s: float) -> float:
        """Use that much processor time, honestly; return it."""

    @operation
    async def flood(self, packets: int) -> int:
        """Send signs of life that nobody asked for."""

    @operation
    async def deaf(self) -> None:
        """Never answer, though a thread goes on giving signs of life."""

    @operation
    async def generation(self) -> int:
        """Return the incarnation's number."""


class _Deadly:
    """What both servers do."""

    task: Task
    journal: Journal

    def arrivals(self, name: str, number: int) -> int:
        """Note that a request has come; return how often it has."""
        line = f"{name} {number}"
        self.journal.add(line)
        return self.journal.count(line)

    def crash_now(self) -> None:
        """Die of a segmentation fault."""
        ctypes.string_at(0)

    def hog_now(self) -> None:
        """Run out of memory. A confined server has its limit from its birth."""
        with contextlib.suppress(PermissionError):
            resource.setrlimit(resource.RLIMIT_AS, (_used() + MEMORY_LIMIT, resource.RLIM_INFINITY))
        held = [bytearray(1 << 20)]
        while True:
            held.append(bytearray(1 << 20))


def _used() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


class AfflictedServer(Server, _Deadly):
    """Served by the blocking loop."""

    interface = Afflicted

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.journal = Journal(task.options["journal"])
        self.journal.open()  # a confined server can open nothing after its start
        hang = task.options.get("hang_at_start", 0)
        if hang and task.generation < hang:
            while True:
                pass

    def _deadly(self, name: str, deaths: int) -> tuple[bool, int]:
        arrivals = self.arrivals(name, self.request.id)
        return arrivals <= deaths, arrivals

    def halt(self, deaths: int) -> int:
        """See `Afflicted`."""
        deadly, arrivals = self._deadly("halt", deaths)
        if deadly:
            os.kill(os.getpid(), signal.SIGSTOP)
        return arrivals

    def spin(self, deaths: int) -> int:
        """See `Afflicted`."""
        deadly, arrivals = self._deadly("spin", deaths)
        while deadly:
            pass
        return arrivals

    def hog(self, deaths: int) -> int:
        """See `Afflicted`."""
        deadly, arrivals = self._deadly("hog", deaths)
        if deadly:
            self.hog_now()
        return arrivals

    def fail(self, deaths: int) -> int:
        """See `Afflicted`."""
        deadly, arrivals = self._deadly("fail", deaths)
        return arrivals // (0 if deadly else 1)

    def leave(self, deaths: int) -> int:
        """See `Afflicted`."""
        deadly, arrivals = self._deadly("leave", deaths)
        if deadly:
            os._exit(3)
        return arrivals

    def crash(self, deaths: int) -> int:
        """See `Afflicted`."""
        deadly, arrivals = self._deadly("crash", deaths)
        if deadly:
            self.crash_now()
        return arrivals

    def doze(self, deaths: int) -> int:
        """See `Afflicted`."""
        deadly, arrivals = self._deadly("doze", deaths)
        if deadly:
            time.sleep(3600)
        return arrivals

    def work(self, cpu_s: float) -> float:
        """See `Afflicted`."""
        began = time.process_time()
        while time.process_time() - began < cpu_s:
            sum(range(1000))
        return time.process_time() - began

    def flood(self, packets: int) -> int:
        """See `Afflicted`."""
        assert isinstance(self.task, IsolatedTask)
        for number in range(packets):
            self.task.line.send(Kind.PONG, request=number)
        return packets

    def deaf(self) -> None:
        """See `Afflicted`."""
        task = self.task
        assert isinstance(task, IsolatedTask)

        def go_on() -> None:
            while True:
                task.line.send(Kind.PONG)
                time.sleep(0.05)

        threading.Thread(target=go_on, daemon=True).start()
        while True:
            time.sleep(3600)

    def generation(self) -> int:
        """See `Afflicted`."""
        return self.task.generation


class AfflictedSlow(Interface):
    """The same for a server that waits."""

    @operation(waits=True)
    async def wait(self, key: int) -> int:
        """Wait for `release`; return the incarnation's number."""

    @operation
    async def release(self, key: int) -> int:
        """Let the waiting requests of that key go; return how many there were."""

    @operation(waits=True)
    async def echo(self, text: str) -> str:
        """Return it after a moment."""

    @operation(waits=True)
    async def crash(self, after_s: float) -> None:
        """Die of a segmentation fault after that time, always."""

    @operation(waits=True)
    async def leave(self, after_s: float) -> None:
        """End the process after that time, always."""

    @operation(waits=True)
    async def spin(self, deaths: int) -> int:
        """Run for ever."""

    @operation
    async def generation(self) -> int:
        """Return the incarnation's number."""


class AfflictedSlowServer(Server, _Deadly):
    """Served under trio."""

    interface = AfflictedSlow

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.journal = Journal(task.options["journal"])
        self.journal.open()  # a confined server can open nothing after its start
        self._waiting: dict[int, list[trio.Event]] = {}

    async def wait(self, key: int) -> int:
        """See `AfflictedSlow`."""
        event = trio.Event()
        self._waiting.setdefault(key, []).append(event)
        self.journal.add("waits", key)
        await event.wait()
        return self.task.generation

    def release(self, key: int) -> int:
        """See `AfflictedSlow`."""
        waiting = self._waiting.pop(key, [])
        for event in waiting:
            event.set()
        return len(waiting)

    async def echo(self, text: str) -> str:
        """See `AfflictedSlow`."""
        await trio.lowlevel.checkpoint()
        return text

    async def crash(self, after_s: float) -> None:
        """See `AfflictedSlow`."""
        self.journal.add("crash arrives")
        await trio.sleep(after_s)
        self.crash_now()

    async def leave(self, after_s: float) -> None:
        """See `AfflictedSlow`."""
        self.journal.add("leave arrives")
        await trio.sleep(after_s)
        os._exit(3)

    async def spin(self, deaths: int) -> int:
        """See `AfflictedSlow`."""
        arrivals = self.arrivals("spin", self.request.id)
        await trio.lowlevel.checkpoint()
        while arrivals <= deaths:
            pass
        return arrivals

    def generation(self) -> int:
        """See `AfflictedSlow`."""
        return self.task.generation
