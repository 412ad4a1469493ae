"""The data file of a volume, through a descriptor that its owner, the disk server, has lent.

Positions are octets from the start of the file. Every failure of the host comes out as `HostError`
with the host's error number, so a full or broken host disk is an answer and not a fault.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Final

from core.userlib.interface import Bulk

from .layout import DATA_NAME, HostError
from .observer import Observer

ZEROS: Final = bytes(64 * 1024)
_SEEK_DATA: Final = os.SEEK_DATA
_SEEK_HOLE: Final = os.SEEK_HOLE
_PUNCH_KEEPING_SIZE: Final = 0x02 | 0x01

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch(descriptor: int, position: int, size: int) -> None:
    """Make a hole: the octets read as zeros, and the host gets their space back.

    Raises:
        OSError: EOPNOTSUPP where the host's file system has no holes.
    """
    if size and _libc.fallocate(descriptor, _PUNCH_KEEPING_SIZE, position, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class DataFile:
    """Reads and writes of the data file.

    Args:
        descriptor: open for reading and writing; owned, closed by `close`.
        size: octets in the file.
        observer: is asked before each change; None in ordinary operation.
    """

    def __init__(self, descriptor: int, size: int, observer: Observer | None = None) -> None:
        self.descriptor = descriptor
        self.size = size
        self._observer = observer
        self.dirty = False
        """Something was written since the last sync."""

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)

    def read_into(self, position: int, view: memoryview) -> None:
        """Fill `view` with the octets at `position`. Raises: HostError with the host's reason."""
        done, wanted = 0, len(view)
        while done < wanted:
            try:
                count = os.preadv(self.descriptor, [view[done:] if done else view], position + done)
            except OSError as error:
                raise HostError(error.errno or errno.EIO, f"data: {error}") from None
            if not count:
                raise HostError(errno.EIO, f"data ends at {position + done}, it was cut")
            done += count

    def write(self, position: int, parts: Sequence[Bulk]) -> None:
        """Write the parts one after another. Raises: HostError with the host's reason."""
        self.dirty = True
        if self._observer is not None:
            parts = [b"".join(parts)]
        size = sum(map(len, parts))
        try:
            if self._observer and not self._observer.write(DATA_NAME, position, bytes(parts[0])):
                return
            count = os.pwritev(self.descriptor, parts, position)
            if count != size:
                self._finish(position, b"".join(parts), count)
        except OSError as error:
            raise HostError(error.errno or errno.EIO, f"data: {error}") from None

    def _finish(self, position: int, data: bytes, done: int) -> None:
        """Write what a short write left over."""
        while done < len(data):
            done += os.pwrite(self.descriptor, data[done:], position + done)

    def zero(self, position: int, size: int) -> None:
        """Make octets read as zeros. Raises: HostError with the host's reason."""
        if size <= len(ZEROS):
            self.write(position, [ZEROS[:size]])
        else:
            self.punch(position, size)

    def punch(self, position: int, size: int) -> None:
        """Make a hole, or write zeros where the host has no holes. Raises: HostError."""
        self.dirty = True
        try:
            if self._observer:
                self._observer.punch(DATA_NAME, position, size)
            punch(self.descriptor, position, size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise HostError(error.errno or errno.EIO, f"data: {error}") from None
            for start in range(position, position + size, len(ZEROS)):
                self.write(start, [ZEROS[: min(len(ZEROS), position + size - start)]])

    def sync(self) -> None:
        """Return when everything written is durable. Raises: HostError with the host's reason."""
        if not self.dirty:
            return
        try:
            if self._observer is None or self._observer.sync(DATA_NAME):
                os.fdatasync(self.descriptor)
        except OSError as error:
            raise HostError(error.errno or errno.EIO, f"data: {error}") from None
        self.dirty = False

    def occupied(self, position: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield where the host stores something between `position` and its end, as (start, end)."""
        end = position + size
        while position < end:
            try:
                start = os.lseek(self.descriptor, position, _SEEK_DATA)
                if start >= end:
                    return
                position = os.lseek(self.descriptor, start, _SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise HostError(error.errno or errno.EIO, f"data: {error}") from None
            yield start, min(position, end)
