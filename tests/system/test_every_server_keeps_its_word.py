"""What a user holds of a running system is still there when any of its servers has been killed."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.live_system import LiveSystem

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.timeout(180),
]

_TRY_LOCKS: Final = """\
import fcntl, sys
for lock in (fcntl.flock, fcntl.lockf):
    with open(sys.argv[1], 'r+') as file:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print('free')
        except OSError as error:
            print(error.errno)
"""
_ASK_ECHO: Final = """\
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(0.3)
client.connect((sys.argv[1], 7))
print('ready', flush=True)
for line in sys.stdin:
    answers = set()
    while line.encode() not in answers:  # a datagram may be lost when a server dies
        client.send(line.encode())
        try:
            answers.add(client.recv(1000))
        except TimeoutError:
            pass
    print('echoed', flush=True)
"""


@pytest.fixture(scope="module")
def system() -> Iterator[LiveSystem]:
    """A system that all tests here use, one after the other."""
    found = LiveSystem("word")
    try:
        found.up()
        yield found
        assert found.atoll("down").returncode == 0
        assert "sound" in found.atoll("fsck", "--state", str(found.state)).stdout
    finally:
        found.close()


@pytest.fixture
def folder(system: LiveSystem, request: pytest.FixtureRequest) -> Path:
    """An empty folder of the mount."""
    made: Path = system.mountpoint / request.node.name[:100]
    made.mkdir()
    return made


def test_an_open_listing_goes_on_and_misses_or_doubles_nothing(
    system: LiveSystem, folder: Path
) -> None:
    """A name that was there all the time comes exactly once, whatever came and went."""
    names = [f"{number:04}-{'x' * 120}" for number in range(1500)]
    for name in names:
        (folder / name).touch()
    stays, listed = set(names), list[str]()
    chance = random.Random(3)
    with os.scandir(folder) as listing:
        for count, entry in enumerate(listing, 1):
            listed.append(entry.name)
            if count in (5, 400, 401, 900, 1300):
                system.kill("fs")
                for name in chance.sample(sorted(stays), 40):
                    stays.remove(name)
                    (folder / name).unlink()
                for number in range(40):
                    (folder / f"new-{count}-{number}-{'y' * 100}").touch()
    assert len(set(listed)) == len(listed)
    assert stays <= set(listed)
    assert set(listed) <= set(names) | {name for name in listed if name.startswith("new-")}
    assert stays < set(os.listdir(folder))


def test_a_listing_rewound_after_a_death_shows_what_is_there(
    system: LiveSystem, folder: Path
) -> None:
    for number in range(10):
        (folder / str(number)).touch()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert len(os.listdir(descriptor)) == 10
        system.kill("fs")
        (folder / "3").unlink()
        (folder / "later").touch()
        assert sorted(os.listdir(descriptor)) == sorted([*"012456789", "later"])
    finally:
        os.close(descriptor)


def locks_seen_by_another(path: Path) -> list[str]:
    """Return what another process gets that tries a flock and a record lock."""
    done = subprocess.run(
        [sys.executable, "-c", _TRY_LOCKS, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_locks_are_held_through_deaths_and_end_with_their_holder(
    system: LiveSystem, folder: Path
) -> None:
    path, taken = folder / "locked", str(errno.EAGAIN)
    with path.open("w+") as whole, path.open("r+") as records:
        fcntl.flock(whole, fcntl.LOCK_EX)
        fcntl.lockf(records, fcntl.LOCK_EX)
        for servers in (("fs",), ("disk", "fs")):
            assert locks_seen_by_another(path) == [taken, taken]
            system.kill(*servers)
            whole.write("the file is still written to\n")
            whole.flush()
        assert locks_seen_by_another(path) == [taken, taken]
    assert locks_seen_by_another(path) == ["free", "free"]


def test_an_unlinked_file_lives_as_long_as_it_is_open(system: LiveSystem, folder: Path) -> None:
    path, size = folder / "gone", 4 << 20
    free = os.statvfs(folder).f_bavail
    with path.open("w+b", buffering=0) as file:
        file.write(b"a" * size)
        path.unlink()
        system.kill("fs")
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.pread(file.fileno(), 10, size - 5) == b"a" * 5
        system.kill("disk", "fs")
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), b"b" * 10, size)
        os.ftruncate(file.fileno(), size + 5)
        system.kill("fs")
        assert os.pread(file.fileno(), 100, size - 2) == b"aabbbbb"
        path.write_text("another one of that name")
        assert os.fstat(file.fileno()).st_size == size + 5
        path.unlink()
        assert os.statvfs(folder).f_bavail <= free - size // 4096
    (folder / "nudge").touch()  # a release is sent without being waited for
    system.kill("fs")
    end_of_wait = 200
    while os.statvfs(folder).f_bavail < free - 64 and end_of_wait:
        (folder / "nudge").touch()
        end_of_wait -= 1
    assert os.statvfs(folder).f_bavail >= free - 64


def test_datagrams_are_echoed_through_the_deaths_of_all_who_carry_them(
    system: LiveSystem,
) -> None:
    """The host's socket stays connected, and no server but the killed ones begins anew."""
    before = system.tasks()
    address = "10.90.0.2"
    with subprocess.Popen(
        system.command("exec", "--", sys.executable, "-c", _ASK_ECHO, address),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=system.environment,
    ) as client:  # fmt: skip
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        deaths = [(), ("net",), ("tap",), ("tap", "net"), ("echo",), ("net", "echo", "tap")]
        for number, servers in enumerate(deaths):
            system.kill(*servers)
            client.stdin.write(f"datagram {number}\n")
            client.stdin.flush()
            assert client.stdout.readline() == "echoed\n"
        client.stdin.close()
        assert client.wait() == 0
    after = system.tasks()
    servers_there = [name for name in before if before[name]["placement"] == "process"]
    lives = {name: after[name]["generation"] - before[name]["generation"] for name in servers_there}
    assert {name: count for name, count in lives.items() if count} == {
        "net": 3, "tap": 3, "echo": 2,
    }  # fmt: skip


def test_neighbors_are_known_again_at_once(system: LiveSystem) -> None:
    for servers in (("net",), ("tap",), ("tap", "net")):
        assert system.atoll("exec", "--", "ping", "-c1", "-W5", "10.90.0.2").returncode == 0
        system.kill(*servers)
        done = system.atoll("exec", "--", "ping", "-c3", "-i0.2", "-W5", "10.90.0.2")
        assert "3 received" in done.stdout


def test_written_and_synced_octets_outlive_whoever_carried_them(
    system: LiveSystem, folder: Path
) -> None:
    path = folder / "written"
    with path.open("wb", buffering=0) as file:
        for servers in (("disk",), ("fs",), ("disk", "fs"), ("supervisor", "fs"), ("names",)):
            file.write(os.urandom(100_000))
            system.kill(*servers)
            file.write(" ".join(servers).encode())
            os.fsync(file.fileno())
    assert path.stat().st_size == 500_000 + len("diskfsdisk fssupervisor fsnames")
    assert path.read_bytes().endswith(b"names")


def test_a_chain_of_programs_goes_on_when_pipe_and_names_are_killed(system: LiveSystem) -> None:
    script = "import sys\nfor n in range(3): print(sys.stdin.readline(), end='', flush=True)"
    with subprocess.Popen(
        system.command("run", f'cat | {sys.executable} -c "{script}"'),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=system.environment,
    ) as chain:  # fmt: skip
        assert chain.stdin is not None
        assert chain.stdout is not None
        for line in ("one\n", "two\n", "three\n"):
            chain.stdin.write(line)
            chain.stdin.flush()
            assert chain.stdout.readline() == line
            system.kill("pipe", "names")
        chain.stdin.close()
        assert chain.wait() == 0
