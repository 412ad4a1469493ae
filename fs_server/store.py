"""The metadata database of a volume: transactions, the recorded answer, and durability.

Theory of operation. SQLite runs in WAL mode with `synchronous=NORMAL`: a commit is one write to the
log and no sync. A process that dies after a commit loses nothing; a power cut loses the last
transactions and never half of one. `sync` makes all commits durable: it commits one more with
`synchronous=FULL`, which syncs the log behind it. The log is copied into the database by
`checkpoint` and by nothing else, because the data file must be synced before.

A transaction begins with the first `write` of an operation, so an operation that refuses before it
changed anything costs none.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import apsw

from .layout import (
    ADD_BIRTHS,
    APPLICATION_ID,
    FORMAT,
    METADATA_NAME,
    PAGE_SIZE,
    SCHEMA,
    HostError,
    VolumeError,
)

WAL_LIMIT_PAGES: Final = 8 * 1024 * 1024 // PAGE_SIZE
"""Pages in the log after which a checkpoint is due. Who opens the volume after a death reads the
log, which takes one to two milliseconds for each MiB. (Measured: with twice as many, creating is no
faster, appending 0 to 6 %, and the longest wait for a checkpoint twice as long.)"""
_CACHE_KIB: Final = 32 * 1024

_RECORD: Final = "UPDATE answer SET boot = ?, request = ?, reply = ? WHERE id = 1"
_UNIQUE: Final = "UPDATE volume SET value = value + 1 WHERE key = 'syncs'"


def refusal(error: apsw.Error) -> HostError:
    """Return the refusal for an error of the database: ENOSPC when the host is full, else EIO."""
    number = errno.ENOSPC if isinstance(error, apsw.FullError) else errno.EIO
    return HostError(number, f"metadata: {error}")


_open_here: Final[WeakValueDictionary[str, Store]] = WeakValueDictionary()
"""The stores that this process has open, by path: SQLite's locks do not tell them apart."""


class Store:
    """An open metadata database; exclusive: nobody else can open it meanwhile.

    Args:
        directory: the volume.
        vfs: name of the SQLite VFS to go through; empty: the host's own.
        take_over: close a store of the same volume that is still open in this process. It belongs
            to a promoted server's incarnation that ended by a fault, so nobody closed it.

    Raises:
        VolumeError: there is no volume, it is in use, damaged, or of another format.
    """

    def __init__(self, directory: Path, vfs: str = "", *, take_over: bool = False) -> None:
        self.path = directory / METADATA_NAME
        left = _open_here.get(str(self.path)) if take_over else None
        if left is not None:
            left.connection.close()
        if not self.path.exists():
            raise VolumeError(f"{directory} holds no volume: make one with mkfs", errno.ENOENT)
        try:
            self._open(vfs)
        except apsw.BusyError:
            raise VolumeError(f"{self.path} is in use by another server", errno.EBUSY) from None
        except (apsw.NotADBError, apsw.CorruptError) as error:
            raise VolumeError(f"{self.path} is damaged: {error}", errno.EUCLEAN) from None
        except apsw.Error as error:
            raise VolumeError(f"{self.path}: {error}") from None
        _open_here[str(self.path)] = self

    def _open(self, vfs: str) -> None:
        self.begun = False
        self.unsynced = True
        self.log_pages = 0
        self.boot_id = 0
        self.request = 0
        """Id of the request whose change is under way; 0: no answer is to be recorded."""
        self.connection = _connect(self.path, vfs)
        self.execute = self.connection.execute
        try:
            self._check_format()
            self.connection.set_wal_hook(self._committed)
            # closing must not checkpoint: the data may not be durable
            self.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        except BaseException:
            self.connection.close()
            raise

    def _check_format(self) -> None:
        found = self.value("PRAGMA application_id")
        if found != APPLICATION_ID:
            raise VolumeError(f"{self.path} is a database but no volume", errno.EUCLEAN)
        version = self.value("SELECT value FROM volume WHERE key = 'format'")
        if version != FORMAT:
            raise VolumeError(
                f"{self.path} has format {version}, this server knows {FORMAT}", errno.EUCLEAN
            )

    def _committed(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self.log_pages = pages
        return apsw.SQLITE_OK

    # -- reading ----------------------------------------------------------------------------------

    def value(self, statement: str, values: tuple[Any, ...] = ()) -> Any:
        """Return the first column of the first row, or None."""
        row = self.execute(statement, values).fetchone()
        return row[0] if row else None

    def row(self, statement: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """Return the first row, or None."""
        return self.execute(statement, values).fetchone()

    def rows(self, statement: str, values: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
        """Return an iterator over all rows; use it up before the next change."""
        return self.execute(statement, values)

    def setting(self, key: str) -> Any:
        """Return a value of the table `volume`, or None."""
        return self.value("SELECT value FROM volume WHERE key = ?", (key,))

    # -- changing ---------------------------------------------------------------------------------

    def write(self, statement: str, values: tuple[Any, ...] = ()) -> None:
        """Change something within the transaction under way, or begin one."""
        self.begin()
        self.execute(statement, values)

    def begin(self) -> None:
        """Begin a transaction, if none is under way: all changes from now on are one."""
        if not self.begun:
            self.execute("BEGIN IMMEDIATE")
            self.begun = True

    def write_alone(self, statement: str, values: tuple[Any, ...]) -> None:
        """Change one row, in the transaction under way or else as a transaction of its own.

        The second is cheaper than `write`; it is for changes that need no recorded answer.
        """
        self.execute(statement, values)
        self.unsynced = True

    def commit(self, reply: bytes | None = None) -> None:
        """End the transaction under way, if there is one; with it goes the request's answer."""
        if not self.begun:
            return
        if reply is not None and self.request:
            self.execute(_RECORD, (self.boot_id, self.request, reply))
        self.execute("COMMIT")
        self.begun = False
        self.unsynced = True

    def add_births(self) -> None:
        """Make room for the times of birth in a volume that has none."""
        columns = {name for _, name, *_ in self.rows("PRAGMA table_info(inode)")}
        if "birth" not in columns:
            self.execute(ADD_BIRTHS)

    def roll_back(self) -> None:
        """Undo the transaction under way."""
        if self.begun:
            self.begun = False
            # SQLite has rolled back by itself after some failures
            if not self.connection.get_autocommit():
                self.execute("ROLLBACK")

    def answer(self, request: int) -> bytes | None:
        """Return the reply recorded for a request of this boot; None: it changed nothing."""
        row = self.row("SELECT boot, request, reply FROM answer")
        if row is None or row[:2] != (self.boot_id, request):
            return None
        return bytes(row[2])

    # -- durability -------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when all commits survive a power cut; the data they name must be durable."""
        if not self.unsynced:
            return
        assert not self.begun
        self.execute("PRAGMA synchronous = FULL")
        try:
            self.execute(_UNIQUE)
        finally:
            self.execute("PRAGMA synchronous = NORMAL")
        self.unsynced = False

    def checkpoint(self) -> None:
        """Copy the log into the database; implies `sync`, and the log starts anew."""
        self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self.log_pages = 0
        self.unsynced = False

    def empty_log(self) -> None:
        """The same, and cut the log to nothing, so that the next open need not read it."""
        self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self.log_pages = 0

    def close(self) -> None:
        """Close; the log stays as it is."""
        self.connection.close()


def _connect(path: Path, vfs: str) -> apsw.Connection:
    """Open the database, and lock it for this connection alone."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    connection = apsw.Connection(str(path), flags=flags, vfs=vfs or None)
    try:
        for pragma in (
            f"page_size = {PAGE_SIZE}",
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "temp_store = MEMORY",
            "wal_autocheckpoint = 0",
            f"cache_size = -{_CACHE_KIB}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("BEGIN IMMEDIATE")  # takes the lock now, not with the first change
        connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection


def rehearse() -> None:
    """Make and read a database in memory, which has the library write to its own state."""
    connection = apsw.Connection(":memory:")
    for statement in SCHEMA:
        connection.execute(statement)
    connection.execute("SELECT value FROM volume WHERE key = 'format'").fetchone()
    connection.close()


def initialize(path: Path, settings: dict[str, Any], root: tuple[Any, ...]) -> None:
    """Write the tables of an empty volume.

    Args:
        path: of the database, which does not exist yet.
        settings: the rows of the table `volume`.
        root: the row of the root directory in the table `inode`.
    """
    connection = _connect(path, "")
    try:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA synchronous = FULL")
        with connection:
            for statement in SCHEMA:
                connection.execute(statement)
            connection.executemany("INSERT INTO volume VALUES(?, ?)", list(settings.items()))
            connection.execute(f"INSERT INTO inode VALUES({', '.join('?' * len(root))})", root)
    finally:
        connection.close()
