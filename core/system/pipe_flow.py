"""One pipe: what goes in, what comes out, who has which end of it, and who waits.

`take` and `put` are the whole of its flow. Either one ends with a single change of the record, in
which the octets' new place and who they went to, or came from, become valid together.
"""

from __future__ import annotations

import errno

import trio

from core.errors import Refused
from core.userlib.interface import Bulk
from core.userlib.streams import READING, WHOLE, WRITING

from .pipe_memory import REMEMBERED, Gave, Opening, PipeMemory, Record, Took


class Pipe:
    """A record, its ring, who has it open, and who waits for a change of it."""

    def __init__(self, memory: PipeMemory, place: int, record: Record) -> None:
        self._memory = memory
        self._ring = memory.ring(place)
        self._size = len(self._ring)
        self.take_limit = self._size // 2
        self.place = place
        self.record = record
        self.readers = 0
        self.writers = 0
        self.clients: dict[int, int] = {}
        self.opened: dict[int, Opening] = {}
        self.changed = trio.Event()
        self.awaited = 0

    def store(self) -> None:
        """Make the record's present state the valid one, and wake who waits."""
        self._memory.store(self.place, self.record)
        if self.awaited:
            changed, self.changed = self.changed, trio.Event()
            changed.set()

    async def wait(self) -> None:
        """Wait for a change."""
        self.awaited += 1
        try:
            await self.changed.wait()
        finally:
            self.awaited -= 1

    def admit(self, opening: Opening) -> None:
        """Count an opening."""
        self.opened[opening.number] = opening
        self.readers += bool(opening.access & READING)
        self.writers += bool(opening.access & WRITING)
        self.clients[opening.client] = self.clients.get(opening.client, 0) + 1

    def dismiss(self, opening: Opening) -> None:
        """Count it no more."""
        del self.opened[opening.number]
        self.readers -= bool(opening.access & READING)
        self.writers -= bool(opening.access & WRITING)
        self.clients[opening.client] -= 1
        if not self.clients[opening.client]:
            del self.clients[opening.client]

    @property
    def is_read(self) -> bool:
        """Whether somebody has the reading end."""
        return self.readers > 0 or self.record.reading_right

    @property
    def is_written(self) -> bool:
        """Whether somebody has the writing end."""
        return self.writers > 0 or self.record.writing_right

    @property
    def ended(self) -> bool:
        """Whether all who wrote are gone."""
        return self.record.writer_seen and not self.is_written

    @property
    def broken(self) -> bool:
        """Whether all who read are gone."""
        return self.record.reader_seen and not self.is_read

    @property
    def room(self) -> int:
        """How many octets can be put in."""
        record = self.record
        kept = record.took[-1].start if record.took else record.head
        return self._size - (record.tail - kept)

    def take(self, who: int, turn: int, size: int) -> Took | None:
        """Take octets out, or find what this turn has taken. None: nothing is there."""
        record = self.record
        for took in reversed(record.took):
            if took.turn == turn and took.who == who:
                return took
        if record.head == record.tail:
            return None
        end = min(record.tail, record.head + min(size, self.take_limit))
        took = Took(who, turn, record.head, end)
        record.took = [*record.took[1 - REMEMBERED :], took]
        record.head = end
        self.store()
        return took

    def copy(self, took: Took, room: memoryview) -> memoryview:
        """Copy octets that were taken into `room`, and return the part that they fill."""
        size = took.end - took.start
        at = took.start % self._size
        first = min(size, self._size - at)
        room[:first] = self._ring[at : at + first]
        room[first:size] = self._ring[: size - first]
        return room[:size]

    def put(self, who: int, turn: int, done: int, data: Bulk) -> int:
        """Put a first part of the data in. Returns how many of this turn's octets are in; -1: none.

        Refused: EPIPE.
        """
        record = self.record
        gave = next((g for g in record.gave if g.turn == turn and g.who == who), None)
        if gave is not None and gave.count > done:
            return gave.count
        if self.broken:
            raise Refused(errno.EPIPE, "nobody reads this pipe any more")
        room = self.room
        if not data:
            return done
        if not room or room < len(data) <= WHOLE:
            return -1
        part = memoryview(data)[:room]
        self._make_room(len(part))
        at = record.tail % self._size
        first = min(len(part), self._size - at)
        self._ring[at : at + first] = part[:first]
        self._ring[: len(part) - first] = part[first:]
        others = [g for g in record.gave if g is not gave]
        record.gave = [*others[1 - REMEMBERED :], Gave(who, turn, done + len(part))]
        record.tail += len(part)
        self.store()
        return done + len(part)

    def _make_room(self, size: int) -> None:
        """Forget reads whose octets are in the way, before they are written over."""
        record = self.record
        lowest = record.tail + size - self._size
        if record.took and record.took[0].start < lowest:
            record.took = [took for took in record.took if took.start >= lowest]
            self._memory.store(self.place, record)
