"""Extended attributes: their name spaces, limits and permissions, as xattr(7) has them."""

from __future__ import annotations

import errno
import stat
from typing import Final

from core.errors import Refused

from .inodes import Inode
from .interface import (
    NAME_LIMIT,
    XATTR_CREATE,
    XATTR_REPLACE,
    XATTR_SIZE_LIMIT,
    Caller,
)
from .permissions import READ, WRITE, demand, owns
from .tables import Tables

_USER: Final = b"user."
_TRUSTED: Final = b"trusted."
_SECURITY: Final = b"security."
_SYSTEM: Final = b"system."
_NAMES_LIMIT_OCTETS: Final = 48 * 1024
"""Octets of all names of one inode; the list must fit into one packet."""
_TOTAL_LIMIT_OCTETS: Final = 1024 * 1024
"""Octets of all names and values of one inode."""


def _check(inode: Inode, caller: Caller, name: bytes, *, change: bool) -> None:
    """Refuse impossible names, and what the caller may not do with possible ones."""
    if not name or len(name) > NAME_LIMIT:
        raise Refused(errno.ERANGE, "an attribute's name has 1 to 255 octets")
    if b"\0" in name:
        raise Refused(errno.EINVAL, "an attribute's name must not hold NUL")
    space = name[: name.find(b".") + 1]
    if space == _USER:
        _check_user(inode, caller, change=change)
    elif space == _TRUSTED and caller.uid:
        raise Refused(errno.EPERM if change else errno.ENODATA)
    elif space not in {_TRUSTED, _SECURITY}:
        if space != _SYSTEM:
            demand(inode, caller, WRITE if change else READ)
        raise Refused(errno.EOPNOTSUPP, f"no such name space: {name!r}")
    if name == space:
        raise Refused(errno.EINVAL, "an attribute's name needs something behind its space")
    if space == _SECURITY and change and caller.uid:
        raise Refused(errno.EPERM, "only root sets security attributes")


def _check_user(inode: Inode, caller: Caller, *, change: bool) -> None:
    if not (inode.is_file or inode.is_directory):
        raise Refused(errno.EPERM if change else errno.ENODATA)
    if change and inode.is_directory and inode.mode & stat.S_ISVTX and not owns(inode, caller):
        raise Refused(errno.EPERM)
    demand(inode, caller, WRITE if change else READ)


def find(tables: Tables, caller: Caller, inode: int, name: bytes, size: int) -> bytes:
    """See `FileSystem.getxattr`."""
    found = tables.inodes.find(inode)
    _check(found, caller, name, change=False)
    value = tables.attributes(found).get(name)
    if value is None:
        raise Refused(errno.ENODATA)
    if len(value) > size:
        raise Refused(errno.ERANGE)
    return value


def names(tables: Tables, caller: Caller, inode: int) -> list[bytes]:
    """See `FileSystem.listxattr`."""
    attributes = tables.attributes(tables.inodes.find(inode))
    if caller.uid == 0:
        return sorted(attributes)
    return sorted(name for name in attributes if not name.startswith(_TRUSTED))


def store(
    tables: Tables, caller: Caller, inode: int, name: bytes, flags: int, value: bytes
) -> None:
    """See `FileSystem.setxattr`."""
    if flags & ~(XATTR_CREATE | XATTR_REPLACE):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if len(value) > XATTR_SIZE_LIMIT:
        raise Refused(errno.E2BIG)
    found = tables.inodes.find(inode)
    _check(found, caller, name, change=True)
    attributes = tables.attributes(found)
    if name in attributes and flags & XATTR_CREATE:
        raise Refused(errno.EEXIST)
    if name not in attributes and flags & XATTR_REPLACE:
        raise Refused(errno.ENODATA)
    if attributes.get(name) == value:
        return
    _check_room({**attributes, name: value})
    tables.store.write("INSERT OR REPLACE INTO attribute VALUES(?, ?, ?)", (inode, name, value))
    attributes[name] = value
    _changed(tables, found)


def _check_room(attributes: dict[bytes, bytes]) -> None:
    octets = sum(len(name) + 5 for name in attributes)
    if octets > _NAMES_LIMIT_OCTETS:
        raise Refused(errno.ENOSPC, "too many extended attributes")
    if octets + sum(map(len, attributes.values())) > _TOTAL_LIMIT_OCTETS:
        raise Refused(errno.ENOSPC, "extended attributes are too large together")


def remove(tables: Tables, caller: Caller, inode: int, name: bytes) -> None:
    """See `FileSystem.removexattr`."""
    found = tables.inodes.find(inode)
    _check(found, caller, name, change=True)
    attributes = tables.attributes(found)
    if name not in attributes:
        raise Refused(errno.ENODATA)
    tables.store.write("DELETE FROM attribute WHERE inode = ? AND name = ?", (inode, name))
    del attributes[name]
    _changed(tables, found)


def _changed(tables: Tables, inode: Inode) -> None:
    inode.ctime = tables.clock()
    tables.inodes.save(inode)
    tables.note(inode.number)
