"""`atoll run` beside the shell: the same octets, the same exit status, the same end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mount.run_directory import started
from tests.support.live_system import COMMAND_TIMEOUT_S, NO_DEVICES, LiveSystem

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def system() -> Iterator[LiveSystem]:
    """A system with pipes and without devices."""
    found = LiveSystem("pipes")
    try:
        found.up(*NO_DEVICES)
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def big(system: LiveSystem) -> Path:
    """A file that no buffer on the way holds."""
    path = system.top / "big"
    path.write_bytes(hashlib.shake_128(b"pipelines").digest(20_000_003))
    return path


def _shell(line: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    how = {"stdin": subprocess.DEVNULL, **how}
    return subprocess.run(
        ["/bin/bash", "--posix", "-c", line],
        capture_output=True,
        check=False,
        timeout=COMMAND_TIMEOUT_S,
        **how,
    )


def _run(system: LiveSystem, line: str, *options: str, **how: Any) -> Any:
    return system.atoll("run", *options, line, text=False, **how)


@pytest.mark.parametrize(
    "line",
    [
        "echo hello | cat",
        "printf 'a\\nb\\nc\\n' | grep -v b | tr a-z A-Z | rev",
        "true | cat",
        "cat /dev/null | wc -c",
        "echo x | false",
        "false | echo x",
        "false | true",
        "exit 7",
        "echo lost | sh -c 'exit 9'",
        "! echo x | grep -q y",
        "! true | true",
        "echo a | sh -c 'kill -TERM $$'",
        "sh -c 'kill -KILL $$' | cat",
        "no-such-program-at-all | cat",
        "echo x | no-such-program-at-all",
        "seq 1 100000 | sort -rn | head -n 3",
        "yes | head -n 1",
        "yes '|' | head -c 1000000 | wc -c",
        "(echo a; echo b) | (cat; echo c)",
        "seq 3 | while read x; do echo $((x * 2)); done | paste -s -d+ -",
        "echo err >&2 | cat",
        "sh -c 'echo out; echo err >&2' |& sort",
        "echo a | (cat <&-; echo closed)",
        "cat | tr a b",
        " | ".join(["echo long"] + ["cat"] * 12),
    ],
)
def test_pipeline_does_what_the_shell_does(system: LiveSystem, line: str) -> None:
    expected = _shell(line.replace("exit 7", "(exit 7)"))
    found = _run(system, line)
    assert found.stdout == expected.stdout
    assert found.returncode == expected.returncode % 256


@pytest.mark.parametrize("line", ["false | true", "exit 3 | exit 4 | true", "true | true"])
def test_pipefail_gives_the_status_of_the_rightmost_failure(system: LiveSystem, line: str) -> None:
    expected = _shell(f"set -o pipefail; {line}")
    assert _run(system, line, "--pipefail").returncode == expected.returncode


def test_writer_without_reader_dies_of_sigpipe(system: LiveSystem) -> None:
    status = system.top / "status"
    done = _run(system, f"(yes; echo $? > {status}) | head -n 1", env=system.environment)
    assert done.stdout == b"y\n"
    assert status.read_text() == f"{128 + signal.SIGPIPE}\n"
    assert _run(system, "yes | head -n 1", "--pipefail").returncode == 128 + signal.SIGPIPE


def test_writer_is_told_of_a_reader_that_went_while_nothing_flowed(system: LiveSystem) -> None:
    """The first octet written after the reader's end is refused, as by pipe(2)."""
    gone = system.top / "gone"
    os.mkfifo(gone)
    line = f"(cat {gone}; until ! echo x; do :; done; echo $? > {gone}.status) 2>&- | (exec true)"
    running = subprocess.Popen(system.command("run", line), env=system.environment)
    gone.write_text("")  # opens when the writer waits
    running.wait(COMMAND_TIMEOUT_S)
    assert running.returncode == 0


def test_large_and_binary_data_arrive_whole(system: LiveSystem, big: Path) -> None:
    done = _run(system, f"cat {big} | dd bs=4097 2>&- | cat")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(big.read_bytes()).digest()


def test_slow_reader_holds_the_writer_back(system: LiveSystem, big: Path) -> None:
    """What is on the way is bounded: two host pipes, two chunks, one ring."""
    fifo = system.top / "go"
    os.mkfifo(fifo)
    count = system.top / "count"
    line = f"dd if={big} bs=64k 2>{count} | (cat {fifo} >&2; cat | wc -c)"
    running = subprocess.Popen(
        system.command("run", line), env=system.environment, stdout=subprocess.PIPE
    )
    with fifo.open("w"):  # opens when the reader waits; it reads nothing until this is closed
        writer = _child_named(running.pid, "dd")
        signalled = _written(writer, count)
        assert signalled < 8 << 20
    assert running.communicate(timeout=COMMAND_TIMEOUT_S)[0] == b"20000003\n"


def _child_named(parent: int, name: str) -> int:
    """Wait for a program below a process and return its pid."""
    end = time.monotonic() + COMMAND_TIMEOUT_S
    todo = [parent]
    while time.monotonic() < end:
        todo = todo or [parent]
        pid = todo.pop()
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                return pid
            todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except OSError:
            continue
    raise AssertionError(f"no {name} below {parent}")


def _written(writer: int, report: Path) -> int:
    """Have dd report how far it is, until it is no further than before; return octets."""
    last = -1
    while True:
        os.kill(writer, signal.SIGUSR1)
        while not (found := re.findall(r"(\d+) bytes", report.read_text())):
            os.kill(writer, signal.SIGUSR1)
        if (now := int(found[-1])) == last:
            return now
        last = now


def test_standard_input_is_the_first_commands(system: LiveSystem) -> None:
    done = system.atoll("run", "cat | tr a-z A-Z", input="from outside", stdin=None)
    assert done.stdout == "FROM OUTSIDE"


def test_pipeline_survives_kills_of_the_pipe_server(system: LiveSystem, big: Path) -> None:
    line = f"cat {big} {big} | tr a-z A-Z | sha256sum"
    expected = _shell(line).stdout
    before = system.tasks()["pipe"]["generation"]
    running = subprocess.Popen(
        system.command("run", line), env=system.environment, stdout=subprocess.PIPE
    )
    kills = handled = 0
    while running.poll() is None and kills < 8:
        task = system.tasks()["pipe"]
        if task["state"] == "running" and task["pid"] and task["handled"] > handled + 10:
            handled = task["handled"]
            system.pids.add(task["pid"])
            with contextlib.suppress(ProcessLookupError):  # it has not been replaced yet
                os.kill(task["pid"], signal.SIGKILL)
                kills += 1
    output, _ = running.communicate(timeout=COMMAND_TIMEOUT_S)
    assert output == expected
    assert running.returncode == 0
    assert kills
    assert system.tasks()["pipe"]["generation"] > before


def test_signal_to_the_pipeline_alone_reaches_the_commands(system: LiveSystem) -> None:
    running = subprocess.Popen(system.command("run", "sleep 1000 | cat"), env=system.environment)
    sleeping = _child_named(running.pid, "sleep")
    running.terminate()
    assert running.wait(COMMAND_TIMEOUT_S) == -signal.SIGTERM
    assert started(sleeping) is None


def test_interrupt_from_the_terminal_ends_everything(system: LiveSystem) -> None:
    """^C is what the line discipline makes of it: the group in the foreground gets SIGINT."""
    run = " ".join(system.command("run"))
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.execve(
                "/bin/sh",
                [
                    *("sh", "-c"),
                    run + " 'sleep 1000 | cat'; echo status $?; stty -a",
                ],
                system.environment,
            )
        finally:
            os._exit(127)
    try:
        sleeping = _child_named(pid, "sleep")
        os.write(terminal, b"\x03")
        said = _read_all(terminal)
    finally:
        os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # The shell, whose child died of ^C, either goes on and says so, or dies of it, too.
    assert code == -signal.SIGINT or (b"status 130" in said and b" icanon" in said)
    assert started(sleeping) is None


def _read_all(terminal: int) -> bytes:
    said = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the last process that had the terminal is gone
            return said
        if not part:
            return said
        said += part


def test_lists_beside_pipes_are_refused_with_the_place(system: LiveSystem) -> None:
    done = system.atoll("run", "a | b; c")
    assert done.returncode == 2
    assert "column 6" in done.stderr


def test_system_that_dies_below_a_pipeline_ends_it_with_an_error(system: LiveSystem) -> None:
    other = LiveSystem("mortal", beside=system)
    try:
        other.up(*NO_DEVICES)
        kept = system.top / "kept"
        line = f"(echo begin; sleep 1000) | (cat > {kept}; echo complete >> {kept})"
        running = subprocess.Popen(
            other.command("run", line),
            env=other.environment,
            stderr=subprocess.PIPE,
        )
        _child_named(running.pid, "sleep")
        while not kept.exists() or not kept.read_text():
            os.sched_yield()
        os.kill(other.kernel, signal.SIGKILL)
        _, error = running.communicate(timeout=COMMAND_TIMEOUT_S)
        assert running.returncode == 1
        assert b"the system ended below it" in error
        assert "complete" not in kept.read_text()
    finally:
        other.close()
