"""`make bench`: every benchmark, pinned to one CPU and unpinned, beside peers of the same run.

    python -m tests.bench [ipc] [fuse] [ping] [pauses] [opening] [streams]

Nothing here passes or fails. Absolute times are a matter of the machine and its mood, ratios within
one table are not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from . import fuse, pauses

_MOUNT: Final = "tests.support.system_mount"
FUSE_PEERS: Final[fuse.Peers] = {
    "host": ("sh", "-c", "echo ready; cat"),
    "bare, stock": fuse.python("tests.bench.bare_fuse", fuse.PLACE),
    "co-located": fuse.python(_MOUNT, "colocated", fuse.PLACE),
    "co-located*": fuse.python(_MOUNT, "colocated", fuse.PLACE, "native"),
    "isolated": fuse.python(_MOUNT, "process", fuse.PLACE),
    "isolated*": fuse.python(_MOUNT, "process", fuse.PLACE, "native"),
}
"""Disk and file server in either placement, under either front end (*: the native one)."""
FUSE_ROUNDS: Final = 3
PINNED_KILLS: Final = 50
IPC_PEERS: Final = ("bare SEQPACKET pair", "trio memory channel", "multiprocessing.Pipe")


def _pinned_json(module: str, *, pinned: bool) -> dict[str, float]:
    """Run a benchmark in a process of its own and return its rows."""
    program = f"import json; from tests.bench.{module} import run; print(json.dumps(run()))"
    words = [sys.executable, "-c", program]
    pin = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if pinned else []
    done = subprocess.run([*pin, *words], check=True, stdout=subprocess.PIPE, text=True)
    return {name: float(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def _title(text: str, *, pinned: bool) -> None:
    print(f"\n{text}, {'pinned to one CPU' if pinned else 'unpinned'}")


def show_ipc(*, pinned: bool) -> None:
    """Messages: each row beside a bare SEQPACKET round trip."""
    _title("messages", pinned=pinned)
    rows = _pinned_json("ipc", pinned=pinned)
    bare = rows["bare SEQPACKET pair"]
    for name, median in sorted(rows.items(), key=lambda row: row[0] not in IPC_PEERS):
        mark = "  (peer)" if name in IPC_PEERS or "multiprocessing" in name else ""
        print(f"  {name:40} {median:10.2f} us {median / bare:8.2f} x bare{mark}")


def show_fuse(*, pinned: bool) -> None:
    """A mount: each row of Atoll beside a bare file system on stock pyfuse3; *: native."""
    _title("mount", pinned=pinned)
    results = fuse.compare(FUSE_PEERS, pinned=pinned, rounds=FUSE_ROUNDS)
    print(fuse.table(results))
    bare = results["bare, stock"]
    for peer in ("co-located", "co-located*", "isolated", "isolated*"):
        ratios = ", ".join(
            f"{name.removesuffix(' µs')} {results[peer][name] / bare[name]:.2f}"
            for name in fuse.WORKLOADS
            if name in results[peer] and name in bare and name != "client alone µs"
        )
        print(f"  {peer} / bare: {ratios}")


def show_ping(*, pinned: bool) -> None:
    """A ping beside twenty lines of trio."""
    _title("ping", pinned=pinned)
    rows = _pinned_json("ping", pinned=pinned)
    bare = rows["bare trio responder"]
    for name, median in rows.items():
        print(f"  {name:24} {median:8.1f} us {median / bare:6.2f} x")


def show_pauses(*, pinned: bool) -> None:
    """What a client sees of a SIGKILL, beside the least that can come back from one."""
    _title("pauses", pinned=pinned)
    kills = PINNED_KILLS if pinned else pauses.KILLS
    pin = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if pinned else []
    command = [*pin, sys.executable, "-m", "tests.bench.pauses", str(kills)]
    subprocess.run(command, check=True)


def show_opening(*, pinned: bool) -> None:
    """What it costs to open a volume, first and after a death, by the number of files."""
    _title("opening a volume", pinned=pinned)
    pin = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if pinned else []
    subprocess.run([*pin, sys.executable, "-m", "tests.bench.opening"], check=True)


def show_streams(*, pinned: bool) -> None:
    """A hundred megabytes from one command to another, beside a host pipe."""
    _title("streams", pinned=pinned)
    pin = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if pinned else []
    subprocess.run([*pin, sys.executable, "-m", "tests.bench.streams"], check=True)


TABLES: Final[dict[str, Callable[..., None]]] = {
    "ipc": show_ipc,
    "fuse": show_fuse,
    "ping": show_ping,
    "pauses": show_pauses,
    "opening": show_opening,
    "streams": show_streams,
}


def main(*words: str) -> None:
    """Print the tables that are asked for, or all."""
    for name, show in TABLES.items():
        if not words or name in words:
            for pinned in (True, False):
                show(pinned=pinned)
                sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
