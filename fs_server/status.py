"""What `stat` shows and who may change it: `setattr`, `access`, opening, and the time of reads."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

import apsw

from core.errors import Refused

from .contents import drop_capability, drop_privileges, truncate
from .inodes import Inode
from .interface import FILE_LIMIT, OPEN_EXECUTE, Attributes, Caller, Changes
from .permissions import (
    EXECUTE,
    ID_LIMIT,
    READ,
    WRITE,
    check_caller,
    demand,
    demand_owner,
    in_group,
    mode_after_chmod,
    mode_after_chown,
    owns,
    permits,
)
from .tables import Tables

_TIME_LIMIT: Final = (1 << 63) - 1
_DAY_NS: Final = 24 * 3600 * 1_000_000_000
_ACCESS: Final = {
    os.O_RDONLY: READ,
    os.O_WRONLY: WRITE,
    os.O_RDWR: READ | WRITE,
    os.O_ACCMODE: READ | WRITE,
}


def check_open(inode: Inode, caller: Caller, flags: int) -> None:
    """Refuse to open what cannot be, or what the caller may not, opened with these flags."""
    if flags < 0:
        raise Refused(errno.EINVAL, f"flags {flags}")
    wanted = _ACCESS[flags & os.O_ACCMODE]
    if inode.is_directory:
        if wanted == READ:
            demand(inode, caller, READ)
        raise Refused(errno.EISDIR)
    if not inode.is_file:
        raise Refused(errno.ELOOP if stat.S_ISLNK(inode.mode) else errno.ENXIO)
    if flags & os.O_DIRECTORY:
        raise Refused(errno.ENOTDIR)
    if flags & OPEN_EXECUTE:
        wanted = EXECUTE
    if flags & os.O_TRUNC:
        wanted |= WRITE
    demand(inode, caller, wanted)


def birth(tables: Tables, inode: int) -> int:
    """See `FileSystem.birth`."""
    return tables.inodes.birth(tables.inodes.find(inode))


def truncate_opened(tables: Tables, inode: Inode, caller: Caller, flags: int) -> None:
    """Empty a file that was opened with O_TRUNC."""
    if flags & os.O_TRUNC:
        now = tables.clock()
        drop_privileges(tables, inode, caller)
        truncate(tables, inode, 0, now)
        tables.note(inode.number, data=True)


def open_file(tables: Tables, caller: Caller, inode: int, flags: int) -> Attributes:
    """See `FileSystem.open`; the open itself is counted by the caller."""
    found = tables.inodes.find(inode)
    check_open(found, caller, flags)
    truncate_opened(tables, found, caller, flags)
    return found.view()


def access(tables: Tables, caller: Caller, inode: int, mode: int) -> None:
    """See `FileSystem.access`."""
    if mode & ~(READ | WRITE | EXECUTE):
        raise Refused(errno.EINVAL, f"access mode {mode}")
    demand(tables.inodes.find(inode), caller, mode)


def read_time(tables: Tables, inode: Inode) -> None:
    """Note that something was read: at most once after each change, and once a day (relatime)."""
    atime = inode.atime
    if atime > inode.mtime and atime > inode.ctime:
        now = tables.clock()
        if now - atime < _DAY_NS:
            return
    else:
        now = tables.clock()
        if now == atime:
            return
    # a read must not fail because its time cannot be stored: the host's disk may be full
    with contextlib.suppress(apsw.Error):
        tables.inodes.save_atime(inode, now)


def set_attributes(tables: Tables, caller: Caller, inode: int, changes: Changes) -> Attributes:
    """See `FileSystem.setattr`: all is checked before anything changes."""
    check_caller(caller)
    found = tables.inodes.find(inode)
    _check_owner(found, caller, changes)
    _check_times(found, caller, changes)
    if changes.mode is not None:
        if changes.mode < 0:
            raise Refused(errno.EINVAL, f"mode {changes.mode}")
        demand_owner(found, caller)
    if changes.size is not None:
        _check_size(found, caller, changes)
    now = tables.clock()
    if changes.size is not None:
        drop_privileges(tables, found, caller)
        truncate(tables, found, changes.size, now)
    _apply(tables, found, caller, changes, now)
    tables.note(inode, data=changes.size is not None)
    return found.view()


def _check_owner(inode: Inode, caller: Caller, changes: Changes) -> None:
    """Refuse what chown(2) would: only root gives away, the owner may choose among its groups."""
    for value in (changes.uid, changes.gid):
        if value is not None and not 0 <= value <= ID_LIMIT:
            raise Refused(errno.EINVAL, f"no such id: {value}")
    if caller.uid == 0 or (changes.uid is None and changes.gid is None):
        return
    demand_owner(inode, caller)
    if changes.uid not in {None, inode.uid}:
        raise Refused(errno.EPERM, "only root gives files away")
    gid = changes.gid
    if gid is not None and gid != inode.gid and not in_group(caller, gid):
        raise Refused(errno.EPERM, "the caller is not in that group")


def _check_times(inode: Inode, caller: Caller, changes: Changes) -> None:
    if changes.atime is None and changes.mtime is None:
        return
    if owns(inode, caller):
        return
    both = changes.atime is not None and changes.mtime is not None
    if not (changes.now and both):
        raise Refused(errno.EPERM, "only the owner sets times")
    if not permits(inode, caller, WRITE):
        raise Refused(errno.EACCES)


def _check_size(inode: Inode, caller: Caller, changes: Changes) -> None:
    if not inode.is_file:
        raise Refused(errno.EISDIR if inode.is_directory else errno.EINVAL)
    size = changes.size
    if size is not None and size < 0:
        raise Refused(errno.EINVAL, f"size {size}")
    if size is not None and size > FILE_LIMIT:
        raise Refused(errno.EFBIG)
    if not changes.opened:
        demand(inode, caller, WRITE)


def _apply(tables: Tables, inode: Inode, caller: Caller, changes: Changes, now: int) -> None:
    """Set the fields of a checked change, and store them."""
    if changes.uid is not None or changes.gid is not None:
        inode.uid = inode.uid if changes.uid is None else changes.uid
        inode.gid = inode.gid if changes.gid is None else changes.gid
        inode.mode = mode_after_chown(inode.mode)
        if inode.is_file:
            drop_capability(tables, inode)
    if changes.mode is not None:
        inode.mode = mode_after_chmod(inode, caller, changes.mode)
    if changes.atime is not None:
        inode.atime = now if changes.now else _representable(changes.atime)
    if changes.mtime is not None:
        inode.mtime = now if changes.now else _representable(changes.mtime)
    inode.ctime = now if changes.ctime is None else _representable(changes.ctime)
    store = tables.store
    tables.inodes.save(inode, alone=not store.begun and not store.request)


def _representable(time_ns: int) -> int:
    return max(-_TIME_LIMIT, min(_TIME_LIMIT, time_ns))


def readlink(tables: Tables, inode: int) -> bytes:
    """See `FileSystem.readlink`."""
    found = tables.inodes.find(inode)
    if not stat.S_ISLNK(found.mode):
        raise Refused(errno.EINVAL, "not a symbolic link")
    return tables.inodes.target(found)
