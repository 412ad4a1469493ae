"""A system whose servers get changed code while programs use it, as the person who changes it."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from core.userlib.kernel_calls import Restarted
from mount.settings import PROBATION_S
from tests.soak.door import opened
from tests.support.live_system import NO_DEVICES, LiveSystem

from .test_user_path import until

pytestmark = pytest.mark.slow

_TOP: Final = Path(__file__).parents[2]
_MARK: Final = "this is the changed code"
_FILES: Final = {
    "names": "core/system/names.py",
    "supervisor": "core/system/supervisor.py",
    "disk": "fs_server/disk.py",
    "fs": "fs_server/server.py",
    "pipe": "core/system/pipe.py",
    "tap": "net_server/tap.py",
    "net": "net_server/server.py",
    "echo": "net_server/echo.py",
}
_BORN: Final = "        super().__init__(task)\n"
_STARTS: Final = "        self._socket = await self._bind()\n"


class CopiedSystem(LiveSystem):
    """A system that runs from a copy of the source tree, which the test may change."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.tree = self.top / "tree"
        for package in ("core", "fs_server", "net_server", "mount"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(_TOP / package, self.tree / package, ignore=ignore)
        self.environment["PYTHONPATH"] = str(self.tree)

    def command(self, *words: str) -> list[str]:
        """Return the command line of an `atoll` command of the copy."""
        return [sys.executable, "-P", "-m", "mount", "--name", self.name, *words]

    def change(self, server: str, line: str) -> str:
        """Add a line to a server's first steps; return what its file was."""
        path = self.tree / _FILES[server]
        text = path.read_text()
        place = _BORN if _BORN in text else _STARTS
        assert text.count(place) == 1
        path.write_text(text.replace(place, f"{place}        {line}\n"))
        return text

    def restore(self, server: str, text: str) -> None:
        """Undo a change."""
        (self.tree / _FILES[server]).write_text(text)

    def reload(self, server: str) -> Restarted:
        """Reload a server with success, as `atoll restart --reload` would."""
        with opened(self) as door:
            done = door.ask(door.control.reload(server, 40, PROBATION_S))
        assert done.serves, done.failure
        return done

    def marks(self, server: str) -> int:
        """Return how many incarnations of a server ran changed code."""
        return (self.run.log_path.read_text()).count(f"{server}: {_MARK}")


@pytest.fixture
def system() -> Iterator[CopiedSystem]:
    """A system that is not up yet."""
    found = CopiedSystem("reload")
    try:
        yield found
    finally:
        found.close()


class Traffic:
    """Programs that copy, ping and pipe without end, each of which must never fail."""

    def __init__(self, system: CopiedSystem) -> None:
        self.source = system.top / "source"
        self.target = system.mountpoint / "copies"
        self.source.mkdir()
        self.target.mkdir()
        for number in range(40):
            octets = hashlib.shake_128(number.to_bytes(2, "big")).digest(number * 1489)
            (self.source / f"file-{number}").write_bytes(octets)
        self.rounds = system.top / "rounds"
        self.stop = system.top / "stop"
        copying = (
            f'n=0; while [ ! -e "{self.stop}" ]; do n=$((n+1)); '
            f'cp -r "{self.source}" "{self.target}/$n" && diff -r "{self.source}" '
            f'"{self.target}/$n" && echo $n >> "{self.rounds}" || exit 1; done'
        )
        size = 10_000_000
        flow = f"head -c {size} /dev/zero | tr '\\0' x | sha256sum"
        self.expected = hashlib.sha256(b"x" * size).hexdigest()
        piping = (
            f'while [ ! -e "{self.stop}" ]; do '
            f'[ "$("$@" run "{flow}")" = "{self.expected}  -" ] || exit 1; done'
        )
        ping = ["ping", "-i0.2", "-W30", "10.90.0.2"]
        pipe = ["bash", "-c", piping, "piping", *system.command()]
        self.copy = self._start(system, ["bash", "-c", copying])
        self.pipe = self._start(system, pipe)
        self.ping = self._start(system, system.command("exec", "--", *ping))

    @staticmethod
    def _start(system: CopiedSystem, words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, env=system.environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def done(self) -> int:
        """Return how many copies were made and compared."""
        return self.rounds.read_text().count("\n") if self.rounds.exists() else 0

    def end(self) -> str:
        """Let all end, see that none has failed, and return what ping says."""
        self.stop.touch()
        for program in (self.copy, self.pipe):
            said = program.communicate(timeout=50)[0]
            assert program.returncode == 0, said
        assert self.ping.poll() is None
        for pid in _members(self.ping.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        return str(self.ping.communicate(timeout=20)[0])

    def close(self) -> None:
        """End what is left."""
        for program in (self.copy, self.pipe, self.ping):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.communicate()


def _members(session: int) -> list[int]:
    """Return the processes of a session that are named `ping`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().partition(") ")
            if name.endswith("(ping") and int(rest.split()[3]) == session:
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def traffic(system: CopiedSystem) -> Iterator[Traffic]:
    """A system in use."""
    system.up()
    found = Traffic(system)
    try:
        until(lambda: found.done() > 0)
        yield found
    finally:
        found.close()


@pytest.mark.timeout(300)
@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_every_server_takes_changed_code_under_load_and_nothing_is_lost(
    system: CopiedSystem, traffic: Traffic
) -> None:
    for server, file in _FILES.items():
        assert system.marks(server) == 0
        system.change(server, f'self.task.log("{_MARK}")')
        done = system.reload(server)
        assert (done.version, done.failure) == (2, "")
        assert [path for path in done.changed if path.endswith(file)]
        assert system.marks(server) >= 1
    before = traffic.done()
    until(lambda: traffic.done() > before)
    said = traffic.end()
    assert " 0% packet loss" in said, said
    filecmp.clear_cache()
    copies = sorted(traffic.target.iterdir())
    for copy in (copies[0], copies[-1]):
        names = sorted(path.name for path in traffic.source.iterdir())
        assert filecmp.cmpfiles(traffic.source, copy, names, shallow=False) == (names, [], [])
    assert all(task["version"] == 2 for name, task in system.tasks().items() if name in _FILES)
    assert system.atoll("down").returncode == 0
    fsck = system.atoll("fsck", "--state", str(system.state))
    assert "sound" in fsck.stdout, fsck.stdout + fsck.stderr


@pytest.mark.timeout(300)
@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_broken_code_costs_those_who_use_the_server_a_pause_and_no_more(
    system: CopiedSystem, traffic: Traffic
) -> None:
    for line, said, patience in (
        ("def (", "SyntaxError", "40"),
        ("raise ValueError('of the new code')", "ValueError: of the new code", "40"),
        ("import os; os._exit(9)", "status 9", "40"),
        ("import time; time.sleep(1000)", "not ready within 1 s", "1"),
    ):
        text = system.change("fs", line)
        done = system.atoll("restart", "fs", "--reload", "--patience", patience)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr.partition("\n")[0]
        system.restore("fs", text)
        assert system.tasks()["fs"]["version"] == 1
    before = traffic.done()
    until(lambda: traffic.done() > before)
    traffic.end()


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_a_killed_kernel_takes_all_its_zygotes_along_and_the_mount(system: CopiedSystem) -> None:
    system.up()
    for server in ("fs", "echo"):
        system.reload(server)
    system.look()
    fresh = {
        int(pid)
        for zygote in Path(f"/proc/{system.kernel}/task/{system.kernel}/children")
        .read_text()
        .split()
        for pid in Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    }
    system.pids |= fresh
    os.kill(system.kernel, signal.SIGKILL)
    until(lambda: not system.living())
    until(lambda: not system.is_mounted())


def test_what_restart_says_names_files_versions_and_the_next_step(system: CopiedSystem) -> None:
    system.up(*NO_DEVICES)
    text = system.change("names", f'self.task.log("{_MARK}")')
    done = system.atoll("restart", "names", "--reload", "--probation", "0.1", "--wait")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[0].startswith("reloaded names, now generation 1 after 0; its clients waited ")
    assert ["version", "2"] in [line.split() for line in words]
    assert any(line.startswith("changed") and "core/system/names.py" in line for line in words)
    assert "passed" in done.stdout
    assert "atoll --name reload why names" in done.stdout
    system.restore("names", text)
    again = system.atoll("restart", "names", "--reload", "--json")
    assert [Path(path).name for path in json.loads(again.stdout)["changed"]] == ["names.py"]


def test_a_changed_interface_is_refused_with_the_difference(system: CopiedSystem) -> None:
    system.up(*NO_DEVICES)
    path = system.tree / "fs_server/interface.py"
    text = path.read_text()
    assert text.count("async def readlink(self, inode: int)") == 1
    path.write_text(text.replace("readlink(self, inode: int)", "readlink(self, inode: str)"))
    done = system.atoll("restart", "fs", "--reload")
    assert done.returncode == 1
    assert "operation readlink took (inode: int) and takes (inode: str)" in done.stderr
    assert system.tasks()["fs"]["generation"] == 0


def test_a_promoted_server_is_refused_with_reason_and_remedy(system: CopiedSystem) -> None:
    system.up(*NO_DEVICES, "--fast")
    done = system.atoll("restart", "names", "--reload")
    assert done.returncode == 1
    assert "promoted into the kernel's process" in done.stderr
    assert 'placement = "process"' in done.stderr
