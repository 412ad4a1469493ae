"""A mount of a volume by a system in a process of its own, driven from a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


class VolumeMount:
    """A system in a process of its own, with a mount."""

    def __init__(self, placement: str, place: str, front_end: str) -> None:
        self.path = Path(place)
        command = [sys.executable, "-m", "tests.support.system_mount", placement, place, front_end]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def other(self, words: str) -> None:
        """Have a second client of the file server do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        assert self.answer() == "done"

    def shell(self, script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.path,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        output = done.stdout.decode(errors="replace")
        assert done.returncode == 0, output
        return output

    def end(self) -> None:
        self.process.communicate(timeout=30)
