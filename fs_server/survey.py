"""Finding the free blocks that a restarted server was not told of, a little at a time.

Theory of operation. A server that follows a dead one begins with the blocks of the reserve
(`reserve`), and serves. All others are found meanwhile: the table of extents is read in slices, and
what no extent names is free. Let X be the blocks that extents named when the volume was opened, and
R those of the reserve at that time. What shall be found is what is neither in X nor in R.

The table changes between two slices, but only so: files give blocks of X or R up, and get others of
X or R, because the allocator knows no others yet. And before an operation changes a file's extents
they are loaded, and *noted*, as they were. So everything that was read or noted lies in X or R, and
all of X was read or noted when the end of the table is reached, wherever rows went meanwhile. What
has become of the blocks of X and R since is in the allocator's table already.

Then the gaps are handed to the allocator, region by region of the volume. Where the host stores
something in a gap the dead server had given it up, or taken it for a transaction that never came:
that part is released anew, so that it is punched before anybody gets it.

Invariants: a block is handed over once; a step that fails has changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .allocator import Allocator, Run
from .data import DataFile
from .extents import Extent
from .layout import BLOCK_MASK, BLOCK_SHIFT
from .store import Store

_ROWS: Final = 1024
"""Rows read, or at least that many runs sorted, in one step: one to three milliseconds."""
_REGION_SHIFT: Final = 12
"""Regions of 16 MiB."""
_SELECT: Final = (
    "SELECT inode, block, start, count FROM extent WHERE (inode, block) > (?, ?)"
    " ORDER BY inode, block LIMIT ?"
)


class Survey:
    """A search under way. It begins before anything changes; `reserve` is a run, maybe empty."""

    def __init__(self, store: Store, data: DataFile, allocator: Allocator, reserve: Run) -> None:
        self._store = store
        self._data = data
        self._allocator = allocator
        self._reached = (-1, -1)
        self._reading = True
        self._regions: dict[int, list[Run]] = {}
        """What was read or noted, by the region that it begins in; may overlap."""
        self._order: list[int] = []
        """Regions still to be looked at, the last one first."""
        self._end = 0
        """All blocks before were looked at."""
        self._add([reserve])

    def _add(self, runs: Iterable[Run]) -> None:
        regions = self._regions
        for run in runs:
            region = regions.get(run[0] >> _REGION_SHIFT)
            if region is None:
                regions[run[0] >> _REGION_SHIFT] = [run]
            else:
                region.append(run)

    def note(self, extents: Iterable[Extent]) -> None:
        """Take note of a file's extents; called before they change."""
        if self._reading:
            self._add([(start, count) for _, start, count in extents])

    def step(self) -> bool:
        """Go on a little. Returns whether that was the end. Raises: HostError, apsw.Error."""
        if self._reading:
            self._read()
            return False
        return self._look()

    def finish(self) -> None:
        """Go on to the end."""
        while not self.step():
            pass

    def _read(self) -> None:
        rows = list(self._store.rows(_SELECT, (*self._reached, _ROWS)))
        self._add([(start, count) for _, _, start, count in rows])
        if rows:
            self._reached = rows[-1][:2]
        if len(rows) < _ROWS:
            self._reading = False
            self._order = sorted(self._regions, reverse=True)

    def _look(self) -> bool:
        """Hand over the gaps in the next regions; the end of the volume is one of them."""
        order, end, seen = list(self._order), self._end, 0
        gaps: list[tuple[Run, list[Run]]] = []
        while order and seen < _ROWS:
            runs = sorted(self._regions[order.pop()])
            seen += len(runs)
            for start, count in runs:
                if start > end:
                    gaps.append(self._gap(end, start))
                end = max(end, start + count)
        if not order and end < self._allocator.blocks:
            gaps.append(self._gap(end, self._allocator.blocks))
        for run, occupied in gaps:  # from here on nothing can fail
            self._allocator.learn(run, occupied)
        self._order, self._end = order, end
        return not order

    def _gap(self, low: int, high: int) -> tuple[Run, list[Run]]:
        """Return a run, and which parts of it hold octets."""
        occupied: list[Run] = []
        end = low
        for begin, behind in self._data.occupied(low << BLOCK_SHIFT, (high - low) << BLOCK_SHIFT):
            first = max(begin >> BLOCK_SHIFT, end)
            end = (behind + BLOCK_MASK) >> BLOCK_SHIFT
            if end > first:
                occupied.append((first, end - first))
        return (low, high - low), occupied
