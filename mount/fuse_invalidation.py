"""Invalidation: the host's kernel is told of what other clients did to the files that it caches.

The kernel keeps entries, attributes and data of the mount for long. When another client changes
something, the file server sets a notification at a port of the front end. `Invalidation.run` then
asks for the changes and takes back what the kernel may hold: an entry by its directory and name, an
inode with or without its data.

All of that happens in a thread. A notification to the kernel waits for the locks of the directory
or the page that it concerns, and whoever holds these may wait for an answer from this very process:
made on the front end's own turn it would be a deadlock. For the same reason the kernel's order is
right: an invalidation waits for a look-up under way, so an older answer never survives it.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any, Final, Protocol

import trio

from core.abi import Right
from core.errors import AtollError
from fs_server.interface import ROOT_INODE, Change, FileSystem

from .file_operations import FileOperations
from .native.protocol.notifications import (
    INCREASE_EPOCH,
    invalidate_entry,
    invalidate_inode,
)

log: Final = logging.getLogger(__name__)

PATIENCE_S: Final = 1.0
"""Seconds until a file server that did not answer is asked again for its changes."""


class Watch(Protocol):
    """Where the file server's notifications arrive."""

    @property
    def port(self) -> Right:
        """A send right to the port, for the file server. Asked for anew for each `watch`."""

    async def wait_changed(self) -> None:
        """Wait until the file server has set its bit since the last time."""


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
    """Have the host's kernel distrust every entry of the mount. Returns if it knows how to.

    Args:
        descriptor: the session's /dev/fuse.
    """
    try:
        os.write(descriptor, INCREASE_EPOCH)
    except OSError:
        return False
    return True


def merged(changes: list[Change]) -> list[Change]:
    """Return the changes without repetitions; of an inode's, the one that includes data."""
    found: dict[tuple[int, bytes], Change] = {}
    for change in changes:
        key = (change.inode, change.name)
        if key not in found or change.data:
            found[key] = change
    return list(found.values())


class Invalidation:
    """Follows the file server's changes for one mount.

    Args:
        front_end: whose cache of attributes is to be kept right too.
        fs: the file server.
        watch: where its notifications arrive; None: nobody else changes files.
        descriptor: the session's /dev/fuse.
    """

    def __init__(
        self, front_end: FileOperations[Any], fs: FileSystem, watch: Watch | None, descriptor: int
    ) -> None:
        self._descriptor = descriptor
        self._front_end = front_end
        self._fs = fs
        self._watch = watch
        self._send, self._stale = trio.open_memory_channel[int](math.inf)
        front_end.stale = self._send.send_nowait
        self._limiter = trio.CapacityLimiter(1)  # one thread: the order of changes is kept

    async def run(self) -> None:
        """Invalidate until cancelled."""
        if not drop_entries(self._descriptor):
            log.info("this host cannot drop all entries at once: they are cached for a second only")
            self._front_end.keep_entries_shortly()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_stale)
            if self._watch is not None:
                nursery.start_soon(self._follow, self._watch)

    async def _follow_stale(self) -> None:
        async for inode in self._stale:
            await self._tell([Change(inode, data=True)])

    async def _follow(self, watch: Watch) -> None:
        """Ask for changes whenever there are some; a server that fails is asked again."""
        position = -1
        while True:
            try:
                if position < 0:
                    position = await self._fs.watch(watch.port)
                await watch.wait_changed()
                position = await self._catch_up(position)
            except AtollError as error:
                log.warning("no changes from the file server: %s: %s", type(error).__name__, error)
                await trio.sleep(PATIENCE_S)
                await self._drop_everything()
                position = -1

    async def _catch_up(self, position: int) -> int:
        """Take back what changed since `position`. Returns where to go on; -1: watch anew."""
        while True:
            position, changes = await self._fs.changes(position)
            if not changes:
                return position
            if any(not change.inode for change in changes):
                watched = await self._fs.watch(self._watch.port) if self._watch else position
                await self._drop_everything()
                return watched
            await self._tell(merged(changes))

    async def _drop_everything(self) -> None:
        """Take back every inode that the kernel may know, with its data, and every entry."""
        known = self._front_end.known_inodes()
        log.info("dropping what the host caches of %d inodes", len(known))
        drop_entries(self._descriptor)
        await self._tell([Change(inode, data=True) for inode in {ROOT_INODE, *known}])

    async def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            self._front_end.changed(change.inode, data=change.data)
        await trio.to_thread.run_sync(invalidate, self._descriptor, changes, limiter=self._limiter)
        # An answer that was under way may have been taken for newer than the change: distrust it.
        for change in changes:
            self._front_end.changed(change.inode, data=change.data)
