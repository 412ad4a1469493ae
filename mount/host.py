"""What a front end needs of the host beyond the requests, and may not be allowed to do by itself.

Telling the host's kernel that something changed takes locks which a process may hold that waits for
an answer of the front end. Whoever does that must therefore not be the one who answers, and must
not have to end before the next one can answer: it is done in a thread, and for a front end that may
be killed, in another process.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final, Protocol

import trio

from fs_server.interface import Change

from .native.protocol.notifications import INCREASE_EPOCH, invalidate_entry, invalidate_inode
from .native.signals import is_ending

log: Final = logging.getLogger(__name__)


class Host(Protocol):
    """See the module head."""

    async def groups(self, pid: int) -> list[int]:
        """Return a process's supplementary groups; none if it is gone."""

    async def is_ending(self, pid: int) -> bool:
        """Return if a signal is pending that ends the process, or if there is none such process."""

    async def tell(self, changes: list[Change]) -> None:
        """Have the host's kernel forget what the changes concern."""

    async def drop_entries(self) -> bool:
        """Have it look up every entry again. Returns if it knows how to."""


def groups_of(pid: int) -> list[int]:
    """Return a process's supplementary groups; none if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = [line for line in status.splitlines() if line.startswith("Groups:")]
    return [int(word) for word in found[0].split()[1:]] if found else []


def invalidate(descriptor: int, changes: list[Change]) -> None:
    """Have the host's kernel forget what the changes concern. Blocks: call it in a thread."""
    for change in changes:
        if change.name:
            notification = invalidate_entry(change.inode, change.name)
        else:
            notification = invalidate_inode(change.inode, 0 if change.data else -1)
        try:
            os.write(descriptor, notification)
        except FileNotFoundError:
            continue  # the kernel does not hold it
        except OSError as error:
            log.warning("cannot invalidate %s: %s", change, error)


def drop_entries(descriptor: int) -> bool:
    """Have the host's kernel distrust every entry of the mount. Returns if it knows how to."""
    try:
        os.write(descriptor, INCREASE_EPOCH)
    except OSError:
        return False
    return True


class ThisProcess:
    """A front end's own process does it all (`Host`).

    Args:
        descriptor: the session's /dev/fuse.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._limiter = trio.CapacityLimiter(1)  # one thread: the order of changes is kept

    async def groups(self, pid: int) -> list[int]:  # noqa: D102 - see Host
        return groups_of(pid)

    async def is_ending(self, pid: int) -> bool:  # noqa: D102 - see Host
        return is_ending(pid)

    async def tell(self, changes: list[Change]) -> None:  # noqa: D102 - see Host
        await trio.to_thread.run_sync(invalidate, self._descriptor, changes, limiter=self._limiter)

    async def drop_entries(self) -> bool:  # noqa: D102 - see Host
        return drop_entries(self._descriptor)
