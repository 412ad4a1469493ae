"""The same hostile code promoted into the kernel's process, each way in a system of its own.

A way may destroy the system that it is tried in, and this program with it. So every one gets a
child process, in a user namespace with mounts, host name, network and IPC of its own: what succeeds
there succeeds against the kernel, and does the host no harm. `python -m tests.attack_lab.promoted`
writes one line of JSON for each way.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NoReturn

import trio

from core.system.boot import Prepared, booted
from core.system.description import parse_description
from core.system.names import Names

from .hostile import WAYS, Hostile
from .misuses import MISUSES

SUCCEEDED: Final = "succeeded"
DESTROYED: Final = "destroyed the system"
_DESCRIPTION: Final = """
[server.names]
class = "core.system.names:NameServer"
placement = "colocated"

[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
placement = "colocated"
kernel = "full"

[server.hostile]
class = "tests.attack_lab.hostile:HostileServer"
placement = "colocated"
grants = { names = "names" }
"""
_CHILD_S: Final = 3.0
"""A system that has said nothing for so long stands still."""
_AT_ONCE: Final = 8
"""Programs that try at the same time: standing still takes no processor."""
_NEW: Final = 0x1000_0000 | 0x0002_0000 | 0x0400_0000 | 0x0800_0000 | 0x4000_0000
"""CLONE_NEWUSER, NEWNS, NEWUTS, NEWIPC, NEWNET."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _hide() -> None:
    """Leave the host: what is done to mounts, names and clocks is done to nobody."""
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_NEW) != 0:
        raise OSError(ctypes.get_errno(), "this host lets nobody make a user namespace")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)


async def _try(way: str, directory: str, prepared: Prepared, said: int) -> None:
    async with booted(prepared, lambda text: None) as system:
        hostile: Hostile = system.connect(Hostile, "hostile")
        names: Names = system.connect(Names, "names")
        await names.register("mine", system.client().mint(1))
        if way in WAYS:
            answer = await hostile.attempt(way, f"{directory}/target", os.getpid())
        else:
            answer = await hostile.misuse(way, 1)
        os.write(said, json.dumps({"answer": answer}).encode() + b"\n")
        found = await names.entries()
        assert found == ["mine"], f"a client was told {found}"
        assert (await names.lookup("mine")) is not None
        os.write(said, json.dumps({"well": True}).encode() + b"\n")
        os._exit(0)


def _be_tried(way: str, directory: str, said: int) -> NoReturn:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    try:
        _hide()
        trio.run(_try, way, directory, Prepared(parse_description(_DESCRIPTION, "lab")), said)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        text = str(error).splitlines()[0] if str(error) else ""
        os.write(said, json.dumps({"broken": f"{type(error).__name__}: {text}"}).encode() + b"\n")
    os._exit(1)


def _said_by(reading: int) -> tuple[dict[str, Any], bool]:
    """Return what a child said, and whether it came to an end by itself."""
    text, end = b"", time.monotonic() + _CHILD_S
    while (left := end - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            octets = os.read(reading, 65_536)
            text += octets
            if not octets:
                break
        if b'"well"' in text or b'"broken"' in text:
            break
    said: dict[str, Any] = {}
    for line in text.splitlines():
        said |= json.loads(line)
    return said, left > 0


def outcome_of(way: str) -> str:
    """Try a way in a system that may be destroyed; return what happened, in words."""
    with tempfile.TemporaryDirectory(prefix="atoll-lab-near-") as directory:
        Path(directory, "target.victim").write_text("kept")
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _be_tried(way, directory, writing)
        os.close(writing)
        said, ended = _said_by(reading)
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    answer = said.get("answer")
    if said.get("well"):
        return SUCCEEDED if not answer else f"refused by the host: {answer}"
    if "broken" in said:
        return f"{DESTROYED}: {said['broken']}"
    if not ended:
        return f"{DESTROYED}: it stands still"
    return f"{DESTROYED}: its process is gone"


def outcomes(ways: list[str]) -> dict[str, str]:
    """Have processes of their own try the ways; return what happened to each."""
    command = [sys.executable, "-m", __name__]
    parts = [ways[start::_AT_ONCE] for start in range(_AT_ONCE)]
    running = [
        subprocess.Popen([*command, *part], stdout=subprocess.PIPE, text=True)
        for part in parts
        if part
    ]
    found: dict[str, str] = {}
    for process in running:
        said, _ = process.communicate()
        assert process.returncode == 0
        for line in said.splitlines():
            found |= json.loads(line)
    return found


if __name__ == "__main__":
    for chosen in sys.argv[1:] or [*WAYS, *MISUSES]:
        print(json.dumps({chosen: outcome_of(chosen)}), flush=True)
