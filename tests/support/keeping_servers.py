"""Servers with state that end at chosen instants, as a kill or a fault would end them.

`Deadly` stands in for the kept memory of a server and ends it after a number of octets of the next
commit: in a process of its own by SIGKILL, in the kernel's process by a fault.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
from typing import Final

import msgspec
import trio

from core.abi import Right
from core.errors import Refused
from core.userlib.interface import Bulk, Interface, operation
from core.userlib.isolated import IsolatedTask
from core.userlib.server import Forward, Server
from core.userlib.task import Task

HEAD_SIZE: Final = 16
NEVER: Final = 1 << 40
POINTS: Final = ("entered", "changed", "half", "written", "torn", "committed", "replied")
"""Instants of a request at which a server can be told to end."""


class Counts(msgspec.Struct):
    """What the servers here keep."""

    total: int = 0
    gone: list[int] = []
    bits: int = 0
    text: str = ""


class Counting(Interface):
    """Operations that do not wait."""

    @operation
    async def add(self, amount: int) -> int:
        """Count, and return the sum."""

    @operation(idempotent=True)
    async def counts(self) -> Counts:
        """Return everything."""

    @operation
    async def refuse(self, amount: int) -> int:
        """Count, then decline."""

    @operation
    async def pass_on(self, amount: int) -> int:
        """Count, then have another server of this kind answer."""

    @operation
    async def spoil(self, how: str) -> int:
        """Make the state one that cannot be kept."""

    @operation
    async def write(self, text: str) -> None:
        """Keep a text."""

    @operation(room="size")
    async def cut(self, size: int) -> Bulk:
        """Take octets from the text."""

    @operation(idempotent=True)
    async def right(self, badge: int) -> tuple[int, Right]:
        """Count one, and return a right."""

    @operation
    async def arm(self, bits: int) -> None:
        """Have bits come by timer."""

    @operation
    async def die(self, point: str) -> None:
        """End at this instant of the next request that changes something."""

    @operation
    async def lose(self, detail: str) -> None:
        """Say that something is lost."""


class Deadly:
    """Memory that ends its server after some octets."""

    def __init__(self, memory: mmap.mmap, server: CountingServer) -> None:
        self.memory = memory
        self._server = server
        self.left = NEVER
        """Octets that may still be stored."""

    def __getitem__(self, where: slice) -> bytes:
        return self.memory[where]

    def __setitem__(self, where: slice, value: bytes) -> None:
        taken = value[: self.left]
        self.memory[where.start : where.start + len(taken)] = taken
        self.left -= len(value)
        if self.left <= 0:
            self._server.end()

    def close(self) -> None:
        """Unmap it."""
        self.memory.close()


class CountingServer(Server):
    """Counts. Options: `storm`, how many additions a life has at most; `forgetful`, no records."""

    interface = Counting
    state: Counts

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        assert self.keeper is not None
        self._entered = False
        self._chance = random.Random(task.generation)
        self._lives_for = self._chance.randint(1, task.options.get("storm", NEVER))
        if task.options.get("forgetful"):
            self.keeper._recorded = lambda request: None  # type: ignore[method-assign]

    def end(self) -> None:
        """End, as this placement can."""
        if isinstance(self.task, IsolatedTask):
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("told to end")

    def die(self, point: str) -> None:
        """See `Counting`."""
        assert self.keeper is not None
        kept = self.keeper.value
        assert kept.memory is not None
        if point == "entered":
            self._entered = True
            return
        if point == "replied":
            self._end_after_reply()
            return
        memory = Deadly(kept.memory, self)
        kept.memory = memory  # type: ignore[assignment]  # it does all that is done with it
        store = kept.store

        def store_and_end(value: bytes) -> None:
            size = len(value)
            octets_left = {
                "changed": 0, "half": size // 2, "written": size, "torn": size + HEAD_SIZE // 2,
                "committed": size + HEAD_SIZE,
            }  # fmt: skip
            memory.left = octets_left[point]
            store(value)

        kept.store = store_and_end  # type: ignore[method-assign]

    def _end_after_reply(self) -> None:
        task = self.task
        if not isinstance(task, IsolatedTask):
            raise Refused(errno.ENOSYS, "a promoted server has no line")
        reply = task.line.reply_simple
        left = iter((False, True))  # the reply to `die` itself comes first

        def reply_and_end(number: int, fields: bytes) -> None:
            reply(number, fields)
            if next(left):
                self.end()

        task.line.reply_simple = reply_and_end  # type: ignore[method-assign]

    def add(self, amount: int) -> int:
        """See `Counting`."""
        if self._entered:
            self.end()
        self._lives_for -= 1
        if not self._lives_for:
            self.die(self._chance.choice(POINTS[1:-1]))
        self.state.total += amount
        return self.state.total

    def counts(self) -> Counts:
        """See `Counting`."""
        return self.state

    def refuse(self, amount: int) -> int:
        """See `Counting`."""
        self.state.total += amount
        raise Refused(errno.EDOM)

    def pass_on(self, amount: int) -> int:
        """See `Counting`."""
        self.state.total += amount
        raise Forward(self.task.rights["other"], Counting.add, amount)

    def spoil(self, how: str) -> int:
        """See `Counting`."""
        if how == "type":
            self.state.total = "three"  # type: ignore[assignment]
        elif how == "unencodable":
            self.state.total = object()  # type: ignore[assignment]
        else:
            self.state.text = "x" * int(how)
        return 0

    def write(self, text: str) -> None:
        """See `Counting`."""
        self.state.text = text

    def cut(self, size: int) -> Bulk:
        """See `Counting`."""
        taken, self.state.text = self.state.text[:size], self.state.text[size:]
        return taken.encode()

    def right(self, badge: int) -> tuple[int, Right]:
        """See `Counting`."""
        self.state.total += 1
        return self.state.total, self.task.mint(badge)

    def arm(self, bits: int) -> None:
        """See `Counting`."""
        self.task.arm(0.0, bits)

    def notified(self, bits: int) -> None:
        """Keep them."""
        self.state.bits |= bits

    def no_senders(self, badge: int) -> None:
        """Keep who is gone."""
        self.state.gone.append(badge)

    def lose(self, detail: str) -> None:
        """See `Counting`."""
        self.lost(detail)


class TicketState(msgspec.Struct):
    """What is kept of tickets."""

    made: int = 0
    taken: int = 0
    ticks: int = 0
    stops: int = 0


class Tickets(Interface):
    """Operations that wait."""

    @operation(waits=True)
    async def take(self) -> int:
        """Return the next ticket, as soon as there is one."""

    @operation
    async def put(self, count: int) -> int:
        """Make tickets; return how many nobody has taken."""

    @operation(waits=True)
    async def change_and_wait(self) -> int:
        """Break the rule."""

    @operation(waits=True)
    async def change_and_decline(self) -> int:
        """Count, then decline."""

    @operation(idempotent=True)
    async def seen(self) -> TicketState:
        """Return the state."""


class TicketServer(Server):
    """Hands out tickets, each once. Served under trio; its `run` counts the lives of the server."""

    interface = Tickets
    state: TicketState

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._more = trio.Event()

    async def run(self) -> None:
        """Count once, and wait for ever."""
        self.state.ticks += 1
        await trio.sleep_forever()

    def stop(self) -> None:
        """Count that, too."""
        self.state.stops += 1

    async def take(self) -> int:
        """See `Tickets`."""
        while self.state.taken == self.state.made:
            await self._more.wait()
        self.state.taken += 1
        return self.state.taken

    def put(self, count: int) -> int:
        """See `Tickets`."""
        self.state.made += count
        self._more.set()
        self._more = trio.Event()
        return self.state.made - self.state.taken

    async def change_and_wait(self) -> int:
        """See `Tickets`."""
        self.state.made += 1000
        await self._more.wait()
        return 0

    async def change_and_decline(self) -> int:
        """See `Tickets`."""
        await trio.lowlevel.checkpoint()
        self.state.made += 1000
        raise Refused(errno.EDOM)

    def seen(self) -> TicketState:
        """See `Tickets`."""
        return self.state
