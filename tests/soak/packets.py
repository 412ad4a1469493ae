"""`packets`: hostile packets at every port of the shipped system, while somebody else works there.

Intruders come and go. After each of them every server must still be the incarnation that it was,
the kernel must hold no more than before, and the innocent one must have had right answers all the
time. At the end every server is killed once, and must come back: nobody was talked into neglect.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import Final

from core.errors import AtollError, Refused
from core.system.names import Names
from core.system.pipe import Pipes
from fs_server.interface import Caller, FileSystem
from net_server.network import Network
from tests.support.live_system import LiveSystem

from .door import Door, descriptors, more_than, opened, resident_kib
from .hostile import Intruder
from .run import LossError, Run

MESSAGES: Final = 1000
"""What each intruder sends."""
_READ_EVERY: Final = 10
_PATIENCE_S: Final = 20.0
_HOST: Final = bytes((10, 90, 0, 1))
_ROOT: Final = Caller(0, 0)
_UNGUESSED: Final = 1000
"""Inode numbers that are used up first, so that a damaged packet does not name the innocent's."""
_GROWTH_KIB: Final = 96 * 1024
"""What a process may grow by in a run, in which its tables fill up to their limits."""


class Innocent:
    """A client that wants the same of every server over and over, and knows the answers."""

    def __init__(self, run: Run, system: LiveSystem) -> None:
        self._run = run
        self._system = system
        self._chance = run.random("innocent")
        self._end = threading.Event()
        self._inodes: set[int] = set()
        self.turns = 0
        self.working = threading.Event()
        self._thread = threading.Thread(target=self._work, name="innocent")

    def is_foreign(self, inode: int) -> bool:
        """Tell whether an inode number is none of the innocent's."""
        return inode not in self._inodes

    def start(self) -> None:
        """Begin, and return when there was a first turn."""
        self._thread.start()
        self.working.wait(_PATIENCE_S)

    def stop(self) -> None:
        """End."""
        self._end.set()
        self._thread.join()

    def wait_turn(self) -> None:
        """Wait for a whole turn. LossError when there is none."""
        wanted, deadline = self.turns + 2, time.monotonic() + _PATIENCE_S
        while self.turns < wanted and self._thread.is_alive():
            if time.monotonic() > deadline:
                raise LossError(f"the innocent's turn {self.turns} takes {_PATIENCE_S:g} s")
            time.sleep(0.01)

    def _work(self) -> None:
        try:
            with opened(self._system) as door:
                self._prepare(door)
                while not self._end.is_set():
                    self._turn(door)
                    self.turns += 1
                    self.working.set()
                    self._run.count("right answers", 7)
        except (AtollError, LossError, OSError) as error:
            self._run.lose(f"innocent, turn {self.turns}: {type(error).__name__}: {error}")

    def _prepare(self, door: Door) -> None:
        self._names = door.connect(Names, "names")
        self._fs = door.connect(FileSystem, "fs")
        self._net = door.connect(Network, "net")
        pipes = door.connect(Pipes, "pipe")
        reading, writing = door.ask(pipes.create())
        self._reader, self._writer = door.connect(Pipes, reading), door.connect(Pipes, writing)
        for _ in range(_UNGUESSED):
            door.ask(self._fs.create(_ROOT, 1, b"innocent", 0o600, os.O_RDWR))
            door.ask(self._fs.unlink(_ROOT, 1, b"innocent"))
        self._octets = bytearray(self._chance.randbytes(200_000))
        self._file = door.ask(self._fs.create(_ROOT, 1, b"innocent", 0o600, os.O_RDWR)).inode
        self._inodes.add(self._file)
        door.ask(self._fs.write(_ROOT, self._file, 0, bytes(self._octets)))
        door.ask(self._names.register("innocent", door.task.rights["fs"]))
        self._kernel = door.ask(door.control.status()).pid

    def _turn(self, door: Door) -> None:
        chance = self._chance
        found = door.ask(self._names.lookup("innocent"))
        _right("names", door.ask(door.connect(FileSystem, found).getattr(1)).inode, 1)
        door.task.drop(found)
        octets = chance.randbytes(chance.choice((1, 100, 70_000)))
        _right("pipe, taken", door.ask(self._writer.write(octets)), len(octets))
        _right("pipe", bytes(door.ask(self._reader.read(1 << 20))), octets)
        self._use_file(door)
        _right("net", door.ask(self._net.addresses())[0].address, bytes((10, 90, 0, 2)))
        self._ping(door)
        _right("kernel", door.ask(door.control.status()).pid, self._kernel)

    def _use_file(self, door: Door) -> None:
        chance, octets = self._chance, self._octets
        at, part = chance.randrange(190_000), chance.randbytes(chance.choice((1, 100, 9000)))
        octets[at : at + len(part)] = part
        _right("fs", door.ask(self._fs.write(_ROOT, self._file, at, part)), len(part))
        at = chance.randrange(len(octets))
        read = bytes(door.ask(self._fs.read(self._file, at, 50_000)))
        _right("fs, octets", read, bytes(octets[at : at + 50_000]))
        _right("fs, size", door.ask(self._fs.getattr(self._file)).size, len(octets))

    def _ping(self, door: Door) -> None:
        try:
            echo = door.ask(self._net.ping(_HOST, 5000, b"innocent" * 10))
        except Refused as refused:
            if refused.errno != errno.ENOBUFS:  # so many echoes wait for others
                raise
        else:
            _right("ping", (echo.source, echo.intact), (_HOST, True))


def _right(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise LossError(f"{what}: {str(found)[:200]} instead of {str(wanted)[:200]}")


class _Holdings:
    """What the kernel holds, and the servers' incarnations."""

    def __init__(self, door: Door, kernel: int) -> None:
        tasks = door.tasks()
        self.generations = {name: task.generation for name, task in door.servers().items()}
        self.pids = {name: task.pid for name, task in tasks.items() if task.pid}
        self.joined = sorted(name for name in tasks if name.startswith("joined"))
        self.rights = {name: tasks[name].rights for name in self.generations}
        self.ports = len(door.ask(door.control.ports()))
        self.descriptors = descriptors(kernel)

    def excess(self, before: _Holdings) -> list[str]:
        """Return what there is more of than before."""
        found = [name for name in self.joined if name not in before.joined]
        found += more_than(self.descriptors, before.descriptors)
        if self.ports > before.ports:
            found.append(f"{self.ports - before.ports} ports")
        for name, rights in self.rights.items():
            if rights > before.rights[name]:
                found.append(f"{rights - before.rights[name]} rights of {name}")
        return found


def intrude(run: Run, system: LiveSystem, innocent: Innocent, door: Door, seed: int) -> None:
    """One intruder, from its coming to the last trace of it."""
    kernel = system.kernel
    before = _Holdings(door, kernel)
    intruder = Intruder(system, seed, innocent.is_foreign)
    try:
        for number in range(MESSAGES):
            intruder.act()
            if number % _READ_EVERY == 0:
                intruder.read()
        innocent.wait_turn()
        intruder.read()
    finally:
        intruder.close()
    run.count("messages", MESSAGES)
    run.count("errors", intruder.errors)
    run.count("answers", intruder.answers)
    deadline = time.monotonic() + _PATIENCE_S
    while excess := (now := _Holdings(door, kernel)).excess(before):
        if time.monotonic() > deadline:
            run.lose(f"the intruder of seed {seed} left {excess}")
            break
        time.sleep(0.02)
    if now.generations != before.generations:
        run.lose(f"the intruder of seed {seed}: {_deaths(door, before, now)}")


def _deaths(door: Door, before: _Holdings, now: _Holdings) -> str:
    died = [name for name, number in now.generations.items() if number != before.generations[name]]
    words = {name: door.ask(door.control.last_words(name))[-1:] for name in died}
    return f"servers ended: {words}"


def _kill_all(run: Run, door: Door) -> None:
    """Every server comes back when it is killed."""
    for name, task in door.servers().items():
        door.ask(door.control.kill(name))
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            now = door.servers()[name]
            if (now.generation, now.state) == (task.generation + 1, "running"):
                break
            if time.monotonic() > deadline:
                run.lose(f"{name} did not come back: {now}")
                break
            time.sleep(0.02)


def packets(run: Run) -> None:
    """Let intruders come one after the other until the time is over; see the module head."""
    system = LiveSystem(f"packets{run.seed % 10_000}")
    try:
        system.up("--no-mount")
        with opened(system) as door:
            _run(run, system, door)
        for line in system.run.log_path.read_text().splitlines():
            if "kernel: a packet" in line or "Traceback" in line:
                run.lose(f"the log says: {line}")
        system.look()
        done = system.atoll("down")
        run.check(done.returncode == 0, f"down: {done.stdout}{done.stderr}")
        run.check(not system.living(), f"down left {system.living()}")
        done = system.atoll("fsck", "--state", str(system.state))
        run.check(done.returncode == 0, f"fsck: {done.stdout}{done.stderr}")
    finally:
        system.close()


def _run(run: Run, system: LiveSystem, door: Door) -> None:
    innocent = Innocent(run, system)
    innocent.start()
    begin = _Holdings(door, system.kernel)
    memory = {pid: resident_kib(pid) for pid in begin.pids.values()}
    chance = run.random("intruders")
    while not run.over():
        seed = chance.getrandbits(32)
        try:
            intrude(run, system, innocent, door, seed)
        except (AtollError, LossError) as error:
            run.lose(f"intruder of seed {seed}: {type(error).__name__}: {error}")
    innocent.stop()
    now = _Holdings(door, system.kernel)
    for name, pid in now.pids.items():
        if pid in memory and name in begin.rights:
            grown = resident_kib(pid) - memory[pid]
            run.facts.append(f"{name} grew by {grown} KiB")
            run.check(grown < _GROWTH_KIB, f"{name} grew by {grown} KiB")
    _kill_all(run, door)


__all__ = ["Innocent", "intrude", "packets"]
