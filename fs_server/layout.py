"""How a volume lies on the host: a directory with `meta.db` and `data`.

    VOLUME/
      meta.db        SQLite, write-ahead log: everything but the contents of files
      meta.db-wal    the log; exists while a server has the volume open, or died
      data           the contents of files: a sparse file of blocks

    data      +---------+---------+---------+---------+-------
              | block 0 | block 1 | block 2 | block 3 |  ...      BLOCK_SIZE octets each
              +---------+---------+---------+---------+-------
                   ^-------- extent (inode 7, block 0, start 0, count 3)

    meta.db   volume      key -> value: format, uuid, blocks, next_inode, syncs, mark
              inode       number -> mode, links, owners, size, times; of a directory also its parent
                          and the next sequence number; of a symbolic link its target; of a file
                          that was made without a name, the directory it was made in, until it
                          gets a link
              entry       (directory, name) -> sequence, inode
                          and by (directory, sequence), which is the order of listings
              extent      (inode, first block in the file) -> first block in the volume, count
              attribute   (inode, name) -> value of an extended attribute
              answer      the last change's boot, request and reply: see below

The mark is the random number of the last server that allocated blocks without having known free
ones from the server before it (`reserve`); it is missing when there was none.

The answer is written in the transaction of the change that it answers. A server that dies between
the commit and the reply finds it when the request is delivered again. One row is enough, because a
server takes one request after the other.

Invariants that `check` verifies: every inode but the root has as many entries as links (a directory
one, plus two and the number of its sub-directories as links), or none and no links (an *orphan*,
which some client has open); extents are disjoint, inside the volume, and adjoin nothing that they
could be one with; `blocks` of an inode is the sum of its extents; every directory is reached from
the root by its `parent`; sequence numbers are below the directory's next one.
"""

from __future__ import annotations

import errno
from typing import Final

from core.errors import Refused

FORMAT: Final = 1
"""The version of everything on this page. A server opens only its own."""
APPLICATION_ID: Final = 0x41746F6C
"""SQLite's application id of `meta.db`: "Atol"."""

METADATA_NAME: Final = "meta.db"
DATA_NAME: Final = "data"

BLOCK_SIZE: Final = 4096
BLOCK_SHIFT: Final = 12
BLOCK_MASK: Final = BLOCK_SIZE - 1
SECTORS_PER_BLOCK: Final = BLOCK_SIZE // 512
MIN_BLOCKS: Final = 16
MAX_BLOCKS: Final = 1 << 50

PAGE_SIZE: Final = 1024
"""Octets in a page of the database. A change touches about five pages; small ones keep the log
small (measured per create: 31 µs and 5 kB with 1 KiB, 37 µs and 20 kB with 4 KiB)."""

FIRST_SEQUENCE: Final = 3
"""Sequence of a directory's first entry; 1 and 2 are '.' and '..'."""

ADD_BIRTHS: Final = "ALTER TABLE inode ADD COLUMN birth INT"
"""What a volume lacks that was made before births were stored: those of its files are not known."""

SCHEMA: Final = (
    "CREATE TABLE volume(key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE inode(
        number INTEGER PRIMARY KEY, mode INT, links INT, uid INT, gid INT, device INT, size INT,
        blocks INT, atime INT, mtime INT, ctime INT, parent INT, sequence INT, target BLOB,
        birth INT)""",
    "CREATE INDEX orphan ON inode(number) WHERE links = 0",
    """CREATE TABLE entry(
        directory INT, name BLOB, sequence INT, inode INT,
        PRIMARY KEY(directory, name)) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX listing ON entry(directory, sequence)",
    """CREATE TABLE extent(
        inode INT, block INT, start INT, count INT,
        PRIMARY KEY(inode, block)) WITHOUT ROWID""",
    """CREATE TABLE attribute(
        inode INT, name BLOB, value BLOB,
        PRIMARY KEY(inode, name)) WITHOUT ROWID""",
    "CREATE TABLE answer(id INTEGER PRIMARY KEY, boot INT, request INT, reply BLOB)",
    "INSERT INTO answer VALUES(1, 0, 0, x'')",
)


class VolumeError(Refused):
    """A volume cannot be made or opened; `detail` says which, why, and what to do."""

    def __init__(self, detail: str, number: int = errno.EIO) -> None:
        super().__init__(number, detail)


class HostError(Refused):
    """The host failed a read or a write in the middle of an operation, which must be rolled back.

    Clients see it as `Refused` with the host's reason: ENOSPC when its disk is full, EIO.
    """
