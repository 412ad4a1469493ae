"""Random operations on files beside a model that says what every one of them has to do.

The model is plain: names, and octets that they stand for. Each operation is made on both sides;
answers, errors and octets have to be the same. Files are created where one may be already, written
behind their end, cut, moved over each other, linked, and unlinked while they are open; directories
are made and removed. `tree_doors` has the ways to a tree.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable
from typing import Any, Final

from core.errors import Refused

from .door import opened as joined
from .run import LossError
from .tree_doors import MountDoor, PortDoor, TreeDoor
from .works import Workplace

NAMES: Final = tuple(f"file-{number}" for number in range(6))
DIRECTORIES: Final = ("d-0", "d-1")
SIZE_LIMIT: Final = 600_000
OPEN_LIMIT: Final = 8
_SIZES: Final = (1, 13, 511, 4095, 4096, 4097, 20_000, 65_536, 131_073)


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
