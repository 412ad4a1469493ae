"""One run of blocks that are known to be free, in memory that outlives the server.

Which blocks are free follows from all extents of a volume, and reading those takes the longer the
more files there are. A server that follows a dead one need not read them before it serves: it can
write to the blocks of the reserve, and find the others later (`survey`).

    word 0    what this is: `_MAGIC`
    word 1    boot id         which boot this belongs to
    word 2    mark            of the volume, see below; 0: none
    word 3    low             first block of the run
    word 4    high            the block behind it; not above `low`: no run

Theory of operation. The run is one of the free runs of `Allocator`, or a part of one. Blocks are
taken off its front, and `low` moves on before anything is written to them, whatever becomes of the
transaction that wanted them. So no transaction can end in a way that makes the run wrong, at no
instant; at worst the run is smaller than what is free. That is why nothing here needs to be rolled
back, or compared with what was committed.

The run is right only if nobody else has given the volume's blocks away since. So every incarnation
that allocates without having found a run first commits a new random number to the volume (its
*mark*), and only then writes it here. A mark here that is not the volume's says that another has
been there, or that the volume is another one; then all extents are read, as after a power cut.

Invariants:
1. While `mark` is that of the volume, no extent of any committed transaction has a block of the
   run, and none of its blocks holds octets.
2. A word is stored by one instruction, so a death leaves the old word or the new one. A run is
   exchanged by way of an empty one: `high` is cleared, then `low` is set, then `high`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Final

Keep = Callable[[int], None]
"""Has the kernel keep a memory object's descriptor; see `Task.keep`."""

_MAGIC: Final = 0x41746F6C_66726565
_WORDS: Final = 5
_SIZE: Final = _WORDS * 8
_BOOT: Final = 1
_MARK: Final = 2
_LOW: Final = 3
_HIGH: Final = 4


class Reserve:
    """The run.

    Args:
        boot_id: this boot's; 63 bits.
        keep: is told about a new memory object; it must not take the descriptor over.
        kept: descriptor of the memory object that an earlier incarnation left; owned. None: none.
    """

    def __init__(
        self,
        boot_id: int = 0,
        keep: Keep = lambda _descriptor: None,
        kept: int | None = None,
    ) -> None:
        if kept is None or not self._read(kept, boot_id):
            self._start(boot_id, keep)
        self.low = self._words[_LOW]
        self.high = self._words[_HIGH]

    def _read(self, descriptor: int, boot_id: int) -> bool:
        """Take an earlier incarnation's memory over; False if it is not of this boot."""
        try:
            if os.fstat(descriptor).st_size < _SIZE:
                return False
            self._map(descriptor)
        finally:
            os.close(descriptor)
        if self._words[0] == _MAGIC and self._words[_BOOT] == boot_id:
            return True
        self.close()
        return False

    def _start(self, boot_id: int, keep: Keep) -> None:
        descriptor = os.memfd_create("reserve", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(descriptor, 0, _SIZE)  # a page that lacks later would be SIGBUS
            self._map(descriptor)
            self._words[0] = _MAGIC
            self._words[_BOOT] = boot_id
            keep(descriptor)
        finally:
            os.close(descriptor)

    def _map(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._octets = memoryview(self._memory)
        # an item of this view is stored by one instruction, which `struct` does not promise
        self._words = self._octets.cast("Q")

    @property
    def mark(self) -> int:
        """The mark of the volume that the run belongs to; 0: of none."""
        return self._words[_MARK]

    def begin(self, mark: int) -> None:
        """Belong to a volume that has this mark, or to none, with no run at first."""
        self.hold(0, 0)
        self._words[_MARK] = mark

    def holds(self, mark: int, blocks: int) -> bool:
        """Tell whether the run is one of a volume that has this mark and so many blocks."""
        return mark != 0 and self.mark == mark and 0 <= self.low <= self.high <= blocks

    def hold(self, low: int, high: int) -> None:
        """Exchange the run for another one that is free."""
        words = self._words
        words[_HIGH] = 0
        words[_LOW] = self.low = low
        words[_HIGH] = self.high = high

    def taken(self, end: int) -> None:
        """Take note that the blocks of the run before `end` are about to be used."""
        self._words[_LOW] = self.low = min(end, self.high)

    def close(self) -> None:
        """Unmap the memory object; the kernel still keeps it."""
        self._words.release()
        self._octets.release()
        self._memory.close()
