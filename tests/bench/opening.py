"""What opening a volume costs a file server, by the number of files in it.

    python -m tests.bench.opening [FILES...]

Each file has one block, and the log is as long as it gets. `first` is the first opening in a boot
of the system, `after a death` one that finds what the kernel kept for the dead incarnation; `log`
is the part of both that is reading the database's log. `survey` is what it takes in all to find the
other free blocks, and `a step` the longest that a client waits for it.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from fs_server.interface import Caller
from fs_server.layout import METADATA_NAME
from fs_server.mkfs import make_volume
from fs_server.opens import Opens
from fs_server.reserve import Reserve
from fs_server.store import WAL_LIMIT_PAGES, Store
from fs_server.volume import Volume

FILES: Final = (0, 10_000, 100_000)
ROUNDS: Final = 7
_BOOT: Final = 1
_FIRST_INODE: Final = 1024
_FIRST_BLOCK: Final = 4096
_CALLER: Final = Caller(0, 0, (), 0)
_FILE: Final = 0o100644


class _Kept:
    """What the kernel keeps: one memory object."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def keep(self, descriptor: int) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = os.dup(descriptor)

    def reserve(self) -> Reserve:
        kept = os.dup(self._descriptor) if self._descriptor is not None else None
        return Reserve(_BOOT, self.keep, kept)


def fill(directory: Path, files: int) -> None:
    """Make a volume with many files, by way of the database; their octets are never looked at."""
    make_volume(directory)
    connection = apsw.Connection(str(directory / METADATA_NAME))
    numbers = range(_FIRST_INODE, _FIRST_INODE + files)
    with connection:
        connection.executemany(
            "INSERT INTO inode VALUES(?, ?, 1, 0, 0, 0, 4096, 1, 1, 1, 1, 0, 0, NULL)",
            ((number, _FILE) for number in numbers),
        )
        connection.executemany(
            "INSERT INTO entry VALUES(1, ?, ?, ?)",
            ((b"file-%d" % number, number, number) for number in numbers),
        )
        connection.executemany(
            "INSERT INTO extent VALUES(?, 0, ?, 1)",
            ((number, number - _FIRST_INODE + _FIRST_BLOCK) for number in numbers),
        )
        following = numbers.stop + 1
        connection.execute("UPDATE inode SET sequence = ? WHERE number = 1", (following,))
        connection.execute("UPDATE volume SET value = ? WHERE key = 'next_inode'", (following,))
    connection.close()


def lengthen_log(volume: Volume) -> None:
    """Work until the log is about to be emptied."""
    number = 0
    while volume.store.log_pages < WAL_LIMIT_PAGES - 64:
        number += 1
        inode = volume.create(_CALLER, 1, b"new-%d" % number, 0o644, 0).inode
        volume.write(_CALLER, inode, 0, b"new")
        volume.release(inode)


def _ms(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return (time.perf_counter() - begin) * 1e3


def measure(files: int) -> dict[str, float]:
    """Return the medians in milliseconds for a volume of so many files."""
    figures: dict[str, list[float]] = {}
    kept = _Kept()
    with tempfile.TemporaryDirectory(prefix="atoll-opening-") as path:
        directory = Path(path) / "volume"
        fill(directory, files)
        volume = Volume(directory, opens=Opens(_BOOT), reserve=kept.reserve())
        lengthen_log(volume)
        volume.abandon()
        for _ in range(ROUNDS):
            for name, value in _round(directory, kept).items():
                figures.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in figures.items()}


def _round(directory: Path, kept: _Kept) -> dict[str, float]:
    opened: list[Volume] = []
    figures: dict[str, float] = {}
    begin = time.perf_counter()
    store = Store(directory)
    figures["log"] = (time.perf_counter() - begin) * 1e3
    store.close()
    reserve = kept.reserve()
    figures["after a death"] = _ms(lambda: opened.append(Volume(directory, reserve=reserve)))
    volume = opened.pop()
    steps = [0.0]
    while volume.surveying:
        steps.append(_ms(volume.survey))
    figures["survey"] = sum(steps)
    figures["a step"] = max(steps)
    figures["statfs"] = _ms(volume.statfs)
    volume.abandon()
    # nothing is left for this one; what it leaves is for the next round
    reserve = Reserve(_BOOT, kept.keep)
    figures["first"] = _ms(lambda: opened.append(Volume(directory, reserve=reserve)))
    opened.pop().abandon()
    return figures


def main(*words: str) -> None:
    """Print the table."""
    print(f"  {'files':>8} " + "".join(f"{name:>15}" for name in _NAMES) + "   ms, medians")
    for files in map(int, words) if words else FILES:
        figures = measure(files)
        print(f"  {files:8} " + "".join(f"{figures[name]:15.1f}" for name in _NAMES))
        sys.stdout.flush()


_NAMES: Final = ("first", "after a death", "log", "survey", "a step", "statfs")

if __name__ == "__main__":
    main(*sys.argv[1:])
