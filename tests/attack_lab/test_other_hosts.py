"""Confinement where there is less of it: an ordinary user's, and a filter that nobody hears of."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import trio

from core.system.boot import Prepared, booted
from core.system.description import parse_description
from core.userlib import seccomp

from .hostile import WAYS, Hostile

_ORDINARY: Final = (
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    # so that it can read this project, wherever that is; a confined server loses it
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
)
_SOME: Final = (
    *("read a file", "make a file", "remove code", "open a Unix socket", "run a program", "fork"),
    *("kill the kernel", "trace the kernel", "the kernel's memory as a file", "mount"),
    *("a new namespace", "raise own limits", "exhaust timers", "reply to others' requests"),
    *("guess names of rights", "kill a server"),
)
_PROGRAM: Final = """
import json, sys
from tests.attack_lab.laboratory import isolated
found, _ = isolated(sys.argv[1:])
print(json.dumps([[one.way, one.stopped, one.logged, one.harm] for one in found]))
"""
_DESCRIPTION: Final = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.hostile]
class = "tests.attack_lab.hostile:HostileServer"
memory_mib = 256
"""


@pytest.mark.slow
@pytest.mark.needs_root
def test_an_ordinary_users_servers_are_confined_as_well(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    done = subprocess.run(
        [*_ORDINARY, sys.executable, "-c", _PROGRAM, *_SOME],
        env={**os.environ, "TMPDIR": "/tmp", "HOME": "/nonexistent"},
        capture_output=True,
        check=False,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [way for way, *_ in found] == list(_SOME)
    for way, stopped, logged, harm in found:
        assert stopped, way
        assert logged, way
        assert not harm, way


def test_without_a_listener_everything_is_refused_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = seccomp.install

    def without_listener(program: bytes, *, listen: bool = False) -> int:
        if listen:
            raise OSError(errno.EBUSY, "somebody listens already")
        return install(program)

    monkeypatch.setattr(seccomp, "install", without_listener)
    answers: dict[str, str] = {}
    Path(tmp_path, "target.victim").write_text("kept")

    async def main(prepared: Prepared) -> None:
        async with booted(prepared, lambda text: None) as system:
            hostile: Hostile = system.connect(Hostile, "hostile")
            for way in WAYS:
                answers[way] = await hostile.attempt(way, str(tmp_path / "target"), os.getpid())
            assert getattr(system.task("hostile").engine, "reports", None) is None

    trio.run(main, Prepared(parse_description(_DESCRIPTION, "lab")))
    through = {way for way, answer in answers.items() if not answer}
    # Nobody counts memory objects: the descriptors are the limit. And landlock knows no `stat`.
    assert through == {"flood memory objects", "state of a file"}
    assert os.listdir(tmp_path) == ["target.victim"]
