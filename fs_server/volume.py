"""A volume: files and directories as POSIX wants them, in a database and a data file.

Theory of operation. Every method is one operation of `interface.FileSystem` and runs to its end.
What it changes is one transaction, committed before it returns: from then on the change survives
the death of this process. `fsync` and `sync` make it survive the death of the host, in this order:
the data file is synced, then the log of the database. So whatever metadata survive, the data they
name does too.

Blocks that a file gives up wait for two such syncs before another file can have them (`allocator`):
after a power cut a file is either there with its octets, or gone; it never shows another's.

When an operation fails in the middle (the host's disk is full or broken) the transaction is rolled
back and everything in memory is read again.

Opening. Which blocks are free follows from all extents. The first incarnation in a boot of the
system reads them before it serves. One that follows a death finds a run of free blocks in memory
that the kernel kept (`reserve`), serves with that, and finds the other free blocks meanwhile
(`survey`), in steps that the owner calls for, or at once when somebody needs them. So its opening
takes no longer with many files. The same is done after a failed operation.

Restart. `request` is the id of the request being served. The answer to it is stored with its
change. A redelivered request's answer is looked up with `recorded`. Operations whose repetition
changes nothing (reads, `write`, `fsync`) record none: nothing else was served between the two
deliveries.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

import apsw
import msgspec

from core.errors import Refused
from core.userlib.interface import Bulk

from . import contents, copying, naming, renaming, status, xattrs
from .allocator import Allocator
from .data import DataFile
from .entries import Entries
from .inodes import Inodes
from .interface import NAME_LIMIT, Attributes, Caller, Change, Changes, Entry, Usage
from .layout import BLOCK_SHIFT, BLOCK_SIZE, DATA_NAME, HostError, VolumeError
from .observer import ObservedVfs, Observer
from .opens import Opens
from .permissions import EXECUTE, permits
from .reserve import Reserve
from .store import WAL_LIMIT_PAGES, Store, refusal
from .survey import Survey
from .tables import Clock, Tables

P = ParamSpec("P")
T = TypeVar("T")

CACHE_LIMIT: Final = 65_536
"""Inodes, and likewise look-ups, that are kept in memory: at most twice as many."""
RECLAIM_LIMIT_BLOCKS: Final = 1 << 16
"""Blocks (256 MiB) that may wait for a sync before one is made for their sake."""

_USED: Final = "SELECT TOTAL(count) FROM extent"
_CLOCK_REALTIME_COARSE: Final = 5
_encode: Final = msgspec.msgpack.Encoder().encode


def host_clock() -> int:
    """Return the host's time in nanoseconds, in steps of its tick as its own files have it."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class Volume:
    """An open volume.

    Args:
        directory: where `meta.db` is.
        data: the descriptor of the data file, owned; None: opened here.
        opens: who has what open, in which boot; None: nobody, and no client outlives this object.
        reserve: a run of free blocks, if an earlier incarnation left one; None: nothing is left.
        clock: the present in nanoseconds.
        cache_limit: see `CACHE_LIMIT`.
        observer: sees every write; see `observer`.
        take_over: see `Store`.

    Raises:
        VolumeError: the volume cannot be opened, and why.
    """

    def __init__(  # noqa: PLR0913 - one for each thing that a volume is put together from
        self,
        directory: Path,
        data: int | None = None,
        *,
        opens: Opens | None = None,
        reserve: Reserve | None = None,
        clock: Clock = host_clock,
        cache_limit: int = CACHE_LIMIT,
        observer: Observer | None = None,
        take_over: bool = False,
    ) -> None:
        self._vfs = ObservedVfs(f"atoll-{id(observer):x}", observer) if observer else None
        vfs = self._vfs.name if self._vfs else ""
        self.store = Store(directory, vfs, take_over=take_over)
        self._cache_limit = cache_limit
        try:
            self.store.add_births()
            self.blocks: int = self.store.setting("blocks")
            self._data = _open_data(directory, data, self.blocks, observer)
            self._clock = clock
            self._opens = opens or Opens()
            self._reserve = reserve or Reserve()
            self._mark: int = self.store.setting("mark") or 0
            self.store.boot_id = self._opens.boot_id
            self._watched = False
            self._load()
            with contextlib.suppress(HostError):  # it is tried again before blocks are taken
                self._mark_volume()
            self._opens.retract(self._exists)
            self._free_orphans()
        except apsw.Error as error:
            self.store.close()
            raise VolumeError(f"{self.store.path}: {error}") from None
        except BaseException:
            self.store.close()
            raise

    def _load(self) -> None:
        """Read into memory what operations work with; also after a failure, afresh."""
        reserve = self._reserve
        survey: Survey | None = None
        if reserve.holds(self._mark, self.blocks):
            allocator = Allocator(self.blocks, None, reserve)
            run = reserve.low, reserve.high - reserve.low
            survey = Survey(self.store, self._data, allocator, run)
        else:
            reserve.begin(0)
            allocator = self._read_allocator()
        self.tables = Tables(
            store=self.store,
            data=self._data,
            inodes=Inodes(self.store, self._cache_limit),
            entries=Entries(self.store, self._cache_limit),
            allocator=allocator,
            opens=self._opens,
            clock=self._clock,
            reclaim=self.reclaim,
            mark=self._mark_volume,
            marked=survey is not None,
            survey=survey,
            watched=self._watched,
        )
        self._data.dirty = True

    def _read_allocator(self) -> Allocator:
        """Return the table of free blocks that follows from all extents."""
        runs = self.store.rows("SELECT start, count FROM extent ORDER BY start")
        try:
            allocator = Allocator(self.blocks, runs, self._reserve)
        except ValueError as error:
            raise VolumeError(f"{self.store.path} is damaged: {error}", errno.EUCLEAN) from None
        self._find_leftovers(allocator)
        return allocator

    def _find_leftovers(self, allocator: Allocator) -> None:
        """Set blocks aside that are free but hold octets, until they are punched.

        They were given up, or taken for a transaction that never came, shortly before a death.
        """
        for start, count in allocator.runs():
            for low, high in self._data.occupied(start << BLOCK_SHIFT, count << BLOCK_SHIFT):
                first = low >> BLOCK_SHIFT
                end = (high + BLOCK_SIZE - 1) >> BLOCK_SHIFT
                allocator.set_aside((first, end - first))

    def _mark_volume(self) -> None:
        """Make every reserve void that another has kept of this volume, and begin one.

        Raises:
            HostError: the host refuses. No blocks may be taken before it has been done.
        """
        if self.tables.marked:
            return
        assert not self.store.begun
        mark = secrets.randbits(62) | 1
        try:
            self.store.write_alone("INSERT OR REPLACE INTO volume VALUES('mark', ?)", (mark,))
        except apsw.Error as error:
            raise refusal(error) from None
        self._mark = mark
        self._reserve.begin(mark)
        self.tables.marked = True
        self.tables.allocator.choose_reserve()

    def _free_orphans(self) -> None:
        """Free the inodes without links that nobody has open any more."""
        for number in self.tables.inodes.orphans():
            if not self._opens.is_open(number):
                self._change(_free_orphan, number)

    @property
    def request(self) -> int:
        """The id of the request being served; 0: none, no answer is recorded."""
        return self.store.request

    @request.setter
    def request(self, request: int) -> None:
        self.store.request = request

    def recorded(self, request: int) -> bytes | None:
        """Return the encoded answer if this request's change was committed; else None."""
        return self._host(self.store.answer, request)

    # -- transactions -----------------------------------------------------------------------------

    def _change(
        self,
        operation: Callable[Concatenate[Tables, P], T],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Run an operation and commit what it changed, together with its answer."""
        store = self.store
        try:
            result = operation(self.tables, *arguments, **options)
            if store.begun:
                store.commit(_encode(result) if store.request else None)
        except HostError:
            self._recover()
            raise
        except apsw.Error as error:
            self._recover()
            raise refusal(error) from None
        except Refused:
            if store.begun:
                self._recover()
            raise
        except BaseException:
            store.roll_back()
            raise
        self._maintain()
        return result

    def _maintain(self) -> None:
        """Do what is due after a commit. If the host refuses it stays due: the change is done."""
        if self.store.log_pages > WAL_LIMIT_PAGES:
            with contextlib.suppress(Refused):
                self.checkpoint()
        elif self.tables.allocator.waiting > RECLAIM_LIMIT_BLOCKS:
            with contextlib.suppress(Refused):
                self.settle()

    def _host(self, operation: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Run something that changes nothing; the database's failures come out as refusals."""
        try:
            return operation(*arguments, **options)
        except apsw.Error as error:
            raise refusal(error) from None

    def _recover(self) -> None:
        """Undo a failed operation, in the database and in memory.

        Raises:
            RuntimeError: what is in memory cannot be trusted and the volume cannot be read: a
                fault, because nothing may be served from here on.
        """
        try:
            self.store.roll_back()
            self._load()
        except (Refused, apsw.Error) as error:
            raise RuntimeError(
                "a failed change cannot be undone: the host does not read"
            ) from error

    def take_changes(self) -> list[Change]:
        """Return what the last operations changed, if `watch` is on; once."""
        changed = self.tables.changed
        self.tables.changed = []
        return changed

    def watch(self, *, on: bool) -> None:
        """Say whether changes shall be remembered for `take_changes`."""
        self._watched = self.tables.watched = on

    # -- durability -------------------------------------------------------------------------------

    def settle(self) -> None:
        """Make everything durable, and bring blocks that wait to be free one step on."""
        self._host(self._settle, self.store.sync)

    def checkpoint(self) -> None:
        """The same as `settle`, and start the database's log anew."""
        self._host(self._settle, self.store.checkpoint)

    def _settle(self, sync_metadata: Callable[[], None]) -> None:
        allocator = self.tables.allocator
        self._data.sync()
        allocator.data_synced()
        sync_metadata()
        for run in allocator.metadata_synced():
            self._data.punch(run[0] << BLOCK_SHIFT, run[1] << BLOCK_SHIFT)
            allocator.punched(run)

    @property
    def surveying(self) -> bool:
        """Whether free blocks are still to be found by `survey`."""
        return self.tables.survey is not None

    def survey(self) -> None:
        """Find a few of the free blocks that are not known yet. Raises: HostError."""
        if self.tables.survey is not None and self._host(self.tables.survey.step):
            self.tables.end_survey()

    def reclaim(self) -> None:
        """Make all blocks free that wait for it."""
        self.settle()
        self.settle()

    @property
    def restless(self) -> bool:
        """Whether something waits for `settle`."""
        return self.store.unsynced or self._data.dirty or self.tables.allocator.waiting > 0

    def close(self) -> None:
        """Make everything durable and close."""
        try:
            self.reclaim()
            self.checkpoint()
            self._host(self.store.empty_log)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close and leave everything as it is; what was acknowledged is safe from this."""
        self.store.close()
        self._data.close()
        self._opens.close()
        self._reserve.close()

    # -- names ------------------------------------------------------------------------------------

    def lookup(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        """See `FileSystem.lookup`."""
        tables = self.tables
        # the common case: everything is in memory (and what is there under a parent makes it
        # a directory, and the name a possible one)
        directory = tables.inodes.recent.young.get(parent)
        number = tables.entries.recent.young.get((parent, name))
        if (
            directory is not None
            and number is not None
            and (caller.uid == 0 or permits(directory, caller, EXECUTE))
        ):
            found = tables.inodes.recent.young.get(number)
            if found is not None:
                return found.view()
        return self._host(naming.lookup, self.tables, caller, parent, name)

    def readlink(self, inode: int) -> bytes:
        """See `FileSystem.readlink`."""
        return self._host(status.readlink, self.tables, inode)

    def mknod(self, caller: Caller, parent: int, name: bytes, mode: int, device: int) -> Attributes:
        """See `FileSystem.mknod`."""
        return self._change(naming.mknod, caller, parent, name, mode, device)

    def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> Attributes:
        """See `FileSystem.mkdir`."""
        return self._change(naming.mkdir, caller, parent, name, mode)

    def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> Attributes:
        """See `FileSystem.symlink`."""
        return self._change(naming.symlink, caller, parent, name, target)

    def link(self, caller: Caller, inode: int, parent: int, name: bytes) -> Attributes:
        """See `FileSystem.link`."""
        return self._change(naming.link, caller, inode, parent, name)

    def unlink(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        """See `FileSystem.unlink`."""
        return self._change(naming.unlink, caller, parent, name)

    def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        """See `FileSystem.rmdir`."""
        self._change(naming.rmdir, caller, parent, name)

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
        self._change(renaming.rename, caller, parent, name, new_parent, new_name, flags)

    def opendir(self, caller: Caller, inode: int) -> None:
        """See `FileSystem.opendir`."""
        self._host(naming.opendir, self.tables, caller, inode)

    def readdir(self, inode: int, cookie: int, limit: int) -> list[Entry]:
        """See `FileSystem.readdir`."""
        entries = self._host(naming.readdir, self.tables, inode, cookie, limit)
        self._maintain()
        return entries

    # -- attributes -------------------------------------------------------------------------------

    def getattr(self, inode: int) -> Attributes:
        """See `FileSystem.getattr`."""
        found = self.tables.inodes.recent.young.get(inode)
        if found is None:
            found = self._host(self.tables.inodes.find, inode)
        return found.view()

    def birth(self, inode: int) -> int:
        """See `FileSystem.birth`."""
        return self._host(status.birth, self.tables, inode)

    def setattr(self, caller: Caller, inode: int, changes: Changes) -> Attributes:
        """See `FileSystem.setattr`."""
        return self._change(status.set_attributes, caller, inode, changes)

    def access(self, caller: Caller, inode: int, mode: int) -> None:
        """See `FileSystem.access`."""
        self._host(status.access, self.tables, caller, inode, mode)

    def setxattr(self, caller: Caller, inode: int, name: bytes, flags: int, value: Bulk) -> None:
        """See `FileSystem.setxattr`."""
        self._change(xattrs.store, caller, inode, name, flags, bytes(value))

    def getxattr(self, caller: Caller, inode: int, name: bytes, size: int) -> bytes:
        """See `FileSystem.getxattr`."""
        return self._host(xattrs.find, self.tables, caller, inode, name, size)

    def listxattr(self, caller: Caller, inode: int) -> list[bytes]:
        """See `FileSystem.listxattr`."""
        return self._host(xattrs.names, self.tables, caller, inode)

    def removexattr(self, caller: Caller, inode: int, name: bytes) -> None:
        """See `FileSystem.removexattr`."""
        self._change(xattrs.remove, caller, inode, name)

    # -- files ------------------------------------------------------------------------------------

    def create(
        self, caller: Caller, parent: int, name: bytes, mode: int, flags: int, client: int = 0
    ) -> Attributes:
        """See `FileSystem.create`; `client` is who has it open then."""
        attributes = self._change(naming.create, caller, parent, name, mode, flags)
        self._opens.add(self.store.request, client, attributes.inode)
        return attributes

    def tmpfile(
        self, caller: Caller, parent: int, mode: int, flags: int, client: int = 0
    ) -> Attributes:
        """See `FileSystem.tmpfile`; `client` is who has it open then."""
        try:
            return self._change(naming.tmpfile, caller, parent, mode, flags, client)
        except Refused:
            self._host(self._opens.retract, self._exists)
            raise

    def open(self, caller: Caller, inode: int, flags: int, client: int = 0) -> Attributes:
        """See `FileSystem.open`; `client` is who has it open then."""
        attributes = self._change(status.open_file, caller, inode, flags)
        self._opens.add(self.store.request, client, inode)
        return attributes

    def opened(self, request: int, client: int, inode: int) -> None:
        """Count an open whose request was answered from the record."""
        self._opens.add(request, client, inode)

    def release(self, inode: int, client: int = 0) -> None:
        """See `FileSystem.release`."""
        if not self._opens.remove(self.store.request, client, inode):
            raise Refused(errno.EBADF, f"the client has inode {inode} not open")
        self._free_closed([inode])

    def has_open(self, client: int, inode: int) -> bool:
        """Return whether a client has a file open."""
        return self._opens.count(client, inode) > 0

    def drop_client(self, client: int) -> None:
        """Give back all opens of a client that has ended."""
        self._free_closed(self._opens.drop_client(client))

    def _free_closed(self, inodes: list[int]) -> None:
        """Free those of the inodes that have neither opens nor links."""
        for number in inodes:
            if not self._opens.is_open(number) and self._is_orphan(number):
                self._change(_free_orphan, number)

    def _is_orphan(self, number: int) -> bool:
        try:
            return not self._host(self.tables.inodes.find, number).links
        except Refused:  # it is gone: a redelivered release
            return False

    def _exists(self, number: int) -> bool:
        return self.store.value("SELECT 1 FROM inode WHERE number = ?", (number,)) is not None

    def read(self, inode: int, offset: int, size: int) -> bytes:
        """See `FileSystem.read`; `read_into` does not copy."""
        view = memoryview(bytearray(self.readable(inode, offset, size)))
        self.read_into(inode, offset, view)
        return bytes(view)

    def readable(self, inode: int, offset: int, size: int) -> int:
        """Return how many octets such a read returns; a directory and the like are refused."""
        return self._host(contents.readable, self.tables, inode, offset, size)

    def read_into(self, inode: int, offset: int, view: memoryview) -> None:
        """Fill `view`, which has the size that `readable` said, with octets of a file."""
        tables = self.tables
        found = tables.inodes.find(inode)
        try:
            contents.read(tables, found, offset, view)
            status.read_time(tables, found)
        except apsw.Error as error:
            raise refusal(error) from None
        if self.store.log_pages > WAL_LIMIT_PAGES:  # reads store their times
            self._maintain()

    def write(self, caller: Caller, inode: int, offset: int, data: Bulk) -> int:
        """See `FileSystem.write`."""
        return self._change(contents.write, caller, inode, offset, data)

    def copy(
        self, caller: Caller, source: int, position: int, inode: int, offset: int, size: int
    ) -> int:
        """See `FileSystem.copy`."""
        return self._change(copying.copy, caller, source, position, inode, offset, size)

    def allocate(self, caller: Caller, inode: int, mode: int, offset: int, size: int) -> None:
        """See `FileSystem.allocate`."""
        self._change(contents.allocate, caller, inode, mode, offset, size)

    def seek(self, inode: int, offset: int, whence: int) -> int:
        """See `FileSystem.seek`."""
        return self._host(contents.seek, self.tables, inode, offset, whence)

    def fsync(self, inode: int) -> None:
        """See `FileSystem.fsync`."""
        self._host(self.tables.inodes.find, inode)
        self.settle()

    def statfs(self) -> Usage:
        """See `FileSystem.statfs`."""
        tables = self.tables
        if tables.survey is None:
            free = tables.allocator.available
        else:
            free = self.blocks - int(self._host(self.store.value, _USED))
        count = tables.inodes.count
        # an inode is a row in the database, and no number of those is set; df wants one
        limit = max(self.blocks, count)
        return Usage(BLOCK_SIZE, self.blocks, free, limit, limit - count, NAME_LIMIT)


def _free_orphan(tables: Tables, number: int) -> None:
    tables.free(tables.inodes.find(number))


def _open_data(
    directory: Path, descriptor: int | None, blocks: int, observer: Observer | None
) -> DataFile:
    """Return the data file, checked to be as long as the metadata say."""
    if descriptor is None:
        try:
            descriptor = os.open(directory / DATA_NAME, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise VolumeError(f"{directory / DATA_NAME}: {error.strerror}") from None
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size < blocks << BLOCK_SHIFT:
        os.close(descriptor)
        raise VolumeError(
            f"the data of {directory} has {size} octets, its metadata speak of"
            f" {blocks << BLOCK_SHIFT}: it was cut, or belongs to another volume",
            errno.EUCLEAN,
        )
    return DataFile(descriptor, size, observer)
