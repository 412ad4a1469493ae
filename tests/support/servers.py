"""Servers that exist to be tested with: they show what a server sees, and fail when told to.

Each keeps a journal, a file of one line for each thing that happened to it, which outlives it.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import msgspec
import trio

from core.abi import Right
from core.errors import Refused
from core.system.names import Names
from core.userlib.interface import Bulk, Descriptor, Interface, operation
from core.userlib.isolated import IsolatedTask
from core.userlib.server import Forward, Server
from core.userlib.task import Task, complete


class Point(msgspec.Struct, frozen=True, array_like=True):
    """Something with structure, to send."""

    x: int
    y: float
    tags: list[str] = []


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """What a server saw of a request."""

    id: int
    badge: int
    redelivered: bool
    generation: int


class Probe(Interface):
    """Operations that do not wait."""

    @operation(idempotent=True)
    async def seen(self) -> Seen:
        """Return what the server sees of this request."""

    @operation
    async def echo(self, number: int, text: str) -> tuple[int, str]:
        """Return both."""

    @operation
    async def move(self, point: Point, by: dict[str, float]) -> Point:
        """Return a point further on."""

    @operation(room="room")
    async def mirror(self, room: int, data: Bulk) -> Bulk:
        """Return the same octets."""

    @operation
    async def digest(self, data: Bulk) -> int:
        """Return the CRC-32 of the octets."""

    @operation(room="size")
    async def fill(self, size: int, octet: int) -> Bulk:
        """Return `size` octets, written in place."""

    @operation
    async def mint(self, badge: int, operations: list[str]) -> Right:
        """Return a right to the server."""

    @operation
    async def once(self, badge: int) -> Right:
        """Return a right to the server that is used up by one message."""

    @operation
    async def two(self) -> tuple[str, Right, Right]:
        """Return two rights and a word."""

    @operation
    async def hold(self, right: Right) -> None:
        """Keep a right until `let_go`."""

    @operation
    async def turn_down(self, right: Right) -> None:
        """Refuse, whatever was carried."""

    @operation
    async def let_go(self) -> Right:
        """Return the right that was held."""

    @operation
    async def revoke_minted(self) -> None:
        """Revoke every right to the server that it gave."""

    @operation
    async def read_from(self, size: int, descriptor: Descriptor) -> bytes:
        """Read from a descriptor that the client lends."""

    @operation
    async def lend(self, text: str) -> Descriptor:
        """Return a descriptor to read `text` from."""

    @operation
    async def refuse(self, errno: int, detail: str) -> None:
        """Refuse."""

    @operation
    async def wrong_reply(self) -> int:
        """Reply with something that is no int."""

    @operation
    async def long_reply(self, size: int) -> str:
        """Return a text of that length."""

    @operation
    async def fault(self, deaths: int) -> int:
        """Fail for the first `deaths` times that this very request arrives."""

    @operation
    async def exit(self, deaths: int) -> int:
        """End the process at once, without a word, for the first `deaths` times."""

    @operation
    async def remember(self, text: str) -> None:
        """Write a line into the journal."""

    @operation
    async def arm(self, delay_s: float, bits: int) -> int:
        """Arm a timer."""

    @operation
    async def disarm(self, timer: int) -> None:
        """Disarm it."""

    @operation
    async def keep(self, label: str, text: bytes) -> None:
        """Have the kernel keep a memory object with this text."""

    @operation
    async def kept(self, label: str) -> bytes:
        """Return what is kept."""

    @operation
    async def open_port(self, badge: int) -> tuple[int, Right]:
        """Make another port; return its name and a right to it."""

    @operation
    async def port(self) -> int:
        """Return the name of the port that this request came to."""

    @operation
    async def close_port(self, name: int) -> None:
        """Give up a port made with `open_port`."""

    @operation
    async def pass_port(self, name: int, to: Right) -> None:
        """Send the receive right of such a port to a probe, with `hold`."""

    @operation
    async def misplace_port(self, name: int, to: Right) -> None:
        """Send the receive right of such a port to a name server, which serves something else."""


class Journal:
    """A file of lines, that any incarnation appends to; it is opened once, by the first line."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._file: Descriptor | None = None

    def open(self) -> Descriptor:
        """Open the file, if it is not."""
        if self._file is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = Descriptor(os.open(self._path, flags, 0o600))
        return self._file

    def add(self, *words: object) -> None:
        """Append a line; one write(2), so that lines of several tasks do not mix."""
        os.write(self.open().fileno(), (" ".join(str(word) for word in words) + "\n").encode())

    def lines(self) -> list[str]:
        """Return all lines."""
        if self._file is not None:  # a confined server can open nothing after its start
            size = os.lseek(self._file.fileno(), 0, os.SEEK_END)
            return os.pread(self._file.fileno(), size, 0).decode().splitlines()
        return self._path.read_text().splitlines() if self._path.exists() else []

    def count(self, line: str) -> int:
        """Return how often a line is there."""
        return self.lines().count(line)


class ProbeServer(Server):
    """Served by the blocking loop when it has a process of its own."""

    interface = Probe

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.journal = Journal(task.options["journal"])
        self._held: Right | None = None
        self._minted: list[Right] = []
        self._ports: dict[int, Right] = {}
        # a confined server has to have what it needs when it starts
        self._memory = [Descriptor(os.memfd_create("kept", os.MFD_CLOEXEC)) for _ in range(4)]
        self.journal.add(task.name, "starts")

    def stop(self) -> None:
        """Note it."""
        self.journal.add(self.task.name, "stops")

    def no_senders(self, badge: int) -> None:
        """Note it."""
        where = "" if self.request.port == 1 else " elsewhere"
        self.journal.add(f"gone {badge}{where}")

    def notified(self, bits: int) -> None:
        """Note it."""
        self.journal.add("bits", bits)

    def seen(self) -> Seen:
        """See `Probe`."""
        about = self.request
        return Seen(about.id, about.badge, about.redelivered, self.task.generation)

    def echo(self, number: int, text: str) -> tuple[int, str]:
        """See `Probe`."""
        return number, text

    def move(self, point: Point, by: dict[str, float]) -> Point:
        """See `Probe`."""
        return Point(point.x + int(by.get("x", 0)), point.y + by.get("y", 0.0), point.tags)

    def mirror(self, room: int, data: Bulk) -> Bulk:
        """See `Probe`."""
        return data

    def digest(self, data: Bulk) -> int:
        """See `Probe`."""
        return zlib.crc32(data)

    def fill(self, size: int, octet: int) -> Bulk:
        """See `Probe`."""
        view = self.request.buffer(size)
        view[:] = bytes([octet]) * size
        return view

    def mint(self, badge: int, operations: list[str]) -> Right:
        """See `Probe`."""
        return self.task.mint(badge, operations or None)

    def once(self, badge: int) -> Right:
        """See `Probe`."""
        return self.task.mint_once(badge)

    def two(self) -> tuple[str, Right, Right]:
        """See `Probe`."""
        return "two", self.task.mint(501), self.task.mint(502)

    def hold(self, right: Right) -> None:
        """See `Probe`."""
        self._held = right

    def turn_down(self, right: Right) -> None:
        """See `Probe`."""
        raise Refused(1)

    def let_go(self) -> Right:
        """See `Probe`."""
        if self._held is None:
            raise Refused(2)
        right, self._held = self._held, None
        return right

    def revoke_minted(self) -> None:
        """See `Probe`."""
        right = self.task.mint(777)
        self._minted.append(right)
        self.task.revoke(right)

    def read_from(self, size: int, descriptor: Descriptor) -> bytes:
        """See `Probe`."""
        return os.read(descriptor.fileno(), size)

    def lend(self, text: str) -> Descriptor:
        """See `Probe`."""
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        return Descriptor(reading)

    def refuse(self, errno: int, detail: str) -> None:
        """See `Probe`."""
        raise Refused(errno, detail)

    def wrong_reply(self) -> int:
        """See `Probe`."""
        return "not an int"  # type: ignore[return-value]

    def long_reply(self, size: int) -> str:
        """See `Probe`."""
        return "x" * size

    def _arrivals(self, name: str) -> int:
        line = f"{name} {self.request.id}"
        self.journal.add(line)
        return self.journal.count(line)

    def fault(self, deaths: int) -> int:
        """See `Probe`."""
        arrivals = self._arrivals("fault")
        if arrivals <= deaths:
            raise RuntimeError("told to fail")
        return arrivals

    def exit(self, deaths: int) -> int:
        """See `Probe`."""
        if not isinstance(self.task, IsolatedTask):
            raise Refused(1, "a promoted server that exits takes the kernel along")
        arrivals = self._arrivals("exit")
        if arrivals <= deaths:
            os._exit(3)
        return arrivals

    def remember(self, text: str) -> None:
        """See `Probe`."""
        self.journal.add(text)

    def arm(self, delay_s: float, bits: int) -> int:
        """See `Probe`."""
        return self.task.arm(delay_s, bits)

    def disarm(self, timer: int) -> None:
        """See `Probe`."""
        self.task.disarm(timer)

    def keep(self, label: str, text: bytes) -> None:
        """See `Probe`."""
        memory = self._memory.pop()
        os.pwrite(memory.fileno(), text, 0)
        self.task.keep(label, memory.fileno())

    def kept(self, label: str) -> bytes:
        """See `Probe`."""
        number = self.task.kept(label)
        if number is None:
            raise Refused(2)
        try:
            return os.pread(number, 4096, 0)
        finally:
            os.close(number)

    def open_port(self, badge: int) -> tuple[int, Right]:
        """See `Probe`."""
        port = self.task.create_port("more")
        name: int = port.name  # type: ignore[attr-defined]
        self._ports[name] = port
        return name, self.task.mint(badge, None, port)

    def port(self) -> int:
        """See `Probe`."""
        return self.request.port

    def close_port(self, name: int) -> None:
        """See `Probe`."""
        self.task.drop(self._ports.pop(name))

    def pass_port(self, name: int, to: Right) -> None:
        """See `Probe`."""
        self.task.send(to, Probe.named("hold"), (self._ports.pop(name),))

    def misplace_port(self, name: int, to: Right) -> None:
        """See `Probe`."""
        complete(self.task.connect(Names, to).register("port", self._ports[name]))


class Slow(Interface):
    """Operations that wait."""

    @operation(waits=True)
    async def wait(self, key: int) -> Seen:
        """Wait for `release`, or for being withdrawn."""

    @operation
    async def release(self, key: int) -> int:
        """Let the waiting requests of that key go; return how many there were."""

    @operation(waits=True, room="room")
    async def mirror(self, key: int, room: int, data: Bulk) -> Bulk:
        """Wait for `release`, then return the same octets."""

    @operation(waits=True)
    async def fault(self, deaths: int) -> int:
        """Fail after a moment, for the first `deaths` times that this request arrives."""

    @operation(waits=True)
    async def typed(self, number: int, names: list[str]) -> int:
        """Return the sum of number and length."""

    @operation
    async def seen(self) -> Seen:
        """Return what the server sees of this request."""


class SlowServer(Server):
    """Served under trio."""

    interface = Slow

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.journal = Journal(task.options["journal"])
        self._waiting: dict[int, list[trio.Event]] = {}
        self.journal.add(task.name, "starts")

    def no_senders(self, badge: int) -> None:
        """Note it."""
        self.journal.add("slow gone", badge)

    async def _wait(self, key: int) -> None:
        event = trio.Event()
        waiting = self._waiting.setdefault(key, [])
        waiting.append(event)
        self.journal.add("waits", key)
        try:
            await event.wait()
        except trio.Cancelled:
            self.journal.add("withdrawn", key)
            raise
        finally:
            waiting.remove(event)

    async def wait(self, key: int) -> Seen:
        """See `Slow`."""
        seen = self.seen()
        await self._wait(key)
        return seen

    def release(self, key: int) -> int:
        """See `Slow`."""
        waiting = list(self._waiting.get(key, ()))
        for event in waiting:
            event.set()
        return len(waiting)

    async def mirror(self, key: int, room: int, data: Bulk) -> Bulk:
        """See `Slow`."""
        kept = bytes(data)
        await self._wait(key)
        return kept

    async def fault(self, deaths: int) -> int:
        """See `Slow`."""
        line = f"slow fault {self.request.id}"
        self.journal.add(line)
        arrivals = self.journal.count(line)
        await trio.lowlevel.checkpoint()
        if arrivals <= deaths:
            raise RuntimeError("told to fail")
        return arrivals

    async def typed(self, number: int, names: list[str]) -> int:
        """See `Slow`."""
        return number + len(names)

    def seen(self) -> Seen:
        """See `Slow`."""
        about = self.request
        return Seen(about.id, about.badge, about.redelivered, self.task.generation)


class Relay(Interface):
    """Operations that another server answers."""

    @operation
    async def echo(self, number: int, text: str) -> tuple[int, str]:
        """Forwarded to `Probe.echo`, the number doubled."""

    @operation
    async def seen(self) -> Seen:
        """Forwarded to `Probe.seen`."""

    @operation(room="room")
    async def mirror(self, room: int, data: Bulk) -> Bulk:
        """Forwarded to `Probe.mirror`."""

    @operation
    async def read_from(self, size: int, descriptor: Descriptor) -> bytes:
        """Forwarded to `Probe.read_from`."""

    @operation
    async def remember(self, text: str) -> None:
        """Forwarded to `Probe.remember`."""

    @operation
    async def wait(self, key: int) -> Seen:
        """Forwarded to `Slow.wait`."""

    @operation
    async def refuse(self, errno: int, detail: str) -> None:
        """Forwarded to `Probe.refuse`."""

    @operation
    async def wrong_kind(self) -> int:
        """Forwarded to `Probe.seen`, which replies something else."""

    @operation(waits=True)
    async def later(self) -> Seen:
        """Forwarded to `Probe.seen` after a moment."""

    @operation
    async def in_circles(self) -> int:
        """Forwarded to itself."""


class RelayServer(Server):
    """Forwards everything."""

    interface = Relay

    def echo(self, number: int, text: str) -> tuple[int, str]:
        """See `Relay`."""
        raise Forward(self.task.rights["probe"], Probe.echo, 2 * number, text)

    def seen(self) -> Seen:
        """See `Relay`."""
        raise Forward(self.task.rights["probe"], Probe.seen)

    def mirror(self, room: int, data: Bulk) -> Bulk:
        """See `Relay`."""
        raise Forward(self.task.rights["probe"], Probe.mirror, room)

    def read_from(self, size: int, descriptor: Descriptor) -> bytes:
        """See `Relay`."""
        raise Forward(self.task.rights["probe"], Probe.read_from, size)

    def remember(self, text: str) -> None:
        """See `Relay`."""
        raise Forward(self.task.rights["probe"], Probe.remember, text)

    def wait(self, key: int) -> Seen:
        """See `Relay`."""
        raise Forward(self.task.rights["slow"], Slow.wait, key)

    def refuse(self, errno: int, detail: str) -> None:
        """See `Relay`."""
        raise Forward(self.task.rights["probe"], Probe.refuse, errno, detail)

    def wrong_kind(self) -> int:
        """See `Relay`."""
        raise Forward(self.task.rights["probe"], Probe.seen)

    async def later(self) -> Seen:
        """See `Relay`."""
        await trio.lowlevel.checkpoint()
        raise Forward(self.task.rights["probe"], Probe.seen)

    def in_circles(self) -> int:
        """See `Relay`."""
        raise Forward(self.task.rights["self"], Relay.in_circles)


class Mortal(Interface):
    """A server to try restart policies on."""

    @operation
    async def die(self) -> None:
        """Fail, every time."""

    @operation
    async def generation(self) -> int:
        """Return the incarnation's number."""


class MortalServer(Server):
    """See `Mortal`."""

    interface = Mortal

    def die(self) -> None:
        """See `Mortal`."""
        raise RuntimeError("as told")

    def generation(self) -> int:
        """See `Mortal`."""
        return self.task.generation
