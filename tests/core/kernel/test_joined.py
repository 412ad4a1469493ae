"""Programs of the host that join: an address space that nobody started, at the end of a socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from core.errors import TaskError
from core.system.boot import JOINED_LIMIT
from core.userlib.joined import join
from tests.support.small_system import Small

_PROGRAM = """
import sys
from pathlib import Path
import trio
from core.errors import AtollError, WrongRightError
from core.userlib.joined import join, joined
from core.userlib.task import complete
from core.system.pipe import Pipes
from tests.support.servers import Probe, Slow

path = Path(sys.argv[1])

def plain():
    with join(path) as task:
        probe = task.connect(Probe, "probe")
        assert complete(probe.echo(1, "a")) == (1, "a")
        for size in (0, 1, 4096, 4097, 500_000):
            data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            assert complete(probe.mirror(size, data)) == data, size
        right = complete(probe.mint(77, ["echo"]))
        narrow = task.connect(Probe, right)
        assert complete(narrow.echo(2, "b")) == (2, "b")
        try:
            complete(narrow.seen())
        except WrongRightError:
            print("narrow")
        try:
            task.keep("x", 0)
        except WrongRightError:
            print("keeps nothing")
        lent = complete(probe.lend("hello"))
        import os
        assert os.read(lent.fileno(), 10) == b"hello"
        for wrong in ((1, 2), ("x", "y")):
            try:
                complete(probe.echo(*wrong))
            except AtollError as error:
                print(type(error).__name__)

async def under_trio():
    async with joined(path) as task:
        slow = task.connect(Slow, "slow")
        with trio.move_on_after(0.05) as scope:
            await slow.wait(5)
        assert scope.cancelled_caught
        assert await slow.typed(3, ["a"]) == 4
        answers = []
        async def one(number):
            answers.append(await slow.mirror(number, 50_000, bytes([number]) * 50_000))
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)
            while len(answers) < 100:
                for number in range(100):
                    await slow.release(number)
        assert sorted(answers) == [bytes([number]) * 50_000 for number in range(100)]
        pipes = task.connect(Pipes, "pipe")
        reading, writing = await pipes.create()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.connect(Pipes, writing).write, b"through")
            print(await task.connect(Pipes, reading).read(100))

plain()
trio.run(under_trio)
print("done")
"""


@pytest.fixture
async def control(small: Small, tmp_path: Path) -> AsyncIterator[Path]:
    """A control socket that lets programs join."""
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)

        async def accept() -> None:
            while True:
                await trio.lowlevel.wait_readable(listening)
                connection, _ = listening.accept()
                try:
                    small.system.join(connection, 0)
                except TaskError:
                    connection.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            yield path
            nursery.cancel_scope.cancel()


def joined_tasks(small: Small) -> list[str]:
    """Return the names of joined tasks."""
    return [task.name for task in small.kernel.tasks if task.name.startswith("joined")]


async def test_a_program_joins_calls_and_leaves_nothing_behind(small: Small, control: Path) -> None:
    ports, senders = len(small.kernel.ports), small.senders("probe")
    command = [sys.executable, "-c", _PROGRAM, str(control)]
    ended = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, check=False, env={"PYTHONPATH": "."}
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout.decode().splitlines() == [
        "narrow",
        "keeps nothing",
        "BadMessageError",
        "BadMessageError",
        "b'through'",
        "done",
    ]
    await small.until(lambda: not joined_tasks(small))
    assert len(small.kernel.ports) == ports
    assert small.senders("probe") == senders
    await small.journaled("gone 77")
    await small.journaled("withdrawn 5")


async def test_a_program_that_is_killed_is_gone_with_all_it_had(
    small: Small, control: Path
) -> None:
    program = _PROGRAM.split("def plain")[0] + (
        "with join(path) as task:\n"
        "    complete(task.connect(Probe, 'probe').mint(88, []))\n"
        "    print('waits', flush=True)\n"
        "    complete(task.connect(Slow, 'slow').wait(9))\n"
    )
    command = [sys.executable, "-c", program, str(control)]
    process = await trio.lowlevel.open_process(
        command, stdout=subprocess.PIPE, env={"PYTHONPATH": "."}
    )
    await small.journaled("waits 9")
    assert len(joined_tasks(small)) == 1
    process.kill()
    await process.wait()
    assert process.stdout is not None
    await process.stdout.aclose()
    await small.journaled("withdrawn 9")
    await small.journaled("gone 88")
    await small.until(lambda: not joined_tasks(small))


async def test_only_so_many_programs_may_join(small: Small, control: Path) -> None:
    pairs = [
        socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(JOINED_LIMIT + 1)
    ]
    for ours, _ in pairs[:JOINED_LIMIT]:
        small.system.join(ours, 0)
    with pytest.raises(TaskError, match=str(JOINED_LIMIT)):
        small.system.join(pairs[-1][0], 0)
    pairs[-1][0].close()
    for _, theirs in pairs:
        theirs.close()
    await small.until(lambda: not joined_tasks(small))
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    small.system.join(pairs[0][0], 0)
    pairs[0][1].close()


async def test_a_program_that_left_before_it_joined_leaves_nothing(small: Small) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with pytest.raises(TaskError):
        small.system.join(ours, 0)
    ours.close()
    assert not joined_tasks(small)


async def test_a_retired_program_makes_room_for_another(small: Small) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    task = small.system.join(ours, 0)
    small.kernel.retire(task, "not wanted")
    assert not joined_tasks(small)
    theirs.close()


def test_joining_nothing_says_where_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no system answers at"), join(tmp_path / "nothing"):
        pass
