"""A system from its boot to its end: nothing is left behind, however it ends."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from core.errors import AtollError, DeadPortError
from core.kernel.tasks import State
from core.system.boot import BootError, Prepared, booted
from core.system.description import parse_description
from tests.support.small_system import Small, prepare

_BROKEN = """
[server.mortal]
class = "tests.support.servers:ProbeServer"
placement = "{placement}"
"""


def children() -> set[int]:
    """Return the pids of all processes that descend from this one."""
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        pid = todo.pop()
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except FileNotFoundError:  # it has ended meanwhile
            continue
        for thread in threads:
            try:
                text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            new = {int(word) for word in text.split()} - found
            found |= new
            todo += new
    return found


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_deaths_and_births_leave_no_descriptor_port_right_or_timer(small: Small) -> None:
    async def use() -> None:
        await small.probe.mirror(8192, b"x" * 8192)
        await small.probe.arm(1000.0, 1)
        small.user.drop(await small.probe.mint(7, []))
        reading, writing = await small.pipes.create()
        small.user.drop(reading)
        small.user.drop(writing)

    def state() -> tuple[object, ...]:
        names = {task.name: len(task.names) for task in small.kernel.tasks}
        rights = {
            server: sum(small.senders(server).values())
            for server in ("probe", "pipe", "slow", "supervisor")
        }
        return len(small.kernel.ports), names, rights, len(small.kernel.timers)

    async def round_of_deaths() -> None:
        for server in ("probe", "slow", "pipe"):
            await small.end(server)
        await use()
        await small.journaled("gone 7", small.generation("probe"))

    for _ in range(2):
        await round_of_deaths()
    before, open_before = state(), descriptors()
    for _ in range(6):
        await round_of_deaths()
    assert state() == before
    assert descriptors() <= open_before
    assert small.kernel.tasks.named("probe") is not None


def test_nothing_is_left_when_a_system_ends(placement: str, tmp_path: Path) -> None:
    before, open_before = children(), descriptors()

    async def main(prepared: Prepared) -> None:
        async with booted(prepared, lambda text: None) as system:
            small = Small(system, placement, tmp_path / "journal", [])
            await small.probe.mirror(8192, b"x" * 8192)
            wanted = 8 if placement == "process" else 1
            assert len(children() - before) - wanted in (0, 1)  # the spare may be there

    for _ in range(2):
        trio.run(main, prepare(placement, tmp_path / "journal"))
        assert children() <= before
    assert descriptors() <= open_before
    stopped = (tmp_path / "journal").read_text().splitlines()
    assert stopped.count("probe stops") == 2


def test_two_systems_in_one_process_end_independently(placement: str, tmp_path: Path) -> None:
    first = prepare(placement, tmp_path / "journal")
    second = prepare(placement, tmp_path / "journal")

    async def main() -> None:
        async with booted(second, lambda text: None) as inner:
            async with booted(first, lambda text: None):
                pass
            probe = Small(inner, placement, tmp_path / "journal", []).probe
            assert await probe.echo(1, "") == (1, "")

    trio.run(main)


async def test_an_error_of_the_composition_comes_out_as_it_is(prepared: Prepared) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with booted(prepared, lambda text: None):
            raise KeyError("mine")


def test_a_server_that_cannot_start_fails_the_boot_with_its_reason(placement: str) -> None:
    prepared = Prepared(parse_description(_BROKEN.format(placement=placement), "broken"))

    async def main() -> None:
        async with booted(prepared, lambda text: None):
            pytest.fail("booted")

    with pytest.raises(BootError, match=r"did not start: .*KeyError: 'journal', while starting"):
        trio.run(main)


async def test_a_dead_zygote_fails_the_system_and_answers_its_clients(small: Small) -> None:
    if not small.isolated:
        pytest.skip("promoted servers outlive the zygote")
    errors: list[AtollError] = []

    async def call() -> None:
        try:
            await small.slow.wait(1)
        except DeadPortError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await small.journaled("waits 1")
        os.kill(small.system.zygote_pid, signal.SIGKILL)
        with trio.fail_after(10):
            await small.system.failed.wait()
    assert "zygote" in small.system.failure
    assert len(errors) == 1
    assert small.system.task("probe").state is State.RETIRED
    with pytest.raises(DeadPortError):
        await small.probe.echo(1, "")


_VICTIM = """
import os, sys
from pathlib import Path
import trio
from core.system.boot import booted
from tests.support.small_system import prepare
prepared = prepare("process", Path(sys.argv[1]))
async def main():
    async with booted(prepared, lambda text: None) as system:
        system.at_end([["/bin/sh", "-c", f"echo undone > {sys.argv[1]}.undone"]], [sys.argv[1]])
        print(system.zygote_pid, *(t.engine.pid for t in system.kernel.tasks if t.engine),
              flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def test_a_killed_kernel_takes_its_servers_along_and_undoes_what_it_did(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(journal)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ".", "PATH": os.environ["PATH"]},
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 8
        process.kill()
        process.wait()
        for pid in pids:
            _wait_gone(pid)
    assert (tmp_path / "journal.undone").read_text() == "undone\n"
    assert not journal.exists()


def _wait_gone(pid: int) -> None:
    """Wait for the end of a process that is no child of this one."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        import select

        assert select.select([descriptor], [], [], 20)[0], f"process {pid} lives on"
        status = Path(f"/proc/{pid}/stat")
        if status.exists():
            assert re.search(r"\) [ZX] ", status.read_text())
    finally:
        os.close(descriptor)
