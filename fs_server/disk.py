"""The disk server: the only task that opens a volume's data file, and who lends it to others.

A client in good standing borrows the descriptor once and reads and writes by itself; nothing is
faster. One that shall be watched, or must not have a descriptor, has the server do it by message.
The kernel keeps the descriptor, so a restarted disk server goes on with the same open file.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import msgspec

from core.abi import BULK_LIMIT
from core.errors import Refused
from core.userlib.interface import Bulk, Descriptor, Interface, operation
from core.userlib.server import Server
from core.userlib.task import Task

from .data import DataFile
from .layout import BLOCK_SIZE, DATA_NAME, VolumeError
from .mkfs import DEFAULT_SIZE, make_data

_KEPT: Final = "data"


class DiskInfo(msgspec.Struct, frozen=True, array_like=True):
    """What there is to know of a disk.

    Args:
        size: octets.
        block_size: octets of the unit in which space should be used and discarded.
        used: octets that the host stores; 0: nothing was ever written, or all was discarded.
    """

    size: int
    block_size: int
    used: int


class Disk(Interface):
    """A fixed number of octets that can be read, written and discarded at any offset."""

    @operation(idempotent=True)
    async def describe(self) -> DiskInfo:
        """Return size and use of the disk."""

    @operation(idempotent=True)
    async def lend(self) -> tuple[DiskInfo, Descriptor]:
        """Return the descriptor itself, for reading and writing, as long as the client wants."""

    @operation(idempotent=True, room="size")
    async def read(self, offset: int, size: int) -> Bulk:
        """Return exactly `size` octets. Refused: EINVAL outside of the disk."""

    @operation(idempotent=True)
    async def write(self, offset: int, data: Bulk) -> None:
        """Write all octets. Refused: EINVAL outside of the disk, ENOSPC when the host is full."""

    @operation(idempotent=True)
    async def sync(self) -> None:
        """Return when everything written by anybody is durable."""

    @operation(idempotent=True)
    async def discard(self, offset: int, length: int) -> None:
        """Make octets read as zeros, and give their space back to the host."""


class DiskServer(Server):
    """Serves `Disk` from the data file of a volume.

    Options: `state`, the volume's directory, made if it is not there; `size`, octets of the disk if
    it has to be made (a multiple of the block size).
    """

    interface = Disk

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        descriptor = task.kept(_KEPT)
        if descriptor is None:
            descriptor = _open(Path(task.options["state"]), task.options.get("size", DEFAULT_SIZE))
            task.keep(_KEPT, descriptor)
        self._data = DataFile(descriptor, os.fstat(descriptor).st_size)
        self._data.dirty = True  # by the incarnation before, or by a borrower

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self._data.size:
            detail = f"{size} octets at {offset} are not inside of {self._data.size}"
            raise Refused(errno.EINVAL, detail)

    def describe(self) -> DiskInfo:
        """See `Disk.describe`."""
        status = os.fstat(self._data.descriptor)
        return DiskInfo(self._data.size, BLOCK_SIZE, status.st_blocks * 512)

    def lend(self) -> tuple[DiskInfo, Descriptor]:
        """See `Disk.lend`."""
        return self.describe(), Descriptor(os.dup(self._data.descriptor))

    def read(self, offset: int, size: int) -> Bulk:
        """See `Disk.read`."""
        self._check(offset, size)
        if size > BULK_LIMIT:
            raise Refused(errno.EINVAL, f"one message holds {BULK_LIMIT} octets, not {size}")
        view = self.request.buffer(size)
        self._data.read_into(offset, view)
        return view

    def write(self, offset: int, data: Bulk) -> None:
        """See `Disk.write`."""
        self._check(offset, len(data))
        self._data.write(offset, [data])

    def sync(self) -> None:
        """See `Disk.sync`."""
        self._data.dirty = True
        self._data.sync()

    def discard(self, offset: int, length: int) -> None:
        """See `Disk.discard`."""
        self._check(offset, length)
        if length:
            self._data.punch(offset, length)

    def stop(self) -> None:
        """Make everything durable."""
        self.sync()
        self._data.close()


def _open(directory: Path, size: int) -> int:
    """Open the data file, made if it is not there. Raises: VolumeError."""
    path = directory / DATA_NAME
    try:
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True)
            make_data(directory, size)
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise VolumeError(f"{path}: {error.strerror}", error.errno or errno.EIO) from None
