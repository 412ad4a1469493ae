"""A value in memory that the kernel keeps: after any death the old one or the new one, whole.

Theory of operation. The memory object has two slots of one size. A value is written into the slot
that does not hold the newest, its octets first, its head last:

    +----------------+-------------+--------+-------
    | sequence, u64  | octets, u32 | CRC-32 | value
    +----------------+-------------+--------+-------

The sum is over the sequence and the value. Memory that is shared keeps what a process stored, in
the order in which it was stored, however the process ends. So a death before the head is complete
leaves a slot whose sum is wrong, or whose sequence is the lower one, and the other slot counts.

A value that does not fit is written into a new memory object, which takes the old one's place at
the kernel in one step, after it is complete.

Invariants:
1. What the kernel keeps under the label holds a whole value at every instant.
2. The slot of the newest value is not touched before the next value is complete.

Storing through the mapping makes no system call. It costs about a microsecond and 0.4 ns an octet.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from typing import Final, Protocol

from core.errors import LimitError

VALUE_LIMIT: Final = 4 * 1024 * 1024
"""Octets of one value."""
_HEAD: Final = struct.Struct("<QII")
_PAGE: Final = 4096
_UNREADABLE: Final = "what was kept cannot be read: neither of its two copies is whole"


class Keeps(Protocol):
    """What is needed of a `Task`."""

    def keep(self, label: str, descriptor: int) -> None:
        """Have a duplicate of the descriptor kept in place of what the label stood for."""

    def kept(self, label: str) -> int | None:
        """Return a duplicate of what is kept."""


class UnreadableError(Exception):
    """Something is kept, and it is no value."""


def _sum(sequence: int, value: bytes) -> int:
    """Return a sum over head and value, so that half a head is never taken for an empty value."""
    return zlib.crc32(value, zlib.crc32(sequence.to_bytes(8, "big")))


class KeptValue:
    """The value that a task keeps under a label. One object for each incarnation."""

    def __init__(self, task: Keeps, label: str) -> None:
        """Find what earlier incarnations left; nothing is kept before the first `store`."""
        self._task = task
        self._label = label
        self._sequence = 0
        self._slot = 0
        self.memory: mmap.mmap | None = None
        kept = task.kept(label)
        self._is_new = kept is None
        if kept is not None:
            try:
                self._slot = os.fstat(kept).st_size // 2
                if self._slot > _HEAD.size:
                    self.memory = mmap.mmap(kept, 2 * self._slot)
            finally:
                os.close(kept)

    def load(self) -> bytes | None:
        """Return the value stored last, None if none ever was.

        Raises:
            UnreadableError: something is kept that no `store` has left. It can be stored over.
        """
        if self._is_new:
            return None
        newest: bytes | None = None
        memory = self.memory
        for start in (0, self._slot) if memory is not None else ():
            assert memory is not None
            sequence, size, wanted = _HEAD.unpack_from(memory, start)
            first = start + _HEAD.size
            value = memory[first : first + min(size, self._room)]
            if sequence > self._sequence and _sum(sequence, value) == wanted:
                self._sequence, newest = sequence, value
        if newest is None:
            raise UnreadableError(_UNREADABLE)
        return newest

    @property
    def _room(self) -> int:
        return self._slot - _HEAD.size

    def store(self, value: bytes) -> None:
        """Store a value; `load` came first.

        Raises:
            LimitError: it is larger than VALUE_LIMIT, or the host has no memory left for it. The
                value before it stays.
        """
        size = len(value)
        sequence = self._sequence + 1
        head = _HEAD.pack(sequence, size, _sum(sequence, value))
        memory = self.memory
        if memory is None or size > self._room:
            self._move(sequence, head, value)
        else:
            start = (sequence & 1) * self._slot
            first = start + _HEAD.size
            memory[first : first + size] = value
            memory[start:first] = head
        self._sequence = sequence

    def _move(self, sequence: int, head: bytes, value: bytes) -> None:
        """Have a larger memory object kept, which begins with this value."""
        if len(value) > VALUE_LIMIT:
            raise LimitError(f"{len(value)} octets to keep; the limit is {VALUE_LIMIT}")
        needed = _HEAD.size + len(value) * 3 // 2
        slot = (needed + _PAGE - 1) // _PAGE * _PAGE
        descriptor = os.memfd_create(self._label, os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(descriptor, 0, 2 * slot)  # a page that lacks later would be SIGBUS
            memory = mmap.mmap(descriptor, 2 * slot)
            start = (sequence & 1) * slot
            memory[start : start + _HEAD.size + len(value)] = head + value
            self._task.keep(self._label, descriptor)
            self.memory, self._slot = memory, slot
        except OSError as error:
            raise LimitError(f"no memory to keep {len(value)} octets: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Unmap the memory; what the kernel keeps stays."""
        if self.memory is not None:
            self.memory.close()
            self.memory = None
