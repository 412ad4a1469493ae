"""The life of a mount: made, served, and left in good order.

`serve` mounts, serves until it is cancelled or somebody unmounts, and leaves nothing behind. Its
end has an order: first the host's kernel gets the time to write back what it holds (the workers
still serve), then the mount is detached from the tree, then the connection closes: a file that some
process still has open answers ENOTCONN from then on.

pyfuse3 keeps its session in globals: one mount for each process at a time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyfuse3
import trio

from fs_server.interface import FileSystem

from .attached import FAREWELL_S, take_leave, tune
from .file_operations import FileOperations
from .front_end import FrontEnd
from .fuse_invalidation import Invalidation, Watch
from .fuse_wait import Workers
from .host import ThisProcess
from .mount_options import Mount, MountOptions
from .mount_point import MountError, check_device, detach, mounted, prepare
from .native.attachment import Terms
from .native.device import open_device
from .native.front_end import NativeFrontEnd
from .native.handshake import agree, wishes
from .native.session import NativeSession
from .native.streams import StreamRouter
from .patched_wait import patched

log: Final = logging.getLogger(__name__)

WORKERS_LIMIT: Final = 32
"""Requests that can be with the file server at once."""
_session_exists = False


def _fuse_descriptors() -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, not paths
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":  # noqa: PTH115
                yield int(name)
        except OSError:
            continue  # the listing's own descriptor


def _open_session(front_end: FrontEnd, path: Path, options: MountOptions) -> int:
    """Mount, and return the session's descriptor of /dev/fuse."""
    before = set(_fuse_descriptors())
    try:
        pyfuse3.init(front_end, str(path), options.fuse())
    except RuntimeError as error:
        pyfuse3.close(unmount=False)
        cause = f"the host refused the mount ({error})"
        remedy = "mounting needs root, or a set-uid fusermount3; a container needs CAP_SYS_ADMIN"
        raise MountError(path, cause, remedy) from None
    (descriptor,) = set(_fuse_descriptors()) - before
    return descriptor


class _Session:
    """One mount between `_open_session` and its end."""

    def __init__(self, front_end: FrontEnd, path: Path, options: MountOptions) -> None:
        self.path = path
        self.begun = trio.Event()
        self.ended = trio.Event()
        self.working = trio.CancelScope(shield=True)
        front_end.initialised = self.begun.set
        self.descriptor = _open_session(front_end, path, options)
        self.mount = Mount(path, Workers(self.descriptor, options.linger_s))
        self.stock_wait = options.stock_wait

    async def work(self) -> None:
        """Serve requests until the mount is gone, whoever else is cancelled."""
        with self.working:
            try:
                await self._serve_requests()
            finally:
                self.ended.set()

    async def _serve_requests(self) -> None:
        if self.stock_wait:
            os.set_blocking(self.descriptor, True)
            await pyfuse3.main(min_tasks=1, max_tasks=WORKERS_LIMIT)
            return
        with patched(self.mount.workers) as self.mount.polled:
            await pyfuse3.main(min_tasks=1, max_tasks=WORKERS_LIMIT)

    def terminate(self) -> None:
        """Take no more requests."""
        pyfuse3.terminate()
        self.mount.workers.end()

    def close(self) -> None:
        """Close the connection; the mount point is free for sure afterwards."""
        global _session_exists  # noqa: PLW0603 - pyfuse3 has one session for each process
        pyfuse3.close(unmount=mounted(self.path) is not None)
        _session_exists = False


class _NativeSession:
    """The same for the native front end."""

    def __init__(self, fs: FileSystem, path: Path, options: MountOptions) -> None:
        self.path = path
        self.begun = trio.Event()
        self.ended = trio.Event()
        self.working = trio.CancelScope(shield=True)
        self.descriptor = open_device(path, others=options.others)
        self._host = ThisProcess(self.descriptor)
        self.front_end = NativeFrontEnd(fs, writeback=options.sole_writer, host=self._host)
        self._workers = Workers(self.descriptor, options.linger_s)
        self._streams = options.streams
        self.mount = Mount(path, self._workers, polled=True)

    async def work(self) -> None:
        """Serve requests until the mount is gone, whoever else is cancelled."""
        with self.working:
            try:
                writeback = self.front_end.enable_writeback_cache
                agreed = await agree(self.descriptor, wishes(writeback=writeback))
                if agreed is None:
                    return
                terms = Terms(agreed.features.value, agreed.buffer_size)
                session = NativeSession(
                    self.front_end, self.descriptor, terms, self._host, self._workers
                )
                if self._streams:
                    StreamRouter(self.front_end, self._streams, session)
                self.begun.set()
                await session.work()
            finally:
                self.ended.set()

    def terminate(self) -> None:
        """Take no more requests."""
        self._workers.end()
        trio.lowlevel.notify_closing(self.descriptor)

    def close(self) -> None:
        """Close the connection; the mount point is free for sure afterwards."""
        os.close(self.descriptor)
        if mounted(self.path) is not None:
            detach(self.path)


async def _leave(session: _Session | _NativeSession) -> None:
    """End the mount in good order, while the workers still serve."""
    ended = session.ended
    with trio.CancelScope(shield=True):
        await take_leave(session.path, ended)
        if not ended.is_set():
            session.terminate()
            with trio.move_on_after(FAREWELL_S):
                await ended.wait()
        session.working.cancel()  # whatever still waits for the file server waits in vain


def _begin(
    fs: FileSystem, path: Path, options: MountOptions
) -> tuple[FileOperations[Any], _Session | _NativeSession]:
    """Mount. MountError."""
    global _session_exists  # noqa: PLW0603 - pyfuse3 has one session for each process
    if options.front_end == "native":
        native = _NativeSession(fs, path, options)
        return native.front_end, native
    if _session_exists:
        raise MountError(path, "this process serves a mount already", "start another system")
    front_end = FrontEnd(fs, writeback=options.sole_writer)
    session = _Session(front_end, path, options)
    _session_exists = True
    return front_end, session


async def serve(
    fs: FileSystem,
    mountpoint: str | Path,
    options: MountOptions | None = None,
    *,
    watch: Watch | None = None,
    task_status: trio.TaskStatus[Mount] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount the file system and serve it until cancelled, or until it is unmounted from outside.

    Starts (`nursery.start`) when the first path can be opened, with the `Mount`. Never touch a path
    below the mount point from this thread: the answer would have to come from the thread that
    waits.

    Args:
        fs: a client of the file server.
        mountpoint: an existing directory; see `mount_point.prepare`.
        options: how to mount.
        watch: where the file server's notifications arrive; None: nobody else changes files.

    Raises:
        MountError: the mount could not be made; it says what to do.
    """
    options = options or MountOptions()
    check_device()
    path = await trio.to_thread.run_sync(lambda: prepare(mountpoint, nonempty=options.nonempty))
    front_end, session = _begin(fs, path, options)
    try:
        host = ThisProcess(session.descriptor)
        if not await host.drop_entries():
            log.info("this host cannot drop all entries at once: they are cached for a second only")
            front_end.keep_entries_shortly()
        await _run(session, Invalidation(front_end, fs, watch, host), task_status)
    finally:
        session.close()


async def _run(
    session: _Session | _NativeSession,
    invalidation: Invalidation,
    task_status: trio.TaskStatus[Mount],
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.work)
        try:
            await session.begun.wait()
            await trio.to_thread.run_sync(tune, session.path)
            task_status.started(session.mount)
            async with trio.open_nursery() as following:
                following.start_soon(invalidation.run)
                await session.ended.wait()
                following.cancel_scope.cancel()
        finally:
            await _leave(session)
