"""The pipe server: byte streams between tasks, with back-pressure and half-close.

Two kinds of clients meet at a pipe. A task holds a right to one end of it (`create`, `attach`): a
badged right to the server's port. When the last right to an end is gone, the kernel says so. A
front end has pipes open by name (`core.userlib.streams`), on behalf of programs of the host. Once
nobody has the one end any more, the other sees the end of the stream (reading) or EPIPE (writing),
as with pipe(2). A pipe lives as long as somebody has an end of it; its name goes with it.

The pipes live in one memory object that the kernel keeps, so that they survive the server. A change
of a pipe becomes valid at once with what is remembered of the newest reads and writes: either one,
asked for again, is answered as before. So the octets of a read stay in the ring until they are
neither among the newest nor in the way; those of the very last read stay in any case, which is why
one read takes half of the ring at most.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator
from typing import Final

from core.abi import BULK_LIMIT, Right
from core.errors import AtollError, Refused
from core.userlib.interface import Bulk, operation
from core.userlib.server import Server
from core.userlib.streams import (
    BROKEN,
    ENDED,
    MET,
    NAME_LIMIT,
    NAMES_LIMIT,
    READABLE,
    READING,
    STREAM_SHIFT,
    WHOLE,
    WRITABLE,
    WRITING,
    Stream,
    Streams,
)
from core.userlib.task import Task

from .pipe_flow import Pipe
from .pipe_memory import (
    LARGE_PIPES,
    LARGE_RING,
    OPENINGS_LIMIT,
    PIPES_LIMIT,
    Opening,
    PipeMemory,
    Record,
    new_memory,
)

RING_SIZE: Final = LARGE_RING
"""Octets that a pipe without a name holds."""
WATCHERS_LIMIT: Final = 64
_MEMORY: Final = "pipes and openings"
_WATCH: Final = "watch."
_UNSIGNED: Final = 1 << 64
_ID: Final = 1 << 32
"""Ids of users, and badges of clients, are smaller."""


class Pipes(Streams):
    """The operations on the server (`create`, `attach`) and those on an end of a pipe."""

    @operation
    async def create(self) -> tuple[Right, Right]:
        """Return a new pipe's reading and writing end. Refused: ENFILE at PIPES_LIMIT."""

    @operation
    async def attach(self, name: str, writing: bool) -> Right:
        """Return an end of the pipe called `name`, which is made when there is none."""

    @operation(waits=True, room="size")
    async def read(self, size: int) -> Bulk:
        """Wait for octets and return up to `size` of them; none at the end of the stream."""

    @operation(waits=True)
    async def write(self, data: Bulk) -> int:
        """Wait for room and take a first part of `data`; return its size. Refused: EPIPE."""


class _Watcher:
    """A client that wants to hear what others do. `moved` None: it cannot be known."""

    def __init__(self, right: Right, bits: int) -> None:
        self.right = right
        self.bits = bits
        self.moved: set[int] | None = None


class PipeServer(Server):
    """See the module head."""

    interface = Pipes

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._memory = PipeMemory(self._fetch_memory())
        self._pipes: dict[int, Pipe] = {}
        self._named: dict[bytes, Pipe] = {}
        self._openings: dict[int, Opening] = {}
        self._turns: dict[tuple[int, int], Opening] = {}
        self._watchers: dict[int, _Watcher] = {}
        self._load()

    def _fetch_memory(self) -> int:
        """Return the memory object of earlier incarnations, or of a new one."""
        number = self.task.kept(_MEMORY)
        if number is None:
            number = new_memory()
            self.task.keep(_MEMORY, number)
        return number

    def _load(self) -> None:
        for place in self._memory.places:
            record = self._memory.load(place)
            if record is not None:
                self._enter(Pipe(self._memory, place, record))
        for opening in self._memory.load_openings():
            pipe = self._pipes.get(opening.number >> STREAM_SHIFT)
            if pipe is None:
                self._memory.remove_opening(opening)
            else:
                self._note_opening(pipe, opening)
        taken = {pipe.place for pipe in self._pipes.values()}
        free = [place for place in reversed(range(PIPES_LIMIT)) if place not in taken]
        self._free_large = [place for place in free if place < LARGE_PIPES]
        self._free_small = [place for place in free if place >= LARGE_PIPES]
        used = {opening.place for opening in self._openings.values()}
        self._free_rows = [row for row in range(self._memory.rows) if row not in used]
        for pipe in list(self._pipes.values()):
            self._end_unused(pipe)

    async def start(self) -> None:
        """Go on telling those who watch; what happened around the restart is not known."""
        for label, right in self.task.kept_rights().items():
            if label.startswith(_WATCH):
                client, bits = map(int, label.removeprefix(_WATCH).split("."))
                self._watchers[client] = _Watcher(right, bits)
                self._notify(self._watchers[client])

    # -- the table of pipes ------------------------------------------------------------------------

    def _enter(self, pipe: Pipe) -> None:
        self._pipes[pipe.record.number] = pipe
        if pipe.record.name:
            self._named[pipe.record.name] = pipe

    def _make(self, name: bytes, uid: int = 0, gid: int = 0) -> Pipe:
        places = self._free_small if name or not self._free_large else self._free_large
        if not places:
            raise Refused(errno.ENFILE, "there are as many pipes already as there may be")
        record = Record(self._memory.next_number(), name, uid=uid, gid=gid, made_ns=time.time_ns())
        pipe = Pipe(self._memory, places.pop(), record)
        self._enter(pipe)
        return pipe

    def _end_unused(self, pipe: Pipe) -> None:
        """Give a pipe up if nobody has an end of it."""
        if pipe.is_read or pipe.is_written:
            return
        record = pipe.record
        del self._pipes[record.number]
        if record.name:
            del self._named[record.name]
        self._memory.free(pipe.place)
        (self._free_large if pipe.place < LARGE_PIPES else self._free_small).append(pipe.place)

    def _moved(self, pipe: Pipe, client: int) -> None:
        """Tell those who watch, but for the client that moved it."""
        for other in pipe.clients:
            watcher = self._watchers.get(other) if other != client else None
            if watcher is None or watcher.moved is None:
                continue
            if not watcher.moved:
                self._notify(watcher)
            watcher.moved.add(pipe.record.number)

    def _notify(self, watcher: _Watcher) -> None:
        with contextlib.suppress(AtollError):  # gone, and the kernel will say so
            self.task.notify(watcher.right, watcher.bits)

    # -- rights to ends ----------------------------------------------------------------------------

    def _end(self, pipe: Pipe, *, writing: bool) -> Right:
        """Return a right to one end, which counts as opened from now on."""
        record = pipe.record
        if writing:
            record.writer_seen = record.writing_right = True
        else:
            record.reader_seen = record.reading_right = True
        pipe.store()
        self._meet(pipe, WRITING if writing else READING)
        self._moved(pipe, 0)
        return self.task.mint(record.number << 1 | writing, ["write" if writing else "read"])

    def create(self) -> tuple[Right, Right]:
        """Make a nameless pipe."""
        pipe = self._make(b"")
        return self._end(pipe, writing=False), self._end(pipe, writing=True)

    def attach(self, name: str, writing: bool) -> Right:
        """Open an end of a named pipe."""
        try:
            octets = _checked(name.encode())
        except UnicodeEncodeError:
            raise Refused(errno.EINVAL, "a name has a surrogate in it") from None
        return self._end(self._named.get(octets) or self._make(octets), writing=writing)

    def _pipe_of(self, badge: int) -> Pipe:
        pipe = self._pipes.get(badge >> 1)
        if pipe is None:
            raise Refused(errno.EBADF, "this right is not an end of a pipe")
        return pipe

    async def read(self, size: int) -> Bulk:
        """Read; the stream's turn is the request."""
        turn = self.request.id
        pipe = self._pipe_of(self.request.badge)
        if not 0 < size <= BULK_LIMIT:
            raise Refused(errno.EINVAL, f"read 1 to {BULK_LIMIT} octets at a time")
        took = pipe.take(0, turn, size)
        room = self.request.buffer(pipe.take_limit if took is None else took.end - took.start)
        while took is None:
            if pipe.ended or pipe.record.number not in self._pipes:
                return b""
            await pipe.wait()
            took = pipe.take(0, turn, size)
        self._moved(pipe, 0)
        return pipe.copy(took, room)

    async def write(self, data: Bulk) -> int:
        """Write a first part of the data; the stream's turn is the request."""
        turn = self.request.id
        pipe = self._pipe_of(self.request.badge)
        while (count := pipe.put(0, turn, 0, data)) < 0:
            await pipe.wait()
            if pipe.record.number not in self._pipes:
                raise Refused(errno.EPIPE, "this pipe is no more")
        self._moved(pipe, 0)
        return count

    def no_senders(self, badge: int) -> None:
        """The last right to an end of a pipe, or of a client with openings, is gone."""
        if badge < _ID:
            self._give_up(badge)
            self._forget(badge)
            return
        pipe = self._pipes.get(badge >> 1)
        if pipe is None:
            return
        if badge & 1:
            pipe.record.writing_right = False
        else:
            pipe.record.reading_right = False
        pipe.store()
        self._moved(pipe, 0)
        self._end_unused(pipe)

    # -- names -------------------------------------------------------------------------------------

    def names(self, after: bytes, limit: int) -> list[Stream]:
        """List names."""
        found = sorted(name for name in self._named if name > after)
        return [_shown(self._named[name]) for name in found[: max(0, min(limit, NAMES_LIMIT))]]

    def find(self, name: bytes) -> Stream | None:
        """Look a name up."""
        pipe = self._named.get(name)
        return None if pipe is None else _shown(pipe)

    def alter(self, name: bytes, mode: int, uid: int, gid: int) -> Stream:
        """Change permissions and owner."""
        pipe = self._named.get(name)
        if pipe is None:
            raise Refused(errno.ENOENT)
        if not (-1 <= mode <= 0o7777 and -1 <= uid < _ID and -1 <= gid < _ID):
            raise Refused(errno.EINVAL)
        record = pipe.record
        record.mode = record.mode if mode < 0 else mode
        record.uid = record.uid if uid < 0 else uid
        record.gid = record.gid if gid < 0 else gid
        pipe.store()
        return _shown(pipe)

    def unlink(self, name: bytes) -> None:
        """Take a name away."""
        request = self.request.id
        pipe = self._named.pop(name, None)
        if pipe is None:
            done = any(pipe.record.unlinked_by == request for pipe in self._pipes.values())
            if not (self.request.redelivered and done):
                raise Refused(errno.ENOENT)
            return
        pipe.record.name = b""
        pipe.record.unlinked_by = request
        pipe.store()

    # -- openings ----------------------------------------------------------------------------------

    def open(self, name: bytes, access: int, uid: int, gid: int, turn: int) -> int:
        """Open a stream by name."""
        client = self.request.badge
        if opening := self._turns.get((client, turn)):
            return opening.number
        if access not in (READING, WRITING, READING | WRITING) or client >= _ID:
            raise Refused(errno.EINVAL)
        if not (0 <= uid < _ID and 0 <= gid < _ID):
            raise Refused(errno.EINVAL)
        _check_turn(turn)
        pipe = self._named.get(_checked(name))
        if not self._free_rows and self._memory.rows >= OPENINGS_LIMIT:
            raise Refused(errno.ENFILE, f"there are {OPENINGS_LIMIT} openings already")
        pipe = pipe or self._make(name, uid, gid)
        record = pipe.record
        record.openings += 1
        record.reader_seen = record.reader_seen or bool(access & READING)
        record.writer_seen = record.writer_seen or bool(access & WRITING)
        pipe.store()
        met = access == READING | WRITING or (
            pipe.is_written if access == READING else pipe.is_read
        )
        self._meet(pipe, access)
        number = record.number << STREAM_SHIFT | record.openings
        row = self._free_rows.pop() if self._free_rows else self._memory.rows
        opening = Opening(number, client, turn, 0, access, int(met), row)
        self._memory.add_opening(opening)
        self._note_opening(pipe, opening)
        self._moved(pipe, client)
        return number

    def _meet(self, pipe: Pipe, access: int) -> None:
        """Note for those who wait for it that an end is open now."""
        for opening in pipe.opened.values():
            if not opening.met and access & ~opening.access:
                opening.met = 1
                self._memory.set_met(opening)

    def _note_opening(self, pipe: Pipe, opening: Opening) -> None:
        pipe.admit(opening)
        self._openings[opening.number] = opening
        self._turns[opening.client, opening.turn] = opening

    def _opened(self, number: int, access: int = 0) -> tuple[Pipe, Opening]:
        opening = self._openings.get(number)
        if opening is None or opening.client != self.request.badge or access & ~opening.access:
            raise Refused(errno.EBADF, "this client has no such opening")
        return self._pipes[number >> STREAM_SHIFT], opening

    def _strike(self, opening: Opening) -> None:
        """End an opening."""
        pipe = self._pipes[opening.number >> STREAM_SHIFT]
        self._memory.remove_opening(opening)
        del self._openings[opening.number]
        self._turns.pop((opening.client, opening.turn), None)
        self._free_rows.append(opening.place)
        pipe.dismiss(opening)
        pipe.store()
        self._moved(pipe, opening.client)
        self._end_unused(pipe)

    def _of(self, client: int) -> Iterator[Opening]:
        return (opening for opening in self._openings.values() if opening.client == client)

    def _give_up(self, client: int) -> None:
        for opening in list(self._of(client)):
            self._strike(opening)

    def close(self, opening: int) -> None:
        """End an opening of the client's."""
        if opening in self._openings:
            self._strike(self._opened(opening)[1])

    def leave(self) -> None:
        """End all openings of the client."""
        self._give_up(self.request.badge)

    def openings(self) -> list[tuple[int, int]]:
        """List the client's openings."""
        return [(opening.number, opening.key) for opening in self._of(self.request.badge)]

    def ready(self, opening: int, key: int) -> int:
        """Say what can be done with an opening."""
        pipe, opened = self._opened(opening)
        _check_turn(key)
        if key and key != opened.key:
            opened.key = key
            self._memory.set_key(opened)
        found = MET if opened.met else 0
        filled = pipe.record.head != pipe.record.tail
        if opened.access & READING:
            found |= READABLE if filled else 0
            found |= ENDED if pipe.ended and not filled else 0
        if opened.access & WRITING:
            found |= WRITABLE if pipe.room >= WHOLE else 0
            found |= BROKEN if pipe.broken else 0
        return found

    def take(self, opening: int, turn: int, size: int) -> Bulk:
        """Read without waiting."""
        pipe, opened = self._opened(opening, READING)
        _check_turn(turn)
        if size <= 0:
            raise Refused(errno.EINVAL)
        took = pipe.take(opening, turn, size)
        if took is not None:
            self._moved(pipe, opened.client)
            return pipe.copy(took, self.request.buffer(took.end - took.start))
        if pipe.ended:
            return b""
        raise Refused(errno.EAGAIN)

    def put(self, opening: int, turn: int, done: int, data: Bulk) -> int:
        """Write without waiting."""
        pipe, opened = self._opened(opening, WRITING)
        _check_turn(turn)
        _check_turn(done)
        count = pipe.put(opening, turn, done, data)
        if count < 0:
            raise Refused(errno.EAGAIN)
        self._moved(pipe, opened.client)
        return count

    # -- who watches -------------------------------------------------------------------------------

    def watch(self, bits: int, changed: Right) -> None:
        """Note that a client wants to hear what others do."""
        client = self.request.badge
        if not 0 < bits < _UNSIGNED:
            raise Refused(errno.EINVAL)
        if client not in self._watchers and len(self._watchers) >= WATCHERS_LIMIT:
            raise Refused(errno.EMFILE, f"{WATCHERS_LIMIT} clients watch already")
        self._forget(client)
        self.task.keep_right(f"{_WATCH}{client}.{bits}", changed)
        self._watchers[client] = _Watcher(changed, bits)

    def _forget(self, client: int) -> None:
        """Tell a client nothing more."""
        watcher = self._watchers.pop(client, None)
        if watcher is not None:
            self.task.forget(f"{_WATCH}{client}.{watcher.bits}")
            with contextlib.suppress(AtollError):  # its port is gone, and the right with it
                self.task.drop(watcher.right)

    def changes(self) -> list[int] | None:
        """Return what others have moved."""
        watcher = self._watchers.get(self.request.badge)
        if watcher is None:
            raise Refused(errno.EINVAL, "this client does not watch")
        moved, watcher.moved = watcher.moved, set()
        return None if moved is None else sorted(moved)


def _shown(pipe: Pipe) -> Stream:
    record = pipe.record
    return Stream(record.number, record.name, record.mode, record.uid, record.gid, record.made_ns)


def _checked(name: bytes) -> bytes:
    """Return a name that is one."""
    if len(name) > NAME_LIMIT:
        raise Refused(errno.ENAMETOOLONG, f"a pipe's name has up to {NAME_LIMIT} octets")
    if not name or b"/" in name or b"\0" in name or name in {b".", b".."}:
        raise Refused(errno.EINVAL, "a pipe's name has no / or NUL in it, and is not . or ..")
    return name


def _check_turn(number: int) -> None:
    if not 0 <= number < _UNSIGNED:
        raise Refused(errno.EINVAL, "such a number is not below 2**64, or below 0")


__all__ = ["PIPES_LIMIT", "RING_SIZE", "PipeServer", "Pipes"]
