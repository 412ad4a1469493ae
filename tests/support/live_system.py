"""A system as its user has it: started and ended by the `atoll` command.

What a test asks only to look at its system, or does to it before the test begins in earnest, goes
over the control socket: the command would begin an interpreter for every question.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from mount.chaos.door import opened
from mount.commands.output import named
from mount.run_directory import OVERRIDE, RunDirectory, started

COMMAND_TIMEOUT_S: Final = 50.0
NO_DEVICES: Final = ("--no-mount", "--net", "none")
"""Options of `up` for a system that needs neither /dev/fuse nor /dev/net/tun."""


class LiveSystem:
    """One system, in a temporary directory with a run directory of its own.

    Attributes:
        mountpoint: where its files are.
        pids: the kernel, the zygote and the servers, as far as they were looked at.
    """

    def __init__(self, name: str = "default", beside: LiveSystem | None = None) -> None:
        self.name = name
        self._owner = beside is None
        # pytest's own temporary directories have names too long for a socket
        self.top: Path = beside.top if beside else Path(tempfile.mkdtemp(prefix="atoll-test-"))
        self.environment = {**os.environ, OVERRIDE: str(self.top / "run")}
        self.run = RunDirectory(self.top / "run" / name)
        self.state = self.top / f"state-{name}"
        self.mountpoint = self.run.default_mountpoint
        self.pids: set[int] = set()

    def command(self, *words: str) -> list[str]:
        """Return the command line of an `atoll` command."""
        return [sys.executable, "-m", "mount", "--name", self.name, *words]

    def atoll(self, *words: str, timeout_s: float = COMMAND_TIMEOUT_S, **how: Any) -> Any:
        """Run an `atoll` command and return what subprocess.run returns, output as text."""
        how = {"text": True, "env": self.environment, "stdin": subprocess.DEVNULL, **how}
        return subprocess.run(
            self.command(*words), capture_output=True, check=False, timeout=timeout_s, **how
        )

    def up(self, *options: str) -> dict[str, Any]:
        """Start the system, detached, and return what it says of itself."""
        done = self.atoll("up", "--detach", "--json", "--state", str(self.state), *options)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        self.look()
        return found

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Return what `atoll ps --json` would tell, by task."""
        with opened(self.run.control_path) as door:
            return {name: named(task) for name, task in door.tasks().items()}

    def kill(self, *servers: str) -> None:
        """End servers' processes as `atoll kill` would, each one when it is up.

        It returns when the kernel knows of the last death. The next incarnation may not be there.
        """
        with opened(self.run.control_path) as door:
            for server in servers:
                while (before := door.tasks()[server]).state != "running":
                    pass
                door.ask(door.control.kill(server))
                while door.tasks()[server] == before:
                    pass

    def look(self) -> None:
        """Note which processes the system has now."""
        kernel = self.kernel
        children = Path(f"/proc/{kernel}/task/{kernel}/children").read_text().split()
        self.pids |= {kernel, *map(int, children)}
        tasks = self.tasks().values()
        self.pids |= {task["pid"] for task in tasks if task["placement"] == "process"}

    @property
    def kernel(self) -> int:
        """The kernel's process."""
        record = self.run.record()
        assert record is not None
        return record.pid

    def living(self) -> set[int]:
        """Return those of the noted processes that live."""
        return {pid for pid in self.pids if started(pid) is not None}

    def is_mounted(self) -> bool:
        """Whether the mount table has the system's mount point."""
        return f" {self.mountpoint} " in Path("/proc/self/mountinfo").read_text()

    def close(self) -> None:
        """End the system, however it is, and remove what it had."""
        if self.run.is_alive():
            self.atoll("down", "--patience", "10")
        self.run.clear()
        if self._owner:
            shutil.rmtree(self.top, ignore_errors=True)
