"""The pipe server: byte streams between tasks, with back-pressure and half-close.

Each end of a pipe is a badged right to the pipe server's port. When the last right to an end is
gone, the kernel says so, and the other end sees the end of the stream (reading) or EPIPE (writing),
as with pipe(2).

The pipes live in one memory object that the kernel keeps, so that they survive the server:

    +----------------+---------------------------------------------------+
    | pipe 0: record | ring of RING_SIZE octets                          |  one page, then the ring
    +----------------+---------------------------------------------------+
    | pipe 1: ...

A record stands twice, and one octet says which copy is valid; a change is written into the other
copy and becomes valid with that octet, so a death at any instant leaves one whole record. It holds
the ids of the last write and the last read with their outcome: either one, delivered again, is
answered as before. What a read returned is freed by the *next* read, because until then it may be
asked for again.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Final

import msgspec
import trio

from core.abi import BULK_LIMIT, Right
from core.errors import Refused
from core.userlib.interface import Bulk, Interface, operation
from core.userlib.server import Server
from core.userlib.task import Task

PIPES_LIMIT: Final = 256
RING_SIZE: Final = 1024 * 1024
NAME_LIMIT: Final = 255
_PAGE: Final = 4096
_COPY: Final = 1536
"""Where the second copy of a record begins in its page, less the first octet."""
_STRIDE: Final = _PAGE + RING_SIZE


class Pipes(Interface):
    """The operations on the server (`create`, `attach`) and those on an end of a pipe."""

    @operation
    async def create(self) -> tuple[Right, Right]:
        """Return a new pipe's reading and writing end. Refused: EMFILE at PIPES_LIMIT."""

    @operation
    async def attach(self, name: str, writing: bool) -> Right:
        """Return an end of the pipe called `name`, which is made when there is none."""

    @operation(waits=True, room="size")
    async def read(self, size: int) -> Bulk:
        """Wait for octets and return up to `size` of them; none at the end of the stream."""

    @operation(waits=True)
    async def write(self, data: Bulk) -> int:
        """Wait for room and take a first part of `data`; return its size. Refused: EPIPE."""


class _Record(msgspec.Struct, array_like=True):
    """One pipe. `head` and `tail` count octets since its beginning."""

    serial: int
    name: str = ""
    head: int = 0
    read_end: int = 0
    tail: int = 0
    read_id: int = 0
    write_id: int = 0
    write_count: int = 0
    reader_seen: bool = False
    writer_seen: bool = False
    reader_gone: bool = False
    writer_gone: bool = False


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Record).decode


class _Pipe:
    """A record, its ring, and who waits for a change of it."""

    def __init__(self, memory: mmap.mmap, place: int, record: _Record | None = None) -> None:
        start = place * _STRIDE
        view = memoryview(memory)
        self._memory = memory
        self._ring_start = start + _PAGE
        self._page = view[start : start + _PAGE]
        self._ring = view[start + _PAGE : start + _STRIDE]
        self.changed = trio.Event()
        self.record = record if record is not None else self._load()

    def _load(self) -> _Record:
        start = 8 + self._page[0] * _COPY
        size = int.from_bytes(self._page[start : start + 2], "little")
        return _decode(self._page[start + 2 : start + 2 + size])

    def store(self) -> None:
        """Make the record's present state the valid one, and wake who waits."""
        data = _encode(self.record)
        valid = 1 - self._page[0]
        start = 8 + valid * _COPY
        self._page[start : start + 2 + len(data)] = len(data).to_bytes(2, "little") + data
        self._page[0] = valid
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def get(self, start: int, end: int) -> bytes:
        """Return octets `start` to `end` of the stream."""
        a, b = start % RING_SIZE, end % RING_SIZE
        if a < b or start == end:
            return bytes(self._ring[a:b])
        return bytes(self._ring[a:]) + bytes(self._ring[:b])

    def put(self, start: int, data: memoryview) -> None:
        """Lay octets down at position `start` of the stream."""
        a = start % RING_SIZE
        first = min(len(data), RING_SIZE - a)
        self._ring[a : a + first] = data[:first]
        self._ring[: len(data) - first] = data[first:]

    def clear(self) -> None:
        """Mark the place as free."""
        self.record = _Record(0)
        self.store()
        # the ring's pages go back to the host (madvise(2)); the next pipe here finds zeros
        self._memory.madvise(mmap.MADV_REMOVE, self._ring_start, RING_SIZE)


class PipeServer(Server):
    """See the module head."""

    interface = Pipes

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._memory = self._fetch_memory()
        self._pipes: dict[int, _Pipe] = {}
        self._places: dict[int, int] = {}
        for place in range(PIPES_LIMIT):
            start = place * _STRIDE
            if self._memory[start + 8 : start + 10] != b"\0\0":
                pipe = _Pipe(self._memory, place)
                if pipe.record.serial:
                    self._pipes[pipe.record.serial] = pipe
                    self._places[pipe.record.serial] = place
        # No incarnation uses a serial, and with it a badge, that another one has used; and none
        # uses the small badges that the kernel gives with granted rights: such a right would count
        # as an end of a pipe.
        self._serial = (task.generation + 1) << 32

    def _fetch_memory(self) -> mmap.mmap:
        """Map the memory object of earlier incarnations, or make the first one."""
        number = self.task.kept("pipes")
        if number is None:
            number = os.memfd_create("atoll-pipes", os.MFD_CLOEXEC)
            os.ftruncate(number, PIPES_LIMIT * _STRIDE)
            self.task.keep("pipes", number)
        try:
            return mmap.mmap(number, PIPES_LIMIT * _STRIDE)
        finally:
            os.close(number)

    def _make(self, name: str) -> _Pipe:
        taken = set(self._places.values())
        place = next((place for place in range(PIPES_LIMIT) if place not in taken), None)
        if place is None:
            raise Refused(errno.EMFILE, f"there are {PIPES_LIMIT} pipes already")
        self._serial += 1
        pipe = _Pipe(self._memory, place, _Record(self._serial, name))
        pipe.store()
        self._pipes[self._serial] = pipe
        self._places[self._serial] = place
        return pipe

    def _end(self, pipe: _Pipe, *, writing: bool) -> Right:
        """Return a right to one end, which counts as opened from now on."""
        record = pipe.record
        if writing:
            record.writer_seen, record.writer_gone = True, False
        else:
            record.reader_seen, record.reader_gone = True, False
        pipe.store()
        return self.task.mint(record.serial << 1 | writing, ["write" if writing else "read"])

    def create(self) -> tuple[Right, Right]:
        """Make a nameless pipe."""
        pipe = self._make("")
        return self._end(pipe, writing=False), self._end(pipe, writing=True)

    def attach(self, name: str, writing: bool) -> Right:
        """Open an end of a named pipe."""
        if not name or len(name.encode()) > NAME_LIMIT or "/" in name or "\0" in name:
            raise Refused(errno.EINVAL, "a pipe's name has 1 to 255 octets, none of them / or NUL")
        for pipe in self._pipes.values():
            if pipe.record.name == name:
                return self._end(pipe, writing=writing)
        return self._end(self._make(name), writing=writing)

    def _pipe_of(self, badge: int) -> _Pipe:
        pipe = self._pipes.get(badge >> 1)
        if pipe is None:
            raise Refused(errno.EBADF, "this right is not an end of a pipe")
        return pipe

    async def read(self, size: int) -> Bulk:
        """Read; see the module head for why the head moves late."""
        request_id = self.request.id
        pipe = self._pipe_of(self.request.badge)
        record = pipe.record
        if record.read_id == request_id:
            return pipe.get(record.head, record.read_end)
        if not 0 < size <= BULK_LIMIT:
            raise Refused(errno.EINVAL, f"read 1 to {BULK_LIMIT} octets at a time")
        if record.head != record.read_end:
            record.head = record.read_end
            pipe.store()
        while record.tail == record.head:
            if record.writer_gone or pipe.record is not record:
                return b""
            await pipe.changed.wait()
        record.head = record.read_end  # another reader of the same end may have been here meanwhile
        end = min(record.tail, record.head + size)
        record.read_id, record.read_end = request_id, end
        pipe.store()
        return pipe.get(record.head, end)

    async def write(self, data: Bulk) -> int:
        """Write a first part of the data."""
        request_id = self.request.id
        pipe = self._pipe_of(self.request.badge)
        record = pipe.record
        if record.write_id == request_id:
            return record.write_count
        while True:
            if record.reader_gone or pipe.record is not record:
                raise Refused(errno.EPIPE, "nobody reads this pipe any more")
            room = RING_SIZE - (record.tail - record.head)
            if room or not data:
                break
            await pipe.changed.wait()
        part = memoryview(data)[:room]
        pipe.put(record.tail, part)
        record.tail += len(part)
        record.write_id, record.write_count = request_id, len(part)
        pipe.store()
        return len(part)

    def no_senders(self, badge: int) -> None:
        """The last right to an end of a pipe is gone."""
        pipe = self._pipes.get(badge >> 1)
        if pipe is None:
            return
        record = pipe.record
        if badge & 1:
            record.writer_gone = True
        else:
            record.reader_gone = True
        pipe.store()
        readers = record.reader_seen and not record.reader_gone
        writers = record.writer_seen and not record.writer_gone
        if not readers and not writers:
            del self._pipes[badge >> 1]
            del self._places[badge >> 1]
            pipe.clear()
