"""The inodes of a volume: the table, and the recently used ones in memory.

An `Inode` object is the row, plus what was loaded of the things that hang on it (`extents`,
`attributes`, `target`; None: not loaded). The store is written through: an object that is dropped
from memory loses nothing. `view` is made once and returned again until something changes.

Inode numbers are never used twice. They are reserved in steps of `_RESERVED`, so that a create does
not have to write the counter; a restart skips what is left of a step.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from core.errors import Refused

from .extents import Extents
from .interface import Attributes
from .layout import FIRST_SEQUENCE, SECTORS_PER_BLOCK
from .recent import Recent
from .store import Store

LINK_LIMIT: Final = (1 << 31) - 1
_RESERVED: Final = 1024
_NUMBER_LIMIT: Final = 1 << 62

_COLUMNS: Final = (
    "number, mode, links, uid, gid, device, size, blocks, atime, mtime, ctime, parent, sequence"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM inode WHERE number = ?"  # noqa: S608 - a constant
_INSERT: Final = f"INSERT INTO inode({_COLUMNS}, target, birth) VALUES({', '.join('?' * 15)})"
_UPDATE: Final = (
    "UPDATE inode SET mode = ?, links = ?, uid = ?, gid = ?, atime = ?, mtime = ?, ctime = ?,"
    " parent = ?, sequence = ? WHERE number = ?"
)
_UPDATE_CONTENTS: Final = (
    "UPDATE inode SET mode = ?, size = ?, blocks = ?, mtime = ?, ctime = ? WHERE number = ?"
)


class Inode:
    """One inode in memory. Whoever changes a field saves it in the same transaction."""

    __slots__ = (
        "_view",
        "atime",
        "attributes",
        "blocks",
        "ctime",
        "device",
        "extents",
        "gid",
        "links",
        "mode",
        "mtime",
        "number",
        "parent",
        "sequence",
        "size",
        "target",
        "uid",
    )

    def __init__(self, row: tuple[int, ...]) -> None:
        (
            self.number,
            self.mode,
            self.links,
            self.uid,
            self.gid,
            self.device,
            self.size,
            self.blocks,
            self.atime,
            self.mtime,
            self.ctime,
            self.parent,
            self.sequence,
        ) = row
        self.extents: Extents | None = None
        self.attributes: dict[bytes, bytes] | None = None
        self.target: bytes | None = None
        self._view: Attributes | None = None

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    def touch(self, now: int) -> None:
        """Say that the contents changed."""
        self.mtime = self.ctime = now

    def changed(self) -> None:
        """Forget the view: a field was changed."""
        self._view = None

    def view(self) -> Attributes:
        """Return the attributes as clients see them; the same object until something changes."""
        view = self._view
        if view is None:
            view = self._view = Attributes(
                self.number,
                self.mode,
                self.links,
                self.uid,
                self.gid,
                self.device,
                self.size,
                self.blocks * SECTORS_PER_BLOCK,
                self.atime,
                self.mtime,
                self.ctime,
            )
        return view


class Inodes:
    """The table. `limit`: about how many inodes stay in memory."""

    def __init__(self, store: Store, limit: int) -> None:
        self._store = store
        self.recent: Recent[int, Inode] = Recent(max(limit, 64))
        self._count = -1
        self._next: int = store.setting("next_inode")
        self._reserved = self._next

    @property
    def count(self) -> int:
        """How many there are; counted at the first use, which takes the longer the more."""
        if self._count < 0:
            self._count = self._store.value("SELECT COUNT(*) FROM inode")
        return self._count

    def find(self, number: int) -> Inode:
        """Return an inode. Raises: Refused ESTALE when there is none of that number."""
        inode = self.recent.young.get(number)
        if inode is None:
            inode = self.recent.get(number) or self._load(number)
        return inode

    def _load(self, number: int) -> Inode:
        row = self._store.row(_SELECT, (number,)) if 0 < number < _NUMBER_LIMIT else None
        if row is None:
            raise Refused(errno.ESTALE, f"there is no inode {number}")
        inode = Inode(row)
        self.recent.put(number, inode)
        return inode

    def directory(self, number: int) -> Inode:
        """Return a directory. Raises: Refused ENOTDIR for another kind, ESTALE for none."""
        inode = self.find(number)
        if not stat.S_ISDIR(inode.mode):
            raise Refused(errno.ENOTDIR)
        return inode

    def make(
        self,
        mode: int,
        owner: tuple[int, int],
        now: int,
        *,
        device: int = 0,
        parent: int = 0,
        target: bytes | None = None,
        named: bool = True,
    ) -> Inode:
        """Make and store an inode with one link, a directory with two, a nameless one with none."""
        number = self._number()
        is_directory = stat.S_ISDIR(mode)
        row = (
            *(number, mode, 2 if is_directory else int(named), *owner, device),
            *(len(target or b""), 0, now, now, now),
            *(parent, FIRST_SEQUENCE if is_directory else 0),
        )
        self._store.write(_INSERT, (*row, target, now))
        inode = Inode(row)
        inode.extents = Extents()
        inode.attributes = {}
        inode.target = target
        self.recent.put(number, inode)
        if self._count >= 0:
            self._count += 1
        return inode

    def _number(self) -> int:
        number = self._next
        if number >= self._reserved:
            self._reserved = number + _RESERVED
            self._store.write(
                "UPDATE volume SET value = ? WHERE key = 'next_inode'", (self._reserved,)
            )
        self._next = number + 1
        return number

    def save(self, inode: Inode, *, alone: bool = False) -> None:
        """Store everything but size and blocks. `alone`: nothing else changes with it."""
        inode.changed()
        write = self._store.write_alone if alone else self._store.write
        write(
            _UPDATE,
            (
                *(inode.mode, inode.links, inode.uid, inode.gid),
                *(inode.atime, inode.mtime, inode.ctime),
                *(inode.parent, inode.sequence, inode.number),
            ),
        )

    def save_contents(self, inode: Inode, *, alone: bool) -> None:
        """Store mode, size, blocks and times. `alone`: nothing else changes with it."""
        inode.changed()
        write = self._store.write_alone if alone else self._store.write
        write(
            _UPDATE_CONTENTS,
            (inode.mode, inode.size, inode.blocks, inode.mtime, inode.ctime, inode.number),
        )

    def save_atime(self, inode: Inode, now: int) -> None:
        """Store the time of the last read."""
        self._store.write_alone("UPDATE inode SET atime = ? WHERE number = ?", (now, inode.number))
        inode.atime = now
        inode.changed()

    def erase(self, inode: Inode) -> None:
        """Remove the row; what hangs on it is removed by the caller."""
        self._store.write("DELETE FROM inode WHERE number = ?", (inode.number,))
        self.recent.drop(inode.number)
        if self._count >= 0:
            self._count -= 1

    def target(self, inode: Inode) -> bytes:
        """Return a symbolic link's target."""
        if inode.target is None:
            found = self._store.value("SELECT target FROM inode WHERE number = ?", (inode.number,))
            inode.target = bytes(found)
        return inode.target

    def birth(self, inode: Inode) -> int:
        """Return when an inode was made, in nanoseconds since 1970; 0: it was not stored."""
        found = self._store.value("SELECT birth FROM inode WHERE number = ?", (inode.number,))
        return int(found or 0)

    def orphans(self) -> list[int]:
        """Return the inodes without links."""
        return [row[0] for row in self._store.rows("SELECT number FROM inode WHERE links = 0")]
