"""Copying octets from one file to another, or within one, without a way through the client.

Blocks belong to one file each, so the octets are read and written. One call copies what lies in one
hole, or data up to the next hole, so that a copy has the holes of its source.
"""

from __future__ import annotations

import errno

from core.errors import Refused

from .contents import insert_hole, read, regular, write
from .extents import HOLE
from .inodes import Inode
from .interface import COPY_LIMIT, FILE_LIMIT, Caller
from .layout import BLOCK_SHIFT
from .status import read_time
from .tables import Tables


def copy(
    tables: Tables,
    caller: Caller,
    source: int,
    position: int,
    number: int,
    offset: int,
    size: int,
) -> int:
    """See `FileSystem.copy`."""
    origin = regular(tables, source)
    target = regular(tables, number)
    if position < 0 or offset < 0 or size < 0:
        raise Refused(errno.EINVAL, f"{size} octets from {position} to {offset}")
    size = min(size, origin.size - position)
    if size <= 0:
        return 0
    if offset >= FILE_LIMIT:
        raise Refused(errno.EFBIG)
    size = min(size, FILE_LIMIT - offset)
    if origin is target and abs(position - offset) < size:
        raise Refused(errno.EINVAL, "the ranges overlap")
    is_hole, size = _extent(tables, origin, position, size)
    tables.store.begin()  # what is written and that something was read are one change
    if is_hole:
        insert_hole(tables, caller, target, offset, offset + size)
    else:
        octets = memoryview(bytearray(size))
        read(tables, origin, position, octets)
        write(tables, caller, number, offset, octets)
    read_time(tables, origin)
    return size


def _extent(tables: Tables, inode: Inode, position: int, size: int) -> tuple[bool, int]:
    """Return if there is a hole at `position`, and how much of `size` is like that."""
    first = position >> BLOCK_SHIFT
    count = ((position + size - 1) >> BLOCK_SHIFT) - first + 1
    is_hole: bool | None = None
    for block, start, _ in tables.extents(inode).pieces(first, count):
        if is_hole is None:
            is_hole = start == HOLE
        elif is_hole != (start == HOLE):
            size = (block << BLOCK_SHIFT) - position
            break
    return bool(is_hole), size if is_hole else min(size, COPY_LIMIT)
