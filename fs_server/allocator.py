"""Which blocks of the volume are free: a table in memory, made anew whenever a volume opens.

Theory of operation. Free space is a sorted list of runs. A request says how many blocks it wants
and which block would continue the file. If that block is free the run grows there; else the search
goes on from where the last one ended (next fit), so that files written one after another lie one
after another. A request may be answered in pieces.

A block that a transaction gives up is not free at once. Until that transaction is known to survive
a power cut, the old owner may come back and want its octets; and until the hole punched into the
data file is known to survive as well, the next owner could see the octets of the old one. So a
given-up run goes through two stations:

    released --(metadata synced: punch a hole)--> punched --(data synced)--> free

`Volume.settle` moves everything one station on with each pair of syncs. Runs in the two stations
count as free in `statfs`, because they are so after one more sync.

The table may be told of a part of the free blocks only, and of the others later (`learn`). What it
was not told of counts as used, and may well be in use.

One of the runs, or a part of one, is the *reserve*, which the next incarnation begins with
(`reserve`). It is the largest run of its time, and another is chosen when it is used up; where many
are small not at once, because a search looks at all of them.

Invariants: runs of the list are disjoint, not adjacent and sorted; `free` is the sum of their
counts; `waiting` is the sum over both stations; the reserve lies in one run of the list.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

from .reserve import Reserve

Run = tuple[int, int]
"""First block, and count of blocks."""

_CANDIDATES: Final = 64
"""Runs looked at for one that fits, before the request is answered in pieces."""
_RUNS_PER_CHOICE: Final = 16
"""Runs looked at for a new reserve per request since the last."""


class Allocator:
    """The free blocks of a volume of `blocks` blocks.

    Args:
        blocks: of the volume.
        used: the runs in use, in ascending order; None: only the reserve's run is known to be free.
        reserve: where the reserve is kept; not owned. None: nowhere.

    Raises:
        ValueError: runs overlap, are empty or lie outside of the volume.
    """

    def __init__(
        self, blocks: int, used: Iterable[Run] | None = (), reserve: Reserve | None = None
    ) -> None:
        self.blocks = blocks
        self.free = 0
        self.waiting = 0
        self._starts: list[int] = []
        self._counts: dict[int, int] = {}
        self._cursor = 0
        self._released: list[Run] = []
        self._given_up: list[Run] = []
        self._punched: list[Run] = []
        self._reserve = reserve or Reserve()
        self._until_choice = 0
        if used is None:
            self._append(self._reserve.low, self._reserve.high - self._reserve.low)
        else:
            self._append_unused(used)
            self._reserve.hold(0, 0)

    def _append_unused(self, used: Iterable[Run]) -> None:
        end = 0
        for start, count in used:
            if start < end or count < 1:
                raise ValueError(f"blocks {start}+{count} overlap those before, which end at {end}")
            self._append(end, start - end)
            end = start + count
        if end > self.blocks:
            raise ValueError(f"blocks end at {end}, the volume at {self.blocks}")
        self._append(end, self.blocks - end)

    def _append(self, start: int, count: int) -> None:
        if count:
            self._starts.append(start)
            self._counts[start] = count
            self.free += count

    def runs(self) -> list[Run]:
        """Return the free runs, ascending."""
        return [(start, self._counts[start]) for start in self._starts]

    @property
    def available(self) -> int:
        """Blocks that are free now or will be after two syncs."""
        return self.free + self.waiting

    def take(self, count: int, near: int = -1) -> list[Run]:
        """Take `count` free blocks, from block `near` on if that is free. `count <= free` is given.

        Returns the runs in the order in which the file should use them.
        """
        assert 0 < count <= self.free
        taken: list[Run] = []
        if near in self._counts:
            taken.append(self._take_front(bisect_left(self._starts, near), count))
            count -= taken[-1][1]
        while count:
            taken.append(self._take_front(self._search(count), count))
            count -= taken[-1][1]
        if self._reserve.low >= self._reserve.high:
            self._until_choice -= 1
            if self._until_choice < 0:
                self.choose_reserve()
        return taken

    def choose_reserve(self) -> None:
        """Make the largest run the reserve."""
        self._until_choice = len(self._starts) // _RUNS_PER_CHOICE
        if self._starts:
            start = max(self._counts, key=self._counts.__getitem__)
            self._reserve.hold(start, start + self._counts[start])

    def _search(self, count: int) -> int:
        """Return the index of a run that has `count` blocks, or of the largest seen."""
        total = len(self._starts)
        first = bisect_left(self._starts, self._cursor) % total
        best, best_count = first, 0
        for step in range(min(total, _CANDIDATES)):
            index = (first + step) % total
            size = self._counts[self._starts[index]]
            if size >= count:
                return index
            if size > best_count:
                best, best_count = index, size
        return best

    def _take_front(self, index: int, wanted: int) -> Run:
        start = self._starts[index]
        count = self._counts.pop(start)
        taken = min(count, wanted)
        if taken == count:
            del self._starts[index]
        else:
            self._starts[index] = start + taken
            self._counts[start + taken] = count - taken
        self.free -= taken
        self._cursor = end = start + taken
        reserve = self._reserve
        if start < reserve.high and end > reserve.low:
            reserve.taken(end)
        return start, taken

    def give(self, run: Run) -> None:
        """Make blocks free at once: nobody ever saw what is in them."""
        start, count = run
        self.free += count
        index = bisect_right(self._starts, start)
        if index:
            before = self._starts[index - 1]
            if before + self._counts[before] == start:
                start, count = before, count + self._counts.pop(before)
                index -= 1
                del self._starts[index]
        follower = run[0] + run[1]
        if follower in self._counts:
            count += self._counts.pop(follower)
            del self._starts[index]
        self._starts.insert(index, start)
        self._counts[start] = count

    def learn(self, run: Run, occupied: Iterable[Run]) -> None:
        """Add a free run that the table was not told of; `occupied` parts hold octets.

        Those are released: nobody may see the octets.
        """
        start, end = run[0], run[0] + run[1]
        for first, count in occupied:
            if first > start:
                self.give((start, first - start))
            self.release((first, count))
            start = first + count
        if end > start:
            self.give((start, end - start))

    def release(self, run: Run) -> None:
        """Take note that the transaction under way gives these blocks up."""
        self._released.append(run)
        self.waiting += run[1]

    def set_aside(self, run: Run) -> None:
        """Take free blocks away and release them: they hold octets that nobody may see."""
        start, count = run
        index = bisect_right(self._starts, start) - 1
        first = self._starts[index]
        length = self._counts.pop(first)
        assert first <= start
        assert start + count <= first + length
        del self._starts[index]
        self.free -= length
        self.release(run)
        for left in ((first, start - first), (start + count, first + length - start - count)):
            if left[1]:
                self.give(left)

    def data_synced(self) -> None:
        """Free what had been punched before the data file was synced."""
        for run in self._punched:
            self.waiting -= run[1]
            self.give(run)
        self._punched.clear()

    def metadata_synced(self) -> list[Run]:
        """Return the runs that must be punched now, because nobody can want them back.

        What is not reported as `punched` is returned again the next time.
        """
        self._given_up = _joined(self._given_up + self._released)
        self._released = []
        return list(self._given_up)

    def punched(self, run: Run) -> None:
        """Take note that one of the runs of `metadata_synced` was punched."""
        self._given_up.remove(run)
        self._punched.append(run)


def _joined(runs: list[Run]) -> list[Run]:
    """Return the runs sorted, adjacent ones made one."""
    joined: list[Run] = []
    for start, count in sorted(runs):
        if joined and joined[-1][0] + joined[-1][1] == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((start, count))
    return joined
