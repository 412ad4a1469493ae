"""Look-ups, and making and removing entries: the operations on names but for `rename`."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from core.errors import Refused

from .entries import ABSENT, check_name
from .inodes import LINK_LIMIT, Inode
from .interface import ROOT_INODE, SYMLINK_LIMIT, Attributes, Caller, Entry
from .permissions import (
    EXECUTE,
    MODE_BITS,
    READ,
    WRITE,
    birth,
    check_caller,
    demand,
    demand_removal,
    permits,
)
from .status import check_open, read_time, truncate_opened
from .tables import Tables

DOTS: Final = (b".", b"..")
_MADE_BY_ANYONE: Final = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)
_MADE_BY_ROOT: Final = (stat.S_IFCHR, stat.S_IFBLK)
_DEVICE_LIMIT: Final = (1 << 32) - 1
_LISTING_LIMIT_OCTETS: Final = 48 * 1024
"""Octets of one answer of `readdir`; it must fit into one packet."""
_ENTRY_OCTETS: Final = 112
"""Octets of an entry beside its name, at most."""
_COOKIE_LIMIT: Final = 1 << 62


def find_in(tables: Tables, directory: Inode, name: bytes) -> int:
    """Return the inode that a name leads to, '.' and '..' too, or ABSENT."""
    if name == b".":
        return directory.number
    if name == b"..":
        return directory.parent
    return tables.entries.find(directory.number, name)


def lookup(tables: Tables, caller: Caller, parent: int, name: bytes) -> Attributes:
    """See `FileSystem.lookup`."""
    directory = tables.inodes.directory(parent)
    if caller.uid and not permits(directory, caller, EXECUTE):
        raise Refused(errno.EACCES)
    check_name(name)
    number = find_in(tables, directory, name)
    if number == ABSENT:
        raise Refused(errno.ENOENT)
    return tables.inodes.find(number).view()


def existing(tables: Tables, directory: Inode, caller: Caller, name: bytes) -> Inode:
    """Return the inode of an entry that is there. Raises: Refused, ENOENT for one."""
    demand(directory, caller, EXECUTE)
    check_name(name)
    number = tables.entries.find(directory.number, name)
    if number == ABSENT:
        raise Refused(errno.ENOENT)
    return tables.inodes.find(number)


def room_for(tables: Tables, caller: Caller, parent: int, name: bytes) -> Inode:
    """Return the directory in which the caller may make `name`, which is not there yet.

    Raises:
        Refused: EEXIST, or why the caller may not; ENOENT for a directory that was removed.
    """
    check_caller(caller)
    directory = tables.inodes.directory(parent)
    demand(directory, caller, EXECUTE)
    check_name(name)
    if name in DOTS or tables.entries.find(parent, name) != ABSENT:
        raise Refused(errno.EEXIST)
    _demand_room(directory, caller)
    return directory


def _demand_room(directory: Inode, caller: Caller) -> None:
    """Refuse unless the caller may make entries in the directory."""
    if not directory.links:
        raise Refused(errno.ENOENT, "the directory was removed")
    demand(directory, caller, WRITE)


def _put(tables: Tables, directory: Inode, name: bytes, inode: Inode, now: int) -> Attributes:
    """Make the entry of a new inode."""
    tables.entries.add(directory, name, inode.number)
    directory.touch(now)
    tables.inodes.save(directory)
    tables.note(directory.number, name)
    return inode.view()


def mknod(
    tables: Tables, caller: Caller, parent: int, name: bytes, mode: int, device: int
) -> Attributes:
    """See `FileSystem.mknod`."""
    kind = stat.S_IFMT(mode) if 0 <= mode <= 0xFFFF else -1
    if kind == 0:
        kind = stat.S_IFREG
    if kind == stat.S_IFDIR:
        raise Refused(errno.EPERM, "mkdir makes directories")
    if kind not in _MADE_BY_ANYONE + _MADE_BY_ROOT or not 0 <= device <= _DEVICE_LIMIT:
        raise Refused(errno.EINVAL, f"no such kind of file: mode {mode:o}, device {device}")
    directory = room_for(tables, caller, parent, name)
    if kind in _MADE_BY_ROOT and caller.uid:
        raise Refused(errno.EPERM, "only root makes device nodes")
    return _make(tables, caller, directory, name, (kind | mode & MODE_BITS, device))


def _make(
    tables: Tables, caller: Caller, directory: Inode, name: bytes, what: tuple[int, int]
) -> Attributes:
    """Make an inode of mode and device `what`, and its entry."""
    now = tables.clock()
    mode, gid = birth(directory, caller, what[0])
    device = what[1] if stat.S_IFMT(mode) in _MADE_BY_ROOT else 0
    inode = tables.inodes.make(mode, (caller.uid, gid), now, device=device)
    return _put(tables, directory, name, inode, now)


def mkdir(tables: Tables, caller: Caller, parent: int, name: bytes, mode: int) -> Attributes:
    """See `FileSystem.mkdir`."""
    if mode < 0:
        raise Refused(errno.EINVAL)
    directory = room_for(tables, caller, parent, name)
    if directory.links >= LINK_LIMIT:
        raise Refused(errno.EMLINK)
    now = tables.clock()
    # the setuid and setgid bits are not the caller's to give: setgid is inherited
    mode, gid = birth(directory, caller, stat.S_IFDIR | mode & 0o1777)
    inode = tables.inodes.make(mode, (caller.uid, gid), now, parent=parent)
    directory.links += 1
    return _put(tables, directory, name, inode, now)


def symlink(tables: Tables, caller: Caller, parent: int, name: bytes, target: bytes) -> Attributes:
    """See `FileSystem.symlink`."""
    if len(target) > SYMLINK_LIMIT:
        raise Refused(errno.ENAMETOOLONG)
    if not target:
        raise Refused(errno.ENOENT, "a symbolic link's target must not be empty")
    if b"\0" in target:
        raise Refused(errno.EINVAL, "a symbolic link's target must not hold NUL")
    directory = room_for(tables, caller, parent, name)
    now = tables.clock()
    _, gid = birth(directory, caller, stat.S_IFLNK)
    owner = (caller.uid, gid)
    inode = tables.inodes.make(stat.S_IFLNK | 0o777, owner, now, target=target)
    return _put(tables, directory, name, inode, now)


def link(tables: Tables, caller: Caller, inode: int, parent: int, name: bytes) -> Attributes:
    """See `FileSystem.link`."""
    found = tables.inodes.find(inode)
    directory = room_for(tables, caller, parent, name)
    if found.is_directory:
        raise Refused(errno.EPERM, "directories have one entry only")
    if not found.links and not found.parent:
        raise Refused(errno.ENOENT, "the file was removed")
    if found.links >= LINK_LIMIT:
        raise Refused(errno.EMLINK)
    now = tables.clock()
    found.links += 1
    found.parent = 0
    found.ctime = now
    tables.inodes.save(found)
    tables.note(inode)
    return _put(tables, directory, name, found, now)


def unlink(tables: Tables, caller: Caller, parent: int, name: bytes) -> Attributes:
    """See `FileSystem.unlink`."""
    directory = tables.inodes.directory(parent)
    if name in DOTS:
        raise Refused(errno.EISDIR)
    inode = existing(tables, directory, caller, name)
    demand_removal(directory, inode, caller)
    if inode.is_directory:
        raise Refused(errno.EISDIR)
    now = tables.clock()
    tables.entries.remove(parent, name)
    directory.touch(now)
    tables.inodes.save(directory)
    tables.note(parent, name)
    tables.unlinked(inode, now)
    return inode.view()


def rmdir(tables: Tables, caller: Caller, parent: int, name: bytes) -> None:
    """See `FileSystem.rmdir`."""
    directory = tables.inodes.directory(parent)
    if name in DOTS:
        raise Refused(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
    inode = existing(tables, directory, caller, name)
    demand_removal(directory, inode, caller)
    if not inode.is_directory:
        raise Refused(errno.ENOTDIR)
    if not tables.entries.is_empty(inode.number):
        raise Refused(errno.ENOTEMPTY)
    tables.entries.remove(parent, name)
    directory.links -= 1
    directory.touch(tables.clock())
    tables.inodes.save(directory)
    tables.free(inode)
    tables.note(parent, name)


def create(
    tables: Tables, caller: Caller, parent: int, name: bytes, mode: int, flags: int
) -> Attributes:
    """See `FileSystem.create`; the open itself is counted by the caller."""
    if mode < 0 or flags < 0:
        raise Refused(errno.EINVAL)
    directory = tables.inodes.directory(parent)
    demand(directory, caller, EXECUTE)
    check_name(name)
    number = find_in(tables, directory, name)
    if number != ABSENT and flags & os.O_EXCL:
        raise Refused(errno.EEXIST)
    if number == ABSENT:
        check_caller(caller)
        _demand_room(directory, caller)
        return _make(tables, caller, directory, name, (stat.S_IFREG | mode & MODE_BITS, 0))
    inode = tables.inodes.find(number)
    check_open(inode, caller, flags)
    truncate_opened(tables, inode, caller, flags)
    return inode.view()


def tmpfile(
    tables: Tables, caller: Caller, parent: int, mode: int, flags: int, client: int
) -> Attributes:
    """See `FileSystem.tmpfile`; the open is counted here, see `Opens.retract`."""
    if mode < 0 or flags < 0:
        raise Refused(errno.EINVAL)
    check_caller(caller)
    directory = tables.inodes.directory(parent)
    demand(directory, caller, EXECUTE)
    _demand_room(directory, caller)
    mode, gid = birth(directory, caller, stat.S_IFREG | mode & MODE_BITS)
    inode = tables.inodes.make(
        mode,
        (caller.uid, gid),
        tables.clock(),
        parent=0 if flags & os.O_EXCL else parent,
        named=False,
    )
    tables.opens.add(tables.store.request, client, inode.number)
    return inode.view()


def opendir(tables: Tables, caller: Caller, inode: int) -> None:
    """See `FileSystem.opendir`."""
    demand(tables.inodes.directory(inode), caller, READ)


def readdir(tables: Tables, inode: int, cookie: int, limit: int) -> list[Entry]:
    """See `FileSystem.readdir`."""
    if not 0 <= cookie < _COOKIE_LIMIT or limit < 1:
        raise Refused(errno.EINVAL, f"cookie {cookie}, limit {limit}")
    directory = tables.inodes.directory(inode)
    entries: list[Entry] = []
    octets = 0
    find = tables.inodes.find
    if cookie < 1:
        entries.append(Entry(1, b".", directory.view()))
    if cookie < 2 and limit > len(entries):
        entries.append(Entry(2, b"..", find(directory.parent).view()))
    wanted = min(limit - len(entries), _LISTING_LIMIT_OCTETS // _ENTRY_OCTETS)
    if wanted:
        for sequence, name, number in tables.entries.listing(inode, cookie, wanted):
            octets += len(name) + _ENTRY_OCTETS
            if octets > _LISTING_LIMIT_OCTETS:
                break
            entries.append(Entry(sequence, name, find(number).view()))
    read_time(tables, directory)
    return entries


def is_below(tables: Tables, inode: Inode, ancestor: int) -> bool:
    """Return whether a directory is `ancestor` or lies somewhere below it."""
    number = inode.number
    while number != ancestor:
        if number == ROOT_INODE:
            return False
        number = tables.inodes.find(number).parent
    return True
