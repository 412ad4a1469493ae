"""The octets of regular files: reading, writing, truncation, allocation, and finding holes.

Theory of operation. New octets go to the data file first, then the metadata that names them
commits. So a server that dies in between leaves nothing but octets in free blocks. A write that
changes neither size nor extents needs no metadata but the times, which move in steps of the host's
tick: so a sequence of overwrites commits only a few hundred times a second.

Invariants:
1. Nobody sees octets that were not written to this file. A new block is written whole, what the
   caller did not give as zeros; a new block without any octets of the caller's is zeroed.
2. What lies behind the size in a mapped block may be anything (a write may have died between data
   and metadata): whoever makes the size larger zeroes what lies between the old and the new octets.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from core.abi import BULK_LIMIT
from core.errors import Refused
from core.userlib.interface import Bulk

from .data import ZEROS
from .extents import HOLE, Extents
from .inodes import Inode
from .interface import (
    ALLOCATE_KEEP_SIZE,
    ALLOCATE_PUNCH_HOLE,
    ALLOCATE_ZERO_RANGE,
    FILE_LIMIT,
    Caller,
)
from .layout import BLOCK_MASK, BLOCK_SHIFT, BLOCK_SIZE
from .permissions import mode_after_write
from .tables import Tables

_CAPABILITY: Final = b"security.capability"
_ALLOCATE_MODES: Final = (
    0,
    ALLOCATE_KEEP_SIZE,
    ALLOCATE_PUNCH_HOLE | ALLOCATE_KEEP_SIZE,
    ALLOCATE_ZERO_RANGE,
    ALLOCATE_ZERO_RANGE | ALLOCATE_KEEP_SIZE,
)
_LAST_BLOCK: Final = 1 << 52


def regular(tables: Tables, number: int) -> Inode:
    """Return a regular file. Raises: Refused, EISDIR or EINVAL for other kinds, ESTALE for none."""
    inode = tables.inodes.find(number)
    if not inode.is_file:
        raise Refused(errno.EISDIR if inode.is_directory else errno.EINVAL)
    return inode


def drop_capability(tables: Tables, inode: Inode) -> None:
    """Remove the file's capability: who changes a program must not inherit its powers."""
    attributes = tables.attributes(inode)
    if attributes and attributes.pop(_CAPABILITY, None) is not None:
        tables.store.write(
            "DELETE FROM attribute WHERE inode = ? AND name = ?", (inode.number, _CAPABILITY)
        )


def drop_privileges(tables: Tables, inode: Inode, caller: Caller) -> None:
    """Take set-id bits and capability off a file that is written to; the caller saves it."""
    inode.mode = mode_after_write(inode.mode, caller)
    drop_capability(tables, inode)


# -- reading --------------------------------------------------------------------------------------


def read(tables: Tables, inode: Inode, offset: int, view: memoryview) -> int:
    """Fill `view` with the file's octets at `offset`, fewer only at its end. Returns how many."""
    size = min(len(view), inode.size - offset)
    if size <= 0:
        return 0
    first = offset >> BLOCK_SHIFT
    count = ((offset + size - 1) >> BLOCK_SHIFT) - first + 1
    done = 0
    for block, start, length in tables.extents(inode).pieces(first, count):
        skip = offset + done - (block << BLOCK_SHIFT)
        end = min(done + (length << BLOCK_SHIFT) - skip, size)
        if start == HOLE:
            view[done:end] = bytes(end - done)
        else:
            tables.data.read_into((start << BLOCK_SHIFT) + skip, view[done:end])
        done = end
    return size


def readable(tables: Tables, number: int, offset: int, size: int) -> int:
    """Return how many octets a read returns.

    Raises:
        Refused: EISDIR, EINVAL for other kinds and impossible numbers.
    """
    inode = regular(tables, number)
    if offset < 0 or size < 0:
        raise Refused(errno.EINVAL, f"offset {offset}, size {size}")
    return max(0, min(size, BULK_LIMIT, inode.size - offset))


# -- writing --------------------------------------------------------------------------------------


def write(tables: Tables, caller: Caller, number: int, offset: int, data: Bulk) -> int:
    """See `FileSystem.write`."""
    inode = regular(tables, number)
    size = len(data)
    end = offset + size
    if offset < 0:
        raise Refused(errno.EINVAL, f"offset {offset}")
    if end > FILE_LIMIT:
        raise Refused(errno.EFBIG)
    if not size:
        return 0
    extents = tables.extents(inode)
    first = offset >> BLOCK_SHIFT
    pieces = list(extents.pieces(first, ((end - 1) >> BLOCK_SHIFT) - first + 1))
    added = sum(length for _, start, length in pieces if start == HOLE)
    if added:
        tables.claim(added)
    if offset > inode.size:
        _zero(tables, extents, inode.size, offset)
    for piece in pieces:
        _write_piece(tables, extents, piece, offset, data)
    mode = inode.mode
    drop_privileges(tables, inode, caller)
    _save_written(tables, inode, end, added, same_mode=mode == inode.mode)
    tables.note(number, data=True)
    return size


def _write_piece(
    tables: Tables, extents: Extents, piece: tuple[int, int, int], offset: int, data: Bulk
) -> None:
    """Write the part of `data` that lies in one extent, or in one hole, which is filled."""
    block, start, length = piece
    position = block << BLOCK_SHIFT
    low = max(position, offset)
    high = min(position + (length << BLOCK_SHIFT), offset + len(data))
    part: Bulk = data
    if high - low != len(data):
        part = memoryview(data)[low - offset : high - offset]
    if start != HOLE:
        tables.data.write((start << BLOCK_SHIFT) + low - position, [part])
        return
    head = ZEROS[: low - position]
    tail = ZEROS[: -high & BLOCK_MASK]
    runs = tables.allocator.take(length, extents.block_before(block))
    extents.add(block, runs)
    if len(runs) == 1:
        tables.data.write(runs[0][0] << BLOCK_SHIFT, [head, part, tail])
        return
    whole = memoryview(b"".join((head, part, tail)))
    done = 0
    for run_start, run_length in runs:
        octets = run_length << BLOCK_SHIFT
        tables.data.write(run_start << BLOCK_SHIFT, [whole[done : done + octets]])
        done += octets


def _save_written(tables: Tables, inode: Inode, end: int, added: int, *, same_mode: bool) -> None:
    """Store what a write changed in the metadata, if it changed anything."""
    now = tables.clock()
    alone = not added and not tables.store.begun
    same_times = inode.mtime == now and inode.ctime == now
    if alone and same_times and same_mode and end <= inode.size:
        return
    inode.size = max(inode.size, end)
    inode.blocks += added
    inode.touch(now)
    if added:
        tables.save_extents(inode, tables.extents(inode))
    tables.inodes.save_contents(inode, alone=alone)


def _zero(tables: Tables, extents: Extents, low: int, high: int) -> None:
    """Zero what is mapped between two offsets of a file."""
    if low >= high:
        return
    first = low >> BLOCK_SHIFT
    count = ((high - 1) >> BLOCK_SHIFT) - first + 1
    for block, start, length in extents.pieces(first, count):
        if start != HOLE:
            position = block << BLOCK_SHIFT
            begin = max(low, position)
            end = min(high, position + (length << BLOCK_SHIFT))
            tables.data.zero((start << BLOCK_SHIFT) + begin - position, end - begin)


def truncate(tables: Tables, inode: Inode, size: int, now: int) -> None:
    """Give a file another size; a longer one reads as zeros from the old end on."""
    extents = tables.extents(inode)
    if size > inode.size:
        _zero(tables, extents, inode.size, size)
    else:
        _remove(tables, inode, (size + BLOCK_MASK) >> BLOCK_SHIFT, _LAST_BLOCK)
    inode.size = size
    inode.touch(now)
    tables.inodes.save_contents(inode, alone=False)


def _remove(tables: Tables, inode: Inode, block: int, end: int) -> None:
    """Make a hole from block `block` to `end`. The caller saves the inode."""
    extents = tables.extents(inode)
    if block >= end or extents.end <= block:
        return
    for run in extents.remove(block, end - block):
        tables.allocator.release(run)
        inode.blocks -= run[1]
    tables.save_extents(inode, extents)


# -- allocation -----------------------------------------------------------------------------------


def allocate(
    tables: Tables, caller: Caller, number: int, mode: int, offset: int, size: int
) -> None:
    """See `FileSystem.allocate`."""
    if mode not in _ALLOCATE_MODES:
        raise Refused(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}")
    inode = regular(tables, number)
    if offset < 0 or size <= 0:
        raise Refused(errno.EINVAL, f"offset {offset}, size {size}")
    end = offset + size
    if end > FILE_LIMIT:
        raise Refused(errno.EFBIG)
    if not mode & ALLOCATE_PUNCH_HOLE:
        _fill(tables, inode, offset, end)
    if mode & ALLOCATE_PUNCH_HOLE:
        _punch(tables, inode, offset, end)
    elif mode & ALLOCATE_ZERO_RANGE:
        _zero(tables, tables.extents(inode), offset, end)
    drop_privileges(tables, inode, caller)
    if not mode & ALLOCATE_KEEP_SIZE and end > inode.size:
        _zero(tables, tables.extents(inode), inode.size, end)
        inode.size = end
    inode.touch(tables.clock())
    tables.inodes.save_contents(inode, alone=False)
    tables.note(number, data=True)


def _fill(tables: Tables, inode: Inode, offset: int, end: int) -> None:
    """Map the holes between two offsets to zeroed blocks."""
    extents = tables.extents(inode)
    first = offset >> BLOCK_SHIFT
    count = ((end - 1) >> BLOCK_SHIFT) - first + 1
    holes = [piece for piece in extents.pieces(first, count) if piece[1] == HOLE]
    added = sum(length for _, _, length in holes)
    if not added:
        return
    tables.claim(added)
    for block, _, length in holes:
        runs = tables.allocator.take(length, extents.block_before(block))
        extents.add(block, runs)
        for start, blocks in runs:
            tables.data.zero(start << BLOCK_SHIFT, blocks << BLOCK_SHIFT)
    inode.blocks += added
    tables.save_extents(inode, extents)


def _punch(tables: Tables, inode: Inode, offset: int, end: int) -> None:
    """Make a hole between two offsets; blocks that are only partly in it are zeroed there."""
    extents = tables.extents(inode)
    first = (offset + BLOCK_MASK) >> BLOCK_SHIFT
    last = end >> BLOCK_SHIFT
    if first > last:
        _zero(tables, extents, offset, end)
        return
    _zero(tables, extents, offset, first << BLOCK_SHIFT)
    _zero(tables, extents, last << BLOCK_SHIFT, end)
    _remove(tables, inode, first, last)


def insert_hole(tables: Tables, caller: Caller, inode: Inode, offset: int, end: int) -> None:
    """Write zeros that take no room; the file grows if they lie behind its end."""
    if end > inode.size:
        _zero(tables, tables.extents(inode), inode.size, end)
    _punch(tables, inode, offset, end)
    drop_privileges(tables, inode, caller)
    inode.size = max(inode.size, end)
    inode.touch(tables.clock())
    tables.inodes.save_contents(inode, alone=False)
    tables.note(inode.number, data=True)


def seek(tables: Tables, number: int, offset: int, whence: int) -> int:
    """See `FileSystem.seek`."""
    inode = regular(tables, number)
    if whence not in {os.SEEK_DATA, os.SEEK_HOLE} or offset < 0:
        raise Refused(errno.EINVAL, f"offset {offset}, whence {whence}")
    if offset >= inode.size:
        raise Refused(errno.ENXIO)
    first = offset >> BLOCK_SHIFT
    count = ((inode.size - 1) >> BLOCK_SHIFT) - first + 1
    for block, start, _ in tables.extents(inode).pieces(first, count):
        if (start == HOLE) == (whence == os.SEEK_HOLE):
            return max(offset, block * BLOCK_SIZE)
    if whence == os.SEEK_HOLE:
        return inode.size
    raise Refused(errno.ENXIO)
