"""Where the blocks of one file lie: a pure map from its blocks to blocks of the volume.

    file block     0    1    2    3    4    5    6    7
                 +-----------+              +-----------+
    extents      | (0,700,2) |     hole     | (5,702,3) |
                 +-----------+              +-----------+

An extent says that `count` blocks of the file from `block` on lie at `start` on in the volume. What
no extent names is a hole and reads as zeros.

Invariants: extents are sorted and disjoint; two that adjoin in the file *and* in the volume are
one. Every change leaves a note of which rows of the table differ from what is stored (`stale`), so
the caller can write exactly those.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from .allocator import Run

Extent = tuple[int, int, int]
"""First block in the file, first block in the volume, and count of blocks."""

HOLE: Final = -1
"""Stands for the first block in the volume where there is none."""


class Extents:
    """The extents of one file."""

    __slots__ = ("rows", "stale")

    def __init__(self, rows: Iterable[Extent] = ()) -> None:
        self.rows: list[Extent] = list(rows)
        self.stale: dict[int, Extent | None] = {}
        """Rows by their first block as they must be stored; None: to be removed."""

    def _index(self, block: int) -> int:
        """Return the index of the last row that begins at or before `block`, or -1."""
        return bisect_right(self.rows, (block, 1 << 62, 0)) - 1

    def pieces(self, block: int, count: int) -> Iterator[Extent]:
        """Yield what lies in `count` blocks from `block` on, in order: extents and holes."""
        end = block + count
        index = max(self._index(block), 0)
        while block < end and index < len(self.rows):
            first, start, length = self.rows[index]
            index += 1
            if first + length <= block:
                continue
            if first >= end:
                break
            if first > block:
                yield block, HOLE, first - block
                block = first
            size = min(first + length, end) - block
            yield block, start + block - first, size
            block += size
        if block < end:
            yield block, HOLE, end - block

    def block_before(self, block: int) -> int:
        """Return the volume block after that of the last mapped block before `block`, or -1."""
        index = self._index(block - 1) if block else -1
        if index < 0:
            return -1
        _, start, count = self.rows[index]
        return start + count

    @property
    def end(self) -> int:
        """The first block of the file behind all extents."""
        return self.rows[-1][0] + self.rows[-1][2] if self.rows else 0

    def add(self, block: int, runs: Iterable[Run]) -> None:
        """Map the hole at `block` to runs of the volume, in order."""
        for start, count in runs:
            self._insert(block, start, count)
            block += count

    def _insert(self, block: int, start: int, count: int) -> None:
        index = self._index(block) + 1
        if index:
            first, there, length = self.rows[index - 1]
            if first + length == block and there + length == start:
                block, start, count = first, there, length + count
                index -= 1
                del self.rows[index]
        if index < len(self.rows):
            first, there, length = self.rows[index]
            if block + count == first and start + count == there:
                count += length
                del self.rows[index]
                self.stale[first] = None
        self.rows.insert(index, (block, start, count))
        self.stale[block] = (block, start, count)

    def remove(self, block: int, count: int) -> list[Run]:
        """Make a hole of `count` blocks at `block`. Returns the runs of the volume given up."""
        end = block + count
        given: list[Run] = []
        index = max(self._index(block), 0)
        while index < len(self.rows) and self.rows[index][0] < end:
            first, _, length = self.rows[index]
            if first + length <= block:
                index += 1
                continue
            index = self._cut(index, max(block, first), min(end, first + length), given)
        return given

    def _cut(self, index: int, low: int, high: int, given: list[Run]) -> int:
        """Cut blocks `low` to `high` out of one row. Returns the index after what is left of it."""
        first, start, length = self.rows.pop(index)
        given.append((start + low - first, high - low))
        self.stale[first] = None
        left: list[Extent] = []
        if low > first:
            left.append((first, start, low - first))
        if high < first + length:
            left.append((high, start + high - first, first + length - high))
        self.rows[index:index] = left
        for row in left:
            self.stale[row[0]] = row
        return index + len(left)

    def allocated(self) -> int:
        """Return how many blocks all extents have."""
        return sum(count for _, _, count in self.rows)
