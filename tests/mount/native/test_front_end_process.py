"""The native front end in a process of its own dies, and the mount only answers later."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from core.abi import RESUMABLE_PLACES
from fs_server.interface import ROOT_INODE, Caller, FileSystem
from mount.native.server import FrontEndServer
from tests.mount.native.test_lock_tools import Worker
from tests.soak.door import Door, opened
from tests.soak.front_end import front_end
from tests.soak.front_ends import ForgetfulFrontEnd, UnluckyFrontEnd, describe
from tests.soak.run import Run
from tests.support.live_system import LiveSystem

pytestmark = [pytest.mark.slow, pytest.mark.needs_root, pytest.mark.needs_fuse]
ROOT = Caller(0, 0, (), 0)


@pytest.fixture(scope="module")
def system() -> Iterator[LiveSystem]:
    made = LiveSystem("front-end")
    try:
        made.up("--system", str(describe(FrontEndServer, made.top)), "--net", "none")
        yield made
    finally:
        made.close()


@pytest.fixture
def door(system: LiveSystem) -> Iterator[Door]:
    with opened(system) as found:
        yield found


def until(condition: Callable[[], bool]) -> None:
    """Wait for what other processes bring about."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(door: Door, number: signal.Signals = signal.SIGKILL) -> None:
    """End the front end, and wait for the next one."""
    before = door.tasks()["front-end"]
    os.kill(before.pid, number)
    until(lambda: serves_since(door, before.generation))


def serves_since(door: Door, generation: int, name: str = "front-end") -> bool:
    task = door.tasks()[name]
    return task.generation > generation and task.state == "running"


def slice_of(server: type[FrontEndServer], seconds: float, *works: str) -> Run:
    lines: list[str] = []
    run = Run("front-end", seconds, 7, lines.append, small=True)
    front_end(run, server, works)
    run.facts.extend(lines)
    return run


@pytest.mark.timeout(180)
def test_killed_front_end_costs_nobody_anything_but_time() -> None:
    run = slice_of(FrontEndServer, 4, "copies", "operations", "names")
    assert not run.losses, "\n".join(run.facts)
    assert run.counts["ends"] > 3
    assert run.counts["names"]


@pytest.mark.timeout(180)
def test_change_whose_answer_was_lost_is_not_made_again() -> None:
    run = slice_of(UnluckyFrontEnd, 3, "names")
    assert not run.losses, "\n".join(run.facts)
    assert run.counts["untold changes"] > 3


@pytest.mark.timeout(180)
def test_making_it_again_is_found_out() -> None:
    run = slice_of(ForgetfulFrontEnd, 60, "names")
    assert any("File exists" in loss or "No such file" in loss for loss in run.losses), run.losses


def test_stopped_front_end_is_found_and_replaced(system: LiveSystem, door: Door) -> None:
    end(door, signal.SIGSTOP)
    (system.mountpoint / "after a stop").write_text("x")


def test_interrupt_reaches_a_request_that_was_said_again(system: LiveSystem, door: Door) -> None:
    """The file server stands still, so nothing is answered; the host's `stat` is killed."""
    server = door.tasks()["fs"].pid
    os.kill(server, signal.SIGSTOP)
    try:
        caller = subprocess.Popen(["stat", system.mountpoint / "missing"], stderr=-3, stdout=-3)
        until(lambda: door.tasks()["front-end"].calls > 0)
        end(door)
        caller.kill()
        assert caller.wait(20) == -signal.SIGKILL
    finally:
        os.kill(server, signal.SIGCONT)
        caller.wait(20)


@pytest.mark.parametrize("victims", [["front-end"], ["front-end", "fs"], ["fs", "front-end"]])
def test_more_changes_than_workers_are_each_made_once(
    system: LiveSystem, door: Door, victims: list[str]
) -> None:
    """The file server stands still until all are under way; then the victims die one by one."""
    top = system.mountpoint / "-".join(["many", *victims])
    top.mkdir()
    wanted = [top / f"{number}" / "made" for number in range(RESUMABLE_PLACES + 8)]
    for path in wanted:
        path.parent.mkdir()  # of its own: changes of one directory wait for each other in the host
        assert not path.exists()  # the host knows, and need not look it up
    server = door.tasks()["fs"].pid
    os.kill(server, signal.SIGSTOP)
    with ThreadPoolExecutor(len(wanted)) as callers:
        try:
            made = [callers.submit(path.mkdir) for path in wanted]
            until(lambda: door.tasks()["front-end"].calls == RESUMABLE_PLACES)
            for name in victims:
                generation = door.tasks()[name].generation
                os.kill(door.tasks()[name].pid, signal.SIGKILL)
                until(partial(serves_since, door, generation, name))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGCONT)
        for each in made:
            assert each.result(30) is None
    assert all(path.is_dir() for path in wanted)


def test_what_others_changed_meanwhile_is_seen(system: LiveSystem, door: Door) -> None:
    """The notification is delivered to an incarnation that does not live to read it."""
    path = system.mountpoint / "shared"
    path.write_text("old")
    assert path.read_text() == "old"
    before = door.tasks()["front-end"]
    os.kill(before.pid, signal.SIGSTOP)
    fs = door.connect(FileSystem, door.task.rights["fs"])
    inode = door.ask(fs.lookup(ROOT, ROOT_INODE, b"shared")).inode
    door.ask(fs.write(ROOT, inode, 0, b"newer"))
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: serves_since(door, before.generation))
    until(lambda: path.read_text() == "newer")


def test_opens_outlive_the_front_end(system: LiveSystem, door: Door) -> None:
    path = system.mountpoint / "open"
    with path.open("w+") as file:
        file.write("kept")
        file.flush()
        path.unlink()
        end(door)
        file.seek(0)
        assert file.read() == "kept"


def test_directory_that_was_removed_can_still_be_asked(system: LiveSystem, door: Door) -> None:
    path = system.mountpoint / "gone"
    path.mkdir()
    held = os.open(path, os.O_PATH)
    path.rmdir()
    end(door)
    try:
        assert os.fstat(held).st_nlink == 0
    finally:
        os.close(held)


def test_commands_find_the_front_end_like_any_server(system: LiveSystem, door: Door) -> None:
    generation = door.tasks()["front-end"].generation
    assert "killed" in system.atoll("kill", "front-end").stdout
    until(lambda: serves_since(door, generation))
    assert "atoll kill" in system.atoll("why", "front-end", "--last", "1").stdout
    assert "restarted" in system.atoll("restart", "front-end").stdout
    assert (system.mountpoint / "open").exists() is False


def test_confined_front_end_holds_the_device_and_nothing_else(
    system: LiveSystem, door: Door
) -> None:
    audit = system.atoll("audit").stdout.partition("front-end: process, confined")[2]
    audit = audit[: audit.index("attempts") + 30]
    assert "/dev/fuse: 1" in audit
    assert re.search(r"capabilities +-\n", audit), audit
    assert re.search(r"attempts +-\n", audit), audit


def test_killed_kernel_leaves_no_mount() -> None:
    system = LiveSystem("killed")
    try:
        system.up("--system", str(describe(FrontEndServer, system.top)), "--net", "none")
        assert system.is_mounted()
        os.kill(system.kernel, signal.SIGKILL)
        until(lambda: not system.is_mounted() and not system.living())
    finally:
        system.close()


def test_locks_and_waiters_outlive_the_front_end(system: LiveSystem, door: Door) -> None:
    holder, waiter = (Worker(system.mountpoint / "locked") for _ in range(2))
    assert holder.lock("LOCK_EX") == "done"
    waiter.begin("fcntl.lockf(file, fcntl.LOCK_EX)")
    for _ in range(3):
        end(door)
    assert holder.lock("LOCK_SH | fcntl.LOCK_NB", 1, 5) == "done"
    holder.kill()
    assert waiter.said() == "done"
    waiter.kill()
