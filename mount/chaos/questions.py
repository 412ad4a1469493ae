"""For each server, something cheap to ask over its own port, over and over.

An answer is an answer, whatever it says: the supervisor, say, refuses to be told of deaths by
anybody but the kernel, and that takes a serving supervisor. What was said is looked at where it is
known: octets that went into a pipe come out of it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from core.errors import Refused
from core.system.names import Names
from core.system.pipe import Pipes
from core.userlib.kernel_calls import Supervision
from fs_server.disk import Disk
from fs_server.interface import ROOT_INODE, FileSystem
from net_server.link import Link
from net_server.network import Network

from .door import Door

Ask = Callable[[], None]
"""Asks once and waits for the answer. WrongAnswerError, AtollError."""


class WrongAnswerError(Exception):
    """An answer that is not what it has to be."""


def _names(door: Door) -> Ask:
    names = door.server(Names, "names")
    return lambda: _drop(door.ask(names.entries()))


def _supervisor(door: Door) -> Ask:
    supervisor = door.server(Supervision, "supervisor")

    def ask() -> None:
        with contextlib.suppress(Refused):
            door.ask(supervisor.died("nobody", 0, "", True, False))

    return ask


def _disk(door: Door) -> Ask:
    disk = door.server(Disk, "disk")
    return lambda: _drop(door.ask(disk.describe()))


def _fs(door: Door) -> Ask:
    files = door.server(FileSystem, "fs")

    def ask() -> None:
        found = door.ask(files.getattr(ROOT_INODE)).inode
        if found != ROOT_INODE:
            raise WrongAnswerError(f"fs: inode {found} for inode {ROOT_INODE}")

    return ask


def _pipe(door: Door) -> Ask:
    pipes = door.server(Pipes, "pipe")
    reading, writing = (door.connect(Pipes, end) for end in door.ask(pipes.create()))
    sent = 0

    def ask() -> None:
        nonlocal sent
        sent += 1
        octets = sent.to_bytes(8, "big")
        taken = door.ask(writing.write(octets))
        found = bytes(door.ask(reading.read(64)))
        if taken != len(octets) or found != octets:
            raise WrongAnswerError(f"pipe: {octets.hex()} went in, {found.hex()} came out")

    return ask


def _tap(door: Door) -> Ask:
    link = door.server(Link, "tap")

    def ask() -> None:
        with contextlib.suppress(Refused):  # this system is in the host's own namespace
            door.ask(link.namespace()).close()

    return ask


def _net(door: Door) -> Ask:
    net = door.server(Network, "net")
    return lambda: _drop(door.ask(net.addresses()))


def _drop(answer: object) -> None:
    """Any answer will do."""


QUESTIONS: Final[dict[str, Callable[[Door], Ask]]] = {
    "fs": _fs,
    "disk": _disk,
    "net": _net,
    "tap": _tap,
    "pipe": _pipe,
    "names": _names,
    "supervisor": _supervisor,
}
"""By server: makes what asks it."""
