"""All that an operation on a volume works with: the tables, the data file and the clock.

The operations themselves are functions that take `Tables` first, in `naming`, `renaming`, `status`,
`contents` and `xattrs`. They follow one form: look everything up, refuse what must be refused, and
only then change something. `Volume` commits what they did, or rolls it back.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

from core.errors import Refused

from .allocator import Allocator
from .data import DataFile
from .entries import Entries
from .extents import Extents
from .inodes import Inode, Inodes
from .interface import Change
from .opens import Opens
from .store import Store
from .survey import Survey

Clock = Callable[[], int]
"""Returns the present: nanoseconds since 1970."""


@dataclass(slots=True)
class Tables:
    """See the module head. One object per open volume."""

    store: Store
    data: DataFile
    inodes: Inodes
    entries: Entries
    allocator: Allocator
    opens: Opens
    clock: Clock
    reclaim: Callable[[], None]
    """Makes all blocks free that wait for a sync; called before an operation changed anything."""
    mark: Callable[[], None]
    """Makes `marked` true; called before an operation changed anything."""
    marked: bool
    """Blocks may be taken: nobody else's knowledge of free ones is trusted any more."""
    survey: Survey | None = None
    """The search for free blocks that the allocator does not know yet; None: it knows all."""
    watched: bool = False
    """Somebody wants to know what changes."""
    changed: list[Change] = field(default_factory=list)
    """What the operation under way changed, if `watched`."""

    def note(self, inode: int, name: bytes = b"", *, data: bool = False) -> None:
        """Remember a change for those who watch."""
        if self.watched:
            self.changed.append(Change(inode, name, data))

    def extents(self, inode: Inode) -> Extents:
        """Return a file's extents, loaded when they are not in memory yet."""
        extents = inode.extents
        if extents is None:
            rows = self.store.execute(
                "SELECT block, start, count FROM extent WHERE inode = ? ORDER BY block",
                (inode.number,),
            )
            extents = inode.extents = Extents(rows)
            if self.survey is not None:
                self.survey.note(extents.rows)
        return extents

    def claim(self, blocks: int) -> None:
        """Refuse ENOSPC unless so many blocks are free, or will be when what waits has settled.

        It comes before every `allocator.take`, and before an operation has changed anything.
        """
        if not self.marked:
            self.mark()
        allocator = self.allocator
        if blocks > allocator.free and self.survey is not None:
            self.survey.finish()
            self.end_survey()
        if blocks > allocator.free:
            if blocks > allocator.available:
                raise Refused(errno.ENOSPC)
            self.reclaim()

    def end_survey(self) -> None:
        """All free blocks are known: choose the best of them for the next incarnation."""
        self.survey = None
        self.allocator.choose_reserve()

    def save_extents(self, inode: Inode, extents: Extents) -> None:
        """Store what changed in a file's extents."""
        write = self.store.write
        for block, row in extents.stale.items():
            if row is None:
                write("DELETE FROM extent WHERE inode = ? AND block = ?", (inode.number, block))
            else:
                write("INSERT OR REPLACE INTO extent VALUES(?, ?, ?, ?)", (inode.number, *row))
        extents.stale.clear()

    def attributes(self, inode: Inode) -> dict[bytes, bytes]:
        """Return an inode's extended attributes, loaded when they are not in memory yet."""
        attributes = inode.attributes
        if attributes is None:
            rows = self.store.execute(
                "SELECT name, value FROM attribute WHERE inode = ?", (inode.number,)
            )
            attributes = inode.attributes = {bytes(name): bytes(value) for name, value in rows}
        return attributes

    def free(self, inode: Inode) -> None:
        """Remove an inode that has no links and no opens, and all that hangs on it."""
        extents = self.extents(inode)
        if extents.rows:
            self.store.write("DELETE FROM extent WHERE inode = ?", (inode.number,))
            for _, start, count in extents.rows:
                self.allocator.release((start, count))
        if self.attributes(inode):
            self.store.write("DELETE FROM attribute WHERE inode = ?", (inode.number,))
        self.inodes.erase(inode)

    def unlinked(self, inode: Inode, now: int) -> None:
        """Take one link off an inode that is no directory; it goes with its last link and open."""
        inode.links -= 1
        inode.ctime = now
        inode.changed()
        if inode.links or self.opens.is_open(inode.number):
            self.inodes.save(inode)
        else:
            self.free(inode)
        self.note(inode.number)
