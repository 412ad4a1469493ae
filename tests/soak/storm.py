"""`storm`: the shipped system at work while its servers are killed and stopped."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from fs_server.server import FileServer
from mount.chaos.pauses import figures, pauses_s
from mount.chaos.probes import FileProbe
from mount.chaos.session import KILLED, Books
from tests.support.live_system import LiveSystem

from .deaths import Storm
from .door import (
    SERVERS,
    Door,
    belonging,
    descriptors,
    more_than,
    opened,
    resident_kib,
    using_namespace,
)
from .file_servers import FROM_RECORD, WatchedFileServer, describe_with
from .run import LossError, Run
from .workers import WORKS, attempt, worker
from .works import Workplace, check_tree

_QUIET_S: Final = 15.0
_GATHER_S: Final = 5.0
_ALARMING: Final = ("Traceback", "kernel: a packet", "poison:", "given up", "did not end within")
"""What no line of the log may say."""


def storm(run: Run, file_server: type[FileServer] = WatchedFileServer) -> None:
    """Work, kill, and compare; see the module head.

    Args:
        file_server: serves `fs`; the default is the one that ships, watched.
    """
    system = LiveSystem(f"storm{run.seed % 10_000}")
    try:
        _whole(run, system, ("--system", str(describe_with(file_server, system.top))))
    finally:
        system.close()


def _whole(run: Run, system: LiveSystem, options: tuple[str, ...]) -> None:
    system.up(*options)
    with opened(system) as door:
        namespace = door.namespace()
        inode = os.fstat(namespace).st_ino
        place = Workplace(run, system, namespace)
        try:
            _weather(run, system, door, place)
        finally:
            os.close(namespace)
    _check_log(run, system)
    _end(run, system, inode)
    system.up(*options)
    _compare_last_tree(run, place)
    _end(run, system, 0)


def _weather(run: Run, system: LiveSystem, door: Door, place: Workplace) -> None:
    """Let it storm over the work, then see what is left when all is quiet."""
    kernel = system.kernel
    for name, functions in WORKS.items():
        for function in functions:
            attempt(place, function, run.random(f"{name} before"), -1)
    _kill_each_once(run, door)
    before = _Standing(door, kernel)
    books = Books(door, list(SERVERS))
    place.storm = Storm(run, door)
    probe = FileProbe(place.mount)
    workers = [worker(place, name) for name in WORKS]
    run.begin_now()
    place.storm.start()
    probe.start()
    for thread in workers:
        thread.start()
    for thread in workers:
        while thread.is_alive():
            thread.join(_GATHER_S)
            _gather(run, books)
    place.storm.stop()
    down = books.settle(place.storm.last)
    probe.stop()
    _gather(run, books)
    run.check(not down, f"these do not serve any more: {down}")
    run.check(not place.storm.failure, place.storm.failure)
    for failure in probe.failures:
        run.lose(failure)
    run.check(system.kernel == kernel, "the kernel is another process")
    _check_deaths(run, door, before, books)
    _check_standing(run, door, kernel, before)
    _tell(run, place.storm, books, probe)


def _kill_each_once(run: Run, door: Door) -> None:
    """A first death may leave something in stock for all later ones: that is not left behind."""
    books = Books(door, list(SERVERS))
    for name in SERVERS:
        pid = door.ask(door.control.kill(name))
        down = books.settle({name: pid})
        run.check(not down, f"after one kill of {name} these do not serve: {down}")


def _gather(run: Run, books: Books) -> None:
    """Read on in the kernel's record of deaths, and count them."""
    books.gather()
    deaths = sum(map(len, books.outages.values()))
    run.count("kills", deaths - run.counts["kills"])


def _tell(run: Run, weather: Storm, books: Books, probe: FileProbe) -> None:
    stops = sum(map(len, weather.stops.values()))
    killed = ", ".join(f"{name} {len(outages)}" for name, outages in books.outages.items())
    run.facts.append(f"killed {killed}; {stops} stops")
    away = figures([span.ready_s - span.ended_s for span in books.spans(*SERVERS)])
    seen = figures(pauses_s(books.spans("fs"), probe.waits))
    for what, found in (("away", away), ("pauses of fs at the mount", seen)):
        run.facts.append(
            f"{what}: median {found.median_ms:.1f}, p99 {found.p99_ms:.1f},"
            f" longest {found.max_ms:.1f} ms"
        )


class _Standing:
    """What a system holds while nobody works in it."""

    def __init__(self, door: Door, kernel: int) -> None:
        self.descriptors = descriptors(kernel)
        self.memory_kib = resident_kib(kernel)
        tasks = door.tasks()
        self.generations = {name: tasks[name].generation for name in SERVERS}
        self.tasks = sorted(name for name in tasks)
        self.ports = len(door.ask(door.control.ports()))
        self.down = [name for name in SERVERS if tasks[name].state != "running"]

    def excess(self, before: _Standing) -> list[str]:
        """Return what there is more of than before."""
        found = more_than(self.descriptors, before.descriptors)
        found += [name for name in self.tasks if name not in before.tasks]
        found += [f"{name} is down" for name in self.down]
        if self.ports > before.ports:
            found.append(f"{self.ports - before.ports} ports")
        return found


def _check_deaths(run: Run, door: Door, before: _Standing, books: Books) -> None:
    """Every death is in the kernel's record, and every one was a kill."""
    for name, task in door.servers().items():
        deaths = books.outages[name]
        run.check(
            task.generation == before.generations[name] + len(deaths),
            f"{name} is generation {task.generation}, the record has {len(deaths)} deaths",
        )
        for reason in {death.reason for death in deaths} - KILLED:
            run.lose(f"{name} died of something else: {reason}")


def _check_standing(run: Run, door: Door, kernel: int, before: _Standing) -> None:
    deadline = time.monotonic() + _QUIET_S
    while (excess := (now := _Standing(door, kernel)).excess(before)) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.2)
    run.check(not excess, f"when all was quiet there was left: {excess}")
    grown = now.memory_kib - before.memory_kib
    run.facts.append(f"kernel grew by {grown} KiB, {len(now.descriptors)} descriptors")


def _check_log(run: Run, system: LiveSystem) -> None:
    lines = system.run.log_path.read_text().splitlines()
    run.count("answers from the record", sum(FROM_RECORD in line for line in lines))
    for line in lines:
        if any(word in line for word in _ALARMING):
            run.lose(f"the log says: {line}")


def _end(run: Run, system: LiveSystem, namespace: int) -> None:
    """`down`, and nothing is left; `fsck`, and nothing is wrong."""
    system.look()
    done = system.atoll("down")
    run.check(done.returncode == 0, f"down: status {done.returncode}: {done.stderr}{done.stdout}")
    run.check(not system.living(), f"down left processes: {system.living()}")
    run.check(not belonging(system), f"down left processes: {belonging(system)}")
    run.check(not system.is_mounted(), "down left a mount")
    run.check(not system.run.path.exists(), f"down left {system.run.path}")
    run.check(not using_namespace(namespace), f"down left a namespace: {namespace}")
    run.check(not Path("/sys/class/net/atoll0").exists(), "down left a TAP device")
    done = system.atoll("fsck", "--state", str(system.state))
    run.check(done.returncode == 0, f"fsck: status {done.returncode}: {done.stdout}{done.stderr}")


def _compare_last_tree(run: Run, place: Workplace) -> None:
    """The tree that was copied last is there, also after the system's end."""
    trees = [path for path in place.mount.iterdir() if path.name.startswith("tree-")]
    run.check(bool(trees), "no tree is left")
    for tree in trees:
        try:
            check_tree(place, tree)
        except LossError as error:
            run.lose(f"after another start: {error}")
