"""Random operations on files beside a model that says what every one of them has to do.

The model is plain: names, and octets that they stand for. Each operation is made on both sides;
answers, errors and octets have to be the same. Files are created where one may be already, written
behind their end, cut, moved over each other, linked, and unlinked while they are open; directories
are made and removed. Two doors lead to a tree: the mount (`MountDoor`), and the file server's port
(`PortDoor`), which no front end and no cache stands before.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from core.errors import Refused
from fs_server.interface import ROOT_INODE, Caller, Changes, FileSystem
from mount.chaos.door import Door

from .door import opened as joined
from .run import LossError
from .works import Workplace

NAMES: Final = tuple(f"file-{number}" for number in range(6))
DIRECTORIES: Final = ("d-0", "d-1")
SIZE_LIMIT: Final = 600_000
OPEN_LIMIT: Final = 8
_SIZES: Final = (1, 13, 511, 4095, 4096, 4097, 20_000, 65_536, 131_073)
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


class _Content:
    def __init__(self) -> None:
        self.octets = bytearray()


class _Opened:
    def __init__(self, file: Any, content: _Content) -> None:
        self.file = file
        self.content = content


class Twin:
    """A tree and its model, side by side."""

    def __init__(self, door: TreeDoor, chance: random.Random) -> None:
        self._door = door
        self._chance = chance
        self._files: dict[str, _Content] = {}
        self._directories: set[str] = set()
        self._open: list[_Opened] = []
        self._last = "nothing"
        self._steps: tuple[tuple[int, Callable[[], None]], ...] = (
            (3, self._create), (3, self._reopen), (3, self._close), (8, self._write),
            (3, self._append), (3, self._truncate), (8, self._read), (2, self._size),
            (1, self._sync), (4, self._rename), (2, self._link), (4, self._unlink),
            (3, self._mkdir), (3, self._rmdir), (1, self._names),
        )  # fmt: skip

    def step(self) -> None:
        """Make one operation on both sides. LossError when the answers differ."""
        weights, functions = zip(*self._steps, strict=True)
        (function,) = self._chance.choices(functions, weights)
        function()

    def finish(self) -> None:
        """Compare all there is, and remove it."""
        for opened in self._open:
            self._compare(opened)
            self._make("close", self._door.close, opened.file)
        self._open.clear()
        self._names()
        for name, content in self._files.items():
            file = self._make(f"open {name}", self._door.open, name)
            self._compare(_Opened(file, content))
            self._make(f"close {name}", self._door.close, file)
            self._make(f"unlink {name}", self._door.unlink, name)
        for name in self._directories:
            self._make(f"rmdir {name}", self._door.rmdir, name)
        self._files.clear()
        self._directories.clear()
        self._names()

    def abandon(self) -> None:
        """After a loss: close and remove what can be."""
        for opened in self._open:
            with contextlib.suppress(OSError, Refused):
                self._door.close(opened.file)
        for remove, names in ((self._door.unlink, NAMES), (self._door.rmdir, DIRECTORIES)):
            for name in names:
                with contextlib.suppress(OSError, Refused):
                    remove(name)

    def _make(
        self, what: str, function: Callable[..., Any], *arguments: Any, fails: int = 0
    ) -> Any:
        """Make a call whose outcome is known: it works, or it fails with just that error."""
        before, self._last = self._last, what
        try:
            result = function(*arguments)
        except (OSError, Refused) as error:
            if error.errno == fails:
                return None
            wanted = errno.errorcode.get(fails, "nothing")
            found = errno.errorcode.get(error.errno or 0, str(error))
            raise LossError(f"{what}: {found}, wanted {wanted}; before: {before}") from None
        if fails:
            raise LossError(f"{what}: it worked, wanted {errno.errorcode[fails]}; before: {before}")
        return result

    def _compare(self, opened: _Opened) -> None:
        wanted = bytes(opened.content.octets)
        found = b""
        while part := self._make("read", self._door.read, opened.file, len(found), 131_072):
            found += part
        if found != wanted:
            pairs = zip(found, wanted, strict=False)
            place = next((at for at, (a, b) in enumerate(pairs) if a != b), -1)
            raise LossError(
                f"{len(found)} octets for {len(wanted)}, the first wrong one at {place};"
                f" before: {self._last}"
            )

    def _pick(self) -> _Opened | None:
        return self._chance.choice(self._open) if self._open else None

    def _create(self) -> None:
        name = self._chance.choice(NAMES)
        if name in self._files:
            self._make(f"create {name}", self._door.create, name, fails=errno.EEXIST)
            return
        file = self._make(f"create {name}", self._door.create, name)
        content = self._files[name] = _Content()
        self._open.append(_Opened(file, content))
        self._bound()

    def _reopen(self) -> None:
        name = self._chance.choice(NAMES)
        if name not in self._files:
            self._make(f"open {name}", self._door.open, name, fails=errno.ENOENT)
            return
        file = self._make(f"open {name}", self._door.open, name)
        self._open.append(_Opened(file, self._files[name]))
        self._bound()

    def _bound(self) -> None:
        if len(self._open) > OPEN_LIMIT:
            self._close()

    def _close(self) -> None:
        if (opened := self._pick()) is not None:
            self._open.remove(opened)
            if not any(opened.content is content for content in self._files.values()):
                self._compare(opened)  # the last look at a file without a name
            self._make("close", self._door.close, opened.file)

    def _octets(self) -> bytes:
        return self._chance.randbytes(self._chance.choice(_SIZES))

    def _write(self) -> None:
        if (opened := self._pick()) is None:
            return
        model, octets = opened.content.octets, self._octets()
        offset = self._chance.choice((0, len(model), self._chance.randrange(len(model) + 1)))
        if self._chance.random() < 0.2:
            offset += self._chance.choice((1, 4096, 100_000))
        if offset + len(octets) > SIZE_LIMIT:
            return
        what = f"write {len(octets)} at {offset} of {len(model)}"
        count = self._make(what, self._door.write, opened.file, offset, octets)
        self._lay(opened, offset, octets, count, what)

    def _append(self) -> None:
        opened = self._pick()
        if opened is None or len(opened.content.octets) > SIZE_LIMIT // 2:
            return
        octets, offset = self._octets(), len(opened.content.octets)
        what = f"append {len(octets)} at {offset}"
        count = self._make(what, self._door.append, opened.file, octets)
        self._lay(opened, offset, octets, count, what)

    def _lay(self, opened: _Opened, offset: int, octets: bytes, count: int, what: str) -> None:
        if count != len(octets):
            raise LossError(f"{what}: {count} octets were written")
        model = opened.content.octets
        model.extend(bytes(max(0, offset - len(model))))
        model[offset : offset + count] = octets

    def _truncate(self) -> None:
        if (opened := self._pick()) is None:
            return
        model = opened.content.octets
        size = self._chance.choice((0, self._chance.randrange(len(model) + 1), len(model) + 5000))
        if size <= SIZE_LIMIT:
            what = f"truncate {len(model)} to {size}"
            self._make(what, self._door.truncate, opened.file, size)
            del model[size:]
            model.extend(bytes(size - len(model)))

    def _read(self) -> None:
        if (opened := self._pick()) is None:
            return
        model, size = opened.content.octets, self._chance.choice(_SIZES)
        offset = self._chance.randrange(len(model) + 1)
        what = f"read {size} at {offset} of {len(model)}"
        found = self._make(what, self._door.read, opened.file, offset, size)
        if found != model[offset : offset + size]:
            raise LossError(f"{what}: wrong octets, {len(found)} of them; before: {self._last}")

    def _size(self) -> None:
        if (opened := self._pick()) is not None:
            found = self._make("size", self._door.size, opened.file)
            if found != len(opened.content.octets):
                raise LossError(f"size {found} for {len(opened.content.octets)}")

    def _sync(self) -> None:
        if (opened := self._pick()) is not None:
            self._make("fsync", self._door.sync, opened.file)

    def _rename(self) -> None:
        name, other = self._chance.sample(NAMES, 2)
        what = f"rename {name} {other}"
        if name not in self._files:
            self._make(what, self._door.rename, name, other, fails=errno.ENOENT)
            return
        self._make(what, self._door.rename, name, other)
        if self._files.get(other) is not self._files[name]:  # two names of one file both stay
            self._files[other] = self._files.pop(name)

    def _link(self) -> None:
        name, other = self._chance.sample(NAMES, 2)
        if name in self._files:
            fails = errno.EEXIST if other in self._files else 0
            self._make(f"link {name} {other}", self._door.link, name, other, fails=fails)
            self._files.setdefault(other, self._files[name])

    def _unlink(self) -> None:
        name = self._chance.choice(NAMES)
        fails = 0 if name in self._files else errno.ENOENT
        self._make(f"unlink {name}", self._door.unlink, name, fails=fails)
        self._files.pop(name, None)

    def _mkdir(self) -> None:
        name = self._chance.choice(DIRECTORIES)
        fails = errno.EEXIST if name in self._directories else 0
        self._make(f"mkdir {name}", self._door.mkdir, name, fails=fails)
        self._directories.add(name)

    def _rmdir(self) -> None:
        name = self._chance.choice(DIRECTORIES)
        fails = 0 if name in self._directories else errno.ENOENT
        self._make(f"rmdir {name}", self._door.rmdir, name, fails=fails)
        self._directories.discard(name)

    def _names(self) -> None:
        found = self._make("list", self._door.names)
        wanted = self._files.keys() | self._directories
        if found != wanted:
            raise LossError(f"names {sorted(found)}, wanted {sorted(wanted)}")


TURN_STEPS: Final = 250


def through_mount(place: Workplace, chance: random.Random, turn: int) -> None:
    """Operate on a tree through the mount."""
    _turn(place, MountDoor(place.mount / f"operations-{turn}", chance), chance)


def at_port(place: Workplace, chance: random.Random, turn: int) -> None:
    """Operate on a tree at the file server's port, as a program that joined for just that."""
    with joined(place.system) as door:
        _turn(place, PortDoor(door, f"port-operations-{turn}"), chance)


def _turn(place: Workplace, door: TreeDoor, chance: random.Random) -> None:
    twin = Twin(door, chance)
    try:
        steps = 60 if place.run.small else TURN_STEPS
        for _ in range(steps):
            twin.step()
        twin.finish()
    except BaseException:
        twin.abandon()
        with contextlib.suppress(OSError, Refused):
            door.leave()
        raise
    door.leave()
    place.run.count("operations", steps)
