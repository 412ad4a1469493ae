"""Changes of names at the port of the file server, one after the other as fast as it answers.

None of them may be made twice, so a death between a change and its answer shows at once if the
answer was not recorded: EEXIST from a `mkdir`, ENOENT from a `rename` or an `unlink`.
"""

from __future__ import annotations

import os
import random

from core.errors import Refused
from fs_server.interface import ROOT_INODE, Caller, FileSystem
from mount.chaos.door import Door

from .door import opened
from .run import LossError
from .works import Workplace

ROUNDS = 300
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL


class Changer:
    """Makes and removes names in a directory of its own."""

    def __init__(self, door: Door, name: bytes) -> None:
        self._ask = door.ask
        self._files = door.server(FileSystem, "fs")
        self._caller = Caller(os.geteuid(), os.getegid())
        self._name = name
        made = self._files.mkdir(self._caller, ROOT_INODE, name, 0o755)
        self._top = self._ask(made).inode

    def round(self) -> None:
        """Make and remove a directory and a file, each under two names. LossError."""
        ask, files, who, top = self._ask, self._files, self._caller, self._top
        step = ""
        try:
            step = "mkdir"
            ask(files.mkdir(who, top, b"a", 0o755))
            step = "rename"
            ask(files.rename(who, top, b"a", top, b"b", 0))
            step = "rmdir"
            ask(files.rmdir(who, top, b"b"))
            step = "create"
            inode = ask(files.create(who, top, b"c", 0o644, _FLAGS)).inode
            step = "link"
            ask(files.link(who, inode, top, b"d"))
            step = "unlink of the first name"
            ask(files.unlink(who, top, b"c"))
            step = "unlink of the second name"
            ask(files.unlink(who, top, b"d"))
            step = "release"
            ask(files.release(inode))
        except Refused as error:
            raise LossError(f"{step}: {error}") from None

    def leave(self) -> None:
        """Remove the directory, and names that a loss has left in it."""
        for name in (b"a", b"b"):
            self._remove(name, directory=True)
        for name in (b"c", b"d"):
            self._remove(name, directory=False)
        self._ask(self._files.rmdir(self._caller, ROOT_INODE, self._name))

    def _remove(self, name: bytes, *, directory: bool) -> None:
        try:
            if directory:
                self._ask(self._files.rmdir(self._caller, self._top, name))
            else:
                self._ask(self._files.unlink(self._caller, self._top, name))
        except Refused:
            pass  # it is not there


def changes(place: Workplace, chance: random.Random, turn: int) -> None:
    """Change names as fast as the server answers."""
    with opened(place.system) as door:
        changer = Changer(door, f"changes-{turn}".encode())
        try:
            rounds = 40 if place.run.small else ROUNDS
            for _ in range(rounds):
                changer.round()
        finally:
            changer.leave()
    place.run.count("changes", rounds * 8)
