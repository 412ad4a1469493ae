"""`fsck`: does a volume keep what `layout` promises? Looks at everything, changes nothing.

Each check is a query whose rows are violations. A volume whose server died is checked as its next
server would find it: the log of the database is read first.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from .interface import ROOT_INODE
from .layout import BLOCK_SHIFT, DATA_NAME, VolumeError
from .store import Store


class Finding(NamedTuple):
    """One violation: `rule` names the promise, `detail` what breaks it."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


_S_IFMT: Final = 0o170000
_KINDS: Final = (
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
)
_DIRECTORY: Final = f"(inode.mode & {_S_IFMT}) = {stat.S_IFDIR}"
_FILE: Final = f"(inode.mode & {_S_IFMT}) = {stat.S_IFREG}"

# ruff: noqa: S608 - every query is put together from constants
# rule, what a row says, query
_QUERIES: Final = (
    (
        "every entry names an inode",
        "entry {1!r} of directory {0} names inode {2}, which does not exist",
        """SELECT directory, name, entry.inode FROM entry
           LEFT JOIN inode ON inode.number = entry.inode WHERE inode.number IS NULL""",
    ),
    (
        "entries lie in directories",
        "entry {1!r} lies in inode {0}, which is no directory",
        f"""SELECT directory, name FROM entry LEFT JOIN inode ON inode.number = directory
            WHERE inode.number IS NULL OR NOT {_DIRECTORY}""",
    ),
    (
        "sequence numbers are below the directory's next one",
        "entry {1!r} of directory {0} has sequence {2}",
        """SELECT directory, name, entry.sequence FROM entry
           JOIN inode ON inode.number = directory WHERE entry.sequence >= inode.sequence""",
    ),
    (
        "a file has as many entries as links",
        "inode {0} has {1} links and {2} entries",
        f"""SELECT number, links, COUNT(entry.inode) AS entries FROM inode
            LEFT JOIN entry ON entry.inode = number WHERE NOT {_DIRECTORY}
            GROUP BY number HAVING entries != links""",
    ),
    (
        "a directory has two links and one for each sub-directory",
        "directory {0} has {1} links and {2} sub-directories",
        f"""SELECT number, links, (SELECT COUNT(*) FROM entry JOIN inode AS child
                ON child.number = entry.inode AND (child.mode & {_S_IFMT}) = {stat.S_IFDIR}
                WHERE entry.directory = inode.number) AS children
            FROM inode WHERE {_DIRECTORY} AND links != 2 + children""",
    ),
    (
        "a directory has one entry, in its parent",
        "directory {0} has parent {1} and {2} entries there",
        f"""SELECT number, parent, (SELECT COUNT(*) FROM entry WHERE entry.inode = number
                AND directory = inode.parent) AS entries
            FROM inode WHERE {_DIRECTORY} AND number != {ROOT_INODE} AND (entries != 1
                OR (SELECT COUNT(*) FROM entry WHERE entry.inode = number) != 1)""",
    ),
    (
        "of all that is no directory, only nameless files have a parent",
        "inode {0} has {1} links and parent {2}",
        f"SELECT number, links, parent FROM inode WHERE NOT {_DIRECTORY} AND parent != 0"
        f" AND (links != 0 OR NOT {_FILE})",
    ),
    (
        "extents belong to files",
        "inode {0} has extents and is no file",
        f"""SELECT DISTINCT extent.inode FROM extent LEFT JOIN inode ON number = extent.inode
            WHERE number IS NULL OR NOT {_FILE}""",
    ),
    (
        "blocks is the sum of the extents",
        "inode {0} has {1} blocks and extents of {2}",
        """SELECT number, blocks, TOTAL(count) AS mapped FROM inode
           LEFT JOIN extent ON extent.inode = number
           GROUP BY number HAVING mapped != blocks""",
    ),
    (
        "sizes are possible",
        "inode {0} has mode {1:o} and size {2}",
        f"""SELECT number, mode, size FROM inode WHERE size < 0 OR blocks < 0
            OR ((mode & {_S_IFMT}) = {stat.S_IFLNK}
                AND (target IS NULL OR LENGTH(target) != size))""",
    ),
    (
        "kinds are known",
        "inode {0} has mode {1:o}",
        f"SELECT number, mode FROM inode WHERE (mode & {_S_IFMT}) NOT IN {_KINDS}",
    ),
    (
        "attributes belong to inodes",
        "attribute {1!r} belongs to inode {0}, which does not exist",
        """SELECT attribute.inode, name FROM attribute LEFT JOIN inode ON number = attribute.inode
           WHERE number IS NULL""",
    ),
    (
        "inode numbers are below the next one",
        "inode {0} is not below {1}",
        """SELECT number, value FROM inode JOIN volume ON key = 'next_inode'
           WHERE number >= value""",
    ),
)


def check_volume(directory: Path) -> list[Finding]:
    """Return all violations in a volume that no server has open.

    Raises:
        VolumeError: it cannot be opened at all.
    """
    store = Store(directory)
    try:
        return [
            *_check_database(store),
            *_check_queries(store),
            *_check_tree(store),
            *_check_extents(store),
            *_check_data(store, directory),
        ]
    except apsw.Error as error:
        raise VolumeError(f"{store.path} is damaged: {error}", errno.EUCLEAN) from None
    finally:
        store.close()


def _check_database(store: Store) -> list[Finding]:
    rows = [str(row[0]) for row in store.rows("PRAGMA integrity_check")]
    return [Finding("the database is sound", row) for row in rows if row != "ok"]


def _check_queries(store: Store) -> list[Finding]:
    findings: list[Finding] = []
    for rule, form, query in _QUERIES:
        findings.extend(Finding(rule, form.format(*row)) for row in store.rows(query))
    return findings


def _check_tree(store: Store) -> list[Finding]:
    """Every directory is reached from the root by way of the parents."""
    query = f"SELECT number, parent FROM inode WHERE {_DIRECTORY}"
    parents = dict(store.rows(query))
    if parents.get(ROOT_INODE) != ROOT_INODE:
        return [Finding("the root is its own parent", f"parent {parents.get(ROOT_INODE)}")]
    reached = {ROOT_INODE}
    findings: list[Finding] = []
    for number in parents:
        path: list[int] = []
        step = number
        while step not in reached and step not in path and step in parents:
            path.append(step)
            step = parents[step]
        if step in reached:
            reached.update(path)
        else:
            findings.append(Finding("directories are reached from the root", f"{number} is not"))
    return findings


def _check_extents(store: Store) -> list[Finding]:
    """Extents are disjoint, inside the volume, and two that could be one are one."""
    blocks = store.setting("blocks")
    findings: list[Finding] = []
    end, owner = 0, 0
    for inode, start, count in store.rows("SELECT inode, start, count FROM extent ORDER BY start"):
        if count < 1 or start < 0 or start + count > blocks:
            detail = f"inode {inode} has {count} blocks from {start} on, of {blocks}"
            findings.append(Finding("extents lie inside the volume", detail))
        if start < end:
            detail = f"inodes {owner} and {inode} share block {start}"
            findings.append(Finding("extents are disjoint", detail))
        end, owner = max(end, start + count), inode
    before = (0, 0, 0, 0)
    for row in store.rows("SELECT inode, block, start, count FROM extent ORDER BY inode, block"):
        inode, block, start, _ = row
        if inode == before[0] and block < before[1] + before[3]:
            detail = f"block {block} of inode {inode} is mapped twice"
            findings.append(Finding("extents are disjoint", detail))
        adjoins = block == before[1] + before[3] and start == before[2] + before[3]
        if inode == before[0] and adjoins:
            detail = f"inode {inode}, block {block} continues the one before"
            findings.append(Finding("adjoining extents are one", detail))
        before = row
    return findings


def _check_data(store: Store, directory: Path) -> list[Finding]:
    path = directory / DATA_NAME
    wanted = store.setting("blocks") << BLOCK_SHIFT
    size = path.stat().st_size if path.exists() else 0
    if size >= wanted:
        return []
    return [Finding("the data file is complete", f"{path} has {size} octets of {wanted}")]
