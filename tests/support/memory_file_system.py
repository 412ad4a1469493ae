"""A file system in memory behind the `FileSystem` interface, the front end's peer in tests.

It keeps the rules a front end relies on (errors, links, opens, listings, sparse data) and checks no
permissions, because a front end leaves those to the host. `MemoryFileSystem` is what the front end
is given. `other` is a second client of the same tree: what it does, the first one can learn through
`watch` and `changes`. No operation suspends, so it shows what the front end alone costs.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import trio

from core.abi import Right
from core.errors import Refused
from core.userlib.interface import Bulk
from fs_server.interface import (
    ALLOCATE_KEEP_SIZE,
    CHANGES_LIMIT,
    COPY_LIMIT,
    FILE_LIMIT,
    NAME_LIMIT,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_INODE,
    XATTR_CREATE,
    XATTR_REPLACE,
    Attributes,
    Caller,
    Change,
    Changes,
    Entry,
    FileSystem,
    Lock,
    Usage,
)
from fs_server.locking import Locking

CHUNK: Final = 1 << 17
"""Octets in one piece of a file; a piece that was never written takes no room."""


class Node:
    """One inode: attributes, and the entries, target or data that belong to its kind."""

    __slots__ = (
        "atime", "cookies", "ctime", "data", "device", "entries", "gid", "inode", "links", "mode",
        "mtime", "opens", "parent", "shown", "size", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, inode: int, mode: int, uid: int, gid: int, device: int = 0) -> None:
        self.inode, self.mode, self.uid, self.gid, self.device = inode, mode, uid, gid, device
        self.links = 2 if stat.S_ISDIR(mode) else 1
        self.size = self.opens = 0
        self.parent = inode
        self.entries: dict[bytes, int] = {}
        self.cookies: dict[bytes, int] = {}
        self.data: dict[int, bytearray] = {}
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.atime = self.mtime = self.ctime = time.time_ns()
        self.shown: Attributes | None = None

    def attributes(self) -> Attributes:
        """Return what `stat` shows; the same object until something changes."""
        shown = self.shown
        if shown is None:
            blocks = len(self.data) * CHUNK // 512
            shown = self.shown = Attributes(
                self.inode, self.mode, self.links, self.uid, self.gid, self.device,
                self.size, blocks, self.atime, self.mtime, self.ctime,
            )  # fmt: skip
        return shown

    def touch(self, *, data: bool = False) -> None:
        """Note that the inode, and perhaps its data, changed now."""
        self.ctime = time.time_ns()
        if data:
            self.mtime = self.ctime
        self.shown = None


def write_chunks(chunks: dict[int, bytearray], offset: int, data: memoryview) -> None:
    """Put octets at `offset`."""
    at = 0
    while at < len(data):
        index, inside = divmod(offset + at, CHUNK)
        chunk = chunks.get(index)
        if chunk is None:
            chunk = chunks[index] = bytearray(CHUNK)
        part = data[at : at + CHUNK - inside]
        chunk[inside : inside + len(part)] = part
        at += len(part)


def read_chunks(chunks: dict[int, bytearray], offset: int, size: int) -> Bulk:
    """Return octets from `offset` on; holes read as zeros."""
    index, inside = divmod(offset, CHUNK)
    if inside + size <= CHUNK:
        chunk = chunks.get(index)
        return bytes(size) if chunk is None else memoryview(chunk)[inside : inside + size]
    parts = []
    while size > 0:
        part = read_chunks(chunks, offset, min(size, CHUNK - offset % CHUNK))
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


def cut_chunks(chunks: dict[int, bytearray], size: int) -> None:
    """Forget every octet from `size` on."""
    index, inside = divmod(size, CHUNK)
    for gone in [number for number in chunks if number > index or (number == index and not inside)]:
        del chunks[gone]
    if inside and index in chunks:
        chunks[index][inside:] = bytes(CHUNK - inside)


class Tree:
    """What both clients share: the inodes, and the record of what happened."""

    def __init__(self) -> None:
        self.nodes = {ROOT_INODE: Node(ROOT_INODE, stat.S_IFDIR | 0o755, os.getuid(), os.getgid())}
        self.next = ROOT_INODE + 1
        self.cookies = itertools.count(3)
        self.badges = itertools.count(1)
        self.locks = Locking()
        self.record: list[tuple[object, Change]] = []
        self.watcher: tuple[object, Callable[[], None]] | None = None

    def node(self, inode: int) -> Node:
        """Return an inode; ESTALE when there is none."""
        node = self.nodes.get(inode)
        if node is None:
            raise Refused(errno.ESTALE)
        return node

    def note(self, by: object, changes: Iterable[Change]) -> None:
        """Record changes, and tell the watcher if another client made them."""
        self.record.extend((by, change) for change in changes)
        if self.watcher is not None and self.watcher[0] is not by:
            self.watcher[1]()


class MemoryFileSystem(FileSystem, stub=True):
    """One client of a tree in memory."""

    def __init__(self, tree: Tree | None = None) -> None:
        self.tree = tree or Tree()
        self.badge = next(self.tree.badges)
        self.changed = trio.Event()
        self.told = 0
        """How often the client asked for changes and got none any more."""
        self._told = trio.Event()

    def other(self) -> MemoryFileSystem:
        """Return another client of the same tree."""
        return MemoryFileSystem(self.tree)

    def _directory(self, inode: int) -> Node:
        node = self.tree.node(inode)
        if not stat.S_ISDIR(node.mode):
            raise Refused(errno.ENOTDIR)
        return node

    def _child(self, parent: int, name: bytes) -> Node:
        found = self._directory(parent).entries.get(name)
        if found is None:
            raise Refused(errno.ENOENT)
        return self.tree.nodes[found]

    def _note(self, *changes: Change) -> None:
        self.tree.note(self, changes)

    def _enter(self, parent: int, name: bytes, node: Node) -> None:
        directory = self._directory(parent)
        directory.entries[name] = node.inode
        directory.cookies[name] = next(self.tree.cookies)
        if stat.S_ISDIR(node.mode):
            directory.links += 1
            node.parent = parent
        directory.touch(data=True)
        self._note(Change(parent, name), Change(parent))

    def _make(self, caller: Caller, parent: int, name: bytes, mode: int, device: int = 0) -> Node:
        directory = self._directory(parent)
        if len(name) > NAME_LIMIT:
            raise Refused(errno.ENAMETOOLONG)
        if name in directory.entries:
            raise Refused(errno.EEXIST)
        if not directory.links:
            raise Refused(errno.ENOENT)
        node = Node(self.tree.next, mode, caller.uid, caller.gid, device)
        self.tree.next += 1
        self.tree.nodes[node.inode] = node
        self._enter(parent, name, node)
        return node

    def _leave(self, parent: int, name: bytes) -> Node:
        directory = self._directory(parent)
        node = self._child(parent, name)
        del directory.entries[name]
        if stat.S_ISDIR(node.mode):
            directory.links -= 1
            node.links = 0
        else:
            node.links -= 1
        directory.touch(data=True)
        node.touch()
        self._drop(node)
        self._note(Change(parent, name), Change(parent), Change(node.inode))
        return node

    def _drop(self, node: Node) -> None:
        if not node.links and not node.opens:
            self.tree.nodes.pop(node.inode, None)

    async def lookup(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        if len(name) > NAME_LIMIT:
            raise Refused(errno.ENAMETOOLONG)
        if name == b".":
            return self._directory(parent).attributes()
        if name == b"..":
            return self.tree.node(self._directory(parent).parent).attributes()
        return self._child(parent, name).attributes()

    async def getattr(self, inode: int) -> Attributes:
        node = self.tree.nodes.get(inode)
        if node is None:
            raise Refused(errno.ESTALE)
        return node.shown or node.attributes()

    async def setattr(self, caller: Caller, inode: int, changes: Changes) -> Attributes:
        node = self.tree.node(inode)
        if changes.size is not None:
            if not 0 <= changes.size <= FILE_LIMIT:
                raise Refused(errno.EFBIG)
            cut_chunks(node.data, changes.size)
            node.size = changes.size
        if changes.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(changes.mode)
        for name in ("uid", "gid"):
            if (value := getattr(changes, name)) is not None:
                setattr(node, name, value)
        node.touch(data=changes.size is not None)
        for name in ("atime", "mtime"):
            if (value := getattr(changes, name)) is not None:
                setattr(node, name, value)
        self._note(Change(inode, data=changes.size is not None))
        return node.attributes()

    async def access(self, caller: Caller, inode: int, mode: int) -> None:
        self.tree.node(inode)

    async def readlink(self, inode: int) -> bytes:
        return self.tree.node(inode).target

    async def mknod(
        self, caller: Caller, parent: int, name: bytes, mode: int, device: int
    ) -> Attributes:
        return self._make(caller, parent, name, mode, device).attributes()

    async def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> Attributes:
        return self._make(caller, parent, name, stat.S_IFDIR | mode).attributes()

    async def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> Attributes:
        node = self._make(caller, parent, name, stat.S_IFLNK | 0o777)
        node.target, node.size, node.shown = target, len(target), None
        return node.attributes()

    async def link(self, caller: Caller, inode: int, parent: int, name: bytes) -> Attributes:
        node = self.tree.node(inode)
        if name in self._directory(parent).entries:
            raise Refused(errno.EEXIST)
        node.links += 1
        node.touch()
        self._enter(parent, name, node)
        return node.attributes()

    async def unlink(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        if stat.S_ISDIR(self._child(parent, name).mode):
            raise Refused(errno.EISDIR)
        return self._leave(parent, name).attributes()

    async def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        node = self._child(parent, name)
        if not stat.S_ISDIR(node.mode):
            raise Refused(errno.ENOTDIR)
        if node.entries:
            raise Refused(errno.ENOTEMPTY)
        self._leave(parent, name)

    async def rename(
        self, caller: Caller, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        moved = self._child(parent, name)
        present = self._directory(new_parent).entries.get(new_name)
        if flags & RENAME_NOREPLACE and present is not None:
            raise Refused(errno.EEXIST)
        if flags & RENAME_EXCHANGE:
            return self._exchange((parent, name), (new_parent, new_name))
        if present == moved.inode:
            return None
        if present is not None:
            replaced = self.tree.nodes[present]
            if replaced.entries:
                raise Refused(errno.ENOTEMPTY)
            self._leave(new_parent, new_name)
        del self._directory(parent).entries[name]
        if stat.S_ISDIR(moved.mode):
            self._directory(parent).links -= 1
        self._directory(parent).touch(data=True)
        moved.touch()
        self._enter(new_parent, new_name, moved)
        self._note(Change(parent, name), Change(parent), Change(moved.inode))
        return None

    def _exchange(self, one: tuple[int, bytes], two: tuple[int, bytes]) -> None:
        first, second = self._child(*one), self._child(*two)
        for (parent, name), node in ((one, second), (two, first)):
            self._directory(parent).entries[name] = node.inode
            self._directory(parent).touch(data=True)
            node.parent = parent if stat.S_ISDIR(node.mode) else node.parent
            node.touch()
            self._note(Change(parent, name), Change(parent), Change(node.inode))

    async def create(
        self, caller: Caller, parent: int, name: bytes, mode: int, flags: int
    ) -> Attributes:
        present = self._directory(parent).entries.get(name)
        if present is None:
            node = self._make(caller, parent, name, stat.S_IFREG | stat.S_IMODE(mode))
            node.opens += 1
            return node.attributes()
        if flags & os.O_EXCL:
            raise Refused(errno.EEXIST)
        return await self.open(caller, present, flags)

    async def tmpfile(self, caller: Caller, parent: int, mode: int, flags: int) -> Attributes:
        self._directory(parent)
        node = Node(self.tree.next, stat.S_IFREG | mode, caller.uid, caller.gid)
        self.tree.next += 1
        self.tree.nodes[node.inode] = node
        node.opens, node.links = 1, 0
        return node.attributes()

    async def copy(
        self, caller: Caller, source: int, position: int, inode: int, offset: int, size: int
    ) -> int:
        octets = bytes(await self.read(source, position, min(size, COPY_LIMIT)))
        return await self.write(caller, inode, offset, octets) if octets else 0

    async def birth(self, inode: int) -> int:
        self.tree.node(inode)
        return 0

    async def open(self, caller: Caller, inode: int, flags: int) -> Attributes:
        node = self.tree.node(inode)
        node.opens += 1
        if flags & os.O_TRUNC:
            await self.setattr(caller, inode, Changes(size=0))
        return node.attributes()

    async def release(self, inode: int) -> None:
        node = self.tree.node(inode)
        if not node.opens:
            raise Refused(errno.EBADF)
        node.opens -= 1
        self._drop(node)

    async def close(self, inode: int, opened: int) -> None:
        self.tree.locks.drop_opened(self.badge, inode, opened)
        await self.release(inode)

    async def lock(self, inode: int, lock: Lock, eager: bool) -> Lock | None:
        return self.tree.locks.lock(self.badge, inode, lock, eager=eager)

    async def locked(self, inode: int, lock: Lock) -> Lock | None:
        return self.tree.locks.locked(self.badge, inode, lock)

    async def unlock(self, inode: int, owner: int) -> None:
        self.tree.locks.drop_owner(self.badge, inode, owner)

    async def read(self, inode: int, offset: int, size: int) -> Bulk:
        node = self.tree.node(inode)
        return read_chunks(node.data, offset, max(0, min(size, node.size - offset)))

    async def write(self, caller: Caller, inode: int, offset: int, data: Bulk) -> int:
        node = self.tree.node(inode)
        if offset + len(data) > FILE_LIMIT:
            raise Refused(errno.EFBIG)
        write_chunks(node.data, offset, memoryview(data))
        node.size = max(node.size, offset + len(data))
        node.touch(data=True)
        self._note(Change(inode, data=True))
        return len(data)

    async def fsync(self, inode: int, data_only: bool) -> None:
        self.tree.node(inode)

    async def sync(self) -> None:
        pass

    async def opendir(self, caller: Caller, inode: int) -> None:
        self._directory(inode)

    async def readdir(self, inode: int, cookie: int, limit: int) -> list[Entry]:
        """List in the order of making: an entry's cookie never changes."""
        node = self._directory(inode)
        named = [(1, b".", inode), (2, b"..", node.parent)]
        named += ((node.cookies[name], name, number) for name, number in node.entries.items())
        later = [item for item in named if item[0] > cookie][:limit]
        return [Entry(at, name, self.tree.nodes[number].attributes()) for at, name, number in later]

    async def statfs(self) -> Usage:
        return Usage(4096, 1 << 20, 1 << 19, 1 << 20, (1 << 20) - len(self.tree.nodes), NAME_LIMIT)

    async def setxattr(
        self, caller: Caller, inode: int, name: bytes, flags: int, value: Bulk
    ) -> None:
        xattrs = self.tree.node(inode).xattrs
        if flags & XATTR_CREATE and name in xattrs:
            raise Refused(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in xattrs:
            raise Refused(errno.ENODATA)
        xattrs[name] = bytes(value)
        self._note(Change(inode))

    async def getxattr(self, caller: Caller, inode: int, name: bytes, size: int) -> Bulk:
        value = self.tree.node(inode).xattrs.get(name)
        if value is None:
            raise Refused(errno.ENODATA)
        if len(value) > size:
            raise Refused(errno.ERANGE)
        return value

    async def listxattr(self, caller: Caller, inode: int) -> list[bytes]:
        return sorted(self.tree.node(inode).xattrs)

    async def removexattr(self, caller: Caller, inode: int, name: bytes) -> None:
        if self.tree.node(inode).xattrs.pop(name, None) is None:
            raise Refused(errno.ENODATA)
        self._note(Change(inode))

    async def allocate(self, caller: Caller, inode: int, mode: int, offset: int, size: int) -> None:
        node = self.tree.node(inode)
        if mode & ~ALLOCATE_KEEP_SIZE:
            raise Refused(errno.EOPNOTSUPP)
        if not mode:
            node.size = max(node.size, offset + size)
            node.touch()

    async def seek(self, inode: int, offset: int, whence: int) -> int:
        node = self.tree.node(inode)
        if offset >= node.size:
            raise Refused(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else node.size

    async def watch(self, port: Right) -> int:
        self.tree.watcher = (self, self._signal)
        return len(self.tree.record)

    def _signal(self) -> None:
        self.changed.set()

    async def changes(self, after: int) -> tuple[int, list[Change]]:
        found: list[Change] = []
        while after < len(self.tree.record) and len(found) < CHANGES_LIMIT:
            by, change = self.tree.record[after]
            after += 1
            if by is not self:
                found.append(change)
        if not found:
            self.told += 1
            told, self._told = self._told, trio.Event()
            told.set()
        return after, found

    async def wait_told(self, before: int) -> None:
        """Wait until the watching client has dealt with all changes, once more than `before`."""
        while self.told <= before:
            await self._told.wait()

    @property
    def port(self) -> Right:
        """Stand for the port that a front end would be notified at."""
        return Right()

    async def wait_changed(self) -> None:
        """Wait until `watch` has something to report, and arm it again."""
        await self.changed.wait()
        self.changed = trio.Event()


class FailingFileSystem(MemoryFileSystem):
    """A tree whose next operation of a kind can be made to fail with any exception."""

    def __init__(self, tree: Tree | None = None) -> None:
        super().__init__(tree)
        self.failures: dict[str, BaseException] = {}

    def __getattribute__(self, name: str) -> Any:
        failures = object.__getattribute__(self, "__dict__").get("failures")
        if failures and name in failures:
            raise failures[name]
        return object.__getattribute__(self, name)
