"""Watching, failing and dropping what a volume writes: an apsw VFS, and what it tells.

An `Observer` sees every write, truncation, sync and removal of the database's files before it
happens, and the same of the data file from `data.DataFile`. So one observer has the order of all of
them, and a test can make a write fail, or compute what a power cut at any point may leave behind.

A volume without an observer is opened through SQLite's own VFS: nothing is paid for this module.
With one, a commit costs about 1 µs more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import PurePath
from typing import Protocol

import apsw


class Observer(Protocol):
    """Is asked before anything reaches the host. Each may raise OSError: the operation fails."""

    def write(self, file: str, offset: int, data: bytes) -> bool:
        """Octets are about to be written to `file` (its last path component). False: drop them."""

    def truncate(self, file: str, size: int) -> None:
        """The file is about to get this size."""

    def punch(self, file: str, offset: int, size: int) -> None:
        """A hole is about to be made."""

    def sync(self, file: str) -> bool:
        """All that was written to the file is about to become durable. False: drop the sync."""

    def remove(self, file: str) -> None:
        """The file is about to be removed."""


def _as_sqlite(error: OSError) -> apsw.Error:
    """Return the error that makes SQLite report what the host would have reported."""
    return apsw.FullError(str(error)) if error.errno == 28 else apsw.IOError(str(error))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _as_sqlite(error) from error


class _ObservedFile(apsw.VFSFile):
    def __init__(
        self, observer: Observer, inherit: str, name: apsw.URIFilename | str, flags: list[int]
    ) -> None:
        super().__init__(inherit, name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = PurePath(path).name
        self._observer = observer

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        with _translated():
            wanted = self._observer.write(self._name, offset, bytes(data))
        if wanted:
            super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        with _translated():
            self._observer.truncate(self._name, newsize)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        with _translated():
            wanted = self._observer.sync(self._name)
        if wanted:
            super().xSync(flags)


class ObservedVfs(apsw.VFS):
    """A VFS whose files ask an observer first. `name` must be unique in the process.

    It is registered while the object lives; `unregister` ends that.
    """

    def __init__(self, name: str, observer: Observer) -> None:
        super().__init__(name, "")
        self.name = name
        self._observer = observer

    def xOpen(  # noqa: N802 - SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        """Open a file that asks the observer; temporary files without a name do not."""
        if name is None:
            return super().xOpen(name, flags)
        return _ObservedFile(self._observer, "", name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's name
        """Remove a file, after asking."""
        with _translated():
            self._observer.remove(PurePath(filename).name)
        super().xDelete(filename, syncdir)
