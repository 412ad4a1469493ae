"""Hostile programs in the system that ships: typed errors for them, right answers for others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from core.abi import HEADER, HEADER_SIZE, NO_SLOT, Kind
from core.errors import Refused
from core.system.names import Names
from core.system.pipe import Pipes
from core.userlib.interface import encode
from core.userlib.isolated import TaskRight
from core.userlib.joined import join
from core.userlib.kernel_calls import Supervision
from core.userlib.task import complete
from fs_server.interface import FileSystem
from mount.control import Control
from tests.soak.door import Door, opened
from tests.soak.packets import MESSAGES, packets
from tests.soak.run import Run
from tests.support.live_system import NO_DEVICES, LiveSystem

PACKETS = 10_000

pytestmark = pytest.mark.slow


class TenThousand(Run):
    """A run that is over when so many messages were sent, whatever the time."""

    def over(self) -> bool:
        return self.counts["messages"] >= PACKETS or bool(self.losses)


@pytest.mark.needs_root
def test_ten_thousand_hostile_packets_harm_nobody_else() -> None:
    lines: list[str] = []
    run = TenThousand("packets", 0, 11, lines.append)
    packets(run)
    assert not run.losses, "\n".join([run.verdict(), *lines])
    assert run.counts["messages"] >= PACKETS
    assert run.counts["errors"] > MESSAGES
    assert run.counts["right answers"] > 0


@pytest.fixture(scope="module")
def system() -> Iterator[LiveSystem]:
    made = LiveSystem("hostile")
    try:
        made.up(*NO_DEVICES)
        yield made
    finally:
        made.close()


@pytest.fixture
def door(system: LiveSystem) -> Iterator[Door]:
    with opened(system) as found:
        yield found


def gone(door: Door, name: str) -> None:
    """Wait until a joined program is no task any more."""
    while name in door.tasks():
        pass


def test_a_granted_right_is_no_end_of_a_pipe(system: LiveSystem, door: Door) -> None:
    pipes = door.connect(Pipes, "pipe")
    ends = [door.ask(pipes.create()) for _ in range(20)]
    for _ in range(10):
        with opened(system) as other:
            granted = other.connect(Pipes, "pipe")
            with pytest.raises(Refused):
                other.ask(granted.write(b"forged"))
    for reading, writing in ends:
        door.task.drop(writing)
        assert bytes(door.ask(door.connect(Pipes, reading).read(100))) == b""
        door.task.drop(reading)


def test_results_that_nobody_waits_for_stay_with_nobody(system: LiveSystem, door: Door) -> None:
    before = door.tasks()["pipe"].rights
    with join(system.run.control_path) as task:
        right = task.rights["pipe"]
        assert isinstance(right, TaskRight)
        create = Pipes.named("create").index
        fields = encode(())
        header = HEADER.pack(
            Kind.SEND, 0, create, right.name, 1, 0, len(fields), 0, NO_SLOT, 0, 0, 0, 0
        )
        assert len(header) == HEADER_SIZE
        for _ in range(300):  # more than there can be pipes
            task.line.socket.send(header + fields)
        name = task.name
        complete(task.connect(Control, "control").status())  # the kernel has read all of it
    gone(door, name)
    pipes = door.connect(Pipes, "pipe")
    ends = None
    while ends is None:  # the server learns one after the other that nobody has their ends
        with contextlib.suppress(Refused):
            ends = door.ask(pipes.create())
    for end in ends:
        door.task.drop(end)
    while door.tasks()["pipe"].rights > before:
        pass


def test_who_is_gone_is_gone_whatever_servers_hold_of_it(system: LiveSystem, door: Door) -> None:
    names = door.connect(Names, "names")
    before = {name: task.rights for name, task in door.servers().items()}
    with opened(system) as other:
        own = other.connect(Names, "names")
        fs = other.connect(FileSystem, "fs")
        other.ask(own.register("itself", other.task.rights["names"]))
        other.ask(own.register("files", other.task.rights["fs"]))
        other.ask(fs.watch(other.task.rights["names"]))
        assert door.ask(names.entries()) == ["files", "itself"]
        name = other.task.name
    gone(door, name)
    while door.ask(names.entries()):
        pass
    while {name: task.rights for name, task in door.servers().items()} != before:
        pass


def test_only_the_kernel_tells_of_deaths(system: LiveSystem, door: Door) -> None:
    right = door.ask(door.control.port_of("supervisor"))
    supervision = door.connect(Supervision, right)
    with pytest.raises(Refused):
        door.ask(supervision.died("names", 1 << 40, "forged", False, False))
    generation = door.tasks()["names"].generation
    door.ask(door.control.kill("names"))
    while (task := door.tasks()["names"]).generation == generation or task.state != "running":
        pass
    door.task.drop(right)


def test_a_right_that_died_does_not_keep_its_keeper_down(system: LiveSystem, door: Door) -> None:
    with opened(system) as other:
        kernel = other.task.kernel
        port = TaskRight(other.ask(kernel.create_port("short-lived")))
        right = other.ask(kernel.mint(port.name, 5, 1))
        other.ask(other.connect(Names, "names").register("short-lived", right))
        other.ask(kernel.drop(port.name))
        generation = door.tasks()["names"].generation
        door.ask(door.control.kill("names"))
        while (task := door.tasks()["names"]).generation == generation or task.state != "running":
            pass
        assert task.generation == generation + 1
        assert door.ask(door.connect(Names, "names").entries()) == []


def test_last_words_that_are_no_text_cost_only_their_speaker(
    system: LiveSystem, door: Door
) -> None:
    with join(system.run.control_path) as task:
        fields = b"\xa3\xee\xff\xfe"
        header = HEADER.pack(Kind.FAULT, 0, 0, 0, 1, 0, len(fields), 0, NO_SLOT, 0, 0, 0, 0)
        task.line.socket.send(header + fields)
        complete(task.connect(Control, "control").status())
        name = task.name
    gone(door, name)
    assert "kernel: a packet" not in system.run.log_path.read_text()


_SENDER = """
import os, sys
from pathlib import Path
from core.abi import Kind
from core.userlib.joined import join
with join(Path(sys.argv[1])) as task:
    number = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
    os.write(number, b"x" * 300_000)
    task.line.send(Kind.SEND, operation=63, name=99, request=1, descriptors=(number,))
    sys.stdout.write("sent")
    sys.stdout.flush()
    sys.stdin.read()
"""


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_a_file_of_the_own_mount_does_not_stop_the_kernel_that_closes_it() -> None:
    """What is dirty goes back through the front end, in the process that closes."""
    system = LiveSystem("own")
    try:
        mount = system.up("--net", "none")["mountpoint"]
        words = [sys.executable, "-c", _SENDER, str(system.run.control_path), f"{mount}/file"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sender:
            assert sender.stdout is not None
            assert sender.stdout.read(4) == b"sent"
            try:
                done = system.atoll("ps", timeout_s=20)
            except subprocess.TimeoutExpired:
                os.kill(system.kernel, signal.SIGKILL)  # else the sender could not end either
                raise
            finally:
                sender.communicate()
        assert done.returncode == 0
    finally:
        system.close()
