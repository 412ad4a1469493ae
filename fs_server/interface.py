"""The file server's interface: what its clients may ask, and the values that cross the port.

The operations follow the VFS of a Unix kernel, because the FUSE front end is the busiest client. An
inode number names a file for as long as a link or an open exists; it never comes back for another
file. Every operation that checks permissions takes the `Caller` on whose behalf it is made.

All operations may raise `core.errors.Refused` with a host error number; each lists its own reasons
where they are not plain from POSIX. Octet strings may hold anything; names that hold "/" or NUL, or
are empty, are refused, and so is every number that is out of range.

No operation waits, so that the server can be a plain blocking loop. A client that caches learns of
what *others* do like this: it calls `watch` with a right to a port of its own, and gets a position.
When something happened the server sets bit 0 (`CHANGED`) at that port, once until the client asks;
the client calls `changes(position)` and gets what happened since, and the next position. A
restarted server remembers neither watches nor positions: it answers an unknown position with
`Change(inode=0)`, "drop everything you cache", and takes a new `watch`. A lock that cannot be had
is refused too: a client that wants to wait for it says so (`eager`), and asks again when bit 1
(`UNLOCKED`) is set at the same port. Among its own processes it has to wake who waits by itself.
"""

from __future__ import annotations

from typing import Final

import msgspec

from core.abi import Right
from core.userlib.interface import Bulk, Interface, operation

ROOT_INODE: Final = 1
NAME_LIMIT: Final = 255
"""Octets in one directory entry's name."""
SYMLINK_LIMIT: Final = 4095
"""Octets in a symbolic link's target."""

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2
XATTR_SIZE_LIMIT: Final = 65_536
"""Octets in one extended attribute's value."""

FILE_LIMIT: Final = 1 << 60
"""Octets in one file; beyond it EFBIG."""

COPY_LIMIT: Final = 4 << 20
"""Octets that one `copy` copies; a hole may be longer."""

ALLOCATE_KEEP_SIZE: Final = 0x01
ALLOCATE_PUNCH_HOLE: Final = 0x02
ALLOCATE_ZERO_RANGE: Final = 0x10

OPEN_EXECUTE: Final = 0x20
"""In `flags` of `open`: for execution (FMODE_EXEC), so that X_OK is checked and not R_OK."""

CHANGES_LIMIT: Final = 128
"""Changes in one answer of `changes`."""
CHANGED: Final = 1
"""The notification bit that is set at a watching client's port."""
UNLOCKED: Final = 2
"""The same, when a lock that was refused to an eager client may be had."""

LOCK_READ: Final = 0
LOCK_WRITE: Final = 1
LOCK_NONE: Final = 2
LOCK_END: Final = (1 << 63) - 1
"""The last octet of a lock that has no end."""


class Caller(msgspec.Struct, frozen=True, array_like=True):
    """On whose behalf a request is made: effective ids, and the supplementary groups.

    `umask` takes bits from the mode of what `create`, `mknod` and `mkdir` make. A front end whose
    host has masked the mode already may pass the same umask again, or 0.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022


class Attributes(msgspec.Struct, frozen=True, array_like=True):
    """What `stat` shows. Times are nanoseconds since 1970, `blocks` counts 512 octets."""

    inode: int
    mode: int
    links: int
    uid: int
    gid: int
    device: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int


class Changes(msgspec.Struct, frozen=True, array_like=True):
    """The attributes that `setattr` shall change; None leaves one alone.

    Times outside of what 63 bits of nanoseconds can hold are brought to the nearest that they can.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    ctime: int | None = None
    now: bool = False
    """Times given stand for the present: write permission suffices, the server's clock counts."""
    opened: bool = False
    """Made through a file opened for writing (ftruncate): `size` asks for no permission again."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a directory listing. `cookie` is where the listing goes on after it."""

    cookie: int
    name: bytes
    attributes: Attributes


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What `statfs` shows of the volume, in blocks of `block_size` octets."""

    block_size: int
    blocks: int
    blocks_free: int
    inodes: int
    inodes_free: int
    name_limit: int


class Change(msgspec.Struct, frozen=True, array_like=True):
    """Something that another client did, for those who cache.

    Args:
        inode: the inode whose data (`size >= 0`) or attributes changed; for an entry, its
        directory. name: the entry that came, went or changed its inode; empty when no entry did.
        data: octets of the file changed too, not just attributes.
    """

    inode: int
    name: bytes = b""
    data: bool = False


class Lock(msgspec.Struct, frozen=True, array_like=True):
    """A lock on octets `start` to `end` of a file, both included, or on the file as a whole.

    Args:
        kind: LOCK_READ, LOCK_WRITE or, to give it back, LOCK_NONE.
        owner: a number of 64 bits; of the client's choice, and seen by this client alone: -1 in an
            answer stands for another client's.
        opened: through which open it is made, a number of 64 bits that `close` names.
        pid: of the process that asks, for `locked` to tell.
        whole: as of flock(2): covers everything, and heeds only locks of its sort.
    """

    kind: int
    start: int = 0
    end: int = LOCK_END
    owner: int = 0
    opened: int = 0
    pid: int = 0
    whole: bool = False


class FileSystem(Interface):
    """A tree of files. See the module head for the rules that hold for all operations."""

    @operation(idempotent=True)
    async def lookup(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        """Return the inode that `name` leads to in directory `parent` ('.' and '..' too)."""

    @operation(idempotent=True)
    async def getattr(self, inode: int) -> Attributes:
        """Return an inode's attributes. Refused: ESTALE when there is no such inode."""

    @operation
    async def setattr(self, caller: Caller, inode: int, changes: Changes) -> Attributes:
        """Change attributes, all or none."""

    @operation(idempotent=True)
    async def access(self, caller: Caller, inode: int, mode: int) -> None:
        """Return if the caller may do what `mode` (R_OK | W_OK | X_OK) says; EACCES else."""

    @operation(idempotent=True)
    async def readlink(self, inode: int) -> bytes:
        """Return a symbolic link's target."""

    @operation
    async def mknod(
        self, caller: Caller, parent: int, name: bytes, mode: int, device: int
    ) -> Attributes:
        """Make a regular file, FIFO, socket or device node; `mode` has the S_IFMT bits."""

    @operation
    async def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> Attributes:
        """Make a directory."""

    @operation
    async def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> Attributes:
        """Make a symbolic link."""

    @operation
    async def link(self, caller: Caller, inode: int, parent: int, name: bytes) -> Attributes:
        """Make another entry for a file that is no directory."""

    @operation
    async def unlink(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        """Remove an entry; the file goes with its last link and last open.

        Returns the attributes after that: `links` 0 says that no link is left.
        """

    @operation
    async def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        """Remove an empty directory."""

    @operation
    async def rename(
        self,
        caller: Caller,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
    ) -> None:
        """Move an entry by the rules of rename; `flags` is 0, RENAME_NOREPLACE or _EXCHANGE."""

    @operation
    async def create(
        self, caller: Caller, parent: int, name: bytes, mode: int, flags: int
    ) -> Attributes:
        """Make a regular file if there is none, and open it (`flags` as in open(2))."""

    @operation
    async def open(self, caller: Caller, inode: int, flags: int) -> Attributes:
        """Open a file: it stays readable after its last link went, until `release`.

        The open belongs to the client's badge, is counted, and is given back when the client ends.
        """

    @operation
    async def release(self, inode: int) -> None:
        """Give back one open."""

    @operation(idempotent=True, room="size")
    async def read(self, inode: int, offset: int, size: int) -> Bulk:
        """Return up to `size` octets (at most `core.abi.BULK_LIMIT`); fewer only at the end."""

    @operation
    async def write(self, caller: Caller, inode: int, offset: int, data: Bulk) -> int:
        """Write octets at `offset`; the file grows, a gap reads as zeros. Returns their count."""

    @operation
    async def fsync(self, inode: int, data_only: bool) -> None:
        """Return when all that was acknowledged for this inode survives the host's death."""

    @operation
    async def sync(self) -> None:
        """The same for the whole volume."""

    @operation
    async def opendir(self, caller: Caller, inode: int) -> None:
        """Check that the caller may list the directory."""

    @operation(idempotent=True)
    async def readdir(self, inode: int, cookie: int, limit: int) -> list[Entry]:
        """Return at most `limit` entries after `cookie` (0: from the start, with '.' and '..').

        Entries that neither come nor go meanwhile are returned exactly once. An empty list: the
        end.
        """

    @operation(idempotent=True)
    async def statfs(self) -> Usage:
        """Return the volume's size and what is free."""

    @operation
    async def setxattr(
        self, caller: Caller, inode: int, name: bytes, flags: int, value: Bulk
    ) -> None:
        """Set an extended attribute; `flags` are XATTR_CREATE or XATTR_REPLACE."""

    @operation(idempotent=True, room="size")
    async def getxattr(self, caller: Caller, inode: int, name: bytes, size: int) -> Bulk:
        """Return an attribute's value; ENODATA when there is none, ERANGE beyond `size`."""

    @operation(idempotent=True)
    async def listxattr(self, caller: Caller, inode: int) -> list[bytes]:
        """Return the names of the extended attributes that the caller may see."""

    @operation
    async def removexattr(self, caller: Caller, inode: int, name: bytes) -> None:
        """Remove an extended attribute; ENODATA when there is none."""

    @operation
    async def allocate(self, caller: Caller, inode: int, mode: int, offset: int, size: int) -> None:
        """Do what fallocate(2) does; `mode` is 0 or made of ALLOCATE_*. Else EOPNOTSUPP."""

    @operation(idempotent=True)
    async def seek(self, inode: int, offset: int, whence: int) -> int:
        """Return where the next data (SEEK_DATA) or hole (SEEK_HOLE) begins, or ENXIO."""

    @operation(idempotent=True)
    async def watch(self, port: Right) -> int:
        """Set `CHANGED` at `port` when *other* clients change something. Returns the position now.

        `port` is a send right to a port of the caller's; a second watch replaces the first. The
        watch ends with the caller, or when its port is gone.
        """

    @operation(idempotent=True)
    async def changes(self, after: int) -> tuple[int, list[Change]]:
        """Return the position to go on from, and what other clients did since `after`.

        The oldest comes first, at most `CHANGES_LIMIT`: call again until the list is empty.
        `Change(inode=0)` means: more than the server remembers; drop everything you cache.
        """

    @operation
    async def tmpfile(self, caller: Caller, parent: int, mode: int, flags: int) -> Attributes:
        """Make a regular file without a name, and open it (`flags` as in open(2)).

        It goes with its last open, unless it got a `link` before, which O_EXCL forbids for ever.
        """

    @operation
    async def copy(
        self, caller: Caller, source: int, position: int, inode: int, offset: int, size: int
    ) -> int:
        """Copy octets at `position` of file `source` to `offset` of file `inode`.

        Returns their count, which may be lower than `size` (see `COPY_LIMIT`), and is 0 only at the
        end of `source`. A hole is copied as a hole. Within one file the ranges must not overlap.
        """

    @operation(idempotent=True)
    async def birth(self, inode: int) -> int:
        """Return when the inode was made, in nanoseconds since 1970; 0: that is not known."""

    @operation(idempotent=True)
    async def lock(self, inode: int, lock: Lock, eager: bool) -> Lock | None:
        """Set a lock in place of what the owner has there, or give that back (LOCK_NONE).

        Returns None if that is done, else another owner's lock that is in the way. `eager`: set
        `UNLOCKED` at the watching port of the client when others give something on this file back.
        An owner that wants a whole lock of another kind loses the one it has, whatever comes of it.
        Locks end with the client, and when it has the file no longer open. Refused: EBADF when it
        has not now, ENOLCK beyond the limits of `fs_server.locks`.
        """

    @operation(idempotent=True)
    async def locked(self, inode: int, lock: Lock) -> Lock | None:
        """Return the first of the locks that are in the way of this one, if one is."""

    @operation(idempotent=True)
    async def unlock(self, inode: int, owner: int) -> None:
        """Give all range locks of an owner on a file back: it has closed a descriptor."""

    @operation
    async def close(self, inode: int, opened: int) -> None:
        """Give back one open, as `release`, and all locks that were made through it."""
