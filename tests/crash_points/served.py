"""A file server in this process, on a volume that can be put back to how it was at any write.

`Machine` is what outlives the server: the volume's directory, and what a kernel keeps, which is the
memory object with the opens. `Incarnation` is one life of the server on it. No process ends here;
an incarnation that is to have died at a write is simply never asked again, and the next one starts
from the files as they were at that write. That this is what SIGKILL leaves is shown by the tests
that really kill.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from core.abi import Right
from core.errors import Refused
from core.userlib.interface import Descriptor, encode
from core.userlib.task import Task, complete
from fs_server.disk import DiskInfo
from fs_server.interface import FileSystem
from fs_server.layout import BLOCK_SIZE, DATA_NAME
from fs_server.observer import Observer
from fs_server.opens import Opens
from fs_server.reserve import Reserve
from fs_server.server import FileServer
from fs_server.volume import Volume

from .history import Step
from .looking import Binding, Immediate, Seen, look

BOOT: Final = 4711
CLIENT: Final = 9
OPENS_CAPACITY: Final = 40
"""Records in the journal of opens: few, so that it is renewed now and then."""


class _LendingDisk:
    """What the file server asks of the disk server."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / DATA_NAME

    async def lend(self) -> tuple[DiskInfo, Descriptor]:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        size = os.fstat(descriptor).st_size
        return DiskInfo(size, BLOCK_SIZE, size), Descriptor(descriptor)


class Machine:
    """What outlives the server: a directory, and kept memory."""

    def __init__(self, directory: Path, boot_id: int = BOOT) -> None:
        self.directory = directory
        self.boot_id = boot_id
        self.kept: dict[str, int] = {}
        self.generation = 0
        Opens(boot_id, lambda number: self.keep("opens", number), None, OPENS_CAPACITY).close()

    def keep(self, label: str, descriptor: int) -> None:
        """Keep a duplicate of a descriptor in place of what was kept."""
        old = self.kept.get(label)
        self.kept[label] = os.dup(descriptor)
        if old is not None:
            os.close(old)

    def memory(self) -> dict[str, bytes]:
        """Return what the kept memory objects hold."""
        return {
            label: os.pread(number, os.fstat(number).st_size, 0)
            for label, number in self.kept.items()
        }

    def remember(self, memory: dict[str, bytes]) -> None:
        """Keep memory objects that hold this."""
        self.forget()
        for label, octets in memory.items():
            number = os.memfd_create(label, os.MFD_CLOEXEC)
            os.pwrite(number, octets, 0)
            self.kept[label] = number

    def forget(self) -> None:
        """Drop all kept memory."""
        for number in self.kept.values():
            os.close(number)
        self.kept.clear()


class _MachineTask(Task):
    """The kernel calls that the file server makes. Timers fire when the history says so."""

    def __init__(self, machine: Machine) -> None:
        self.name = "fs"
        self.options = {"state": str(machine.directory)}
        self.rights = {}
        self.boot_id = machine.boot_id
        self.generation = machine.generation
        self._machine = machine

    def connect(self, interface: type[Any], right: str | Right) -> Any:
        return _LendingDisk(self._machine.directory)

    def keep(self, label: str, descriptor: int) -> None:
        self._machine.keep(label, descriptor)

    def kept(self, label: str) -> int | None:
        number = self._machine.kept.get(label)
        return None if number is None else os.dup(number)

    def kept_rights(self) -> dict[str, Right]:
        return {}

    def arm(self, delay_s: float, bits: int) -> int:
        return 1

    def log(self, text: str) -> None:
        raise AssertionError(text)


_MachineTask.__abstractmethods__ = frozenset()


class _FileServer(FileServer):
    """The file server, with the time told and, if wanted, every write watched."""

    def __init__(self, task: Task, clock: Callable[[], int], observer: Observer | None) -> None:
        super().__init__(task)
        self._clock = clock
        self._observer = observer

    def open_volume(self, directory: Path, data: int, opens: Opens, reserve: Reserve) -> Volume:
        opens._first_capacity = OPENS_CAPACITY
        observer = _Apart(self._observer) if self._observer else None
        return Volume(
            directory,
            data,
            opens=opens,
            reserve=reserve,
            clock=self._clock,
            observer=observer,
            take_over=True,
        )


class _Apart:
    """The same observer under another identity: each volume's VFS has a name of its own."""

    def __init__(self, observer: Observer) -> None:
        self.write = observer.write
        self.truncate = observer.truncate
        self.punch = observer.punch
        self.sync = observer.sync
        self.remove = observer.remove


class Incarnation:
    """One life of the server.

    Attributes:
        now: the time, in nanoseconds.
    """

    def __init__(self, machine: Machine, now: int, observer: Observer | None = None) -> None:
        self.now = now
        self.machine = machine
        task = _MachineTask(machine)  # type: ignore[abstract]
        self.server = _FileServer(task, lambda: self.now, observer)
        machine.generation += 1
        complete(self.server.start())
        self._open = True

    @property
    def volume(self) -> Volume:
        return self.server.volume

    def perform(
        self, step: Step, number: int, binding: Binding, *, redelivered: bool = False
    ) -> Any:
        """Serve one request as the serve loop would; a refusal is its error number's name."""
        request = self.server.request
        request.id, request.badge, request.redelivered = number, CLIENT, redelivered
        request.room = None
        try:
            reply = getattr(self.server, step.operation)(*binding.arguments(step))
        except Refused as error:
            return errno.errorcode[error.errno]
        spec = FileSystem.named(step.operation)
        if spec.reply_bulk:
            return bytes(reply)
        return spec.decode_reply(encode(reply))

    def work(self, step: Step) -> None:
        """Do some of the server's own work; see `history`."""
        if step.operation == "(timer)":
            self.server.notified(1)  # it has served meanwhile, and waits for a better time
            self.server.notified(1)
        elif step.operation == "(checkpoint)":
            self.volume.checkpoint()
        else:
            self.stop()

    def look(self, binding: Binding) -> Seen:
        """Look at everything."""
        return complete(look(Immediate(self.volume), binding.orphans()))

    def opens(self, binding: Binding) -> dict[int, int]:
        """Return how often the client has which of the model's inodes open."""
        counts = {
            number: self.volume.tables.opens.count(CLIENT, inode)
            for number, inode in binding.real.items()
        }
        return {number: count for number, count in counts.items() if count}

    def stop(self) -> None:
        """End in good order."""
        self.server.stop()
        self._open = False

    def abandon(self) -> None:
        """Let go of everything, as a death does, unless it has been done."""
        if self._open:
            self._open = False
            self.volume.abandon()


@contextlib.contextmanager
def life(machine: Machine, now: int) -> Iterator[Incarnation]:
    """Let the server live for a while."""
    incarnation = Incarnation(machine, now)
    try:
        yield incarnation
    finally:
        incarnation.abandon()
