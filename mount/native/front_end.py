"""The native front end's handlers: one for each request of the protocol, body in, body out.

A handler takes a typed request and returns the reply's body, or raises; `session` brings the one
and takes the other. Who checks permissions, what is cached and what a file handle is, is as in
`mount.front_end`, whose twin this is: both stand upon `FileOperations`.

Invariants:

1. Every entry in a good reply counts as one look-up of its inode until the kernel forgets it, or
   the reply did not reach the kernel (`undo`). An inode without look-ups is not remembered; but
   for the root, which the kernel never looks up.
2. A body that is a `memoryview` is written before anything else runs.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import stat
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from typing_extensions import override

from core.errors import Refused
from core.userlib.interface import Bulk
from fs_server.interface import ROOT_INODE, Attributes, Caller, Changes, Entry, FileSystem
from mount.file_operations import APPEND, INODE_BITS, ROOT, FileOperations
from mount.host import Host
from mount.known_inode import CACHE_S, ENTRY_SHORTLY_S

from . import file_flags
from .locks import Locks
from .lookups import Lookups
from .packed_inode import PackedInode
from .protocol import layouts, requests
from .protocol.directory import Listing, parse_listing
from .protocol.flags import Fattr, Flag, Opened
from .protocol.opcodes import Opcode
from .protocol.replies import CopyFileRangeOut, GetxattrOut, Kstatfs, LseekOut

if TYPE_CHECKING:
    from .streams import StreamRouter

INODE_WIDTH: Final = INODE_BITS.bit_length()
SERIALS_LIMIT: Final = 1 << 22
"""Opens that file handles tell apart; two of one inode so far apart are taken for one."""

Handler = Callable[[Any], Awaitable[Bulk]]
Makes = requests.Create | requests.Mknod | requests.Mkdir | requests.Symlink

_KEPT: Final = Opened.KEEP_CACHE.value
_NOTHING: Final = b""
_WRITTEN: Final = layouts.WRITE_OUT.pack
_OPENED: Final = layouts.OPEN_OUT.pack
_ENTRY_SIZE: Final = layouts.ENTRY_OUT.size
_NODE: Final = layouts.FORGET_IN.unpack_from  # one number of 8 octets
_NO_INODE: Final = bytes(_ENTRY_SIZE)
_FDATASYNC: Final = Flag.FSYNC_FDATASYNC.value
_SIGN: Final = 1 << 63
_MODE: Final = Fattr.MODE.value
_UID: Final = Fattr.UID.value
_GID: Final = Fattr.GID.value
_SIZE: Final = Fattr.SIZE.value
_ATIME: Final = Fattr.ATIME.value
_MTIME: Final = Fattr.MTIME.value
_FH: Final = Fattr.FH.value
_ATIME_NOW: Final = Fattr.ATIME_NOW.value
_MTIME_NOW: Final = Fattr.MTIME_NOW.value
_CTIME: Final = Fattr.CTIME.value
MAKES_ENTRY: Final = frozenset(
    {
        Opcode.LOOKUP.value,
        Opcode.MKNOD.value,
        Opcode.MKDIR.value,
        Opcode.SYMLINK.value,
        Opcode.LINK.value,
        Opcode.CREATE.value,
        Opcode.TMPFILE.value,
    }
)
"""Opcodes whose good reply begins with an entry."""


def _time(seconds: int, nanoseconds: int) -> int:
    """Return a time of the protocol in nanoseconds since 1970."""
    return (seconds - (1 << 64) if seconds & _SIGN else seconds) * 1_000_000_000 + nanoseconds


def _sized(value: Bulk, size: int) -> Bulk:
    """Return a value, or how long it is, if that was asked. Refused: it is too long."""
    if not size:
        return GetxattrOut(len(value)).pack()
    if len(value) > size:
        raise Refused(errno.ERANGE)
    return value


class NativeFrontEnd(FileOperations[PackedInode]):
    """The handlers of one mount; arguments as of `mount.front_end.FrontEnd`.

    Attributes:
        handlers: by opcode. What is not here is not done: ENOSYS.
        waiting: the same for what may wait for long, for another request to come.
        groups_told: the host's kernel says which of the caller's groups matters, if one does.
        streams: what handles nodes that are no files; set by itself.
    """

    def __init__(
        self, fs: FileSystem, *, writeback: bool = False, host: Host, lookups: Lookups | None = None
    ) -> None:
        """Make the handlers.

        Args:
            host: what is asked of the host.
            lookups: where they are counted for later incarnations; None: there are none.
        """
        super().__init__(fs, writeback=writeback)
        self._host = host
        self._lookups = lookups
        self._entry_s = int(CACHE_S)
        self.groups_told = False
        self.streams: StreamRouter | None = None
        self.locks = Locks(fs)
        self.unlocked = self.locks.wake_all
        self.waiting: dict[int, Handler] = {Opcode.SETLKW.value: self.locks.set_waiting}
        self._serial = random.randrange(SERIALS_LIMIT)
        if lookups is not None:
            self._inherit(lookups)
        self.handlers: dict[int, Handler] = {
            opcode.value: getattr(self, f"_on_{opcode.name.lower()}")
            for opcode in Opcode
            if hasattr(self, f"_on_{opcode.name.lower()}")
        }

    # What is remembered

    def _seen(self, attributes: Attributes) -> PackedInode:
        known = self._known.get(attributes.inode)
        if known is None:
            known = self._known[attributes.inode] = PackedInode()
        known.show(attributes, self._entry_s)
        return known

    def _entry(self, attributes: Attributes) -> bytes:
        """Return the packed entry, and count the look-up."""
        known = self._seen(attributes)
        known.lookups += 1
        if self._lookups is not None:
            self._lookups.note(attributes.inode, 1, attributes.mode)
        return known.entry

    def _inherit(self, lookups: Lookups) -> None:
        """Know what an earlier incarnation knew; of what was shown only the kind is left.

        Another client may have changed any of it, so where an append belongs is asked for.
        """
        for inode, count, mode in lookups.load():
            known = self._known[inode] = PackedInode()
            known.lookups, known.moved = count, True
            known.last = Attributes(inode, mode, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        lookups.live = lambda: (
            (inode, known.lookups, known.last.mode if known.last is not None else 0)
            for inode, known in self._known.items()
        )

    def forget(self, inode: int, count: int) -> None:
        """Be told that the kernel has dropped an inode that it looked up so often."""
        known = self._known.get(inode)
        if known is None:
            if self.streams is not None:
                self.streams.forget(inode, count)
            return
        known.lookups -= count
        if self._lookups is not None:
            self._lookups.note(inode, -count, 0)
        if known.lookups <= 0 and inode != ROOT_INODE:
            del self._known[inode]

    def interrupt(self, unique: int) -> bool:
        """End a request's wait: a signal has come. Returns if it is one that waits for a stream."""
        return self.streams is not None and self.streams.interrupt(unique)

    async def root_has(self, name: bytes) -> bool:
        """Return if the volume's root has an entry of this name."""
        try:
            await self._fs.lookup(ROOT, ROOT_INODE, name)
        except Refused:
            return False
        return True

    def undo(self, opcode: int, body: Bulk) -> None:
        """Take look-ups back: a reply did not reach the kernel."""
        if opcode in MAKES_ENTRY:
            entries = [bytes(body[:_ENTRY_SIZE])]
        elif opcode == Opcode.READDIRPLUS:
            entries = [line[0] for line in parse_listing(memoryview(body), plus=True)]
        else:
            return
        for entry in entries:
            (inode,) = _NODE(entry)
            if inode:
                self.forget(inode, 1)

    def lookups(self) -> dict[int, int]:
        """Return how often the kernel has looked up each inode that it knows."""
        return {inode: known.lookups for inode, known in self._known.items() if known.lookups}

    @override
    def keep_entries_shortly(self) -> None:
        self._entry_s = int(ENTRY_SHORTLY_S)
        for known in self._known.values():
            known.attributes = None  # so that it is packed anew when it is next shown

    @override
    async def _groups(self, pid: int) -> Iterable[int]:
        return await self._host.groups(pid)

    async def _made(
        self, request: Makes, call: Callable[[Caller], Awaitable[Attributes]]
    ) -> Attributes:
        told = (request.extensions.groups or ()) if self.groups_told else None
        return await self._make(request.uid, request.gid, request.pid, call, told)

    # Names

    async def _on_lookup(self, request: requests.Name) -> Bulk:
        try:
            return self._entry(await self._fs.lookup(ROOT, request.nodeid, request.name))
        except Refused as refusal:
            if refusal.errno != errno.ENOENT:
                raise
            return layouts.ENTRY_OUT.pack(0, 0, self._entry_s, 0, 0, 0, b"")

    async def _on_mknod(self, request: requests.Mknod) -> Bulk:
        make = functools.partial(
            self._fs.mknod,
            parent=request.nodeid,
            name=request.name,
            mode=request.mode,
            device=request.rdev,
        )
        return self._entry(await self._made(request, make))

    async def _on_mkdir(self, request: requests.Mkdir) -> Bulk:
        make = functools.partial(
            self._fs.mkdir,
            parent=request.nodeid,
            name=request.name,
            mode=stat.S_IMODE(request.mode),
        )
        return self._entry(await self._made(request, make))

    async def _on_symlink(self, request: requests.Symlink) -> Bulk:
        make = functools.partial(
            self._fs.symlink, parent=request.nodeid, name=request.name, target=request.target
        )
        return self._entry(await self._made(request, make))

    async def _on_link(self, request: requests.Link) -> Bulk:
        call = self._fs.link(ROOT, request.oldnodeid, request.nodeid, request.name)
        return self._entry(await self._alter(call))

    async def _on_unlink(self, request: requests.Name) -> Bulk:
        await self._alter(self._fs.unlink(ROOT, request.nodeid, request.name))
        return _NOTHING

    async def _on_rmdir(self, request: requests.Name) -> Bulk:
        await self._alter(self._fs.rmdir(ROOT, request.nodeid, request.name))
        return _NOTHING

    async def _on_rename(self, request: requests.Rename) -> Bulk:
        return await self._rename(request, 0)

    async def _on_rename2(self, request: requests.Rename2) -> Bulk:
        return await self._rename(request, request.flags)

    async def _rename(self, request: requests.Rename | requests.Rename2, flags: int) -> Bulk:
        await self._alter(
            self._fs.rename(
                ROOT, request.nodeid, request.name, request.newdir, request.new_name, flags
            )
        )
        return _NOTHING

    async def _on_readlink(self, request: requests.Request) -> Bulk:
        return await self._fs.readlink(request.nodeid)

    # Attributes

    async def _on_getattr(self, request: requests.Getattr) -> Bulk:
        try:
            attributes = await self._fs.getattr(request.nodeid)
        except Refused as refusal:
            return self._departed(request.nodeid, refusal).got
        return self._seen(attributes).got

    def _departed(self, inode: int, refusal: Refused) -> PackedInode:
        """Return an inode that is gone, but that a process still refers to, as it was last.

        A working directory that was removed, or a path descriptor: nothing that counts as an open.
        """
        known = self._known.get(inode)
        gone = refusal.errno in {errno.ESTALE, errno.ENOENT}
        if not gone or known is None or known.last is None:
            raise refusal
        known.attributes = None
        known.show(msgspec.structs.replace(known.last, links=0), self._entry_s)
        return known

    async def _on_statx(self, request: requests.Statx) -> Bulk:
        inode = request.nodeid
        try:
            known = self._seen(await self._fs.getattr(inode))
            if known.birth is None:
                known.birth = await self._fs.birth(inode)
        except Refused as refusal:
            known = self._departed(inode, refusal)
        return known.statx()

    async def _on_setattr(self, request: requests.Setattr) -> Bulk:
        """Change attributes. The host's kernel has checked the caller and adjusted the mode."""
        valid = request.valid
        atime = _time(request.atime, request.atimensec) if valid & _ATIME else None
        mtime = _time(request.mtime, request.mtimensec) if valid & _MTIME else None
        if valid & (_ATIME_NOW | _MTIME_NOW):
            now = time.time_ns()
            atime = now if valid & _ATIME_NOW else atime
            mtime = now if valid & _MTIME_NOW else mtime
        changes = Changes(
            mode=stat.S_IMODE(request.mode) if valid & _MODE else None,
            uid=request.new_uid if valid & _UID else None,
            gid=request.new_gid if valid & _GID else None,
            size=request.size if valid & _SIZE else None,
            atime=atime,
            mtime=mtime,
            ctime=_time(request.ctime, request.ctimensec) if valid & _CTIME else None,
            opened=bool(valid & _FH),
        )
        call = self._fs.setattr(ROOT, request.nodeid, changes)
        return self._seen(await self._alter(call)).got

    async def _on_access(self, request: requests.Access) -> Bulk:
        """Say if the caller may. Not asked under `default_permissions`."""
        groups = tuple(sorted(await self._groups(request.pid)))
        caller = Caller(request.uid, request.gid, groups, 0)
        await self._fs.access(caller, request.nodeid, request.mask)
        return _NOTHING

    async def _on_statfs(self, request: requests.Request) -> Bulk:
        usage = await self._fs.statfs()
        return Kstatfs(
            blocks=usage.blocks,
            bfree=usage.blocks_free,
            bavail=usage.blocks_free,
            files=usage.inodes,
            ffree=usage.inodes_free,
            bsize=usage.block_size,
            namelen=usage.name_limit,
            frsize=usage.block_size,
        ).pack()

    # Data

    async def _on_open(self, request: requests.Open) -> Bulk:
        flags = request.flags
        attributes = await self._fs.open(ROOT, request.nodeid, flags)
        self._seen(attributes)
        if flags & os.O_TRUNC:
            self._turn += 1
        return self._opened(attributes, flags)

    async def _on_create(self, request: requests.Create) -> Bulk:
        make = functools.partial(
            self._fs.create,
            parent=request.nodeid,
            name=request.name,
            mode=stat.S_IMODE(request.mode),
            flags=request.flags,
        )
        attributes = await self._made(request, make)
        return self._entry(attributes) + self._opened(attributes, request.flags)

    async def _on_tmpfile(self, request: requests.Create) -> Bulk:
        make = functools.partial(
            self._fs.tmpfile,
            parent=request.nodeid,
            mode=stat.S_IMODE(request.mode),
            flags=request.flags,
        )
        attributes = await self._made(request, make)
        return self._entry(attributes) + self._opened(attributes, request.flags)

    def _opened(self, attributes: Attributes, flags: int) -> bytes:
        inode = attributes.inode
        if inode > INODE_BITS:
            raise Refused(errno.EOVERFLOW, f"inode {inode} has no room in a file handle")
        self._serial = (self._serial + 1) % SERIALS_LIMIT
        append = APPEND if flags & os.O_APPEND else 0
        return _OPENED(inode | self._serial << INODE_WIDTH | append, _KEPT, 0)

    async def _on_release(self, request: requests.Release) -> Bulk:
        await self.locks.close(request)
        return _NOTHING

    def _on_read(self, request: requests.Read) -> Awaitable[Bulk]:
        return self._read(request.fh & INODE_BITS, request.offset, request.size)

    async def _on_write(self, request: requests.Write) -> Bulk:
        return _WRITTEN(await self._write(request.fh, request.offset, request.data))

    async def _on_fsync(self, request: requests.Fsync) -> Bulk:
        await self._fs.fsync(request.fh & INODE_BITS, bool(request.fsync_flags & _FDATASYNC))
        return _NOTHING

    async def _on_syncfs(self, request: requests.Request) -> Bulk:
        await self._fs.sync()
        return _NOTHING

    async def _on_fallocate(self, request: requests.Fallocate) -> Bulk:
        inode = request.fh & INODE_BITS
        await self._alter(
            self._fs.allocate(ROOT, inode, request.mode, request.offset, request.length)
        )
        return _NOTHING

    async def _on_lseek(self, request: requests.Lseek) -> Bulk:
        inode = request.fh & INODE_BITS
        return LseekOut(await self._fs.seek(inode, request.offset, request.whence)).pack()

    async def _copy(self, request: requests.CopyFileRange) -> int:
        if request.flags:
            raise Refused(errno.EINVAL, f"flags {request.flags:#x}")
        source, target = request.fh_in & INODE_BITS, request.fh_out & INODE_BITS
        return await self._alter(
            self._fs.copy(ROOT, source, request.off_in, target, request.off_out, request.len)
        )

    async def _on_copy_file_range(self, request: requests.CopyFileRange) -> Bulk:
        return _WRITTEN(await self._copy(request))

    async def _on_copy_file_range_64(self, request: requests.CopyFileRange) -> Bulk:
        return CopyFileRangeOut(await self._copy(request)).pack()

    async def _on_ioctl(self, request: requests.Ioctl) -> Bulk:
        return file_flags.answer(request)

    # Locks

    async def _on_flush(self, request: requests.Flush) -> Bulk:
        if self.locks.may_hold(request):
            await self.locks.flush(request)
        return _NOTHING

    def _on_getlk(self, request: requests.Lock) -> Awaitable[Bulk]:
        return self.locks.get(request)

    def _on_setlk(self, request: requests.Lock) -> Awaitable[Bulk]:
        return self.locks.set(request)

    # Directories

    async def _on_opendir(self, request: requests.Open) -> Bulk:
        """Open a directory. The kernel has checked the caller; there is nothing to hold."""
        return _OPENED(request.nodeid, 0, 0)

    async def _on_releasedir(self, request: requests.Release) -> Bulk:
        return _NOTHING

    async def _on_fsyncdir(self, request: requests.Fsync) -> Bulk:
        return await self._on_fsync(request)

    async def _on_readdir(self, request: requests.Read) -> Bulk:
        listing = Listing(request.size)

        def add(entry: Entry) -> bool:
            shown = entry.attributes
            return listing.add(entry.name, shown.inode, entry.cookie, shown.mode)

        await self._list(request.fh, request.offset, add)
        return listing.pack()

    async def _on_readdirplus(self, request: requests.Read) -> Bulk:
        listing = Listing(request.size)

        def add(entry: Entry) -> bool:
            shown = entry.attributes
            packed = _NO_INODE if entry.name in {b".", b".."} else self._entry(shown)
            added = listing.add(entry.name, shown.inode, entry.cookie, shown.mode, packed)
            if not added and packed is not _NO_INODE:
                self.forget(shown.inode, 1)
            return added

        await self._list(request.fh, request.offset, add)
        return listing.pack()

    # Extended attributes

    async def _on_getxattr(self, request: requests.Getxattr) -> Bulk:
        return _sized(await self._value(request.nodeid, request.name), request.size)

    async def _on_listxattr(self, request: requests.Listxattr) -> Bulk:
        caller = self._caller(request.uid, request.gid)
        names = await self._fs.listxattr(caller, request.nodeid)
        return _sized(b"".join(name + b"\0" for name in names), request.size)

    async def _on_setxattr(self, request: requests.Setxattr) -> Bulk:
        await self._set_value(request.nodeid, request.name, request.flags, request.data)
        return _NOTHING

    async def _on_removexattr(self, request: requests.Name) -> Bulk:
        await self._remove_value(request.nodeid, request.name)
        return _NOTHING
