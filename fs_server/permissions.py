"""Who may do what: the permission rules of POSIX and Linux as pure functions.

`uid` 0 stands for every capability; there are no others.
"""

from __future__ import annotations

import errno
import stat
from typing import Final, Protocol

from core.errors import Refused

from .interface import Caller

READ: Final = 4
WRITE: Final = 2
EXECUTE: Final = 1
ID_LIMIT: Final = (1 << 32) - 2
"""The largest user or group id; the next one means "leave alone" on the host."""
MODE_BITS: Final = 0o7777


class Owned(Protocol):
    """What the rules look at in an inode."""

    mode: int
    uid: int
    gid: int


def check_caller(caller: Caller) -> None:
    """Refuse ids that no user can have. Raises: Refused EINVAL."""
    if not (0 <= caller.uid <= ID_LIMIT and 0 <= caller.gid <= ID_LIMIT):
        raise Refused(errno.EINVAL, f"no such ids: {caller.uid}, {caller.gid}")


def in_group(caller: Caller, gid: int) -> bool:
    """Return whether the caller's group or one of its supplementary groups is `gid`."""
    return caller.gid == gid or gid in caller.groups


def permits(inode: Owned, caller: Caller, wanted: int) -> bool:
    """Return whether the mode bits let the caller do all of `wanted` (READ | WRITE | EXECUTE)."""
    mode = inode.mode
    if caller.uid == 0:
        return not wanted & EXECUTE or bool(mode & 0o111) or stat.S_ISDIR(mode)
    if caller.uid == inode.uid:
        mode >>= 6
    elif in_group(caller, inode.gid):
        mode >>= 3
    return mode & wanted == wanted


def demand(inode: Owned, caller: Caller, wanted: int) -> None:
    """Raise Refused EACCES unless the mode bits permit `wanted`."""
    if not permits(inode, caller, wanted):
        raise Refused(errno.EACCES)


def owns(inode: Owned, caller: Caller) -> bool:
    """Return whether the caller may do what is reserved for the owner."""
    return caller.uid in {0, inode.uid}


def demand_owner(inode: Owned, caller: Caller) -> None:
    """Raise Refused EPERM unless the caller owns the inode."""
    if not owns(inode, caller):
        raise Refused(errno.EPERM, "only the owner may do this")


def demand_removal(directory: Owned, inode: Owned, caller: Caller) -> None:
    """Raise Refused unless the caller may take `inode`'s entry out of `directory`.

    EACCES for lack of permission on the directory; EPERM when its sticky bit protects the entry.
    """
    demand(directory, caller, WRITE | EXECUTE)
    if directory.mode & stat.S_ISVTX and not (owns(directory, caller) or owns(inode, caller)):
        raise Refused(errno.EPERM, "the sticky bit protects other users' entries")


def birth(directory: Owned, caller: Caller, mode: int) -> tuple[int, int]:
    """Return mode and group of what the caller makes in `directory` (setgid directories pass on).

    A file gets no setgid bit for a group that its maker is not in.
    """
    mode &= ~(caller.umask & 0o777)
    gid = caller.gid
    if directory.mode & stat.S_ISGID:
        gid = directory.gid
        if stat.S_ISDIR(mode):
            return mode | stat.S_ISGID, gid
    both = stat.S_ISGID | stat.S_IXGRP
    if mode & both == both and not stat.S_ISDIR(mode) and caller.uid and not in_group(caller, gid):
        mode &= ~stat.S_ISGID
    return mode, gid


def mode_after_chmod(inode: Owned, caller: Caller, mode: int) -> int:
    """Return the mode that `chmod(mode)` leads to; the kind of file stays."""
    mode = inode.mode & ~MODE_BITS | mode & MODE_BITS
    if caller.uid and not in_group(caller, inode.gid):
        mode &= ~stat.S_ISGID
    return mode


def mode_after_chown(mode: int) -> int:
    """Return the mode after a change of owner or group: set-id bits go, also for root."""
    if stat.S_ISDIR(mode):
        return mode
    return mode_without_set_ids(mode)


def mode_after_write(mode: int, caller: Caller) -> int:
    """Return a regular file's mode after a write or truncation: set-id bits go, not for root."""
    return mode if caller.uid == 0 else mode_without_set_ids(mode)


def mode_without_set_ids(mode: int) -> int:
    """Return `mode` without setuid, and without setgid unless that marks mandatory locking."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
