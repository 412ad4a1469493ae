"""Volumes while no system uses them: `mkfs`, `fsck`; and the lock that says so."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mount.obstacle import FAILED, ObstacleError
from mount.run_directory import check_name, list_systems
from mount.settings import default_state

from .output import complain, say
from .parser import Commands, size

_LOCK_PATIENCE_S: Final = 5.0
"""A system that just ended may hold its volume so much longer: its servers close it."""


def register(commands: Commands) -> None:
    """Describe these commands to the parser."""
    parser = commands.add(
        "mkfs",
        mkfs,
        "make an empty volume",
        "`atoll up` makes one, too, if there is none. A volume is sparse: it takes from the host\n"
        "what is written.\n\nexample:\n  atoll mkfs --size 8G --state ~/volume",
    )
    parser.add_argument("--size", type=size, default=0, help="for contents, as 8G (default: 64G)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="the volume's directory")
    parser = commands.add(
        "fsck",
        fsck,
        "check a volume that is not in use; changes nothing",
        "exit status: 0 the volume is sound, 1 it is not, or could not be checked\n\n"
        "example:\n  atoll down; atoll fsck && atoll up --detach",
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="the volume's directory")


def state_of(arguments: argparse.Namespace) -> Path:
    """Return the volume's directory that the command line means."""
    check_name(arguments.name)
    return Path(arguments.state).absolute() if arguments.state else default_state(arguments.name)


@contextlib.contextmanager
def claimed(state: Path) -> Iterator[None]:
    """Hold a volume's directory, which is made if need be, for this process and those it forks.

    Raises:
        ObstacleError: somebody else holds it, or it cannot be made.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        remedy = "choose another directory with --state"
        raise ObstacleError(error.filename or state, error.strerror or "", remedy) from None
    try:
        _lock(descriptor, state)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, state: Path) -> None:
    end = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            user = _user(state)
            if user or time.monotonic() > end:
                option = "" if user in {"", "default"} else f" --name {user}"
                cause = f"is in use by system {user}" if user else "is in use"
                remedy = f"run: atoll{option} down, or choose another directory with --state"
                raise ObstacleError(f"volume {state}", cause, remedy) from None
            time.sleep(0.05)  # noqa: TID251 - nothing tells when a lock is free without taking it
        else:
            return


def _user(state: Path) -> str:
    """Return the name of the running system that uses the volume, "" if none is known."""
    for run in list_systems():
        record = run.record()
        if record is not None and record.pid != os.getpid() and record.state == str(state):
            return run.name
    return ""


def mkfs(arguments: argparse.Namespace) -> int:
    """Run `atoll mkfs`."""
    from fs_server.layout import VolumeError
    from fs_server.mkfs import DEFAULT_SIZE, make_volume

    state = state_of(arguments)
    octets = arguments.size or DEFAULT_SIZE
    with claimed(state):
        try:
            make_volume(state, octets, owner=(os.geteuid(), os.getegid()))
        except VolumeError as error:
            remedy = "choose another directory with --state, or another size with --size"
            raise ObstacleError("mkfs", error.detail, remedy) from None
    say(f"made a volume for {octets >> 20} MiB of contents in {state}")
    return 0


def fsck(arguments: argparse.Namespace) -> int:
    """Run `atoll fsck`."""
    from fs_server.check import check_volume
    from fs_server.layout import VolumeError

    state = state_of(arguments)
    if not state.is_dir():
        remedy = "name the volume's directory with --state, or make one: atoll mkfs"
        raise ObstacleError(f"volume {state}", "does not exist", remedy)
    with claimed(state):
        try:
            findings = check_volume(state)
        except VolumeError as error:
            remedy = "name the volume's directory with --state"
            raise ObstacleError("fsck", error.detail, remedy) from None
    for finding in findings:
        complain(str(finding))
    say(f"{state}: {len(findings)} findings" if findings else f"{state}: sound")
    return FAILED if findings else 0
