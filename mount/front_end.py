"""The FUSE front end: every request of the host's kernel becomes a call to the file server.

`FrontEnd` is what pyfuse3 calls; `fuse_session` mounts it and keeps it alive, `fuse_invalidation`
tells the host's kernel what other clients did.

Who checks permissions: the host's kernel does, from the attributes it was given (the mount option
`default_permissions`), as it does for a disk file system: mode bits, sticky directories, who may
chown, clearing of set-id bits. So requests travel as root's, except those that make something:
these carry the caller's ids, because they become the owner. The file server then checks again, and
may lack the caller's supplementary groups; they are read from /proc only when it refuses.

What the host's kernel may cache: entries (also missing ones), attributes and data, for as long as
it likes. All its own changes pass through it; other clients' changes are taken back one by one.

Identity: a node id is an inode number, a file handle is an inode number with a flag bit. Both mean
the same after the file server's restart, and need no table here. What is kept for an inode
(`KnownInode`) is a cache, and goes when the kernel forgets the inode.

Invariants:

1. No exception but FUSEError leaves a handler, because any other ends the mount. Each hot handler
   catches for itself; all others are guarded when the class is made (0.1 µs for the await hop).
2. pyfuse3 copies what a handler returns before any other handler runs, so one EntryAttributes for
   each inode, and one FileInfo for all, are reused.
3. Nothing here invalidates from inside a handler: that can deadlock in the host's kernel.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields
from typing_extensions import override

from core.abi import BULK_LIMIT
from core.errors import Refused
from core.userlib.interface import Bulk
from fs_server.interface import (
    XATTR_SIZE_LIMIT,
    Attributes,
    Caller,
    Changes,
    Entry,
    FileSystem,
)

from .fuse_failures import complete, failure, guard_handlers
from .known_inode import CACHE_S, ENTRY_SHORTLY_S, NOTHING_ABSENT, KnownInode

ROOT: Final = Caller(0, 0, (), 0)
APPEND: Final = 1 << 62
"""In a file handle: the file was opened with O_APPEND."""
INODE_BITS: Final = APPEND - 1
LISTING_LIMIT: Final = 128
"""Entries asked for at once: with the longest names they still fit into one message."""
CALLERS_LIMIT: Final = 1024
ANSWERS_LIMIT: Final = 64

T = TypeVar("T")


def _refuse_acl(name: bytes) -> None:
    """Refuse access control lists: stored, but not enforced, they would be a lie."""
    if name.startswith(b"system."):
        raise FUSEError(errno.EOPNOTSUPP)


@guard_handlers
class FrontEnd(pyfuse3.Operations):
    """The handlers of one mount.

    Args:
        fs: a client of the file server.
        writeback: let the host's kernel collect writes. Only right while no other client changes
            files: the kernel then owns sizes and times, and shows a grown file with its old size.
    """

    supports_dot_lookup = True
    enable_acl = False

    def __init__(self, fs: FileSystem, *, writeback: bool = False) -> None:
        self.enable_writeback_cache = writeback
        self.initialised: Callable[[], None] = lambda: None
        self.stale: Callable[[int], None] = lambda inode: None
        """Called when the kernel's cached data of an inode is known to be wrong."""
        self._fs = fs
        self._known: dict[int, KnownInode] = {}
        self._callers: dict[tuple[int, int], Caller] = {(0, 0): ROOT}
        self._info = FileInfo(keep_cache=True)
        self._missing = EntryAttributes()
        self._missing.entry_timeout = CACHE_S
        self._missing.st_ino = 0
        self._turn = 0
        self._listed: dict[tuple[int, int], tuple[int, list[Entry]]] = {}

    # What is remembered

    @override
    def init(self) -> None:
        """Be told that the session has begun."""
        self.initialised()

    def _show(self, attributes: Attributes) -> EntryAttributes:
        known = self._known.get(attributes.inode)
        if known is None:
            known = self._known[attributes.inode] = KnownInode(self._missing.entry_timeout)
        return known.show(attributes)

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
        self._missing.entry_timeout = ENTRY_SHORTLY_S
        for known in self._known.values():
            known.entry.entry_timeout = ENTRY_SHORTLY_S

    def known_inodes(self) -> list[int]:
        """Return the inodes that the host's kernel may have cached."""
        return list(self._known)

    @override
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Forget inodes that the kernel has dropped. Their lookups need no counting."""
        for inode, _ in inode_list:
            self._known.pop(inode, None)

    async def _alter(self, call: Awaitable[T]) -> T:
        """Make a call that changes something, and distrust afterwards what was read before."""
        try:
            return await call
        finally:
            self._turn += 1

    # Who asks

    def _caller(self, ctx: RequestContext) -> Caller:
        key = (ctx.uid, ctx.gid)
        caller = self._callers.get(key)
        if caller is None:
            if len(self._callers) >= CALLERS_LIMIT:
                self._callers.clear()
            caller = self._callers[key] = Caller(ctx.uid, ctx.gid, (), 0)
        return caller

    async def _make(
        self, ctx: RequestContext, call: Callable[[Caller], Awaitable[Attributes]]
    ) -> Attributes:
        """Make something that will be the caller's, with its groups if it takes them."""
        caller = self._caller(ctx)
        try:
            return await call(caller)
        except Refused as refusal:
            if not caller.uid or refusal.errno not in {errno.EACCES, errno.EPERM}:
                raise
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                groups = tuple(sorted(pyfuse3.get_sup_groups(ctx.pid)))
                if groups:
                    return await call(Caller(ctx.uid, ctx.gid, groups, 0))
            raise
        finally:
            self._turn += 1

    # Names

    @override
    @complete
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Return an entry's attributes, or an entry without inode: there is none, remember that."""
        try:
            return self._show(await self._fs.lookup(ROOT, parent_inode, name))
        except Refused as refusal:
            if refusal.errno == errno.ENOENT:
                return self._missing
            raise failure("lookup", refusal) from None
        except Exception as error:  # noqa: BLE001 - invariant 1
            raise failure("lookup", error) from None

    @override
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a file of any kind but a directory or symbolic link."""
        make = functools.partial(
            self._fs.mknod, parent=parent_inode, name=name, mode=mode, device=rdev
        )
        return self._show(await self._make(ctx, make))

    @override
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        make = functools.partial(self._fs.mkdir, parent=parent_inode, name=name, mode=mode & 0o7777)
        return self._show(await self._make(ctx, make))

    @override
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        make = functools.partial(self._fs.symlink, parent=parent_inode, name=name, target=target)
        return self._show(await self._make(ctx, make))

    @override
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Make another entry for a file."""
        call = self._fs.link(ROOT, inode, new_parent_inode, new_name)
        return self._show(await self._alter(call))

    @override
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an entry of a file."""
        await self._alter(self._fs.unlink(ROOT, parent_inode, name))

    @override
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        await self._alter(self._fs.rmdir(ROOT, parent_inode, name))

    @override
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Move an entry; `flags` as in renameat2(2)."""
        await self._alter(
            self._fs.rename(ROOT, parent_inode_old, name_old, parent_inode_new, name_new, flags)
        )

    @override
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """Return a symbolic link's target."""
        return await self._fs.readlink(inode)

    # Attributes

    @override
    @complete
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Return an inode's attributes."""
        try:
            attributes = await self._fs.getattr(inode)
        except Exception as error:  # noqa: BLE001 - invariant 1
            return self._departed(inode, error)
        known = self._known.get(inode)
        if known is None:
            return self._show(attributes)
        return known.show(attributes)

    def _departed(self, inode: int, error: Exception) -> EntryAttributes:
        """Return the last attributes of an inode that is gone, but that a process still refers to.

        A working directory that was removed, or a path descriptor: nothing that counts as an open.
        """
        known = self._known.get(inode)
        gone = isinstance(error, Refused) and error.errno in {errno.ESTALE, errno.ENOENT}
        if not gone or known is None or not known.entry.st_ino:
            raise failure("getattr", error) from None
        known.attributes = None
        known.entry.st_nlink = 0
        return known.entry

    @override
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change attributes. The host's kernel has checked the caller and adjusted the mode."""
        changes = Changes(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
            ctime=attr.st_ctime_ns if fields.update_ctime else None,
            opened=fh is not None,
        )
        return self._show(await self._alter(self._fs.setattr(ROOT, inode, changes)))

    @override
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Return if the caller may. Not asked under `default_permissions`."""
        groups = tuple(sorted(pyfuse3.get_sup_groups(ctx.pid)))
        try:
            await self._fs.access(Caller(ctx.uid, ctx.gid, groups, 0), inode, mode)
        except Refused as refusal:
            if refusal.errno == errno.EACCES:
                return False
            raise
        return True

    @override
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Return the volume's size and what is free."""
        usage = await self._fs.statfs()
        shown = pyfuse3.StatvfsData()
        shown.f_bsize = shown.f_frsize = usage.block_size
        shown.f_blocks = usage.blocks
        shown.f_bfree = shown.f_bavail = usage.blocks_free
        shown.f_files = usage.inodes
        shown.f_ffree = shown.f_favail = usage.inodes_free
        shown.f_namemax = usage.name_limit
        return shown

    # Data

    def _opened(self, inode: int, flags: int) -> FileInfo:
        info = self._info
        info.fh = inode | APPEND if flags & os.O_APPEND else inode
        return info

    @override
    @complete
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file; the server counts opens: an unlinked file stays while one is left."""
        try:
            self._show(await self._fs.open(ROOT, inode, flags))
            if flags & os.O_TRUNC:
                self._turn += 1
        except Exception as error:  # noqa: BLE001 - invariant 1
            raise failure("open", error) from None
        return self._opened(inode, flags)

    @override
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make and open a file."""
        make = functools.partial(
            self._fs.create, parent=parent_inode, name=name, mode=mode & 0o7777, flags=flags
        )
        attributes = await self._make(ctx, make)
        return self._opened(attributes.inode, flags), self._show(attributes)

    @override
    @complete
    async def release(self, fh: int) -> None:
        """Give an open back."""
        try:
            await self._fs.release(fh & INODE_BITS)
        except Exception as error:  # noqa: BLE001 - invariant 1
            raise failure("release", error) from None

    @override
    @complete
    async def read(self, fh: int, off: int, size: int) -> Bulk:  # type: ignore[override]
        """Return octets, fewer only at the end of the file."""
        try:
            if size <= BULK_LIMIT:
                return await self._fs.read(fh & INODE_BITS, off, size)
            parts = []
            while size > 0:
                part = bytes(await self._fs.read(fh & INODE_BITS, off, min(size, BULK_LIMIT)))
                parts.append(part)
                off += len(part)
                size = size - len(part) if len(part) == BULK_LIMIT else 0
            return b"".join(parts)
        except Exception as error:  # noqa: BLE001 - invariant 1
            raise failure("read", error) from None

    @override
    @complete
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write octets and return their count."""
        try:
            if fh & APPEND:
                fh &= INODE_BITS
                off = await self._end(fh, off)
            if len(buf) <= BULK_LIMIT:
                done = await self._fs.write(ROOT, fh, off, buf)
            else:
                view, done = memoryview(buf), 0
                while done < len(buf):
                    part = view[done : done + BULK_LIMIT]
                    done += await self._fs.write(ROOT, fh, off + done, part)
            self._turn += 1
            return done
        except Exception as error:  # noqa: BLE001 - invariant 1
            raise failure("write", error) from None

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

    @override
    async def flush(self, fh: int) -> None:
        """Say once that there is nothing to do at close(2), so that the kernel asks no more."""
        raise FUSEError(errno.ENOSYS)

    @override
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Return when what was written survives the host's death."""
        await self._fs.fsync(fh & INODE_BITS, bool(datasync))

    # Directories

    @override
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a directory. The kernel has checked the caller; there is nothing to hold."""
        return inode

    @override
    async def releasedir(self, fh: int) -> None:
        """Close a directory."""

    @override
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Return when a directory's entries survive the host's death."""
        await self._fs.fsync(fh, bool(datasync))

    @override
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory with attributes, from a cookie on, until the kernel's buffer is full."""
        turn, entries = self._listed.pop((fh, start_id), (-1, []))
        if turn != self._turn:
            entries = []
        while True:
            if not entries:
                turn = self._turn
                entries = await self._fs.readdir(fh, start_id, LISTING_LIMIT)
                if not entries:
                    return
            for index, entry in enumerate(entries):
                shown = self._show(entry.attributes)
                if not pyfuse3.readdir_reply(token, entry.name, shown, entry.cookie):
                    self._keep_listed(fh, start_id, turn, entries[index:])
                    return
                start_id = entry.cookie
            entries = []

    def _keep_listed(self, inode: int, cookie: int, turn: int, rest: list[Entry]) -> None:
        """Keep what did not fit for the next request, valid if nothing changes until then."""
        if len(self._listed) >= ANSWERS_LIMIT:
            self._listed.clear()
        self._listed[inode, cookie] = (turn, rest)

    # Extended attributes

    @override
    @complete
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """Return an extended attribute's value."""
        _refuse_acl(name)
        known = self._known.get(inode)
        if known is not None and name in known.absent:
            raise FUSEError(errno.ENODATA)
        turn = self._turn
        try:
            return bytes(await self._fs.getxattr(ROOT, inode, name, XATTR_SIZE_LIMIT))
        except Exception as error:  # noqa: BLE001 - invariant 1
            refusal = failure("getxattr", error)
            absent = refusal.errno == errno.ENODATA and turn == self._turn
            if known is not None and absent and len(known.absent) < ANSWERS_LIMIT:
                known.absent |= {name}
            raise refusal from None

    @override
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Set an extended attribute; pyfuse3 has dealt with the flags."""
        _refuse_acl(name)
        await self._alter(self._fs.setxattr(ROOT, inode, name, 0, value))
        known = self._known.get(inode)
        if known is not None:
            known.absent = NOTHING_ABSENT

    @override
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an extended attribute."""
        _refuse_acl(name)
        await self._fs.removexattr(ROOT, inode, name)

    @override
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """Return the names that the caller may see."""
        return await self._fs.listxattr(self._caller(ctx), inode)
