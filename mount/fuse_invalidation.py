"""Invalidation: the host's kernel is told of what other clients did to the files that it caches.

The kernel keeps entries, attributes and data of the mount for long. When another client changes
something, the file server sets a notification at a port of the front end. `Invalidation.run` then
asks for the changes and takes back what the kernel may hold: an entry by its directory and name, an
inode with or without its data.

A notification to the kernel waits for the locks of the directory or the page that it concerns, and
whoever holds these may wait for an answer of the front end: so somebody else tells it (`host`). For
the same reason the kernel's order is right: an invalidation waits for a look-up under way, so an
older answer never survives it.

A front end that is started again goes on at its bookmark. The file server's watch outlives it, as
its port does; what is not known any more is answered with "drop everything".
"""

from __future__ import annotations

import logging
from typing import Any, Final, Protocol

import trio

from core.abi import Right
from core.errors import AtollError
from fs_server.interface import CHANGES_LIMIT, ROOT_INODE, Change, FileSystem

from .file_operations import FileOperations
from .host import Host

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


def merged(changes: list[Change]) -> list[Change]:
    """Return the changes without repetitions; of an inode's, the one that includes data."""
    found: dict[tuple[int, bytes], Change] = {}
    for change in changes:
        key = (change.inode, change.name)
        if key not in found or change.data:
            found[key] = change
    return list(found.values())


class Bookmark(Protocol):
    """How far the host was told of changes, where another incarnation finds it."""

    def read(self) -> tuple[int, list[int]]:
        """Return what was written last; -1 and nothing if nothing was."""

    def write(self, position: int, stale: list[int]) -> None:
        """Keep how far it is.

        Args:
            position: what the file server reported up to here, the host has been told.
            stale: inodes whose data the host has yet to be told to forget.
        """


class _NoBookmark:
    """For a front end that has no later incarnation."""

    def read(self) -> tuple[int, list[int]]:
        return -1, []

    def write(self, position: int, stale: list[int]) -> None:
        pass


class Invalidation:
    """Follows the file server's changes for one mount.

    Args:
        front_end: whose cache of attributes is to be kept right too.
        fs: the file server.
        watch: where its notifications arrive; None: nobody else changes files.
        host: tells the host's kernel.
        bookmark: from where to go on.
    """

    def __init__(
        self,
        front_end: FileOperations[Any],
        fs: FileSystem,
        watch: Watch | None,
        host: Host,
        bookmark: Bookmark | None = None,
    ) -> None:
        self._front_end = front_end
        self._fs = fs
        self._watch = watch
        self._host = host
        self._bookmark = bookmark or _NoBookmark()
        self._position, self._stale = self._bookmark.read()
        self._watching = False
        self._more_stale = trio.Event()
        front_end.stale = self._note_stale

    async def run(self) -> None:
        """Invalidate until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_stale)
            if self._watch is not None:
                nursery.start_soon(self._follow, self._watch)

    def _note_stale(self, inode: int) -> None:
        """Have an inode's data forgotten soon, whoever lives to see to that."""
        self._stale.append(inode)
        self._bookmark.write(self._position, self._stale)
        self._more_stale.set()

    async def _follow_stale(self) -> None:
        while True:
            while self._stale:
                told = list(self._stale)
                await self._tell([Change(inode, data=True) for inode in dict.fromkeys(told)])
                del self._stale[: len(told)]
                self._bookmark.write(self._position, self._stale)
            self._more_stale = trio.Event()
            await self._more_stale.wait()

    async def begin(self) -> None:
        """Begin to watch: what changes from now on, or since the bookmark, will be told.

        Raises:
            AtollError: the file server does not answer; `run` begins then.
        """
        if self._watch is None or self._watching:
            return
        now = await self._fs.watch(self._watch.port)
        if self._position < 0:
            self._go_on(now)
        self._watching = True

    def _go_on(self, position: int) -> None:
        """Note that all changes before a position have been told."""
        self._position = position
        self._bookmark.write(position, self._stale)

    async def _follow(self, watch: Watch) -> None:
        """Ask for changes whenever there are some; a server that fails is asked again."""
        while True:
            try:
                if not self._watching:
                    await self.begin()
                await self._catch_up()  # what happened while nobody was there is told first
                await watch.wait_changed()
                self._front_end.unlocked()
            except AtollError as error:
                log.warning("no changes from the file server: %s: %s", type(error).__name__, error)
                await trio.sleep(PATIENCE_S)
                self._front_end.unlocked()
                await self._drop_everything()
                self._watching = False
                self._go_on(-1)

    async def _catch_up(self) -> None:
        """Take back what changed since the position."""
        while True:
            position, changes = await self._fs.changes(self._position)
            if not changes:
                self._go_on(position)
                return
            if any(not change.inode for change in changes):
                now = await self._fs.watch(self._watch.port) if self._watch else position
                await self._drop_everything()
                self._go_on(now)
                continue
            await self._tell(merged(changes))
            self._go_on(position)

    async def _drop_everything(self) -> None:
        """Take back every inode that the kernel may know, with its data, and every entry."""
        known = self._front_end.known_inodes()
        log.info("dropping what the host caches of %d inodes", len(known))
        await self._host.drop_entries()
        await self._tell([Change(inode, data=True) for inode in {ROOT_INODE, *known}])

    async def _tell(self, changes: list[Change]) -> None:
        for start in range(0, len(changes), CHANGES_LIMIT):
            await self._tell_few(changes[start : start + CHANGES_LIMIT])

    async def _tell_few(self, changes: list[Change]) -> None:
        for change in changes:
            self._front_end.changed(change.inode, data=change.data)
        await self._host.tell(changes)
        # An answer that was under way may have been taken for newer than the change: distrust it.
        for change in changes:
            self._front_end.changed(change.inode, data=change.data)
