"""The smallest useful file system on stock pyfuse3, the benchmark's yardstick.

Everything is in dicts, nothing is checked, and every request waits as pyfuse3 ships it. Run
`python -m tests.bench.bare_fuse DIR`; it unmounts when its standard input ends.
"""

from __future__ import annotations

import errno
import stat
import sys
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError


class BareFileSystem(pyfuse3.Operations):
    """One directory of files in memory."""

    def __init__(self) -> None:
        self.entries: dict[bytes, int] = {}
        self.data: dict[int, bytearray] = {}
        self.shown: dict[int, EntryAttributes] = {}
        self.add(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o777)

    def add(self, inode: int, mode: int) -> EntryAttributes:
        shown = self.shown[inode] = EntryAttributes()
        shown.st_ino, shown.st_mode = inode, mode
        self.data[inode] = bytearray()
        return shown

    async def getattr(self, inode: int, ctx: Any) -> EntryAttributes:
        return self.shown[inode]

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> EntryAttributes:
        if fields.update_size:
            del self.data[inode][attr.st_size :]
            self.shown[inode].st_size = attr.st_size
        return self.shown[inode]

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        if name not in self.entries:
            raise FUSEError(errno.ENOENT)
        return self.shown[self.entries[name]]

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[FileInfo, EntryAttributes]:
        inode = self.entries[name] = len(self.shown) + 1
        return FileInfo(fh=inode), self.add(inode, mode)

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        return FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return memoryview(self.data[fh])[off : off + size]  # type: ignore[return-value]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        data = self.data[fh]
        data[off : off + len(buf)] = buf
        self.shown[fh].st_size = len(data)
        return len(buf)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        del self.entries[name]

    async def release(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        pass


async def serve(mountpoint: str) -> None:
    pyfuse3.init(BareFileSystem(), mountpoint, {"fsname=bare", "default_permissions"})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            print("ready", flush=True)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            pyfuse3.terminate()
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    trio.run(serve, sys.argv[1])
