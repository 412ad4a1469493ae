"""The file server: `FileSystem` served from a volume.

Theory of operation. No operation waits, so the server is a plain loop and a request is served by
one call into `Volume`. What must outlive the server lies in three places: the volume itself; the
opens, the locks, and which blocks are surely free, in memory objects that the kernel keeps; and the
rights to the ports of watching clients, which the kernel keeps as well.

Exactly once. An operation that changes something goes through `_once`: its answer is recorded in
the transaction of the change, and returned when the request comes again. `write`, `fsync`
and most uses of `setattr` may be repeated, and record nothing.

Durability. Changes are made durable when a client asks (`fsync`, `sync`), when the server has been
idle for `SYNC_PERIOD_S`, and at the latest after `BUSY_PERIODS` of those.

Options: `state`, the volume's directory on the host. Grants: `disk`, whose data file it uses. A
directory without a volume gets one, if the disk is empty.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from core.abi import Right
from core.errors import AtollError, Refused
from core.userlib.interface import Bulk
from core.userlib.server import Server
from core.userlib.task import Task

from .changes import ChangeLog
from .disk import Disk, DiskInfo
from .interface import (
    CHANGED,
    UNLOCKED,
    Attributes,
    Caller,
    Change,
    Changes,
    Entry,
    FileSystem,
    Lock,
    Usage,
)
from .layout import METADATA_NAME, VolumeError
from .locking import Locking
from .mkfs import make_metadata
from .opens import Opens
from .reserve import Reserve
from .store import rehearse
from .volume import Volume

P = ParamSpec("P")
T = TypeVar("T")

SYNC_PERIOD_S: Final = 5.0
SURVEY_DELAY_S: Final = 0.25
"""From the opening to the first step of the survey: those who waited for the server go first."""
SURVEY_PERIOD_S: Final = 0.02
"""Between two steps, so that a client waits for one of them at most."""
BUSY_PERIODS: Final = 6
_TICK: Final = 1
"""The notification bit of the server's own timer."""
_SURVEY: Final = 2
"""The bit of the timer for the next step of the survey."""
_DATA: Final = "data"
_OPENS: Final = "opens"
_RESERVE: Final = "reserve"
_LOCKS: Final = "locks"
_WATCH: Final = "watch."


class _Watcher:
    """A client that wants to hear of changes. `told`: it was notified and has not asked yet."""

    __slots__ = ("right", "told")

    def __init__(self, right: Right) -> None:
        self.right = right
        self.told = False


class FileServer(Server):
    """See the module head."""

    interface = FileSystem
    volume: Volume

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._log = ChangeLog(task.generation)
        self._watchers: dict[int, _Watcher] = {}
        self._ticking = False
        self._surveying = False
        self._served = False
        self._busy_periods = 0

    @classmethod
    def rehearse(cls) -> None:
        """Make and read a database in memory."""
        rehearse()

    async def start(self) -> None:
        """Open the volume on the disk's data file; restore opens and watches."""
        task = self.task
        directory = Path(task.options["state"])
        data = task.kept(_DATA)
        if data is None:
            info, descriptor = await task.connect(Disk, "disk").lend()
            prepare_volume(directory, info)
            data = descriptor.take()
            task.keep(_DATA, data)  # a restart waits for no other server
        opens = Opens(task.boot_id, lambda number: task.keep(_OPENS, number), task.kept(_OPENS))
        kept = task.kept(_RESERVE)
        reserve = Reserve(task.boot_id, lambda number: task.keep(_RESERVE, number), kept)
        self.volume = self.open_volume(directory, data, opens, reserve)
        locks = task.kept(_LOCKS)
        keep_locks = functools.partial(task.keep, _LOCKS)
        self._locking = Locking(task.boot_id, keep_locks, locks, self._tell_unlocked)
        self._survey_after(SURVEY_DELAY_S)
        for label, right in task.kept_rights().items():
            if label.startswith(_WATCH):
                self._watchers[int(label.removeprefix(_WATCH))] = _Watcher(right)
        for client in list(self._watchers):
            self._notify(client, CHANGED | UNLOCKED)  # what happened around the restart is unknown

    def open_volume(self, directory: Path, data: int, opens: Opens, reserve: Reserve) -> Volume:
        """Open the volume. A subclass may open it with another clock, or watched.

        Args:
            data: the descriptor of the data file; the volume's from now on.
        """
        return Volume(directory, data, opens=opens, reserve=reserve, take_over=True)

    def stop(self) -> None:
        """Make everything durable and close the volume."""
        self._locking.close()
        try:
            self.volume.close()
        except Refused as error:
            self.task.log(f"not everything is durable: {error.detail}")

    def no_senders(self, badge: int) -> None:
        """A client has ended: give back its opens and locks, and forget its watch."""
        self.volume.request = 0
        self._locking.drop_client(badge)
        self.volume.drop_client(badge)
        self._forget(badge)

    def notified(self, bits: int) -> None:
        """A timer fired: make changes durable if the time is good, or go on with the survey."""
        if bits & _SURVEY:
            self._surveying = False
            self._survey()
        if bits & _TICK:
            self._make_durable()

    def _survey(self) -> None:
        try:
            self.volume.survey()
            self._survey_after(SURVEY_PERIOD_S)
        except Refused as error:
            self.task.log(f"cannot look for free blocks: {error.detail}")
            self._survey_after(SYNC_PERIOD_S)

    def _survey_after(self, delay_s: float) -> None:
        if self.volume.surveying and not self._surveying:
            self._surveying = True
            self.task.arm(delay_s, _SURVEY)

    def _make_durable(self) -> None:
        self._ticking = False
        self._survey_after(SURVEY_PERIOD_S)  # a failed change has it begin anew
        if not self.volume.restless:
            return
        self._busy_periods += 1
        if self._served and self._busy_periods < BUSY_PERIODS:
            self._tick()
            return
        self._busy_periods = 0
        try:
            self.volume.settle()
        except Refused as error:
            self.task.log(f"cannot make changes durable: {error.detail}")
        if self.volume.restless:
            self._tick()

    def _tick(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._served = False
            self.task.arm(SYNC_PERIOD_S, _TICK)

    # -- once, and who hears of it ----------------------------------------------------------------

    def _once(
        self,
        name: str,
        function: Callable[P, T],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Serve a request that changes something, or return the answer that it got already."""
        request = self.request
        volume = self.volume
        if request.redelivered:
            reply = volume.recorded(request.id)
            if reply is not None:
                return FileSystem.named(name).decode_reply(reply)  # type: ignore[no-any-return]
        volume.request = request.id
        return self._changing(function, *arguments, **options)

    def _changing(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Serve a request that changes something, and tell those who watch."""
        self._served = True
        if not self._ticking:
            self._tick()
        watchers = self._watchers
        if not watchers:
            return function(*arguments, **options)
        client = self.request.badge
        alone = len(watchers) == 1 and client in watchers
        self.volume.watch(on=not alone)
        result = function(*arguments, **options)
        if not alone:
            self._tell(client)
        return result

    def _tell(self, client: int) -> None:
        changes = self.volume.take_changes()
        if not changes:
            return
        for change in changes:
            self._log.add(client, change)
        for other in list(self._watchers):
            if other != client:
                self._notify(other)

    def _notify(self, client: int, bits: int = CHANGED) -> None:
        watcher = self._watchers[client]
        if watcher.told and bits == CHANGED:
            return
        watcher.told = watcher.told or bool(bits & CHANGED)
        try:
            self.task.notify(watcher.right, bits)
        except AtollError:  # its port is gone
            self._forget(client)

    def _tell_unlocked(self, client: int) -> None:
        if client in self._watchers:
            self._notify(client, UNLOCKED)

    def _forget(self, client: int) -> None:
        watcher = self._watchers.pop(client, None)
        if watcher is not None:
            self.task.forget(f"{_WATCH}{client}")
            self.task.drop(watcher.right)

    def watch(self, port: Right) -> int:
        """See `FileSystem.watch`."""
        client = self.request.badge
        self._forget(client)
        self.task.keep_right(f"{_WATCH}{client}", port)
        self._watchers[client] = _Watcher(port)
        return self._log.position

    def changes(self, after: int) -> tuple[int, list[Change]]:
        """See `FileSystem.changes`."""
        client = self.request.badge
        position, found = self._log.since(after, client)
        watcher = self._watchers.get(client)
        if watcher is not None and position == self._log.position:
            watcher.told = False
        return position, found

    # -- names ------------------------------------------------------------------------------------

    def lookup(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        """See `FileSystem.lookup`."""
        return self.volume.lookup(caller, parent, name)

    def readlink(self, inode: int) -> bytes:
        """See `FileSystem.readlink`."""
        return self.volume.readlink(inode)

    def mknod(self, caller: Caller, parent: int, name: bytes, mode: int, device: int) -> Attributes:
        """See `FileSystem.mknod`."""
        return self._once("mknod", self.volume.mknod, caller, parent, name, mode, device)

    def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> Attributes:
        """See `FileSystem.mkdir`."""
        return self._once("mkdir", self.volume.mkdir, caller, parent, name, mode)

    def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> Attributes:
        """See `FileSystem.symlink`."""
        return self._once("symlink", self.volume.symlink, caller, parent, name, target)

    def link(self, caller: Caller, inode: int, parent: int, name: bytes) -> Attributes:
        """See `FileSystem.link`."""
        return self._once("link", self.volume.link, caller, inode, parent, name)

    def unlink(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        """See `FileSystem.unlink`."""
        return self._once("unlink", self.volume.unlink, caller, parent, name)

    def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        """See `FileSystem.rmdir`."""
        self._once("rmdir", self.volume.rmdir, caller, parent, name)

    def rename(
        self,
        caller: Caller,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
    ) -> None:
        """See `FileSystem.rename`."""
        rename = self.volume.rename
        self._once("rename", rename, caller, parent, name, new_parent, new_name, flags)

    def opendir(self, caller: Caller, inode: int) -> None:
        """See `FileSystem.opendir`."""
        self.volume.opendir(caller, inode)

    def readdir(self, inode: int, cookie: int, limit: int) -> list[Entry]:
        """See `FileSystem.readdir`."""
        return self.volume.readdir(inode, cookie, limit)

    # -- attributes -------------------------------------------------------------------------------

    def getattr(self, inode: int) -> Attributes:
        """See `FileSystem.getattr`."""
        return self.volume.getattr(inode)

    def setattr(self, caller: Caller, inode: int, changes: Changes) -> Attributes:
        """See `FileSystem.setattr`."""
        if _repeatable(caller, changes):
            self.volume.request = 0
            return self._changing(self.volume.setattr, caller, inode, changes)
        return self._once("setattr", self.volume.setattr, caller, inode, changes)

    def birth(self, inode: int) -> int:
        """See `FileSystem.birth`."""
        return self.volume.birth(inode)

    def access(self, caller: Caller, inode: int, mode: int) -> None:
        """See `FileSystem.access`."""
        self.volume.access(caller, inode, mode)

    def statfs(self) -> Usage:
        """See `FileSystem.statfs`."""
        return self.volume.statfs()

    def setxattr(self, caller: Caller, inode: int, name: bytes, flags: int, value: Bulk) -> None:
        """See `FileSystem.setxattr`."""
        self._once("setxattr", self.volume.setxattr, caller, inode, name, flags, value)

    def getxattr(self, caller: Caller, inode: int, name: bytes, size: int) -> Bulk:
        """See `FileSystem.getxattr`."""
        return self.volume.getxattr(caller, inode, name, size)

    def listxattr(self, caller: Caller, inode: int) -> list[bytes]:
        """See `FileSystem.listxattr`."""
        return self.volume.listxattr(caller, inode)

    def removexattr(self, caller: Caller, inode: int, name: bytes) -> None:
        """See `FileSystem.removexattr`."""
        self._once("removexattr", self.volume.removexattr, caller, inode, name)

    # -- files ------------------------------------------------------------------------------------

    def create(self, caller: Caller, parent: int, name: bytes, mode: int, flags: int) -> Attributes:
        """See `FileSystem.create`."""
        client = self.request.badge
        create = self.volume.create
        attributes = self._once("create", create, caller, parent, name, mode, flags, client)
        # counted already, unless the answer came from the record and the death before the count
        self.volume.opened(self.request.id, client, attributes.inode)
        return attributes

    def tmpfile(self, caller: Caller, parent: int, mode: int, flags: int) -> Attributes:
        """See `FileSystem.tmpfile`."""
        tmpfile = self.volume.tmpfile
        return self._once("tmpfile", tmpfile, caller, parent, mode, flags, self.request.badge)

    def open(self, caller: Caller, inode: int, flags: int) -> Attributes:
        """See `FileSystem.open`."""
        client = self.request.badge
        attributes = self._once("open", self.volume.open, caller, inode, flags, client)
        self.volume.opened(self.request.id, client, inode)
        return attributes

    def release(self, inode: int) -> None:
        """See `FileSystem.release`."""
        client = self.request.badge
        self._once("release", self.volume.release, inode, client)
        self._closed(client, inode)

    def close(self, inode: int, opened: int) -> None:
        """See `FileSystem.close`."""
        client = self.request.badge
        self._locking.drop_opened(client, inode, opened)
        self._once("close", self.volume.release, inode, client)
        self._closed(client, inode)

    def _closed(self, client: int, inode: int) -> None:
        """Give a client's locks back when it has closed the file for the last time."""
        if not self.volume.has_open(client, inode):
            self._locking.drop_file(client, inode)

    # -- locks: a repetition changes nothing ------------------------------------------------------

    def lock(self, inode: int, lock: Lock, eager: bool) -> Lock | None:
        """See `FileSystem.lock`."""
        client = self.request.badge
        if not self.volume.has_open(client, inode):
            raise Refused(errno.EBADF, f"the client has inode {inode} not open")
        return self._locking.lock(client, inode, lock, eager=eager)

    def locked(self, inode: int, lock: Lock) -> Lock | None:
        """See `FileSystem.locked`."""
        return self._locking.locked(self.request.badge, inode, lock)

    def unlock(self, inode: int, owner: int) -> None:
        """See `FileSystem.unlock`."""
        self._locking.drop_owner(self.request.badge, inode, owner)

    # -- contents ---------------------------------------------------------------------------------

    def read(self, inode: int, offset: int, size: int) -> Bulk:
        """See `FileSystem.read`."""
        volume = self.volume
        size = volume.readable(inode, offset, size)
        view = self.request.buffer(size)
        volume.read_into(inode, offset, view)
        return view

    def write(self, caller: Caller, inode: int, offset: int, data: Bulk) -> int:
        """See `FileSystem.write`."""
        self.volume.request = 0
        return self._changing(self.volume.write, caller, inode, offset, data)

    def fsync(self, inode: int, data_only: bool) -> None:
        """See `FileSystem.fsync`. The log is one, so `data_only` saves nothing."""
        self.volume.fsync(inode)

    def sync(self) -> None:
        """See `FileSystem.sync`."""
        self.volume.settle()

    def copy(
        self, caller: Caller, source: int, position: int, inode: int, offset: int, size: int
    ) -> int:
        """See `FileSystem.copy`."""
        copy = self.volume.copy
        return self._once("copy", copy, caller, source, position, inode, offset, size)

    def allocate(self, caller: Caller, inode: int, mode: int, offset: int, size: int) -> None:
        """See `FileSystem.allocate`."""
        self._once("allocate", self.volume.allocate, caller, inode, mode, offset, size)

    def seek(self, inode: int, offset: int, whence: int) -> int:
        """See `FileSystem.seek`."""
        return self.volume.seek(inode, offset, whence)


def _repeatable(caller: Caller, changes: Changes) -> bool:
    """Tell whether doing a `setattr` a second time is allowed if it was the first time.

    What may take the caller's own permission away is not: a change of owner, and a change of mode
    that comes with a size.
    """
    if caller.uid == 0:
        return True
    if changes.uid is not None or changes.gid is not None:
        return False
    return changes.mode is None or changes.size is None


def prepare_volume(directory: Path, info: DiskInfo) -> None:
    """Make the metadata of an empty volume, if there are none and the disk is empty.

    Raises:
        VolumeError: the disk is not empty, so metadata were lost; or the host refuses.
    """
    if (directory / METADATA_NAME).exists():
        return
    if info.used:
        raise VolumeError(
            f"{directory} has data but no metadata: restore {METADATA_NAME}, or remove the data"
            " file to begin with an empty volume",
            errno.EUCLEAN,
        )
    try:
        # whoever runs the system owns the tree's root, as a user owns his home
        make_metadata(directory, info.size, owner=(os.geteuid(), os.getegid()))
    except OSError as error:
        raise VolumeError(f"{directory}: {error.strerror}", error.errno or errno.EIO) from None
