"""Two ways to one tree of files, with the same operations.

`MountDoor` goes through the mount, as every program does. `PortDoor` goes to the file server's port
as a program that joined: neither a front end nor a cache of the host stands between. What fails
raises the same errors either way, but for their class: OSError and `Refused` both have an `errno`.
"""

from __future__ import annotations

import abc
import mmap
import os
import random
from pathlib import Path
from typing import Any, Final

from fs_server.interface import ROOT_INODE, Caller, Changes, FileSystem
from mount.chaos.door import Door

_READ_WRITE: Final = os.O_RDWR
_PAGE_MISSES: Final = 0.5
"""How often the host has to forget what it caches before a read."""


class TreeDoor(abc.ABC):
    """A way to a tree. What a file is called by after it was opened is the door's own affair."""

    @abc.abstractmethod
    def create(self, name: str) -> Any:
        """Make a file that is not there, and open it. OSError: EEXIST."""

    @abc.abstractmethod
    def open(self, name: str) -> Any:
        """Open a file. OSError: ENOENT."""

    @abc.abstractmethod
    def close(self, file: Any) -> None:
        """Close it."""

    @abc.abstractmethod
    def read(self, file: Any, offset: int, size: int) -> bytes:
        """Read."""

    @abc.abstractmethod
    def write(self, file: Any, offset: int, octets: bytes) -> int:
        """Write, and return how much was written."""

    @abc.abstractmethod
    def append(self, file: Any, octets: bytes) -> int:
        """Write at the end."""

    @abc.abstractmethod
    def truncate(self, file: Any, size: int) -> None:
        """Cut or grow."""

    @abc.abstractmethod
    def size(self, file: Any) -> int:
        """Return the size."""

    @abc.abstractmethod
    def sync(self, file: Any) -> None:
        """Make it durable."""

    @abc.abstractmethod
    def rename(self, name: str, other: str) -> None:
        """Move, perhaps over another."""

    @abc.abstractmethod
    def link(self, name: str, other: str) -> None:
        """Give a second name. OSError: EEXIST."""

    @abc.abstractmethod
    def unlink(self, name: str) -> None:
        """Take a name away. OSError: ENOENT."""

    @abc.abstractmethod
    def mkdir(self, name: str) -> None:
        """Make a directory. OSError: EEXIST."""

    @abc.abstractmethod
    def rmdir(self, name: str) -> None:
        """Remove a directory. OSError: ENOENT."""

    @abc.abstractmethod
    def names(self) -> set[str]:
        """Return all names."""

    @abc.abstractmethod
    def leave(self) -> None:
        """Remove the tree, which is empty."""


class MountDoor(TreeDoor):
    """The way of every program: through the mount."""

    def __init__(self, top: Path, chance: random.Random) -> None:
        self._top = top
        self._chance = chance
        top.mkdir()

    def create(self, name: str) -> int:
        return os.open(self._top / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)

    def open(self, name: str) -> int:
        return os.open(self._top / name, os.O_RDWR)

    def close(self, file: int) -> None:
        os.close(file)

    def read(self, file: int, offset: int, size: int) -> bytes:
        if self._chance.random() < _PAGE_MISSES:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        whole = os.fstat(file).st_size
        if self._chance.random() < 0.3 and whole:
            with mmap.mmap(file, whole, prot=mmap.PROT_READ) as memory:
                return memory[offset : offset + size]
        return os.pread(file, size, offset)

    def write(self, file: int, offset: int, octets: bytes) -> int:
        return os.pwrite(file, octets, offset)

    def append(self, file: int, octets: bytes) -> int:
        again = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_APPEND)
        try:
            return os.write(again, octets)
        finally:
            os.close(again)

    def truncate(self, file: int, size: int) -> None:
        os.ftruncate(file, size)

    def size(self, file: int) -> int:
        return os.fstat(file).st_size

    def sync(self, file: int) -> None:
        os.fsync(file)

    def rename(self, name: str, other: str) -> None:
        os.rename(self._top / name, self._top / other)

    def link(self, name: str, other: str) -> None:
        os.link(self._top / name, self._top / other)

    def unlink(self, name: str) -> None:
        os.unlink(self._top / name)

    def mkdir(self, name: str) -> None:
        os.mkdir(self._top / name)

    def rmdir(self, name: str) -> None:
        os.rmdir(self._top / name)

    def names(self) -> set[str]:
        return set(os.listdir(self._top))

    def leave(self) -> None:
        self._top.rmdir()


class PortDoor(TreeDoor):
    """The way of a program that joined: requests to the port of the file server. Files: inodes."""

    def __init__(self, door: Door, top: str) -> None:
        self._ask = door.ask
        self._files = door.server(FileSystem, "fs")
        self._caller = Caller(os.geteuid(), os.getegid())
        self._name = top.encode()
        made = self._files.mkdir(self._caller, ROOT_INODE, self._name, 0o755)
        self._top = self._ask(made).inode

    def create(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        made = self._files.create(self._caller, self._top, name.encode(), 0o644, flags)
        return self._ask(made).inode

    def open(self, name: str) -> int:
        inode = self._ask(self._files.lookup(self._caller, self._top, name.encode())).inode
        return self._ask(self._files.open(self._caller, inode, _READ_WRITE)).inode

    def close(self, file: int) -> None:
        self._ask(self._files.release(file))

    def read(self, file: int, offset: int, size: int) -> bytes:
        return bytes(self._ask(self._files.read(file, offset, size)))

    def write(self, file: int, offset: int, octets: bytes) -> int:
        return self._ask(self._files.write(self._caller, file, offset, octets))

    def append(self, file: int, octets: bytes) -> int:
        return self.write(file, self.size(file), octets)

    def truncate(self, file: int, size: int) -> None:
        self._ask(self._files.setattr(self._caller, file, Changes(size=size)))

    def size(self, file: int) -> int:
        return self._ask(self._files.getattr(file)).size

    def sync(self, file: int) -> None:
        self._ask(self._files.fsync(file, False))

    def rename(self, name: str, other: str) -> None:
        top, a, b = self._top, name.encode(), other.encode()
        self._ask(self._files.rename(self._caller, top, a, top, b, 0))

    def link(self, name: str, other: str) -> None:
        inode = self._ask(self._files.lookup(self._caller, self._top, name.encode())).inode
        self._ask(self._files.link(self._caller, inode, self._top, other.encode()))

    def unlink(self, name: str) -> None:
        self._ask(self._files.unlink(self._caller, self._top, name.encode()))

    def mkdir(self, name: str) -> None:
        self._ask(self._files.mkdir(self._caller, self._top, name.encode(), 0o755))

    def rmdir(self, name: str) -> None:
        self._ask(self._files.rmdir(self._caller, self._top, name.encode()))

    def names(self) -> set[str]:
        entries = self._ask(self._files.readdir(self._top, 0, 1000))
        return {entry.name.decode() for entry in entries} - {".", ".."}

    def leave(self) -> None:
        self._ask(self._files.rmdir(self._caller, ROOT_INODE, self._name))
