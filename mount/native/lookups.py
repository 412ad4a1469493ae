"""Which inodes the host's kernel knows, in memory that outlives the front end.

A later incarnation needs that when it has to have everything dropped that the host caches, and to
speak of an inode that is gone but still in use.

Theory of operation. The memory is a journal: a count of records, and records of an inode, how many
look-ups were added or taken, and the inode's mode. A look-up is noted before its answer is written,
a FORGET when it is read. Who loads the journal adds up. A full one is written anew, with one record
for each inode, into another memory object, which takes its place at the kernel in one step.

A death between a look-up's record and its answer, or between a FORGET and its record, leaves a
count too high: such an inode is remembered longer than it need be, which costs some octets.

Invariant: no count is too low. What the kernel knows is here.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable
from typing import Final

from core.userlib.kept_value import Keeps

LABEL: Final = "look-ups"
RECORDS_MIN: Final = 1 << 16
"""Records that a journal has room for at least: 1 MiB."""
GROWTH: Final = 4
"""How many times the records that it begins with a journal has room for."""
_COUNT: Final = struct.Struct("=Q")
_RECORD: Final = struct.Struct("=QiI")
_FIRST: Final = _RECORD.size

Known = tuple[int, int, int]
"""Inode, look-ups, mode."""


class Lookups:
    """The journal of one incarnation.

    Attributes:
        live: returns all that is known now, the change that is just being noted included.
    """

    def __init__(self, task: Keeps) -> None:
        self._task = task
        self.live: Callable[[], Iterable[Known]] = tuple
        self._used = 0
        kept = task.kept(LABEL)
        if kept is None:
            self._begin([])
            return
        try:
            self._memory = mmap.mmap(kept, os.fstat(kept).st_size)
        finally:
            os.close(kept)
        (self._used,) = _COUNT.unpack_from(self._memory)
        self._room = len(self._memory) // _RECORD.size - 1

    def load(self) -> list[Known]:
        """Return what earlier incarnations left."""
        found: dict[int, tuple[int, int]] = {}
        records = memoryview(self._memory)[_FIRST : _FIRST + self._used * _RECORD.size]
        for inode, change, mode in _RECORD.iter_unpack(records):
            count, known = found.get(inode, (0, 0))
            found[inode] = (count + change, mode or known)
            if count + change <= 0:
                del found[inode]
        records.release()
        return [(inode, count, mode) for inode, (count, mode) in found.items()]

    def note(self, inode: int, change: int, mode: int) -> None:
        """Note look-ups that were added, or taken; `mode` 0: the one noted before."""
        used = self._used
        if used == self._room or not -(1 << 31) <= change < 1 << 31:
            self._begin(self.live())
            return
        _RECORD.pack_into(self._memory, _FIRST + used * _RECORD.size, inode, change, mode)
        self._used = used = used + 1
        _COUNT.pack_into(self._memory, 0, used)

    def _begin(self, known: Iterable[Known]) -> None:
        """Have a new journal kept that begins with this."""
        records = [
            _RECORD.pack(inode, min(count, (1 << 31) - 1), mode)
            for inode, count, mode in known
            if count > 0
        ]
        self._room = max(RECORDS_MIN, GROWTH * len(records))
        descriptor = os.memfd_create(LABEL, os.MFD_CLOEXEC)
        try:
            size = _FIRST + self._room * _RECORD.size
            os.ftruncate(descriptor, size)
            memory = mmap.mmap(descriptor, size)
            memory[_FIRST : _FIRST + len(records) * _RECORD.size] = b"".join(records)
            _COUNT.pack_into(memory, 0, len(records))
            self._task.keep(LABEL, descriptor)
        finally:
            os.close(descriptor)
        self._memory, self._used = memory, len(records)

    def close(self) -> None:
        """Unmap the memory; what the kernel keeps stays."""
        self._memory.close()
