"""A history performed once by a server, with everything that reached the host on the way."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fs_server.mkfs import make_volume
from tests.fs_server.images import Event, Images, Recording, load

from .history import BLOCKS, OWN_WORK, START_NS, History
from .looking import Binding, expected
from .served import Incarnation, Machine

_MEMORY_DISK: Final = Path("/dev/shm")

Memory = dict[str, bytes]


@contextmanager
def workplace() -> Iterator[Path]:
    """Yield a directory that is gone afterwards, in memory if possible: syncs cost nothing there.

    Durability is computed here, not asked of the host's disk.
    """
    parent = _MEMORY_DISK if os.access(_MEMORY_DISK, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="atoll-crash-points-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Watcher(Recording):
    """Records events, and what the kept memory held before each of them."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self.memory: list[Memory] = []

    def note(self, event: Event) -> None:
        super().note(event)
        now = self._machine.memory()
        last = self.memory[-1] if self.memory else None
        self.memory.append(last if last is not None and last == now else now)


class Recorded:
    """What happened.

    Attributes:
        before: the files of the empty volume.
        events: everything that reached the host.
        memory: what the kernel kept before each event.
        starts: index of each step's first event, and the count of all events at the end.
        memories: what the kernel kept after each step.
        bindings: the inode numbers that were known before each step.
    """

    def __init__(self, history: History, directory: Path) -> None:
        self.history = history
        make_volume(directory, BLOCKS * 4096, mode=0o777, now=START_NS)
        self.before: Images = load(directory)
        machine = Machine(directory)
        watcher = _Watcher(machine)
        self.events, self.memory = watcher.events, watcher.memory
        self.starts: list[int] = []
        self.memories: list[Memory] = []
        self.bindings: list[Binding] = []
        self._perform(machine, watcher)
        machine.forget()

    def _perform(self, machine: Machine, watcher: _Watcher) -> None:
        history, binding = self.history, Binding()
        server = Incarnation(machine, START_NS, watcher)
        try:
            for index, step in enumerate(history.steps):
                self.starts.append(len(self.events))
                self.bindings.append(binding.copy())
                server.now = history.now(index)
                if step.operation in OWN_WORK:
                    server.work(step)
                    if step.operation == "(restart)":
                        server = Incarnation(machine, server.now, watcher)
                else:
                    reply = server.perform(step, index + 1, binding)
                    wanted = history.replies[index]
                    assert binding.same(wanted, reply), f"{step}: {reply}, should be {wanted}"
                self.memories.append(machine.memory())
            self.starts.append(len(self.events))
            difference = server.look(binding).difference(expected(history.states[-1]))
            assert not difference, difference
        finally:
            server.abandon()
