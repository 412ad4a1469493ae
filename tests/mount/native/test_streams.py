"""Streams in the mount, as commands of the host have them: `/pipe/NAME` of a running system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from core.system.pipe import Pipes
from core.system.pipe_memory import SMALL_RING
from core.userlib.joined import joined
from tests.support.live_system import LiveSystem
from tests.support.native_system import up_native

pytestmark = [pytest.mark.needs_fuse, pytest.mark.slow]

TIMEOUT_S = 50.0
READ, WRITE = "0", "1"
"""Numbers of read(2) and write(2) as /proc shows them."""
OPENS = {"2", "257"}
SIGNALS = [signal.SIGINT, signal.SIGKILL]


@pytest.fixture(scope="module")
def system() -> Iterator[LiveSystem]:
    found = LiveSystem("streams")
    try:
        up_native(found)
        yield found
    finally:
        found.close()


@pytest.fixture
def pipes(system: LiveSystem) -> Iterator[Path]:
    """The directory of streams; nobody has one open before or after."""
    path = system.mountpoint / "pipe"
    assert not os.listdir(path)
    yield path
    until(lambda: not os.listdir(path))


def until(condition: Callable[[], bool]) -> None:
    """Wait until another process has come so far."""
    limit = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def is_in(pid: int, *numbers: str) -> bool:
    """Return if a process sleeps in one of these system calls."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()
        return words[0] in numbers
    return False


def shell(script: str, **how: Any) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        **how,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@contextlib.contextmanager
def started(*command: str, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, **how) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    number = os.open(path, flags)
    try:
        yield number
    finally:
        with contextlib.suppress(OSError):
            os.close(number)


@contextlib.contextmanager
def both_ends(path: Path, flags: int = os.O_NONBLOCK) -> Iterator[tuple[int, int]]:
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as reading:
        os.set_blocking(reading, not flags & os.O_NONBLOCK)
        with opened(path, os.O_WRONLY | flags) as writing:
            yield reading, writing


@pytest.mark.parametrize("first", ["cat", "echo"])
def test_two_commands_meet_by_name(pipes: Path, first: str) -> None:
    """Whoever comes first waits in open(2) for the other one."""
    commands = {"cat": f"cat {pipes}/x", "echo": f"exec /bin/echo hi > {pipes}/x"}
    second = "echo" if first == "cat" else "cat"
    with started("bash", "-c", f"exec {commands[first]}" if first == "cat" else commands[first],
                 stdout=subprocess.PIPE) as waiting:  # fmt: skip
        until(lambda: os.listdir(pipes) == ["x"])
        said = shell(commands[second])
        assert waiting.stdout is not None
        assert (said + waiting.stdout.read().decode()) == "hi\n"
        assert waiting.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize("kills", [0, 4])
def test_a_hundred_megabytes_arrive_exactly(system: LiveSystem, pipes: Path, kills: int) -> None:
    """Also if the pipe server is killed in full flow: what is on its way fits into no buffer."""
    size, part = 100_000_000, 20_000_000
    data = hashlib.shake_128(b"streams").digest(part)
    source = system.top / "source"
    source.write_bytes(data * (size // part))
    found = hashlib.sha256()
    with (
        started("bash", "-c", f"exec cat {source} > {pipes}/big") as writer,
        started("cat", str(pipes / "big"), stdout=subprocess.PIPE) as reader,
    ):
        assert reader.stdout is not None
        for _ in range(size // part):
            if kills:
                kills -= 1
                assert system.atoll("kill", "pipe").returncode == 0
            found.update(reader.stdout.read(part))
        assert reader.stdout.read() == b""
        assert writer.wait(TIMEOUT_S) == reader.wait(TIMEOUT_S) == 0
    assert found.digest() == hashlib.sha256(data * (size // part)).digest()


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_a_blocked_reader_at_once(pipes: Path, number: signal.Signals) -> None:
    with opened(pipes / "x", os.O_RDWR), started("cat", str(pipes / "x")) as reader:
        until(lambda: is_in(reader.pid, READ))
        reader.send_signal(number)
        assert reader.wait(TIMEOUT_S) == -number


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_a_blocked_opener_at_once(pipes: Path, number: signal.Signals) -> None:
    with started("cat", str(pipes / "x")) as reader:
        until(lambda: os.listdir(pipes) == ["x"])
        until(lambda: is_in(reader.pid, *OPENS))
        reader.send_signal(number)
        assert reader.wait(TIMEOUT_S) == -number
        until(lambda: not os.listdir(pipes))


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_a_blocked_writer_at_once(pipes: Path, number: signal.Signals) -> None:
    with both_ends(pipes / "x"), started("bash", "-c", f"exec yes > {pipes}/x") as writer:
        until(lambda: is_in(writer.pid, WRITE))
        writer.send_signal(number)
        assert writer.wait(TIMEOUT_S) == -number


CATCHES = """
import os, signal, sys
class Caught(Exception): pass
def catch(*_): raise Caught
signal.signal(signal.SIGUSR1, catch)
try:
    os.read(0, 10)
except Caught:
    print("caught", flush=True)
    print(os.read(0, 10))
"""


def test_signal_that_is_caught_interrupts_a_read_which_may_go_on(pipes: Path) -> None:
    with opened(pipes / "x", os.O_RDWR) as both:
        command = [sys.executable, "-c", CATCHES]
        with started(*command, stdin=both, stdout=subprocess.PIPE) as reader:
            until(lambda: is_in(reader.pid, READ))
            reader.send_signal(signal.SIGUSR1)
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"caught\n"
            os.write(both, b"later")
            assert reader.stdout.read() == b"b'later'\n"


def test_one_descriptor_is_written_while_a_read_waits_on_it(pipes: Path) -> None:
    script = 'exec 3<>"$0"; head -c 3 <&3 & echo $!; read -r; echo ok >&3; wait'
    command = ("bash", "-c", script, str(pipes / "x"))
    with started(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as both:
        assert both.stdin is not None
        assert both.stdout is not None
        reader = int(both.stdout.readline())
        until(lambda: is_in(reader, READ))
        both.stdin.write(b"\n")
        both.stdin.close()
        assert both.stdout.read() == b"ok\n"


READERS = """
import os, sys, threading
threading.stack_size(65536)
path, count = sys.argv[1], int(sys.argv[2])
started = threading.Semaphore(0)
def read(number):
    file = os.open(f"{path}/{number % 100}", os.O_RDWR)
    started.release()
    os.read(file, 1)
for number in range(count):
    threading.Thread(target=read, args=(number,), daemon=True).start()
for number in range(count):
    started.acquire()
print("all", flush=True)
threading.Event().wait()
"""


def test_a_thousand_blocked_readers_hold_up_nobody(system: LiveSystem, pipes: Path) -> None:
    tree = system.mountpoint / "tree"
    if not tree.exists():
        shell(f"mkdir -p {tree}/a/b {tree}/c; touch {tree}/a/{{1..50}} {tree}/c/{{1..50}}")
    with started(sys.executable, "-c", READERS, str(pipes), "1000",
                 stdout=subprocess.PIPE) as readers:  # fmt: skip
        assert readers.stdout is not None
        assert readers.stdout.readline() == b"all\n"
        tasks = Path(f"/proc/{readers.pid}/task")

        def blocked() -> int:
            return sum(is_in(int(task.name), READ) for task in tasks.iterdir())

        until(lambda: blocked() == 1000)
        listed = shell(f"ls -lR {system.mountpoint}")
        assert len(listed.splitlines()) > 200
        assert blocked() == 1000
        with opened(pipes / "7", os.O_WRONLY) as writing:
            os.write(writing, b"1234")
            until(lambda: blocked() == 996)
        readers.kill()
        assert readers.wait(TIMEOUT_S) == -signal.SIGKILL


def test_poll_and_epoll_tell_the_truth(pipes: Path) -> None:
    with select.epoll() as epoll, both_ends(pipes / "x") as (reading, writing):
        epoll.register(reading, select.EPOLLIN)
        assert epoll.poll(0) == []
        with started("bash", "-c", f"echo -n ab > {pipes}/x") as writer:
            assert epoll.poll(TIMEOUT_S) == [(reading, select.EPOLLIN)]
            assert writer.wait(TIMEOUT_S) == 0
        assert os.read(reading, 1) == b"a"
        assert select.select([reading], [writing], [], TIMEOUT_S) == ([reading], [writing], [])
        assert os.read(reading, 5) == b"b"
        assert epoll.poll(0) == []
        os.close(writing)
        assert epoll.poll(TIMEOUT_S) == [(reading, select.EPOLLHUP)]
        assert os.read(reading, 1) == b""


def test_poll_of_the_writing_end_knows_back_pressure_and_departure(pipes: Path) -> None:
    with both_ends(pipes / "x") as (reading, writing):
        poll = select.poll()
        poll.register(writing, select.POLLOUT)
        assert poll.poll(0) == [(writing, select.POLLOUT)]
        fill(writing)
        assert poll.poll(0) == []
        with started("head", "-c", str(SMALL_RING), str(pipes / "x"), stdout=subprocess.DEVNULL):
            assert poll.poll(TIMEOUT_S * 1000) == [(writing, select.POLLOUT)]
        os.close(reading)
        until(lambda: poll.poll(0)[0][1] & select.POLLERR != 0)


def test_files_are_always_ready(system: LiveSystem) -> None:
    with opened(system.mountpoint / "file", os.O_RDWR | os.O_CREAT) as file:
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == [(file, select.POLLIN | select.POLLOUT)]


def fill(writing: int) -> int:
    """Write until it would wait. Returns how many octets went in."""
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += os.write(writing, bytes(50_000))
    with contextlib.suppress(BlockingIOError):
        while True:
            size += os.write(writing, b"x")
    return size


def test_writer_waits_when_nobody_reads(pipes: Path) -> None:
    with both_ends(pipes / "x") as (reading, writing):
        assert fill(writing) == SMALL_RING
        with pytest.raises(BlockingIOError):
            os.write(writing, b"x")
        with started("bash", "-c", f"exec head -c 1000000 /dev/zero > {pipes}/x") as writer:
            until(lambda: is_in(writer.pid, WRITE))
            os.set_blocking(reading, True)
            rest = SMALL_RING + 1_000_000
            while rest:
                rest -= len(os.read(reading, min(rest, 100_000)))
            assert writer.wait(TIMEOUT_S) == 0
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)


def test_each_end_learns_that_the_other_one_closed(pipes: Path) -> None:
    with both_ends(pipes / "x") as (reading, writing):
        with pytest.raises(BlockingIOError):
            os.read(reading, 10)
        os.write(writing, b"last")
        os.close(writing)
        until(lambda: os.stat(pipes / "x").st_nlink == 1)
        os.set_blocking(reading, True)
        assert os.read(reading, 10) == b"last"
        assert os.read(reading, 10) == b""
    with both_ends(pipes / "y", 0) as (reading, writing):
        os.close(reading)

        def write_on() -> None:
            while True:  # close(2) may return before the server has heard of it
                os.write(writing, b"x")

        with pytest.raises(BrokenPipeError):
            write_on()


def test_blocked_writer_learns_that_the_reader_closed(pipes: Path) -> None:
    with both_ends(pipes / "x") as (reading, writing):
        fill(writing)
        with started("bash", "-c", f"exec dd if=/dev/zero of={pipes}/x bs=1000 count=1",
                     stderr=subprocess.PIPE) as writer:  # fmt: skip
            until(lambda: is_in(writer.pid, WRITE))
            os.close(reading)
            assert writer.stderr is not None
            assert b"Broken pipe" in writer.stderr.read()
            assert writer.wait(TIMEOUT_S) == 1


def test_opening_to_write_without_readers_does_not_wait_if_it_must_not(pipes: Path) -> None:
    with pytest.raises(OSError, match="No such device or address") as raised:
        os.open(pipes / "x", os.O_WRONLY | os.O_NONBLOCK)
    assert raised.value.errno == errno.ENXIO


def test_stream_looks_like_a_regular_file_and_is_one_that_cannot_be_sought(pipes: Path) -> None:
    with opened(pipes / "x", os.O_RDWR | os.O_CREAT) as both:
        shown = os.stat(pipes / "x")
        assert stat.S_ISREG(shown.st_mode)
        assert (shown.st_size, shown.st_uid) == (0, os.geteuid())
        assert shown.st_ino == os.fstat(both).st_ino == os.stat(pipes / "x").st_ino
        (line,) = shell(f"ls -l {pipes}").splitlines()[1:]
        assert line.startswith("-rw------- 1 ")
        assert shell(f"stat -c %F {pipes}/x; test -f {pipes}/x; ! test -p {pipes}/x")
        os.chmod(pipes / "x", 0o640)
        assert stat.S_IMODE(os.stat(pipes / "x").st_mode) == 0o640
        for wrong in (
            lambda: os.lseek(both, 0, os.SEEK_SET),
            lambda: os.ftruncate(both, 5),
            lambda: os.fsync(both),
            lambda: os.rename(pipes / "x", pipes / "y"),
            lambda: os.link(pipes / "x", pipes / "y"),
            lambda: os.mkdir(pipes / "d"),
            lambda: os.rename(pipes.parent, pipes / "z"),
            lambda: os.rmdir(pipes),
            lambda: os.open(pipes / "x", os.O_RDONLY | os.O_DIRECT),
            lambda: fcntl.flock(both, fcntl.LOCK_EX),
            lambda: fcntl.lockf(both, fcntl.LOCK_EX | fcntl.LOCK_NB),
        ):
            with pytest.raises(OSError):  # noqa: PT011 - each another one
                wrong()
        assert os.listxattr(pipes / "x") == []


def test_removing_a_name_leaves_those_alone_who_have_it_open(pipes: Path) -> None:
    with both_ends(pipes / "x") as (reading, writing):
        shell(f"rm {pipes}/x")
        assert not os.listdir(pipes)
        os.write(writing, b"still")
        assert os.read(reading, 10) == b"still"
        with both_ends(pipes / "x") as (_, other):
            os.write(other, b"another")
            with pytest.raises(BlockingIOError):
                os.read(reading, 10)
    assert shell(f"rm {pipes}/x 2>&1 || true").endswith("No such file or directory\n")
    with pytest.raises(OSError, match="name too long"):
        os.open(pipes / ("x" * 256), os.O_RDONLY)


@pytest.mark.parametrize("dies", [False, True])
def test_commands_meet_tasks_that_joined_the_system(
    system: LiveSystem, pipes: Path, dies: bool
) -> None:
    """What other clients do wakes who waits in the mount, before and after the server's death."""

    async def meet() -> None:
        async with joined(system.run.control_path) as task:
            server = task.connect(Pipes, "pipe")
            writing = await server.attach("x", True)
            with started("cat", str(pipes / "x"), stdout=subprocess.PIPE) as reader:
                until(lambda: is_in(reader.pid, READ))
                if dies:
                    killed = await trio.to_thread.run_sync(system.atoll, "kill", "pipe")
                    assert killed.returncode == 0
                assert await task.connect(Pipes, writing).write(b"from a task") == 11
                assert reader.stdout is not None
                said = await trio.to_thread.run_sync(reader.stdout.read, 11)
                assert said == b"from a task"
                await task.kernel.drop(writing.name)  # type: ignore[attr-defined]
                assert await trio.to_thread.run_sync(reader.wait, TIMEOUT_S) == 0

    trio.run(meet)


def test_volume_that_has_such_a_name_keeps_it() -> None:
    """The volume's own entry is seen, the streams are under another name."""
    system = LiveSystem("streams-hidden")
    try:
        path = up_native(system, "streams = {}")
        shell(f"mkdir {path}/pipe; echo mine > {path}/pipe/x")
        assert system.atoll("down").returncode == 0
        up_native(system, 'streams = { pipe = "pipe", stream = "pipe" }')
        assert sorted(os.listdir(path)) == ["pipe", "stream"]
        assert shell(f"cat {path}/pipe/x") == "mine\n"
        assert shell(f"echo met > {path}/stream/x & cat {path}/stream/x; wait") == "met\n"
        assert "hides the streams" in system.run.log_path.read_text(encoding="utf-8")
    finally:
        system.close()
