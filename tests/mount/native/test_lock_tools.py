"""Locks in a real mount of a real volume: flock(1), fcntl, open file descriptions, SQLite."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from mount.fuse_wait import BURST_REQUESTS
from tests.support.volume_mount import VolumeMount

pytestmark = [pytest.mark.needs_fuse, pytest.mark.slow]

_FLOCK: Final = struct.Struct("hhqqi4x")
_F_OFD_GETLK: Final = 36
_F_OFD_SETLK: Final = 37
_F_OFD_SETLKW: Final = 38


@pytest.fixture(scope="module", params=["colocated", "process"])
def volume(request: pytest.FixtureRequest) -> Iterator[VolumeMount]:
    """One mount for all tests: each works on files of its own."""
    with tempfile.TemporaryDirectory(prefix="atoll-mount-") as place:
        system = VolumeMount(request.param, place, "native")
        try:
            yield system
        finally:
            system.end()


WORKER = """
import errno, fcntl, os, signal, sys
file = os.open(sys.argv[1], os.O_RDWR)
signal.signal(signal.SIGUSR1, lambda *_: print("caught", flush=True))
print("ready", flush=True)
for line in sys.stdin:
    try:
        result = eval(line)
        print("done" if result is None else result, flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""


class Worker:
    """A process with a file open, that does as it is told, line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", WORKER, str(path)]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self.said() == "ready"

    def begin(self, call: str) -> None:
        assert self.process.stdin is not None
        print(call, file=self.process.stdin, flush=True)

    @property
    def output(self) -> int:
        """The descriptor to wait for."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, call: str) -> str:
        self.begin(call)
        return self.said()

    def lock(self, kind: str, size: int = 0, start: int = 0) -> str:
        return self.do(f"fcntl.lockf(file, fcntl.{kind}, {size}, {start})")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


Work = Callable[[str], Worker]
"""Starts a worker on a file of this name."""


@pytest.fixture
def work(volume: VolumeMount) -> Iterator[Work]:
    made: list[Worker] = []

    def start(name: str) -> Worker:
        made.append(Worker(volume.path / name))
        return made[-1]

    yield start
    for worker in made:
        worker.kill()
    volume.shell("rm -f *")


@pytest.fixture
def workers(work: Work) -> tuple[Worker, Worker]:
    return work("worked-on"), work("worked-on")


def wait_blocked(worker: Worker) -> None:
    """Wait until a process waits for a lock, and the mount knows for whose.

    A process sleeps in such a call for the answer alone: the mount has its request. It deals with
    that, and with the file server's answer, at the latest when a worker lets others run.
    """
    process = Path(f"/proc/{worker.process.pid}")
    numbers = {"72", "73", "25", "32"}  # fcntl and flock, of x86-64 and of arm64
    while True:
        call = (process / "syscall").read_text().split()[0]
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        if call in numbers and state in "SD":
            break
    for _ in range(4 * BURST_REQUESTS):
        os.statvfs(worker.path)


def test_flock_excludes_shares_and_times_out(volume: VolumeMount) -> None:
    volume.shell(
        """
        touch l
        exec 7<> l 8<> l 9< l
        flock -s 7; flock -s 8; flock -s -n 9
        if flock -x -n 7; then exit 1; fi   # and 7 has lost the shared one
        flock -u 8; flock -u 9; flock -x -n 7
        if flock -n l true; then exit 1; fi
        set +e; flock -w 0.3 -E 9 l true; test $? = 9 || exit 1; set -e
        (flock -x 8; echo second >> order) 7>&- 8<>l &
        echo first > order; flock -u 7; wait
        test "$(tr '\\n' ' ' < order)" = "first second "
        flock -n l true; flock -n -s l flock -n -s l true
        exec 7>&-; rm l order
        """
    )


def test_flock_of_a_killed_holder_is_free(volume: VolumeMount, work: Work) -> None:
    holder, waiter = work("held"), work("held")
    assert holder.do("fcntl.flock(file, fcntl.LOCK_EX)") == "done"
    waiter.begin("fcntl.flock(file, fcntl.LOCK_EX)")
    wait_blocked(waiter)
    holder.kill()
    assert waiter.said() == "done"
    waiter.kill()
    volume.shell("flock -n held true")


def test_ranges_conflict_where_they_overlap(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    assert one.lock("LOCK_EX | fcntl.LOCK_NB", 10, 0) == "done"
    assert one.lock("LOCK_SH | fcntl.LOCK_NB", 10, 20) == "done"
    assert two.lock("LOCK_SH | fcntl.LOCK_NB", 10, 20) == "done"
    assert two.lock("LOCK_EX | fcntl.LOCK_NB", 1, 9) == "EAGAIN"
    assert two.lock("LOCK_SH | fcntl.LOCK_NB", 0, 9) == "EAGAIN"
    assert two.lock("LOCK_EX | fcntl.LOCK_NB", 0, 10) == "EAGAIN"
    assert two.lock("LOCK_EX | fcntl.LOCK_NB", 10, 10) == "done"
    assert one.lock("LOCK_EX | fcntl.LOCK_NB", 1, 29) == "EAGAIN"
    assert one.lock("LOCK_UN", 5, 2) == "done"
    assert two.lock("LOCK_EX | fcntl.LOCK_NB", 5, 2) == "done"
    assert two.lock("LOCK_EX | fcntl.LOCK_NB", 1, 7) == "EAGAIN"


def test_who_is_in_the_way_is_told(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    assert one.lock("LOCK_EX", 10, 5) == "done"
    ask = "__import__('struct').unpack('hhqqi4x', fcntl.fcntl(file, fcntl.F_GETLK, %r))"
    said = two.do(ask % _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 100, 0))
    assert said == str((fcntl.F_WRLCK, 0, 5, 10, one.process.pid))
    said = two.do(ask % _FLOCK.pack(fcntl.F_WRLCK, 0, 15, 100, 0))
    assert said.startswith(f"({fcntl.F_UNLCK},")


def test_any_close_gives_a_processes_range_locks_back(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    assert one.lock("LOCK_EX") == "done"
    one.do("globals().update(other=os.dup(file))")
    assert two.lock("LOCK_EX | fcntl.LOCK_NB") == "EAGAIN"
    assert one.do("os.close(other)") == "done"
    assert two.lock("LOCK_EX | fcntl.LOCK_NB") == "done"


def test_waiters_get_the_lock_one_after_another(work: Work) -> None:
    before, *others = [work("queue") for _ in range(5)]
    assert before.lock("LOCK_EX") == "done"
    for worker in others:
        worker.begin("fcntl.lockf(file, fcntl.LOCK_EX)")
        wait_blocked(worker)
    waiting = {worker.output: worker for worker in others}
    while waiting:
        assert select.select(list(waiting), [], [], 0)[0] == []
        assert before.lock("LOCK_UN") == "done"
        (ready,), _, _ = select.select(list(waiting), [], [])
        before = waiting.pop(ready)
        assert before.said() == "done"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_waiter_leaves_the_queue(
    volume: VolumeMount, workers: tuple[Worker, Worker], number: signal.Signals
) -> None:
    one, two = workers
    assert one.lock("LOCK_EX") == "done"
    two.begin("fcntl.lockf(file, fcntl.LOCK_EX)")
    wait_blocked(two)
    two.process.send_signal(number)
    assert two.process.wait() == -number
    assert one.lock("LOCK_UN") == "done"
    volume.shell('python3 -c \'import fcntl; fcntl.lockf(open("worked-on", "w"), 6)\'')


def test_caught_signal_interrupts_and_waiting_goes_on(workers: tuple[Worker, Worker]) -> None:
    """Python repeats the call, as PEP 475 wants, after the handler has run."""
    one, two = workers
    assert one.lock("LOCK_EX") == "done"
    two.begin("fcntl.lockf(file, fcntl.LOCK_EX)")
    wait_blocked(two)
    two.process.send_signal(signal.SIGUSR1)
    assert two.said() == "caught"
    wait_blocked(two)
    assert one.lock("LOCK_UN") == "done"
    assert two.said() == "done"


def test_deadlock_is_refused_to_the_one_who_would_close_the_circle(
    workers: tuple[Worker, Worker],
) -> None:
    one, two = workers
    assert one.lock("LOCK_EX", 1, 0) == "done"
    assert two.lock("LOCK_EX", 1, 1) == "done"
    one.begin("fcntl.lockf(file, fcntl.LOCK_EX, 1, 1)")
    wait_blocked(one)
    assert two.lock("LOCK_EX", 1, 0) == errno.errorcode[errno.EDEADLK]
    assert two.lock("LOCK_UN", 1, 1) == "done"
    assert one.said() == "done"


def test_many_waiters_do_not_keep_others_from_the_mount(volume: VolumeMount, work: Work) -> None:
    """More wait than the session has workers."""
    path = volume.path / "many"
    holder = work("many")
    assert holder.do("fcntl.flock(file, fcntl.LOCK_EX)") == "done"
    got: list[int] = []

    def wait(number: int) -> None:
        file = os.open(path, os.O_RDWR)
        fcntl.flock(file, fcntl.LOCK_SH)
        got.append(number)
        os.close(file)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    volume.shell("for n in $(seq 50); do echo $n > m; cat m > /dev/null; done; rm m")
    assert got == []
    holder.kill()
    for thread in threads:
        thread.join(20)
    assert sorted(got) == list(range(50))


def test_locks_of_open_file_descriptions(volume: VolumeMount) -> None:
    path = volume.path / "descriptions"
    path.touch()
    one, two = (os.open(path, os.O_RDWR) for _ in range(2))
    write = _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)
    fcntl.fcntl(one, _F_OFD_SETLK, write)
    with pytest.raises(BlockingIOError):
        fcntl.fcntl(two, _F_OFD_SETLK, write)
    os.close(os.dup(one))  # does not matter
    assert _FLOCK.unpack(fcntl.fcntl(two, _F_OFD_GETLK, write))[0] == fcntl.F_WRLCK
    waiting = threading.Thread(target=fcntl.fcntl, args=(two, _F_OFD_SETLKW, write))
    waiting.start()
    os.close(one)
    waiting.join(20)
    assert not waiting.is_alive()
    three = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.fcntl(three, _F_OFD_SETLK, write)
    os.close(two)
    fcntl.fcntl(three, _F_OFD_SETLKW, write)
    os.close(three)
    path.unlink()


def test_databases_work_at_once(volume: VolumeMount) -> None:
    volume.shell(
        """
        sqlite3 d.db 'create table t(a)'
        add() { for n in $(seq 15); do
            sqlite3 -cmd '.timeout 20000' d.db "insert into t values ($n)"; done; }
        add & add & add & wait
        test $(sqlite3 d.db 'select count(*) from t') = 45
        sqlite3 d.db 'pragma integrity_check' | grep -x ok; rm d.db*
        """
    )


@pytest.mark.parametrize("volume", ["process"], indirect=True)
def test_locks_and_waiters_outlive_the_file_server(volume: VolumeMount, work: Work) -> None:
    one, two, whole = work("ranges"), work("ranges"), work("whole")
    assert whole.do("fcntl.flock(file, fcntl.LOCK_EX)") == "done"
    assert one.lock("LOCK_EX", 10, 0) == "done"
    two.begin("fcntl.lockf(file, fcntl.LOCK_EX, 1, 5)")
    wait_blocked(two)
    for _ in range(3):
        volume.other("kill")
        assert one.lock("LOCK_SH | fcntl.LOCK_NB", 1, 50) == "done"
    with (volume.path / "whole").open("r+b") as file:
        with pytest.raises(BlockingIOError) as refused:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert refused.value.errno == errno.EAGAIN
        whole.kill()
        fcntl.flock(file, fcntl.LOCK_EX)
    one.kill()
    assert two.said() == "done"


@pytest.mark.parametrize("volume", ["process"], indirect=True)
def test_locks_are_shared_with_other_clients(volume: VolumeMount, work: Work) -> None:
    worker = work("common")
    volume.other("lock common 5")
    assert worker.lock("LOCK_EX | fcntl.LOCK_NB", 1, 5) == "EAGAIN"
    assert worker.lock("LOCK_EX | fcntl.LOCK_NB", 1, 6) == "done"
    worker.begin("fcntl.lockf(file, fcntl.LOCK_EX)")
    wait_blocked(worker)
    volume.other("unlock common 5")
    assert worker.said() == "done"
