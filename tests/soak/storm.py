"""`storm`: the shipped system at work while its servers are killed and stopped."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from tests.support.live_system import LiveSystem

from .deaths import Probe, Storm
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
from .run import LossError, Run
from .works import WORKS, Workplace, attempt, check_tree, worker

_QUIET_S: Final = 15.0
_ALARMING: Final = ("Traceback", "kernel: a packet", "poison:", "given up", "did not end within")
"""What no line of the log may say."""


def storm(run: Run) -> None:
    """Work, kill, and compare; see the module head."""
    system = LiveSystem(f"storm{run.seed % 10_000}")
    try:
        _whole(run, system)
    finally:
        system.close()


def _whole(run: Run, system: LiveSystem) -> None:
    system.up()
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
    system.up()
    _compare_last_tree(run, place)
    _end(run, system, 0)


def _weather(run: Run, system: LiveSystem, door: Door, place: Workplace) -> None:
    """Let it storm over the work, then see what is left when all is quiet."""
    kernel = system.kernel
    for name, functions in WORKS.items():
        for function in functions:
            attempt(place, function, run.random(f"{name} before"), -1)
    before = _Standing(door, kernel)
    zygote = next(pid for pid in _children(kernel))
    place.storm = Storm(run, door, zygote)
    probe = Probe(run, place.mount)
    workers = [worker(place, name) for name in WORKS]
    run.begin_now()
    place.storm.start()
    probe.start()
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    place.storm.stop()
    probe.stop()
    run.facts.append(probe.describe())
    run.check(system.kernel == kernel, "the kernel is another process")
    _check_generations(run, door, before, place.storm)
    _check_standing(run, door, kernel, before)


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


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


def _check_generations(run: Run, door: Door, before: _Standing, weather: Storm) -> None:
    """Every death was one of ours, and every one of ours was a death."""
    deadline = time.monotonic() + _QUIET_S
    wanted = {name: before.generations[name] + weather.kills[name] for name in SERVERS}
    while True:
        found = {name: task.generation for name, task in door.servers().items()}
        if found == wanted or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    run.check(found == wanted, f"generations are {found}, by the kills {wanted}")


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
    for line in system.run.log_path.read_text().splitlines():
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
