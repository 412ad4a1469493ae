"""What the soak programs know of a running system: its servers, and what it holds on the host."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mount.chaos.door import Door
from mount.chaos.door import opened as opened_at
from tests.support.live_system import LiveSystem

SERVERS: Final = ("names", "supervisor", "disk", "fs", "pipe", "tap", "net", "echo")


__all__ = [
    "SERVERS", "Door", "belonging", "descriptors", "more_than", "opened", "resident_kib",
    "using_namespace",
]  # fmt: skip


@contextlib.contextmanager
def opened(system: LiveSystem) -> Iterator[Door]:
    """Join a system for a while."""
    with opened_at(system.run.control_path) as door:
        yield door


def descriptors(pid: int) -> list[str]:
    """Return what the descriptors of a process stand for, sorted."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry).partition(":[")[0])
    return sorted(found)


def more_than(now: list[str], before: list[str]) -> list[str]:
    """Return what there is more of now than before."""
    return sorted((collections.Counter(now) - collections.Counter(before)).elements())


def resident_kib(pid: int) -> int:
    """Return how much anonymous memory a process has, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def belonging(system: LiveSystem) -> list[int]:
    """Return all processes of a system: those that were started with its run directory."""
    mark = f"ATOLL_RUN={system.top / 'run'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return sorted(found)


def using_namespace(inode: int) -> list[int]:
    """Return the processes that are in a network namespace, or hold a descriptor of it."""
    wanted = f"net:[{inode}]"
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            links = [entry / "ns" / "net", *(entry / "fd").iterdir()]
            for link in links:
                with contextlib.suppress(OSError):
                    if os.readlink(link) == wanted:
                        found.add(int(entry.name))
    return sorted(found)
