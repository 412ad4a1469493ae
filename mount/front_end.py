"""The FUSE front end: every request of the host's kernel becomes a call to the file server.

`FrontEnd` is what pyfuse3 calls, and stands upon `FileOperations`, as its twin `native.front_end`
does; `fuse_session` mounts it and keeps it alive, `fuse_invalidation` tells the host's kernel what
other clients did.

Who checks permissions: the host's kernel does, from the attributes it was given (the mount option
`default_permissions`), as it does for a disk file system: mode bits, sticky directories, who may
chown, clearing of set-id bits. So requests travel as root's, except those that make something:
these carry the caller's ids, because they become the owner. The file server then checks again, and
may lack the caller's supplementary groups; they are read from /proc only when it refuses.

What the host's kernel may cache: entries (also missing ones), attributes and data, for as long as
it likes. All its own changes pass through it; other clients' changes are taken back one by one.

Identity: a node id is an inode number, a file handle is an inode number with a flag bit. Both mean
the same after the file server's restart, and need no table here. What is kept for an inode
(`ShownInode`) is a cache, and goes when the kernel forgets the inode.

Invariants:

1. No exception but FUSEError leaves a handler, because any other ends the mount. Each hot handler
   catches for itself; all others are guarded when the class is made (0.1 µs for the await hop).
2. pyfuse3 copies what a handler returns before any other handler runs, so one EntryAttributes for
   each inode, and one FileInfo for all, are reused.
3. Nothing here invalidates from inside a handler: that can deadlock in the host's kernel.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Iterable, Sequence

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields
from typing_extensions import override

from core.errors import Refused
from core.userlib.interface import Bulk
from fs_server.interface import (
    Attributes,
    Caller,
    Changes,
    Entry,
    FileSystem,
)

from .file_operations import APPEND, INODE_BITS, ROOT, FileOperations
from .fuse_failures import complete, failure, guard_handlers
from .known_inode import CACHE_S, ENTRY_SHORTLY_S
from .shown_inode import ShownInode


@guard_handlers
class FrontEnd(FileOperations[ShownInode], pyfuse3.Operations):
    """The handlers of one mount.

    Args:
        fs: a client of the file server.
        writeback: let the host's kernel collect writes. Only right while no other client changes
            files: the kernel then owns sizes and times, and shows a grown file with its old size.
    """

    supports_dot_lookup = True
    enable_acl = False

    def __init__(self, fs: FileSystem, *, writeback: bool = False) -> None:
        super().__init__(fs, writeback=writeback)
        self._info = FileInfo(keep_cache=True)
        self._missing = EntryAttributes()
        self._missing.entry_timeout = CACHE_S
        self._missing.st_ino = 0

    # What is remembered

    @override
    def init(self) -> None:
        """Be told that the session has begun."""
        self.initialised()

    def _show(self, attributes: Attributes) -> EntryAttributes:
        known = self._known.get(attributes.inode)
        if known is None:
            known = self._known[attributes.inode] = ShownInode(self._missing.entry_timeout)
        return known.show(attributes)

    @override
    def keep_entries_shortly(self) -> None:
        """Let the host's kernel keep entries for a moment only: it cannot be told to drop them."""
        self._missing.entry_timeout = ENTRY_SHORTLY_S
        for known in self._known.values():
            known.entry.entry_timeout = ENTRY_SHORTLY_S

    @override
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Forget inodes that the kernel has dropped. Their lookups need no counting."""
        for inode, _ in inode_list:
            self._known.pop(inode, None)

    @override
    async def _groups(self, pid: int) -> Iterable[int]:
        return pyfuse3.get_sup_groups(pid)

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
        return self._show(await self._make(ctx.uid, ctx.gid, ctx.pid, make))

    @override
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        make = functools.partial(self._fs.mkdir, parent=parent_inode, name=name, mode=mode & 0o7777)
        return self._show(await self._make(ctx.uid, ctx.gid, ctx.pid, make))

    @override
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        make = functools.partial(self._fs.symlink, parent=parent_inode, name=name, target=target)
        return self._show(await self._make(ctx.uid, ctx.gid, ctx.pid, make))

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
        groups = tuple(sorted(await self._groups(ctx.pid)))
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
        attributes = await self._make(ctx.uid, ctx.gid, ctx.pid, make)
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
            return await self._read(fh & INODE_BITS, off, size)
        except Exception as error:  # noqa: BLE001 - invariant 1
            raise failure("read", error) from None

    @override
    @complete
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write octets and return their count."""
        try:
            return await self._write(fh, off, buf)
        except Exception as error:  # noqa: BLE001 - invariant 1
            raise failure("write", error) from None

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

        def add(entry: Entry) -> bool:
            shown = self._show(entry.attributes)
            return bool(pyfuse3.readdir_reply(token, entry.name, shown, entry.cookie))

        await self._list(fh, start_id, add)

    # Extended attributes

    @override
    @complete
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """Return an extended attribute's value."""
        known = self._known.get(inode)
        if known is not None and name in known.absent:
            raise FUSEError(errno.ENODATA)  # asked before every write: two errors would be slow
        try:
            return bytes(await self._value(inode, name))
        except Exception as error:  # noqa: BLE001 - invariant 1
            raise failure("getxattr", error) from None

    @override
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Set an extended attribute; pyfuse3 has dealt with the flags."""
        await self._set_value(inode, name, 0, value)

    @override
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an extended attribute."""
        await self._remove_value(inode, name)

    @override
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """Return the names that the caller may see."""
        return await self._fs.listxattr(self._caller(ctx.uid, ctx.gid), inode)
