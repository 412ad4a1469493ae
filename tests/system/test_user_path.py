"""The path of a user: up, look, kill, down; and how everything ends, however it ends.

A client of a mount is an ordinary process that holds a file open and reads it. After the end it has
to get an error, not to wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from mount.obstacle import NOT_RUNNING
from tests.soak.door import opened, using_namespace
from tests.support.live_system import COMMAND_TIMEOUT_S, NO_DEVICES, LiveSystem

pytestmark = pytest.mark.slow

_READER: Final = """\
import os, sys
number = os.open(sys.argv[1], os.O_RDONLY)
print('open', flush=True)
sys.stdin.readline()
try:
    os.stat(sys.argv[1] + '-missing'); os.pread(number, 10, 0); print('alive')
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def system() -> Iterator[LiveSystem]:
    """A system that is not up yet."""
    found = LiveSystem("first")
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def idle() -> Iterator[LiveSystem]:
    """A system without devices that is up, for all tests here that only ask it something."""
    found = LiveSystem("first")
    try:
        found.up(*NO_DEVICES)
        yield found
    finally:
        found.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes do."""
    end = time.monotonic() + COMMAND_TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        os.sched_yield()


def namespace_of(system: LiveSystem) -> int:
    """Return the number of the network namespace that the system's programs are in."""
    done = system.atoll("exec", "--", "stat", "-Lc", "%i", "/proc/self/ns/net")
    assert done.returncode == 0, done.stderr
    number = int(done.stdout)
    assert number != os.stat("/proc/self/ns/net").st_ino
    return number


@contextlib.contextmanager
def leaving_nothing(system: LiveSystem) -> Iterator[None]:
    """When the system has ended: no process, no mount, no network namespace, and no TAP in it.

    The namespace is held meanwhile: the host gives the number of one that is gone to the next.
    """
    number = namespace_of(system)
    with opened(system) as door:
        held = door.namespace()
    try:
        assert os.fstat(held).st_ino == number
        yield
        until(lambda: not system.living())
        until(lambda: not system.is_mounted())
        assert using_namespace(number) == [os.getpid()]
        assert "atoll0" not in os.listdir("/sys/class/net")
    finally:
        os.close(held)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_system_comes_up_works_and_goes_down(system: LiveSystem) -> None:
    found = system.up()
    assert found["mountpoint"] == str(system.mountpoint)
    assert system.is_mounted()
    (system.mountpoint / "file").write_text("kept")
    address = found["address"].partition("/")[0]
    assert system.atoll("exec", "--", "ping", "-c1", "-W5", address).returncode == 0

    assert "8 of 8 running" in system.atoll("status").stdout
    assert json.loads(system.atoll("status", "--json").stdout)["pid"] == system.kernel
    assert "\nfs " in system.atoll("ps").stdout
    listed = json.loads(system.atoll("ps", "--json").stdout)
    assert {"fs", "net"} <= {task["name"] for task in listed if task["state"] == "running"}
    assert " FileSystem " in system.atoll("ports").stdout

    with leaving_nothing(system):
        done = system.atoll("down")
        assert done.returncode == 0
        assert "is down" in done.stdout
    assert not system.run.path.exists()
    assert system.atoll("status").returncode == NOT_RUNNING
    assert "sound" in system.atoll("fsck", "--state", str(system.state)).stdout

    system.up()
    assert (system.mountpoint / "file").read_text() == "kept"


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_killed_file_server_is_replaced_and_its_client_goes_on(system: LiveSystem) -> None:
    system.up("--net", "none")
    with (system.mountpoint / "file").open("w+") as file:
        file.write("before ")
        file.flush()
        before = system.tasks()["fs"]
        done = system.atoll("kill", "fs")
        assert done.stdout == f"killed fs, which was process {before['pid']}\n"
        file.write("after")
        file.flush()
        file.seek(0)
        assert file.read() == "before after"
    after = system.tasks()["fs"]
    assert after["generation"] == before["generation"] + 1
    assert after["pid"] != before["pid"]
    assert "1. " in system.atoll("why", "fs").stdout


def test_restart_says_the_new_generation(idle: LiveSystem) -> None:
    old = idle.tasks()["pipe"]["generation"]
    done = idle.atoll("restart", "pipe")
    told = f"restarted pipe, now generation {old + 1} after {old}; its clients waited "
    assert done.stdout.startswith(told)
    assert idle.tasks()["pipe"]["generation"] == old + 1
    assert "has not ended" in idle.atoll("why", "names").stdout
    assert "pipe" in idle.atoll("log").stdout


@pytest.mark.parametrize("command", ["kill", "restart", "why"])
def test_server_that_is_none_is_named_with_those_that_are(idle: LiveSystem, command: str) -> None:
    done = idle.atoll(command, "nonsense")
    assert done.returncode == 1
    assert "no server 'nonsense'" in done.stderr
    assert "pipe" in done.stderr
    assert "Traceback" not in done.stderr


def test_promoted_server_cannot_be_killed_and_the_reason_is_said(system: LiveSystem) -> None:
    system.up("--fast", *NO_DEVICES)
    assert system.tasks()["pipe"]["placement"] == "colocated"
    done = system.atoll("kill", "pipe")
    assert done.returncode == 1
    assert "pipe" in done.stderr
    assert system.atoll("run", "echo fast | cat").stdout == "fast\n"


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_two_systems_live_side_by_side(system: LiveSystem) -> None:
    other = LiveSystem("second", beside=system)
    try:
        system.up()
        other.up()
        (system.mountpoint / "whose").write_text("first")
        (other.mountpoint / "whose").write_text("second")
        assert (system.mountpoint / "whose").read_text() == "first"
        assert namespace_of(system) != namespace_of(other)
        for each in (system, other):
            assert each.atoll("exec", "--", "ping", "-c1", "-W5", "10.90.0.2").returncode == 0
        assert system.atoll("down").returncode == 0
        assert (other.mountpoint / "whose").read_text() == "second"
        missing = system.atoll("status")
        assert missing.returncode == NOT_RUNNING
        assert "running: second" in missing.stderr
    finally:
        other.close()


def test_second_system_with_the_same_name_is_refused(idle: LiveSystem) -> None:
    done = idle.atoll("up", "--detach", "--state", str(idle.top / "other"), *NO_DEVICES)
    assert done.returncode == 1
    assert f"is running already, as process {idle.kernel}" in done.stderr
    assert idle.atoll("status").returncode == 0


def test_volume_in_use_is_refused_to_others(idle: LiveSystem) -> None:
    other = LiveSystem("second", beside=idle)
    for command in ("fsck", "mkfs", "up"):
        options = ("--detach", *NO_DEVICES) if command == "up" else ()
        done = other.atoll(command, "--state", str(idle.state), *options)
        assert done.returncode == 1
        assert "is in use by system first" in done.stderr
        assert "--name first down" in done.stderr
    assert not other.run.path.exists()


@pytest.fixture
def client(system: LiveSystem) -> Iterator[subprocess.Popen[str]]:
    """A process that has a file of the mount open and waits for a word to read it."""
    system.up()
    path = system.mountpoint / "open"
    path.write_text("content")
    started = subprocess.Popen(
        [sys.executable, "-c", _READER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        assert started.stdout is not None
        assert started.stdout.readline() == "open\n"
        yield started
        started.kill()


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_killed_kernel_leaves_an_error_to_clients_and_nothing_else(
    system: LiveSystem, client: subprocess.Popen[str]
) -> None:
    with leaving_nothing(system):
        os.kill(system.kernel, signal.SIGKILL)
        said, _ = client.communicate("now\n", timeout=COMMAND_TIMEOUT_S)
        assert said.strip().isdecimal(), said  # an errno: no hang, no data out of nowhere
    assert system.atoll("status").returncode == NOT_RUNNING
    assert "sound" in system.atoll("fsck", "--state", str(system.state)).stdout
    system.up()
    assert (system.mountpoint / "open").read_text() == "content"


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_system_in_the_foreground_ends_with_interrupt(system: LiveSystem) -> None:
    running = subprocess.Popen(
        system.command("up", "--state", str(system.state)),
        env=system.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    lines = [running.stdout.readline() for _ in range(5)]
    assert f"files        {system.mountpoint}\n" in lines
    system.look()
    with leaving_nothing(system):
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=COMMAND_TIMEOUT_S)[0] == "down\n"
        assert running.returncode == 0
    assert not system.run.path.exists()


def test_system_ends_with_the_command_that_keeps_it_in_the_foreground(system: LiveSystem) -> None:
    running = subprocess.Popen(
        system.command("up", "--state", str(system.state), *NO_DEVICES),
        env=system.environment,
        stdout=subprocess.PIPE,
    )
    assert running.stdout is not None
    running.stdout.readline()
    system.look()
    running.kill()
    running.communicate()
    until(lambda: not system.living())
    until(lambda: not system.run.path.exists())


def test_stopped_kernel_is_killed_by_down_after_some_patience(system: LiveSystem) -> None:
    system.up(*NO_DEVICES)
    os.kill(system.kernel, signal.SIGSTOP)
    done = system.atoll("down", "--patience", "0.2")
    assert done.returncode == 0
    assert "did not end within 0.2 s: killing it" in done.stderr
    assert f"removed {system.run.path}" in done.stdout
    until(lambda: not system.living())
    system.up(*NO_DEVICES)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_dead_mount_of_a_killed_system_is_cleared_by_the_next(system: LiveSystem) -> None:
    system.up("--net", "none")
    for pid in system.pids:  # the zygote too, which would have detached the mount
        os.kill(pid, signal.SIGSTOP)
    for pid in system.pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not system.living())
    system.up("--net", "none")
    (system.mountpoint / "file").write_text("works")


def test_description_that_is_wrong_is_named_with_its_line(system: LiveSystem) -> None:
    description = system.top / "wrong.toml"
    description.write_text('[server.x]\nclass = "no.such:Thing"\n')
    options = ("--detach", "--state", str(system.state), *NO_DEVICES)
    done = system.atoll("up", "--system", str(description), *options)
    assert done.returncode == 1
    assert "wrong.toml:2" in done.stderr
    assert "Traceback" not in done.stderr
    assert not system.run.path.exists()


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_mount_point_that_is_not_empty_is_named_with_the_remedy(system: LiveSystem) -> None:
    place = system.top / "full"
    place.mkdir()
    (place / "file").touch()
    done = system.atoll("up", "--detach", "--state", str(system.state), "--mount", str(place))
    assert done.returncode == 1
    assert str(place) in done.stderr
    assert "not empty" in done.stderr
    assert not system.run.path.exists()


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_capture_records_the_frames_of_a_ping(system: LiveSystem) -> None:
    from scapy.layers.inet import ICMP
    from scapy.utils import rdpcap

    system.up()
    path = system.top / "frames.pcapng"
    recording = subprocess.Popen(
        system.command("capture", "--count", "6", str(path)),
        env=system.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: path.exists() and path.stat().st_size > 0)
    assert system.atoll("exec", "--", "ping", "-c4", "-i0.1", "10.90.0.2").returncode == 0
    _, said = recording.communicate(timeout=COMMAND_TIMEOUT_S)
    assert "6 frames recorded" in said
    assert sum(ICMP in frame for frame in rdpcap(str(path))) >= 4


_ORDINARY: Final = (
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    # so that it can read this project, wherever that is; it opens no device
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
)


class OrdinaryUser(LiveSystem):
    """A system of a user who is not root."""

    def command(self, *words: str) -> list[str]:
        """Return the command line, as that user."""
        return [*_ORDINARY, "env", f"HOME={self.top}", *super().command(*words)]


@pytest.fixture
def ordinary() -> Iterator[LiveSystem]:
    """A system of a user who is not root, on a host whose devices are closed to that user."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    found = OrdinaryUser("ordinary")
    os.chown(found.top, 65_534, 65_534)
    try:
        yield found
    finally:
        found.close()


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("device", "options"),
    [("/dev/fuse", ("--net", "none")), ("/dev/net/tun", ("--no-mount",))],
)
def test_device_closed_to_an_ordinary_user_is_named_and_nothing_is_left(
    ordinary: LiveSystem, device: str, options: tuple[str, ...]
) -> None:
    if os.stat(device).st_mode & 0o006:
        pytest.skip(f"{device} is open to all here")
    done = ordinary.atoll("up", "--detach", "--state", str(ordinary.state), *options)
    assert done.returncode == 1
    assert device in done.stderr
    assert "run as root" in done.stderr
    assert "Traceback" not in done.stderr
    assert not ordinary.run.path.exists()
    assert ordinary.atoll("status").returncode == NOT_RUNNING


_OPEN_DEVICES: Final = """
mknod $1/fuse c 10 229; mknod $1/tun c 10 200; chmod 0666 $1/fuse $1/tun
mount --bind $1/fuse /dev/fuse; mount --bind $1/tun /dev/net/tun
shift; ATOLL="$*"; AS="setpriv --reuid 65534 --regid 65534 --clear-groups"
$ATOLL up --detach --state $HOME/volume
M=$ATOLL_RUN/ordinary/mnt
$AS sh -c "echo mine > $M/file; cat $M/file; stat -c %u $M/file"
$ATOLL kill fs; $AS cat $M/file
$ATOLL exec -- ping -q -c1 -W5 10.90.0.2
$ATOLL down
findmnt $M || echo unmounted
"""


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_ordinary_user_has_everything_where_the_devices_are_open(ordinary: LiveSystem) -> None:
    """In a mount name space of its own, where Debian's modes are set."""
    if shutil.which("fusermount3") is None or shutil.which("unshare") is None:
        pytest.skip("needs fusermount3 and unshare")
    script = ["unshare", "-m", "bash", "-euc", _OPEN_DEVICES, "bash", str(ordinary.top)]
    done = subprocess.run(
        [*script, *ordinary.command()],
        env={**ordinary.environment, "HOME": str(ordinary.top)},
        capture_output=True,
        check=False,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("mine\n65534\n", "killed fs", "1 received", "is down", "unmounted"):
        assert words in done.stdout
    assert not ordinary.run.path.exists()


@pytest.mark.needs_root
def test_ordinary_user_has_a_system_without_devices(ordinary: LiveSystem) -> None:
    ordinary.up(*NO_DEVICES)
    assert ordinary.atoll("run", "echo mine | cat").stdout == "mine\n"
    assert ordinary.atoll("down").returncode == 0
    until(lambda: not ordinary.living())
