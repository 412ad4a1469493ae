"""`atoll demo`: what a system can do, shown with ordinary commands and their real output.

Each line that begins with `$` is run by a shell as it stands there. After it, what matters about it
is checked, and the demonstration ends at once if that is not so. Everything happens in a temporary
directory and in a system called `demo`; at the end it is proven that nothing is left.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from .commands.output import complain, say
from .obstacle import FAILED, ObstacleError

SHOWN_LINES: Final = 14
"""Of a command's output; what is more is counted."""
COMMAND_TIMEOUT_S: Final = 100.0
PIPED_SIZE: Final = 100_000_000
KILLS: Final = 5
_SUMS: Final = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum"
_ECHO: Final = """\
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.sendto(b'hello, atoll', (sys.argv[1], 7)); print(*s.recvfrom(100))"""
_DATABASE: Final = """\
import sqlite3, sys
db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA journal_mode=WAL')
db.execute('CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT UNIQUE)')
db.executemany('INSERT INTO word (text) VALUES (?)', ((f'word {i}',) for i in range(20000)))
db.commit(); db.execute('DELETE FROM word WHERE id % 3 = 0'); db.commit(); db.execute('VACUUM')
print(*db.execute('SELECT count(*) FROM word'), *db.execute('PRAGMA integrity_check'))"""


class DemoError(Exception):
    """Something did not turn out as it must."""


class Narrator:
    """Runs commands before the eyes of the user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
            "D": str(directory),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "LC_ALL": "C.UTF-8",
        }
        self.skipped: list[str] = []

    def title(self, text: str) -> None:
        """Begin a section."""
        say(f"\n== {text}")

    def skip(self, what: str, reason: str) -> None:
        """Say that something cannot be shown on this host."""
        self.skipped.append(what)
        say(f"-- not shown here: {what}: {reason}")

    def run(self, command: str, *, quiet: bool = False, shown: str = "") -> str:
        """Show a command, run it, show what it says and return that.

        Args:
            quiet: show nothing at all.
            shown: what to show in place of the command, if it is too long to read.

        Raises:
            DemoError: its exit status is not 0.
        """
        if not quiet:
            say(f"$ {shown or command}")
        done = self._start(command, subprocess.PIPE)
        try:
            output, _ = done.communicate(timeout=COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            done.kill()
            raise DemoError(f"{command}: not finished after {COMMAND_TIMEOUT_S:g} s") from None
        if not quiet or done.returncode:
            self._show(output)
        if done.returncode:
            raise DemoError(f"{command}: exit status {done.returncode}")
        return output

    def start(self, command: str) -> subprocess.Popen[str]:
        """Show a command and start it in the background."""
        say(f"$ {command} &")
        return self._start(command, None)

    def _start(self, command: str, output: int | None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def _show(self, output: str) -> None:
        lines = output.rstrip("\n").splitlines()
        for line in lines[:SHOWN_LINES]:
            say(f"  {line}")
        if len(lines) > SHOWN_LINES:
            say(f"  ... and {len(lines) - SHOWN_LINES} more lines")

    def check(self, claim: str, *, holds: bool) -> None:
        """State something; DemoError if it does not hold."""
        if not holds:
            raise DemoError(f"this does not hold: {claim}")
        say(f"   ok: {claim}")


class Demo:
    """The demonstration, a method for each section."""

    def __init__(self, narrator: Narrator) -> None:
        self.narrator = narrator
        self.directory = narrator.directory
        self.options = ""
        self.files = True
        self.network = True
        self.up = False
        self.sums = ""
        self.pids: set[int] = set()
        self.namespaces: set[str] = set()

    def look(self) -> None:
        """Find out what the devices of this host allow."""
        from .mount_point import MountError, check_device

        try:
            check_device()
        except MountError as error:
            self.files = False
            self.options += " --no-mount"
            self.narrator.skip("files", str(error))
        if reason := _no_network():
            self.network = False
            self.options += " --net none"
            self.narrator.skip("network", reason)

    def boot(self) -> None:
        """Start the system."""
        status = self._start()
        if self.files:
            self.narrator.environment["M"] = status["mountpoint"]
            say(f"   from here on, $M is {status['mountpoint']} and $D is {self.directory}")
        self.narrator.run("atoll --name demo ps")

    def _start(self) -> dict[str, Any]:
        self.narrator.run(f"atoll --name demo up --detach --state $D/volume{self.options}")
        self.up = True
        found: dict[str, Any] = json.loads(
            self.narrator.run("atoll --name demo status --json", quiet=True)
        )
        self.pids |= {found["pid"], *_children(found["pid"])}
        self.pids |= {task["pid"] for task in self._tasks() if task["placement"] == "process"}
        if self.network:
            command = "atoll --name demo exec -- readlink /proc/self/ns/net"
            self.namespaces.add(self.narrator.run(command, quiet=True).strip())
        return found

    def _tasks(self) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = json.loads(
            self.narrator.run("atoll --name demo ps --json", quiet=True)
        )
        return tasks

    def unpack(self) -> None:
        """Unpack sources into the mount and compare them."""
        run = self.narrator.run
        self.narrator.title("Files: this project's source, and Python's standard library")
        source = shlex.quote(str(Path(__file__).parent.parent))
        library = Path(sysconfig.get_path("stdlib"))
        tar = "tar cf $D/{}.tar --exclude=__pycache__"
        run(tar.format("project") + f" -C {source} core fs_server net_server mount")
        run(
            tar.format("library") + " --exclude=site-packages --exclude=test --exclude='config-*'"
            f" -C {shlex.quote(str(library.parent))} {library.name}"
        )
        unpack = "tar xf $D/project.tar -C {0} && tar xf $D/library.tar -C {0}"
        run("mkdir $D/original && " + unpack.format("$D/original"))
        run("mkdir $M/tree && " + unpack.format("$M/tree"))
        run(f"cd $D/original && {_SUMS} > $D/sums && wc -l < $D/sums")
        self._same_sums("tree")
        run("grep -rl --include='*.py' 'class .*Server' $M/tree/fs_server $M/tree/core | sort")

    def _same_sums(self, place: str) -> None:
        self.narrator.run(f"cd $M/{place} && {_SUMS} > $D/sums.now && cmp $D/sums $D/sums.now")
        count = (self.directory / "sums").read_text().count("\n")
        self.narrator.check(f"sha256 of all {count} files equals the original", holds=count > 0)

    def work(self) -> None:
        """Use the mount for what programs do that trust their file system."""
        run = self.narrator.run
        self.narrator.title("Programs that ask much of a file system")
        if shutil.which("git"):
            run("cd $M/tree && git -c init.defaultBranch=main init -q && git add core mount")
            who = "-c user.name=demo -c user.email=demo@localhost"
            run(f"cd $M/tree && git {who} commit -qm 'all of it' && git log --stat | tail -3")
            run("cd $M/tree && git fsck --full --strict && git status --short | head -3")
            run("rm -rf $M/tree/.git")
        else:
            self.narrator.skip("git", "the program is not installed")
        say("-- the database by Python's own sqlite3 module, not the program of that name")
        script = self.directory / "database.py"
        script.write_text(_DATABASE + "\n")
        output = run("python3 $D/database.py $M/words.db")
        self.narrator.check("the database is whole", holds="('ok',)" in output)

    def talk(self) -> None:
        """Use the network."""
        run = self.narrator.run
        self.narrator.title("Network: the host asks, a TCP/IP stack in Python answers")
        status = json.loads(run("atoll --name demo status --json", quiet=True))
        address = status["address"].partition("/")[0]
        if shutil.which("ping", path=self.narrator.environment["PATH"]):
            run(f"atoll --name demo exec -- ping -c 3 -i 0.2 {address}")
            run(f"atoll --name demo exec -- ping -c 2 -i 0.2 -s 8000 {address}")
        else:
            self.narrator.skip("ping", "the program is not installed")
        (self.directory / "echo.py").write_text(_ECHO + "\n")
        output = run(f"atoll --name demo exec -- python3 $D/echo.py {address}")
        self.narrator.check("the UDP echo came back", holds="hello, atoll" in output)

    def pipe(self) -> None:
        """Run a pipeline over ports."""
        run = self.narrator.run
        self.narrator.title("Pipes: the same pipeline by the shell, and over ports of the kernel")
        run(f"head -c {PIPED_SIZE} /dev/urandom > $D/big")
        line = "cat $D/big | tr a-z A-Z | sha256sum"
        expected = run(line)
        begin = time.monotonic()
        found = run(f"atoll --name demo run '{line}'")
        elapsed_s = time.monotonic() - begin
        claim = (
            f"equal sums; {PIPED_SIZE / elapsed_s / 1e6:.0f} MB/s, start of the command included"
        )
        self.narrator.check(claim, holds=found == expected)
        run("atoll --name demo run 'yes | head -n 1'")

    def kill(self) -> None:
        """Kill the file server while it is used."""
        self.narrator.title("kill -9 of the file server while cp -r works")
        self.narrator.run("atoll --name demo ps | grep -E 'TASK|fs '")
        before = self._generation()
        kills = 0
        copies = 0
        while kills < KILLS and copies < KILLS:
            copies += 1
            copying = self.narrator.start(f"cp -r $M/tree $M/copy{copies}")
            kills += self._kill_during(copying, KILLS - kills)
            status = copying.wait(COMMAND_TIMEOUT_S)
            self.narrator.check("cp ended with exit status 0", holds=status == 0)
        self.narrator.run("atoll --name demo ps | grep -E 'TASK|fs '")
        after = self._generation()
        grew = after - before >= kills > 0
        self.narrator.check(f"{kills} kills, generation {before} to {after}", holds=grew)
        for copy in range(1, copies + 1):
            self._same_sums(f"copy{copy}")

    def _kill_during(self, copying: subprocess.Popen[str], limit: int) -> int:
        kills = 0
        while kills < limit and copying.poll() is None:
            task = next(task for task in self._tasks() if task["name"] == "fs")
            if task["state"] != "running" or not task["pid"] or copying.poll() is not None:
                continue
            self.pids.add(task["pid"])
            self.narrator.run(f"kill -9 {task['pid']}")
            kills += 1
        return kills

    def _generation(self) -> int:
        return next(int(task["generation"]) for task in self._tasks() if task["name"] == "fs")

    def again(self) -> None:
        """End the system and start it again."""
        self.narrator.title("Down, a check of the volume, and up again")
        self.stop()
        self.narrator.run("atoll fsck --state $D/volume")
        self._start()
        self._same_sums("tree")
        self._same_sums("copy1")

    def stop(self) -> None:
        """End the system."""
        self.narrator.run("atoll --name demo down")
        self.up = False

    def leave(self) -> None:
        """End it all, and look for what might be left."""
        self.narrator.title("The end, and what is left behind")
        self.stop()
        self.narrator.check("no process", holds=not any(map(_lives, self.pids)))
        mounts = Path("/proc/self/mountinfo").read_text()
        place = self.narrator.environment.get("M", "no mount")
        self.narrator.check("no mount", holds=place not in mounts)
        self.narrator.check(
            "no network namespace, and no TAP in it", holds=not self.namespaces & _namespaces()
        )

    def run(self) -> None:
        """Show everything that this host allows."""
        self.narrator.title(f"A system, for user {os.geteuid()}")
        self.look()
        self.boot()
        if self.files:
            self.unpack()
            self.work()
        if self.network:
            self.talk()
        self.pipe()
        if self.files:
            self.kill()
            self.again()
        self.leave()


def _no_network() -> str:
    """Return why a system of this user cannot have a network, "" if it can."""
    device = Path("/dev/net/tun")
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} is closed to user {os.geteuid()}; run as root, or: chmod 0666 {device}"
    if os.geteuid() == 0:
        return ""
    done = subprocess.run(["unshare", "-Urn", "true"], check=False, capture_output=True)
    return "" if done.returncode == 0 else "this host lets only root make network namespaces"


def _children(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(word) for word in text.split()}


def _lives(pid: int) -> bool:
    from .run_directory import started

    return started(pid) is not None


def _namespaces() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(str(path.readlink()))
        except OSError:
            continue  # it has just ended, or is another user's
    return found


def demo(arguments: argparse.Namespace) -> int:  # noqa: ARG001 - it has none
    """Run `atoll demo`."""
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clears up, too
    directory = Path(tempfile.mkdtemp(prefix="atoll-demo-"))
    narrator = Narrator(directory)
    shown = Demo(narrator)
    try:
        shown.run()
    except DemoError as error:
        complain(f"demo: {error}")
        return FAILED
    finally:
        if shown.up:
            subprocess.run([sys.executable, "-m", "mount", "--name", "demo", "down"], check=False)
        shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise ObstacleError(directory, "could not be removed", "remove it")
    skipped = f", but not {' and '.join(narrator.skipped)}" if narrator.skipped else ""
    say(f"\nall of it works here{skipped}; {time.monotonic() - begin:.0f} s")
    return 0
