"""Streams whose front end is killed: what was on its way arrives, and who waited waits on."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_system import LiveSystem
from tests.support.native_system import up_native

from .test_streams import OPENS, READ, TIMEOUT_S, is_in, opened, started, until

pytestmark = [pytest.mark.needs_fuse, pytest.mark.slow]


@pytest.fixture(scope="module")
def system() -> Iterator[LiveSystem]:
    found = LiveSystem("stream-deaths")
    try:
        up_native(found, 'placement = "process"')
        yield found
    finally:
        found.close()


@pytest.fixture
def pipes(system: LiveSystem) -> Iterator[Path]:
    path = system.mountpoint / "pipe"
    assert not os.listdir(path)
    yield path
    until(lambda: not os.listdir(path))


def kill(system: LiveSystem, *servers: str) -> None:
    for server in servers:
        assert system.atoll("kill", server).returncode == 0


def test_flow_is_exact_whoever_dies(system: LiveSystem, pipes: Path) -> None:
    size, part = 60_000_000, 10_000_000
    data = hashlib.shake_128(b"deaths").digest(part)
    source = system.top / "source"
    source.write_bytes(data * (size // part))
    found = hashlib.sha256()
    with (
        started("bash", "-c", f"exec cat {source} > {pipes}/big") as writer,
        started("cat", str(pipes / "big"), stdout=subprocess.PIPE) as reader,
    ):
        assert reader.stdout is not None
        for number in range(size // part):
            kill(system, *(("front-end",), ("pipe", "front-end"))[number % 2])
            found.update(reader.stdout.read(part))
        assert reader.stdout.read() == b""
        assert writer.wait(TIMEOUT_S) == reader.wait(TIMEOUT_S) == 0
    assert found.digest() == hashlib.sha256(data * (size // part)).digest()


def test_blocked_reader_waits_on_and_heeds_signals(system: LiveSystem, pipes: Path) -> None:
    with (
        opened(pipes / "x", os.O_RDWR) as both,
        started("cat", str(pipes / "x"), stdout=subprocess.PIPE) as reader,
        started("cat", str(pipes / "x")) as other,
    ):
        until(lambda: is_in(reader.pid, READ) and is_in(other.pid, READ))
        kill(system, "front-end")
        other.send_signal(signal.SIGINT)
        assert other.wait(TIMEOUT_S) == -signal.SIGINT
        os.write(both, b"hello")
        assert reader.stdout is not None
        assert reader.stdout.read(5) == b"hello"
        assert os.fstat(both).st_size == 0


def test_opener_that_waits_is_met_after_the_death(system: LiveSystem, pipes: Path) -> None:
    with started("cat", str(pipes / "x"), stdout=subprocess.PIPE) as reader:
        until(lambda: os.listdir(pipes) == ["x"])
        until(lambda: is_in(reader.pid, *OPENS))
        kill(system, "front-end")
        with started("bash", "-c", f"echo met > {pipes}/x") as writer:
            assert reader.stdout is not None
            assert reader.stdout.read() == b"met\n"
            assert writer.wait(TIMEOUT_S) == reader.wait(TIMEOUT_S) == 0


POLLS = """
import os, select, sys
both = os.open(sys.argv[1], os.O_RDWR)
poll = select.poll()
poll.register(both, select.POLLIN)
assert poll.poll(0) == []
print("polls", flush=True)
poll.poll()
print(os.read(both, 10), flush=True)
"""


def test_who_polls_is_told_after_the_death(system: LiveSystem, pipes: Path) -> None:
    with started("python3", "-c", POLLS, str(pipes / "x"), stdout=subprocess.PIPE) as poller:
        assert poller.stdout is not None
        assert poller.stdout.readline() == b"polls\n"
        until(lambda: is_in(poller.pid, "7", "271"))
        kill(system, "front-end")
        with opened(pipes / "x", os.O_RDWR) as both:
            os.write(both, b"x")
            assert poller.stdout.read() == b"b'x'\n"


def test_ready_descriptors_are_told_apart_after_the_death(system: LiveSystem, pipes: Path) -> None:
    with opened(pipes / "x", os.O_RDWR) as one, opened(pipes / "y", os.O_RDWR) as two:
        os.write(two, b"y")
        kill(system, "front-end", "pipe")
        assert select.select([one, two], [], [], TIMEOUT_S)[0] == [two]
