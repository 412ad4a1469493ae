"""Servers for the tests of consent: some die at a chosen step, one lies, one never answers.

A step is a moment before or after something that another process can notice, or that is stored. A
test asks for a death by having the kernel keep a memory object for the task under `CRASH`, with the
number of the step in it. Steps count from the moment that the link is asked for.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, ClassVar

from core.userlib.interface import Interface, operation
from core.userlib.server import Server
from core.userlib.task import Task
from net_server import host_device
from net_server.borrowed import BorrowedLink
from net_server.link import Link, LinkState
from net_server.server import NetServer
from net_server.tap import TapServer

CRASH = "crash"


class Steps:
    """Counts steps, and ends the process at the one that was asked for."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._left = 0

    def begin(self) -> None:
        """Count from here, if a death was asked for."""
        kept = self._task.kept(CRASH)
        if kept is not None and not self._left:
            self._left = int(os.pread(kept, 20, 0))
            os.close(kept)

    def _step(self) -> None:
        if self._left:
            self._left -= 1
            if not self._left:
                self._task.forget(CRASH)
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, place: Any, name: str) -> None:
        """Make what `place.name` does a step, before and after."""
        real: Callable[..., Any] = getattr(place, name)

        def stepping(*words: Any, **named: Any) -> Any:
            self._step()
            result = real(*words, **named)
            self._step()
            return result

        setattr(place, name, stepping)

    def around_call(self, place: Any, name: str) -> None:
        """Make a call to another server a step, before and after."""
        real: Callable[..., Any] = getattr(place, name)

        async def stepping(*words: Any) -> Any:
            self._step()
            result = await real(*words)
            self._step()
            return result

        setattr(place, name, stepping)


class MortalTap(TapServer):
    """A driver that dies at a step of a change of hands."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._steps = Steps(task)
        self._steps.around(self._snapshot, "store")
        self._steps.around(self._attachment, "let_go")
        for place, name in (
            (task, "keep"),
            (task, "forget"),
            (host_device, "set_persistent"),
            (host_device, "attach"),
            (host_device, "set_offloads"),
        ):
            self._steps.around(place, name)
        if self._consent.state.ask is not None:
            self._steps.begin()

    async def take_over(self, timeout_ms: int) -> None:
        """Begin to count."""
        self._steps.begin()
        await super().take_over(timeout_ms)


class MortalNet(NetServer):
    """A network server that dies at a step of giving up the link, or of taking it over."""

    async def start(self) -> None:
        """Have all that matters counted."""
        self._steps = Steps(self.task)
        await super().start()
        borrowed: BorrowedLink = self._link
        for name in ("release", "replace"):
            self._steps.around(borrowed.device, name)
        self._steps.around_call(borrowed, "take_over")
        for name in ("lend", "answer", "take_over"):
            self._steps.around_call(borrowed._link, name)

    def _reason_to_keep(self) -> str:
        self._steps.begin()
        return super()._reason_to_keep()

    async def link_take(self, timeout_ms: int) -> None:
        """Begin to count."""
        self._steps.begin()
        await super().link_take(timeout_ms)


class Door(Interface):
    """What a test asks of a strange holder."""

    @operation
    async def frames(self) -> int:
        """Return how many frames can be read from the descriptor that was lent."""

    @operation
    async def let_go(self) -> None:
        """Close it."""


class Liar(Server):
    """Holds the link, says yes to everybody, and goes on reading."""

    interface: ClassVar[type[Interface]] = Door

    async def start(self) -> None:
        """Borrow the link."""
        self._link = self.task.connect(Link, "link")
        _, self._device = await self._link.lend()

    async def run(self) -> None:
        """Say yes."""
        version = 0
        while True:
            state = await self._link.watch(version)
            version = state.version
            await self._consider(state)

    async def _consider(self, state: LinkState) -> None:
        if state.mine and state.pending is not None:
            counts = await self._link.answer(state.pending.number, True, "")
            self.task.log(f"my lie counted: {counts}")

    def frames(self) -> int:
        """Read what there is."""
        count = 0
        while True:
            try:
                os.read(self._device.fileno(), 70_000)
            except BlockingIOError:
                return count
            count += 1

    def let_go(self) -> None:
        """Close the descriptor."""
        self._device.close()


class Deaf(Liar):
    """Holds the link and listens to nobody."""

    async def _consider(self, state: LinkState) -> None:
        pass
