"""Random programs of single operations, and a model that knows what each leads to.

A file's octets are all equal to its own mark, so octets of another file are recognised anywhere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final

from fs_server.interface import Changes
from fs_server.volume import Volume

from .support import ROOT, TOP, names_in

NAMES: Final = tuple(b"n%d" % number for number in range(6))
_SIZES: Final = (0, 1, 700, 4096, 5000, 12_288, 30_000, 70_000)

Step = tuple[Any, ...]
"""Name of an operation, and its arguments."""
Shown = dict[bytes, Any]
"""What is seen of a volume: by name, the links and octets of a file, None for a directory."""


@dataclass
class Model:
    """What a volume must show. Everything lies in the root directory."""

    names: dict[bytes, int] = field(default_factory=dict)
    """The file's mark, or 0 for a directory."""
    contents: dict[int, bytes] = field(default_factory=dict)
    marks: int = 0

    def copy(self) -> Model:
        return Model(dict(self.names), dict(self.contents), self.marks)

    def shown(self) -> Shown:
        links = list(self.names.values())
        return {
            name: (links.count(mark), self.contents[mark]) if mark else None
            for name, mark in self.names.items()
        }

    def files(self) -> list[bytes]:
        return sorted(name for name, mark in self.names.items() if mark)

    def random_step(self, rng: random.Random) -> Step:
        """Return a step that will succeed."""
        free = [name for name in NAMES if name not in self.names]
        files = self.files()
        directories = sorted(name for name, mark in self.names.items() if not mark)
        choices: list[Step] = [("sync",)]
        if free:
            name = rng.choice(free)
            choices += [("make", name)] * 3 + [("mkdir", name)]
        if files:
            name, other = rng.choice(files), rng.choice(files)
            offset, size = rng.choice(_SIZES), rng.choice(_SIZES[1:])
            choices += [("write", name, offset, size)] * 8
            choices += [("truncate", name, offset)] * 2 + [("unlink", name)] * 2
            choices += [("rename", name, other), ("rename", name, rng.choice(free or files))]
        if files and free:
            choices.append(("link", rng.choice(files), rng.choice(free)))
        if directories:
            choices.append(("rmdir", rng.choice(directories)))
        return rng.choice(choices)

    def apply(self, step: Step) -> None:
        """Change the model as the step changes a volume."""
        kind, *arguments = step
        getattr(self, f"_{kind}")(*arguments)

    def _sync(self) -> None:
        pass

    def _make(self, name: bytes) -> None:
        self.marks += 1
        self.names[name] = self.marks
        self.contents[self.marks] = b""

    def _mkdir(self, name: bytes) -> None:
        self.names[name] = 0

    def _rmdir(self, name: bytes) -> None:
        del self.names[name]

    def _write(self, name: bytes, offset: int, size: int) -> None:
        mark = self.names[name]
        old = self.contents[mark].ljust(offset, b"\0")
        self.contents[mark] = old[:offset] + bytes([mark]) * size + old[offset + size :]

    def _truncate(self, name: bytes, size: int) -> None:
        mark = self.names[name]
        self.contents[mark] = self.contents[mark][:size].ljust(size, b"\0")

    def _unlink(self, name: bytes) -> None:
        del self.names[name]

    def _link(self, name: bytes, new: bytes) -> None:
        self.names[new] = self.names[name]

    def _rename(self, name: bytes, new: bytes) -> None:
        if self.names[name] != self.names.get(new):
            self.names[new] = self.names.pop(name)


def perform(volume: Volume, step: Step, mark_of: dict[bytes, int]) -> None:
    """Do a step on a volume. `mark_of`: the model's names before the step."""
    kind, *arguments = step
    if kind == "sync":
        volume.settle()
        return
    name = arguments[0]
    if kind == "make":
        volume.mknod(ROOT, TOP, name, 0o100644, 0)
    elif kind == "mkdir":
        volume.mkdir(ROOT, TOP, name, 0o755)
    elif kind == "rmdir":
        volume.rmdir(ROOT, TOP, name)
    elif kind == "unlink":
        volume.unlink(ROOT, TOP, name)
    elif kind == "rename":
        volume.rename(ROOT, TOP, name, TOP, arguments[1], 0)
    else:
        _perform_on_file(volume, step, mark_of)


def _perform_on_file(volume: Volume, step: Step, mark_of: dict[bytes, int]) -> None:
    kind, name, *arguments = step
    inode = volume.lookup(ROOT, TOP, name).inode
    if kind == "link":
        volume.link(ROOT, inode, TOP, arguments[0])
    elif kind == "truncate":
        volume.setattr(ROOT, inode, Changes(size=arguments[0]))
    else:
        offset, size = arguments
        assert volume.write(ROOT, inode, offset, bytes([mark_of[name]]) * size) == size


def show(volume: Volume) -> Shown:
    """Return what is seen of a volume."""
    shown: Shown = {}
    for name in names_in(volume, TOP):
        view = volume.lookup(ROOT, TOP, name)
        is_file = view.mode & 0o170000 == 0o100000
        shown[name] = (view.links, volume.read(view.inode, 0, 1 << 20)) if is_file else None
    return shown


def random_program(seed: int, length: int) -> tuple[list[Step], list[Model]]:
    """Return steps, and the model before each of them and after the last."""
    rng = random.Random(seed)
    model = Model()
    steps: list[Step] = []
    models = [model.copy()]
    for _ in range(length):
        step = model.random_step(rng)
        model.apply(step)
        steps.append(step)
        models.append(model.copy())
    return steps, models
