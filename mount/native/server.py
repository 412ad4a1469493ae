"""The native front end as a server: the same code in a process of its own, or promoted.

It serves the host's kernel, over a device that the mount's server lends (`attachment`), so it has
no operations. Its death is the moment in which the host waits: the next incarnation asks the host
to say again what was not answered, and goes on.

What an incarnation leaves to the next one: at the kernel, what its changes came to (a change is a
resumable call, see `core.userlib.resuming`); in memory that the kernel keeps, which inodes the host
knows, and how far other clients' changes were followed. Its opens are the servers' to count,
for the badge, which is the task's. All else that it remembers can be asked for again.

Confined, it holds nothing of the host but the device.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Final

import msgspec
import trio
from typing_extensions import override

from core.abi import Right
from core.errors import AtollError, Refused
from core.userlib.kept_value import KeptValue, UnreadableError
from core.userlib.resuming import outliving
from core.userlib.server import Server
from core.userlib.task import Task
from fs_server.interface import CHANGED, FileSystem
from mount.fuse_invalidation import Invalidation
from mount.fuse_wait import Workers
from mount.mount_options import LINGER_S
from mount.stream_directories import StreamWatch, connect

from .attachment import Attachment
from .front_end import NativeFrontEnd
from .lookups import Lookups
from .session import NativeSession
from .streams import Attached, StreamRouter

log: Final = logging.getLogger(__name__)


class Followed(msgspec.Struct, array_like=True):
    """How far the host was told of changes; see `mount.fuse_invalidation.Bookmark`."""

    position: int = -1
    stale: list[int] = []


class KeptBookmark:
    """Keeps it in memory that outlives the incarnation (`Bookmark`)."""

    def __init__(self, task: Task) -> None:
        self._value = KeptValue(task, "followed")
        self._kept = b""
        self._found = Followed()
        with contextlib.suppress(UnreadableError, msgspec.MsgspecError):
            found = self._value.load()
            if found is not None:
                self._found = msgspec.msgpack.decode(found, type=Followed)
        self.write(self._found.position, self._found.stale)

    def read(self) -> tuple[int, list[int]]:  # noqa: D102 - see Bookmark
        return self._found.position, list(self._found.stale)

    def write(self, position: int, stale: list[int]) -> None:  # noqa: D102 - see Bookmark
        value = msgspec.msgpack.encode(Followed(position, stale))
        if value != self._kept:
            self._kept = value
            self._value.store(value)


class _IntoTheLog(logging.Handler):
    """Has the system's log say what modules of the mount say: a confined task has no other."""

    def __init__(self, task: Task) -> None:
        super().__init__(logging.INFO)
        self._task = task

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._task.log(self.format(record))


class FrontEndServer(Server):
    """See the module head. Grants: `fs`, the file server; `mount`, who lends the device.

    Options: `streams`, names of directories; their servers are granted as `streams NAME`.
    """

    async def start(self) -> None:
        """Take the device, and what the incarnation before has left."""
        task = self.task
        self._changed = trio.Event()
        self._port: Right | None = None
        self._log = _IntoTheLog(task)
        self._session: NativeSession | None = None
        self._watches: list[StreamWatch] = []
        host = task.connect(Attachment, "mount")
        try:
            terms, device = await host.lend()
        except Refused as refusal:
            task.log(f"there is nothing to serve: {refusal.detail}")
            return
        fs = outliving(task.connect(FileSystem, "fs"))
        front_end = NativeFrontEnd(fs, host=host, lookups=Lookups(task))
        front_end.locks.complete = task.generation == 0
        if not terms.forgets:
            front_end.keep_entries_shortly()
        self._device = device
        descriptor = device.fileno()
        workers = Workers(descriptor, LINGER_S)
        kept = task.resumable()
        self._session = NativeSession(front_end, descriptor, terms, host, workers, kept)
        names: list[str] = task.options.get("streams", [])
        self._watches = [StreamWatch(self.port, index) for index in range(len(names))]
        attached = [
            Attached(name.encode(), outliving(connect(task, name)), watch)
            for name, watch in zip(names, self._watches, strict=True)
        ]
        if attached:
            StreamRouter(front_end, attached, self._session)
        bookmark = KeptBookmark(task)
        self._invalidation = Invalidation(front_end, fs, self, host, bookmark)
        if bookmark.read()[0] >= 0:
            return  # the file server still tells of changes, and may be away just now
        try:
            await self._invalidation.begin()
        except AtollError as error:
            task.log(f"the file server does not tell of changes yet: {error}")

    async def run(self) -> None:
        """Serve until the system ends or somebody unmounts."""
        session = self._session
        if session is None:
            await trio.sleep_forever()
        logger = logging.getLogger("mount")
        logger.addHandler(self._log)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._invalidation.run)
                await session.work()
                nursery.cancel_scope.cancel()
        finally:
            logger.removeHandler(self._log)
            self._device.close()
        self.task.log("the mount has ended")
        await trio.sleep_forever()

    @property
    def port(self) -> Right:
        """A right for the file server to notify (`Watch`)."""
        if self._port is None:
            self._port = self.task.mint(1)
        return self._port

    async def wait_changed(self) -> None:
        """Wait for the file server's bit (`Watch`)."""
        await self._changed.wait()
        self._changed = trio.Event()

    def notified(self, bits: int) -> None:
        """A server says that another client changed something."""
        if bits & CHANGED:
            self._changed.set()  # stays set until `wait_changed`: what nobody waits for counts
        for watch in self._watches:
            watch.notified(bits)
