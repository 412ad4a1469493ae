"""Every way out is refused to a server in a process, and what can be written down is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from core.system.boot import Prepared, booted
from core.system.description import parse_description
from core.system.names import Names

from .hostile import WAYS, Hostile

_DESCRIPTION = """
[server.names]
class = "core.system.names:NameServer"

[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.hostile]
class = "tests.attack_lab.hostile:HostileServer"
grants = { names = "names" }
memory_mib = 256
"""
QUIET = {"raise own limits", "fill memory", "fill descriptors"}
"""Refused by limits, which the host does not report."""


@pytest.mark.slow
def test_every_way_out_is_refused_and_written_down(tmp_path: Path) -> None:
    log: list[str] = []
    answers: dict[str, str] = {}
    victim = tmp_path / "target.victim"
    victim.write_text("kept")

    async def main(prepared: Prepared) -> None:
        with trio.fail_after(50):
            async with booted(prepared, log.append) as system:
                hostile: Hostile = system.connect(Hostile, "hostile")
                names: Names = system.connect(Names, "names")
                pid, task = await hostile.alive(), system.task("hostile")
                for name in WAYS:
                    before = task.attempts.total
                    answers[name] = await hostile.attempt(
                        name, str(tmp_path / "target"), os.getpid()
                    )
                    assert name in QUIET or task.attempts.total > before, name
                assert await hostile.alive() == pid
                await names.entries()

    trio.run(main, Prepared(parse_description(_DESCRIPTION, "lab")))
    assert {name for name, answer in answers.items() if not answer} == set()
    assert os.listdir(tmp_path) == ["target.victim"]
    assert victim.read_text() == "kept"
    assert any("hostile tried openat('/etc/passwd')" in line for line in log)
