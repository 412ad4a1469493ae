"""What a front end does whoever brings it the requests: callers, caches, cuts, appends, listings.

Both front ends, pyfuse3's and the native one, extend `FileOperations`. It speaks in the values of
the file server's interface, and refuses with `Refused`; how a request arrives and what an answer
looks like is theirs.

Invariants:

1. `_turn` grows after everything that this mount changes and before everything that others change,
   so what was read in an older turn is not taken for true.
2. Nothing here tells the host's kernel anything: `stale` asks somebody else to.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Generic, TypeVar

from core.abi import BULK_LIMIT
from core.errors import Refused
from core.userlib.interface import Bulk
from fs_server.interface import XATTR_SIZE_LIMIT, Attributes, Caller, Entry, FileSystem

from .known_inode import NOTHING_ABSENT, KnownInode

ROOT: Final = Caller(0, 0, (), 0)
APPEND: Final = 1 << 62
"""In a file handle: the file was opened with O_APPEND."""
INODE_BITS: Final = (1 << 40) - 1
"""In a file handle: the inode. The bits between these and `APPEND` may tell its opens apart."""
LISTING_LIMIT: Final = 128
"""Entries asked for at once: with the longest names they still fit into one message."""
CALLERS_LIMIT: Final = 1024
ANSWERS_LIMIT: Final = 64

T = TypeVar("T")
KnownT = TypeVar("KnownT", bound=KnownInode)


def refuse_acl(name: bytes) -> None:
    """Refuse access control lists: stored, but not enforced, they would be a lie."""
    if name.startswith(b"system."):
        raise Refused(errno.EOPNOTSUPP)


class FileOperations(Generic[KnownT]):
    """What both front ends share.

    Args:
        fs: a client of the file server.
        writeback: the host's kernel collects writes, and owns sizes and times.
    """

    def __init__(self, fs: FileSystem, *, writeback: bool) -> None:
        self.enable_writeback_cache = writeback
        self.initialised: Callable[[], None] = lambda: None
        self.stale: Callable[[int], None] = lambda inode: None
        """Called when the kernel's cached data of an inode is known to be wrong."""
        self.unlocked: Callable[[], None] = lambda: None
        """Called when other clients may have given locks back."""
        self._fs = fs
        self._known: dict[int, KnownT] = {}
        self._callers: dict[tuple[int, int], Caller] = {(0, 0): ROOT}
        self._turn = 0
        self._listed: dict[tuple[int, int], tuple[int, list[Entry]]] = {}

    # What is remembered

    def changed(self, inode: int, *, data: bool) -> None:
        """Forget what another client may have changed of an inode."""
        self._turn += 1
        known = self._known.get(inode)
        if known is not None:
            known.attributes = None
            known.absent = NOTHING_ABSENT
            known.moved = known.moved or data

    def keep_entries_shortly(self) -> None:
        """Let the host's kernel keep entries for a moment only: it cannot be told to drop them."""
        raise NotImplementedError

    def known_inodes(self) -> list[int]:
        """Return the inodes that the host's kernel may have cached."""
        return list(self._known)

    async def _alter(self, call: Awaitable[T]) -> T:
        """Make a call that changes something, and distrust afterwards what was read before."""
        try:
            return await call
        finally:
            self._turn += 1

    # Who asks

    async def _groups(self, pid: int) -> Iterable[int]:
        """Return a process's supplementary groups. OSError, RuntimeError, ValueError."""
        raise NotImplementedError

    def _caller(self, uid: int, gid: int) -> Caller:
        key = (uid, gid)
        caller = self._callers.get(key)
        if caller is None:
            if len(self._callers) >= CALLERS_LIMIT:
                self._callers.clear()
            caller = self._callers[key] = Caller(uid, gid, (), 0)
        return caller

    async def _make(
        self,
        uid: int,
        gid: int,
        pid: int,
        call: Callable[[Caller], Awaitable[Attributes]],
        told: tuple[int, ...] | None = None,
    ) -> Attributes:
        """Make something that will be the caller's, with its groups if it takes them.

        Args:
            told: its groups as far as they matter, if the host's kernel tells them.
        """
        caller = Caller(uid, gid, told, 0) if told else self._caller(uid, gid)
        try:
            return await call(caller)
        except Refused as refusal:
            if (
                told is not None
                or not caller.uid
                or refusal.errno not in {errno.EACCES, errno.EPERM}
            ):
                raise
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                groups = tuple(sorted(await self._groups(pid)))
                if groups:
                    return await call(Caller(uid, gid, groups, 0))
            raise
        finally:
            self._turn += 1

    # Data

    def _read(self, inode: int, offset: int, size: int) -> Awaitable[Bulk]:
        """Read octets, fewer only at the end of the file."""
        if size <= BULK_LIMIT:
            return self._fs.read(inode, offset, size)
        return self._read_long(inode, offset, size)

    async def _read_long(self, inode: int, offset: int, size: int) -> bytes:
        parts = []
        while size > 0:
            part = bytes(await self._fs.read(inode, offset, min(size, BULK_LIMIT)))
            parts.append(part)
            offset += len(part)
            size = size - len(part) if len(part) == BULK_LIMIT else 0
        return b"".join(parts)

    async def _write(self, fh: int, offset: int, data: Bulk) -> int:
        """Write octets and return their count."""
        inode = fh & INODE_BITS
        if fh & APPEND:
            offset = await self._end(inode, offset)
        if len(data) <= BULK_LIMIT:
            done = await self._fs.write(ROOT, inode, offset, data)
        else:
            view, done = memoryview(data), 0
            while done < len(data):
                part = view[done : done + BULK_LIMIT]
                done += await self._fs.write(ROOT, inode, offset + done, part)
        self._turn += 1
        return done

    async def _end(self, inode: int, offset: int) -> int:
        """Return where an append belongs.

        The kernel computes it from the size that it remembers, which an invalidation does not
        mend: after another client's change the server's word counts.
        """
        known = self._known.get(inode)
        if known is None or not known.moved or self.enable_writeback_cache:
            return offset
        size = (await self._fs.getattr(inode)).size
        if size != offset:
            self.stale(inode)  # the kernel has put these octets into its cache elsewhere
        return size

    # Directories

    async def _list(self, inode: int, cookie: int, add: Callable[[Entry], bool]) -> None:
        """Give entries from a cookie on to `add`, until it says that there is no room."""
        turn, entries = self._listed.pop((inode, cookie), (-1, []))
        if turn != self._turn:
            entries = []
        while True:
            if not entries:
                turn = self._turn
                entries = await self._fs.readdir(inode, cookie, LISTING_LIMIT)
                if not entries:
                    return
            for index, entry in enumerate(entries):
                if not add(entry):
                    self._keep_listed(inode, cookie, turn, entries[index:])
                    return
                cookie = entry.cookie
            entries = []

    def _keep_listed(self, inode: int, cookie: int, turn: int, rest: list[Entry]) -> None:
        """Keep what did not fit for the next request, valid if nothing changes until then."""
        if len(self._listed) >= ANSWERS_LIMIT:
            self._listed.clear()
        self._listed[inode, cookie] = (turn, rest)

    # Extended attributes

    async def _value(self, inode: int, name: bytes) -> Bulk:
        """Return an extended attribute's value; that one is absent is remembered."""
        refuse_acl(name)
        known = self._known.get(inode)
        if known is not None and name in known.absent:
            raise Refused(errno.ENODATA)
        turn = self._turn
        try:
            return await self._fs.getxattr(ROOT, inode, name, XATTR_SIZE_LIMIT)
        except Refused as refusal:
            absent = refusal.errno == errno.ENODATA and turn == self._turn
            if known is not None and absent and len(known.absent) < ANSWERS_LIMIT:
                known.absent |= {name}
            raise

    async def _set_value(self, inode: int, name: bytes, flags: int, value: Bulk) -> None:
        refuse_acl(name)
        await self._alter(self._fs.setxattr(ROOT, inode, name, flags, value))
        known = self._known.get(inode)
        if known is not None:
            known.absent = NOTHING_ABSENT

    async def _remove_value(self, inode: int, name: bytes) -> None:
        refuse_acl(name)
        await self._fs.removexattr(ROOT, inode, name)
