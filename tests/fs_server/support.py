"""What the tests of volumes share: a volume to work on, callers, and what a refusal said."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from core.errors import Refused
from fs_server.check import check_volume
from fs_server.interface import Attributes, Caller
from fs_server.mkfs import make_volume
from fs_server.opens import Opens
from fs_server.reserve import Reserve
from fs_server.volume import Volume

MIB: Final = 1 << 20
ROOT: Final = Caller(0, 0, (), 0)
ALICE: Final = Caller(1001, 2001, (), 0)
BOB: Final = Caller(1002, 2002, (2001,), 0)
CAROL: Final = Caller(1003, 2003, (), 0)
TOP: Final = 1
"""The root directory's inode number."""
BOOT: Final = 77


class Clock:
    """A clock that goes on by one second at each look."""

    def __init__(self) -> None:
        self.now = 1_000_000_000_000_000_000

    def __call__(self) -> int:
        self.now += 1_000_000_000
        return self.now


class Kernel:
    """What a kernel keeps for a server: the opens and the reserve of this boot."""

    def __init__(self, boot_id: int = BOOT) -> None:
        self.boot_id = boot_id
        self._descriptors: dict[str, int] = {}

    def _keep(self, label: str) -> Callable[[int], None]:
        def keep(descriptor: int) -> None:
            if label in self._descriptors:
                os.close(self._descriptors[label])
            self._descriptors[label] = os.dup(descriptor)

        return keep

    def _kept(self, label: str) -> int | None:
        return os.dup(self._descriptors[label]) if label in self._descriptors else None

    def opens(self, capacity: int = 64) -> Opens:
        """Return what the next incarnation begins with."""
        return Opens(self.boot_id, self._keep("opens"), self._kept("opens"), capacity)

    def reserve(self) -> Reserve:
        """Return the reserve that the next incarnation begins with."""
        return Reserve(self.boot_id, self._keep("reserve"), self._kept("reserve"))


def new_volume(directory: Path, size: int = 64 * MIB, **options: Any) -> Volume:
    """Make a volume and open it."""
    make_volume(directory, size, mode=0o777)
    return Volume(directory, **options)


def refused(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Return the name of the error number with which a call is refused; "" if it is not."""
    try:
        function(*arguments, **options)
    except Refused as error:
        return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode[error.errno]
    return ""


def names_in(volume: Volume, directory: int) -> list[bytes]:
    """Return all names in a directory but for the dots, in the order of the listing."""
    names: list[bytes] = []
    cookie = 0
    while entries := volume.readdir(directory, cookie, 100):
        names.extend(entry.name for entry in entries)
        cookie = entries[-1].cookie
    return [name for name in names if name not in {b".", b".."}]


def make_file(
    volume: Volume, name: bytes, data: bytes = b"", mode: int = 0o644, caller: Caller = ROOT
) -> Attributes:
    """Make a file in the root directory."""
    made = volume.mknod(caller, TOP, name, mode | 0o100000, 0)
    if data:
        volume.write(ROOT, made.inode, 0, data)
    return volume.getattr(made.inode)


def assert_free_blocks_known(volume: Volume) -> None:
    """Find all free blocks, and assert that they are those that no extent has, each once."""
    while volume.surveying:
        volume.survey()
    allocator = volume.tables.allocator
    waiting = [*allocator._released, *allocator._given_up, *allocator._punched]
    used = list(volume.store.rows("SELECT start, count FROM extent"))
    end = 0
    for start, count in sorted([*allocator.runs(), *waiting, *used]):
        assert start == end, f"blocks {end} to {start} are lost, or had twice"
        end = start + count
    assert end == volume.blocks
    assert allocator.waiting == sum(count for _, count in waiting)


def assert_sound(directory: Path) -> None:
    """Assert that `fsck` finds nothing."""
    assert [str(finding) for finding in check_volume(directory)] == []
