"""`rename`, by the rules of rename(2) and renameat2(2).

The order of the checks is that of Linux: flags, '.' and '..', what exists, loops, permissions,
kinds, emptiness. Where two reasons hold, programs see the one that they see on the host.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from core.errors import Refused

from .entries import ABSENT, check_name
from .inodes import LINK_LIMIT, Inode
from .interface import RENAME_EXCHANGE, RENAME_NOREPLACE, Caller
from .naming import DOTS, existing, is_below
from .permissions import EXECUTE, WRITE, check_caller, demand, demand_removal
from .tables import Tables

_FLAGS: Final = (0, RENAME_NOREPLACE, RENAME_EXCHANGE)


class _Move(NamedTuple):
    """What one rename is about; `replaced` is the inode that the new name leads to now."""

    source: Inode
    name: bytes
    target: Inode
    new_name: bytes
    moved: Inode
    replaced: Inode | None
    exchange: bool


def rename(
    tables: Tables,
    caller: Caller,
    parent: int,
    name: bytes,
    new_parent: int,
    new_name: bytes,
    flags: int,
) -> None:
    """See `FileSystem.rename`."""
    if flags not in _FLAGS:
        raise Refused(errno.EINVAL, f"unknown rename flags {flags:#x}")
    check_caller(caller)
    move = _look_up(tables, caller, (parent, name), (new_parent, new_name), flags)
    _check_loops(tables, move)
    if move.replaced is not None and move.moved.number == move.replaced.number:
        return  # two links of one file: POSIX wants nothing to happen
    _check_permissions(move, caller)
    if move.exchange:
        _exchange(tables, move)
        return
    _check_room(tables, move)
    _carry_out(tables, move)


def _look_up(
    tables: Tables, caller: Caller, old: tuple[int, bytes], new: tuple[int, bytes], flags: int
) -> _Move:
    source, target = tables.inodes.directory(old[0]), tables.inodes.directory(new[0])
    demand(source, caller, EXECUTE)
    demand(target, caller, EXECUTE)
    if old[1] in DOTS:
        raise Refused(errno.EBUSY)
    if new[1] in DOTS:
        raise Refused(errno.EEXIST if flags & RENAME_NOREPLACE else errno.EBUSY)
    moved = existing(tables, source, caller, old[1])
    check_name(new[1])
    number = tables.entries.find(target.number, new[1])
    if number == ABSENT and flags & RENAME_EXCHANGE:
        raise Refused(errno.ENOENT)
    if number != ABSENT and flags & RENAME_NOREPLACE:
        raise Refused(errno.EEXIST)
    if not target.links:
        raise Refused(errno.ENOENT, "the directory was removed")
    replaced = None if number == ABSENT else tables.inodes.find(number)
    exchange = bool(flags & RENAME_EXCHANGE)
    return _Move(source, old[1], target, new[1], moved, replaced, exchange)


def _check_loops(tables: Tables, move: _Move) -> None:
    if move.moved.is_directory and is_below(tables, move.target, move.moved.number):
        raise Refused(errno.EINVAL, "a directory cannot be moved into itself")
    replaced = move.replaced
    if (
        replaced is not None
        and replaced.is_directory
        and is_below(tables, move.source, replaced.number)
    ):
        raise Refused(errno.EINVAL if move.exchange else errno.ENOTEMPTY)


def _check_permissions(move: _Move, caller: Caller) -> None:
    demand_removal(move.source, move.moved, caller)
    if move.replaced is None:
        demand(move.target, caller, WRITE | EXECUTE)
    else:
        demand_removal(move.target, move.replaced, caller)
        if not move.exchange:
            _check_kinds(move.moved, move.replaced)
    if move.source is move.target:
        return
    # a directory that changes its parent is written to: its '..' changes
    if move.moved.is_directory:
        demand(move.moved, caller, WRITE)
    if move.exchange and move.replaced is not None and move.replaced.is_directory:
        demand(move.replaced, caller, WRITE)


def _check_kinds(moved: Inode, replaced: Inode) -> None:
    if moved.is_directory and not replaced.is_directory:
        raise Refused(errno.ENOTDIR)
    if replaced.is_directory and not moved.is_directory:
        raise Refused(errno.EISDIR)


def _check_room(tables: Tables, move: _Move) -> None:
    replaced = move.replaced
    if replaced is not None:
        if replaced.is_directory and not tables.entries.is_empty(replaced.number):
            raise Refused(errno.ENOTEMPTY)
    elif move.moved.is_directory and move.target.links >= LINK_LIMIT:
        raise Refused(errno.EMLINK)


def _carry_out(tables: Tables, move: _Move) -> None:
    now = tables.clock()
    moved, replaced = move.moved, move.replaced
    if replaced is None:
        tables.entries.remove(move.source.number, move.name)
        tables.entries.add(move.target, move.new_name, moved.number)
    else:
        tables.entries.remove(move.source.number, move.name)
        tables.entries.change(move.target.number, move.new_name, moved.number)
    if moved.is_directory:
        move.source.links -= 1
        if replaced is None:
            move.target.links += 1
        moved.parent = move.target.number
    moved.ctime = now
    tables.inodes.save(moved)
    _save_directories(tables, move, now)
    if replaced is not None:
        _drop(tables, replaced, now)
    tables.note(moved.number)


def _drop(tables: Tables, replaced: Inode, now: int) -> None:
    """Take the link off that the new name was."""
    if replaced.is_directory:
        tables.free(replaced)
        tables.note(replaced.number)
    else:
        tables.unlinked(replaced, now)


def _exchange(tables: Tables, move: _Move) -> None:
    now = tables.clock()
    moved, replaced = move.moved, move.replaced
    assert replaced is not None
    tables.entries.change(move.source.number, move.name, replaced.number)
    tables.entries.change(move.target.number, move.new_name, moved.number)
    difference = moved.is_directory - replaced.is_directory
    move.source.links -= difference
    move.target.links += difference
    for inode, directory in ((moved, move.target), (replaced, move.source)):
        if inode.is_directory:
            inode.parent = directory.number
        inode.ctime = now
        tables.inodes.save(inode)
        tables.note(inode.number)
    _save_directories(tables, move, now)


def _save_directories(tables: Tables, move: _Move, now: int) -> None:
    move.source.touch(now)
    tables.inodes.save(move.source)
    if move.target is not move.source:
        move.target.touch(now)
        tables.inodes.save(move.target)
    tables.note(move.source.number, move.name)
    tables.note(move.target.number, move.new_name)
