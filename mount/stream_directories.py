"""Which servers' streams the mount shows, and under which names: `streams` under `[mount]`.

    [mount]
    front_end = "native"
    streams = { pipe = "pipe", log = "journal" }    # name in the root = server

Without the word, the pipe server's are shown as `pipe`, if the system has one that offers them.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from core.abi import ALL_OPERATIONS, Right
from core.system.description import DescriptionError, Grant, SystemDescription
from core.userlib.streams import NAME_LIMIT, Streams
from core.userlib.task import Task

DIRECTORIES_LIMIT: Final = 16
_USUAL: Final = "pipe"
_FIRST_BIT: Final = 8
"""Notification bits below are the file server's."""


def _offers(description: SystemDescription, server: str) -> bool:
    return issubclass(description.servers[server].cls.interface, Streams)


def stream_directories(description: SystemDescription) -> dict[str, str]:
    """Return the servers of streams by their names in the mount. DescriptionError."""
    servers = description.servers
    wanted: Any = description.mount.get("streams")
    if wanted is None:
        usual = _USUAL in servers and _offers(description, _USUAL)
        return {_USUAL: _USUAL} if usual else {}
    if not isinstance(wanted, dict) or len(wanted) > DIRECTORIES_LIMIT:
        raise DescriptionError(f"[mount]: streams is a table of up to {DIRECTORIES_LIMIT} names")
    for name, server in wanted.items():
        if not 0 < len(name.encode()) <= NAME_LIMIT or "/" in name or name in {".", ".."}:
            raise DescriptionError(f"[mount] streams: {name!r} cannot be a name in the mount")
        if not isinstance(server, str) or server not in servers:
            raise DescriptionError(f"[mount] streams.{name}: there is no server {server!r}")
        if not _offers(description, server):
            raise DescriptionError(f"[mount] streams.{name}: server {server!r} offers no streams")
    return dict(wanted)


def grants_for(directories: dict[str, str]) -> dict[str, Grant]:
    """Return what the front end has to be granted."""
    return {f"streams {name}": Grant(to, ALL_OPERATIONS) for name, to in directories.items()}


class StreamWatch:
    """Where one server's notifications arrive, at the front end's own port.

    Attributes:
        port: a right to the port.
        bits: those that are this server's.
    """

    def __init__(self, port: Right, index: int) -> None:
        self.port = port
        self.bits = 1 << _FIRST_BIT + index
        self._changed = trio.Event()

    async def wait_changed(self) -> None:
        """Wait until the bits were set."""
        await self._changed.wait()
        self._changed = trio.Event()

    def notified(self, bits: int) -> None:
        """Be told which bits were set."""
        if bits & self.bits:
            self._changed.set()


def connect(task: Task, name: str) -> Streams:
    """Return the front end's client of a directory's server."""
    return task.connect(Streams, f"streams {name}")
