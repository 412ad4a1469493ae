"""A small value in kept memory that outlives its server, whole or not at all.

The memory object has two slots. A value is written into the one that does not hold the newest, head
last; a death in the midst of that leaves the other as it was:

    +----------------+-------------+--------+-------
    | sequence, u64  | octets, u32 | CRC-32 | value
    +----------------+-------------+--------+-------
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Final

from core.userlib.interface import Descriptor
from core.userlib.task import Task

SLOT_SIZE: Final = 256 * 1024
_HEAD: Final = struct.Struct("<QII")


def _crc(sequence: int, value: bytes) -> int:
    """Return a sum over head and value, so that half a head is never taken for an empty value."""
    return zlib.crc32(value, zlib.crc32(sequence.to_bytes(8, "big")))


class Snapshot:
    """A memory object that the kernel keeps for the task under `label`."""

    def __init__(self, task: Task, label: str) -> None:
        """Find the memory object of an earlier incarnation, or make one."""
        kept = task.kept(label)
        if kept is None:
            kept = os.memfd_create(label, os.MFD_CLOEXEC)
            os.ftruncate(kept, 2 * SLOT_SIZE)
            task.keep(label, kept)
        self._kept = Descriptor(kept)  # closed with this object, also after a fault
        self._descriptor = kept
        self._sequence = 0

    def load(self) -> bytes | None:
        """Return the value stored last, or None if none ever was."""
        newest: bytes | None = None
        for slot in range(2):
            octets = os.pread(self._descriptor, SLOT_SIZE, slot * SLOT_SIZE)
            sequence, size, crc = _HEAD.unpack_from(octets)
            value = octets[_HEAD.size : _HEAD.size + size]
            if sequence > self._sequence and _crc(sequence, value) == crc:
                self._sequence, newest = sequence, value
        return newest

    def store(self, value: bytes) -> None:
        """Store a value of at most `SLOT_SIZE` octets with its head; `load` came first."""
        assert _HEAD.size + len(value) <= SLOT_SIZE
        self._sequence += 1
        start = self._sequence % 2 * SLOT_SIZE
        os.pwrite(self._descriptor, value, start + _HEAD.size)
        head = _HEAD.pack(self._sequence, len(value), _crc(self._sequence, value))
        os.pwrite(self._descriptor, head, start)

    def close(self) -> None:
        """Close the descriptor; what the kernel keeps stays."""
        self._kept.close()
