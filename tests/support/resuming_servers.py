"""A clerk who answers questions by making entries in a ledger, for tests of resumable calls."""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager, nullcontext

import trio

from core.abi import RESUMABLE_PLACES
from core.errors import AtollError, Refused
from core.userlib.interface import Bulk, Interface, operation
from core.userlib.resuming import Place, outliving
from core.userlib.server import Server
from core.userlib.task import Task

from .servers import Journal

DESCRIPTION = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.ledger]
class = "tests.support.resuming_servers:LedgerServer"
placement = "{placement}"
options = {{ journal = "{journal}" }}
writes = ["{directory}"]

[server.clerk]
class = "tests.support.resuming_servers:ClerkServer"
placement = "{placement}"
grants = {{ ledger = "ledger" }}
options = {{ journal = "{journal}", keeps_promise = {keeps_promise} }}
writes = ["{directory}"]

[joined]
grants = {{ ledger = "ledger" }}
"""
REFUSED = 77


class Ledger(Interface):
    """Entries, each of which is made when it is asked for, and as often."""

    @operation(waits=True)
    async def enter(self, text: str) -> int:
        """Make an entry; return how many there are of this text. `gate`: wait for `open` first."""

    @operation(waits=True)
    async def weigh(self, data: Bulk) -> int:
        """Enter and return the sum of the octets, after `open`."""

    @operation(waits=True)
    async def refuse(self, text: str) -> None:
        """Note the attempt, and refuse."""

    @operation
    async def open(self) -> None:
        """Let go who waits, and wait no more."""

    @operation
    async def lists(self) -> list[str]:
        """Return something of a reply that is fields only."""

    @operation(room="size")
    async def scan(self, size: int) -> Bulk:
        """Return octets."""


class LedgerServer(Server):
    """Its entries are lines of the journal."""

    interface = Ledger

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.journal = Journal(task.options["journal"])
        self.journal.open()
        self._gate = trio.Event()

    async def enter(self, text: str) -> int:
        """See `Ledger`."""
        if text == "gate":
            self.journal.add("at the gate")
            await self._gate.wait()
        self.journal.add(text)
        return self.journal.count(text)

    async def weigh(self, data: Bulk) -> int:
        """See `Ledger`."""
        self.journal.add("weighs")
        await self._gate.wait()
        found = zlib.crc32(data)
        self.journal.add("weighed", found)
        return found

    async def refuse(self, text: str) -> None:
        """See `Ledger`."""
        self.journal.add(text)
        raise Refused(REFUSED, text)

    def open(self) -> None:
        """See `Ledger`."""
        self._gate.set()

    def lists(self) -> list[str]:
        """See `Ledger`."""
        return ["x"]

    def scan(self, size: int) -> Bulk:
        """See `Ledger`."""
        return b"x" * size


class Clerk(Interface):
    """Work for one question at a time at each place. Delivered again after the clerk's death."""

    @operation(waits=True)
    async def ask(self, place: int, question: int, words: list[str]) -> list[int]:
        """Enter each word and return the counts; "!word": have it refused; "stay": wait once.

        At "stay" the first incarnation waits for ever.
        """

    @operation(waits=True)
    async def weigh(self, place: int, question: int, octet: int, size: int) -> int:
        """Have so many octets weighed."""

    @operation(waits=True)
    async def give_up(self, place: int, question: int) -> None:
        """Wait at the gate, and no more when "given up" is in the journal."""

    @operation(waits=True)
    async def kept(self) -> list[tuple[int, int]]:
        """Return what the kernel keeps."""

    @operation(waits=True)
    async def flood(self, count: int) -> None:
        """Call at the gate under so many tags, at all places, and wait for none."""

    @operation(waits=True)
    async def misuse(self, how: str) -> str:
        """Make a call that cannot be resumable; return the name of the error."""


class ClerkServer(Server):
    """See `Clerk`."""

    interface = Clerk

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.journal = Journal(task.options["journal"])
        self.journal.open()
        ledger = task.connect(Ledger, "ledger")
        self._ledger = outliving(ledger) if task.options["keeps_promise"] else ledger
        self._scopes: list[trio.CancelScope] = []

    def _at(self, place: int, question: int) -> AbstractContextManager[None]:
        here = Place(place)
        here.tag = question
        here.enter()
        return nullcontext()

    async def ask(self, place: int, question: int, words: list[str]) -> list[int]:
        """See `Clerk`."""
        found: list[int] = []
        with self._at(place, question):
            for word in words:
                if word == "stay":
                    if self.task.generation == 0:
                        self.journal.add("stays")
                        await trio.sleep_forever()
                elif word.startswith("!"):
                    try:
                        await self._ledger.refuse(word)
                    except Refused as refusal:
                        found.append(-refusal.errno)
                else:
                    found.append(await self._ledger.enter(word))
        return found

    async def weigh(self, place: int, question: int, octet: int, size: int) -> int:
        """See `Clerk`."""
        with self._at(place, question):
            return await self._ledger.weigh(bytes([octet]) * size)

    async def give_up(self, place: int, question: int) -> None:
        """See `Clerk`."""
        with self._at(place, question), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ledger.enter, "gate")
                while not self.journal.count("given up"):  # noqa: ASYNC110 - the test writes it
                    await trio.sleep(0.001)
                scope.cancel()

    async def kept(self) -> list[tuple[int, int]]:
        """See `Clerk`."""
        return self.task.resumable()

    async def flood(self, count: int) -> None:
        """See `Clerk`."""
        right, spec = self.task.rights["ledger"], Ledger.named("enter")
        for tag in range(count):
            with trio.move_on_after(0):
                place = tag % RESUMABLE_PLACES
                await self.task.call_resumable(right, spec, ("gate",), place, tag)

    async def misuse(self, how: str) -> str:
        """See `Clerk`."""
        right = self.task.rights["ledger"]
        call = self.task.call_resumable
        try:
            match how:
                case "place":
                    await call(right, Ledger.named("enter"), ("x",), 32, 1)
                case "steps":
                    for _ in range(100):
                        await call(right, Ledger.named("enter"), ("many",), 0, 5)
                case "bulk":
                    await call(right, Ledger.named("scan"), (10,), 0, 1)
                case "once":
                    await call(self.task.mint_once(1), Clerk.named("kept"), (), 0, 1)
                case _:
                    return "nothing"
        except AtollError as error:
            return type(error).__name__
        return "none"
