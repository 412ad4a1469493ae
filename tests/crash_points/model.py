"""What a file system must show: an independent model of `FileSystem`, exact to the nanosecond.

It is written from the interface and from POSIX, not from the server: plain dicts and octet strings,
no store, no cache. It has one client, checks no permissions, and knows the time because it is told
(`now`). Inodes have small numbers of the model's own. A state is copied cheaply: nodes are copied,
their contents are immutable.

What one needs to know beyond POSIX, and what is compared: an entry that is made to name another
inode keeps its place in the listing; `blocks` counts the blocks of 4 KiB that were written to or
allocated; times of reading move as with `relatime`; set-id bits go when another than root writes.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field, replace
from typing import Any, Final

from core.errors import Refused
from fs_server.interface import (
    ALLOCATE_KEEP_SIZE,
    ALLOCATE_PUNCH_HOLE,
    ALLOCATE_ZERO_RANGE,
    LOCK_NONE,
    LOCK_WRITE,
    NAME_LIMIT,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_INODE,
    XATTR_CREATE,
    XATTR_REPLACE,
    XATTR_SIZE_LIMIT,
    Attributes,
    Caller,
    Changes,
    Lock,
    Usage,
)

BLOCK: Final = 4096
_DAY_NS: Final = 86_400_000_000_000


@dataclass
class Node:
    """One inode."""

    number: int
    mode: int
    uid: int
    gid: int
    device: int = 0
    links: int = 1
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    size: int = 0
    data: bytes = b""
    blocks: frozenset[int] = frozenset()
    target: bytes = b""
    entries: dict[bytes, int] = field(default_factory=dict)
    parent: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    opens: int = 0
    birth: int = 0
    linkable: bool = True
    locks: tuple[Lock, ...] = ()

    def copy(self) -> Node:
        """Return a copy that shares nothing that changes."""
        return replace(self, entries=dict(self.entries), xattrs=dict(self.xattrs))

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def attributes(self) -> Attributes:
        """Return what `stat` shows."""
        return Attributes(
            self.number, self.mode, self.links, self.uid, self.gid, self.device, self.size,
            len(self.blocks) * (BLOCK // 512), self.atime, self.mtime, self.ctime,
        )  # fmt: skip

    def read_at(self, now: int) -> None:
        """Note that it was read, once after each change and once a day."""
        fresh = self.atime > max(self.mtime, self.ctime)
        if not (fresh and now - self.atime < _DAY_NS):
            self.atime = now

    def touch(self, now: int) -> None:
        """Note that the contents changed."""
        self.mtime = self.ctime = now

    def resize(self, size: int) -> None:
        """Cut the contents, or fill them with zeros."""
        self.data = self.data[:size].ljust(size, b"\0")
        self.size = size

    def drop_set_ids(self) -> None:
        """Take the bits away that would lend the owner's powers."""
        self.mode &= ~stat.S_ISUID
        if self.mode & stat.S_IXGRP:
            self.mode &= ~stat.S_ISGID

    def written_by(self, caller: Caller) -> None:
        """Another than root has changed the contents."""
        if caller.uid:
            self.drop_set_ids()


class Model:
    """A state of the tree, and the operations that lead to the next one."""

    def __init__(self, blocks: int, now: int, mode: int = 0o777) -> None:
        self.blocks = blocks
        self.now = now
        self.last = ROOT_INODE
        root = Node(ROOT_INODE, stat.S_IFDIR | mode, 0, 0, links=2, parent=ROOT_INODE)
        root.atime = root.mtime = root.ctime = root.birth = now
        self.nodes = {ROOT_INODE: root}

    def twin(self) -> Model:
        """Return the same state, to be changed apart from this one."""
        twin = Model(self.blocks, self.now)
        twin.last = self.last
        twin.nodes = {number: node.copy() for number, node in self.nodes.items()}
        return twin

    def without_opens(self) -> Model:
        """Return what another boot finds: nobody has anything open."""
        twin = self.twin()
        for node in twin.nodes.values():
            node.opens = 0
            node.locks = ()
        for number in self.orphans():
            del twin.nodes[number]
        return twin

    def orphans(self) -> list[int]:
        """Return the nodes that live because they are open."""
        return sorted(number for number, node in self.nodes.items() if not node.links)

    # -- finding ----------------------------------------------------------------------------------

    def _node(self, number: int) -> Node:
        node = self.nodes.get(number)
        if node is None:
            raise Refused(errno.ESTALE)
        return node

    def _directory(self, number: int) -> Node:
        node = self._node(number)
        if not node.is_directory:
            raise Refused(errno.ENOTDIR)
        return node

    def _file(self, number: int) -> Node:
        node = self._node(number)
        if not node.is_file:
            raise Refused(errno.EISDIR if node.is_directory else errno.EINVAL)
        return node

    def _entry(self, parent: int, name: bytes) -> Node:
        found = self._directory(parent).entries.get(name)
        if found is None:
            raise Refused(errno.ENOENT)
        return self.nodes[found]

    # -- making and removing ----------------------------------------------------------------------

    def _make(self, caller: Caller, parent: int, name: bytes, mode: int, device: int = 0) -> Node:
        directory = self._directory(parent)
        if name in directory.entries:
            raise Refused(errno.EEXIST)
        if not directory.links:
            raise Refused(errno.ENOENT)
        mode &= ~(caller.umask & 0o777)
        gid = caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        self.last += 1
        node = Node(self.last, mode, caller.uid, gid, device)
        node.atime = node.mtime = node.ctime = node.birth = self.now
        if node.is_directory:
            node.links, node.parent = 2, parent
            directory.links += 1
        self.nodes[node.number] = node
        if not name:
            return node
        directory.entries[name] = node.number
        directory.touch(self.now)
        return node

    def _drop(self, node: Node) -> None:
        if not node.links and not node.opens:
            self.nodes.pop(node.number, None)

    def _unlinked(self, node: Node) -> None:
        node.links -= 1
        node.linkable = node.links > 0
        node.ctime = self.now
        self._drop(node)

    def mknod(self, caller: Caller, parent: int, name: bytes, mode: int, device: int) -> Attributes:
        if stat.S_ISDIR(mode):
            raise Refused(errno.EPERM)
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return self._make(caller, parent, name, mode, device if is_device else 0).attributes()

    def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> Attributes:
        return self._make(caller, parent, name, stat.S_IFDIR | mode & 0o1777).attributes()

    def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> Attributes:
        umask = replace_umask(caller)
        node = self._make(umask, parent, name, stat.S_IFLNK | 0o777)
        node.target, node.size = target, len(target)
        return node.attributes()

    def link(self, caller: Caller, inode: int, parent: int, name: bytes) -> Attributes:
        node, directory = self._node(inode), self._directory(parent)
        if name in directory.entries:
            raise Refused(errno.EEXIST)
        if node.is_directory:
            raise Refused(errno.EPERM)
        if not node.linkable:
            raise Refused(errno.ENOENT)
        node.links += 1
        node.ctime = self.now
        directory.entries[name] = inode
        directory.touch(self.now)
        return node.attributes()

    def unlink(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        node = self._entry(parent, name)
        if node.is_directory:
            raise Refused(errno.EISDIR)
        directory = self._directory(parent)
        del directory.entries[name]
        directory.touch(self.now)
        self._unlinked(node)
        return node.attributes()

    def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        node = self._entry(parent, name)
        if not node.is_directory:
            raise Refused(errno.ENOTDIR)
        if node.entries:
            raise Refused(errno.ENOTEMPTY)
        directory = self._directory(parent)
        del directory.entries[name]
        directory.links -= 1
        directory.touch(self.now)
        del self.nodes[node.number]

    def rename(
        self, caller: Caller, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        source, target = self._directory(parent), self._directory(new_parent)
        moved = self._entry(parent, name)
        present = target.entries.get(new_name)
        if present is None and flags & RENAME_EXCHANGE:
            raise Refused(errno.ENOENT)
        if present is not None and flags & RENAME_NOREPLACE:
            raise Refused(errno.EEXIST)
        if moved.is_directory and self._is_below(new_parent, moved.number):
            raise Refused(errno.EINVAL)
        old = None if present is None else self.nodes[present]
        if old is not None and old.is_directory and self._is_below(parent, old.number):
            raise Refused(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)
        if present == moved.number:
            return
        if flags & RENAME_EXCHANGE:
            assert old is not None
            self._exchange((source, name, moved), (target, new_name, old))
        else:
            self._move((source, name, moved), (target, new_name, old))
        source.touch(self.now)
        target.touch(self.now)

    def _is_below(self, number: int, ancestor: int) -> bool:
        while number != ancestor:
            if number == ROOT_INODE:
                return False
            number = self.nodes[number].parent
        return True

    def _move(self, old: tuple[Node, bytes, Node], new: tuple[Node, bytes, Node | None]) -> None:
        source, name, moved = old
        target, new_name, replaced = new
        if replaced is not None:
            if moved.is_directory and not replaced.is_directory:
                raise Refused(errno.ENOTDIR)
            if replaced.is_directory and not moved.is_directory:
                raise Refused(errno.EISDIR)
            if replaced.entries:
                raise Refused(errno.ENOTEMPTY)
        del source.entries[name]
        target.entries[new_name] = moved.number
        moved.ctime = self.now
        if moved.is_directory:
            source.links -= 1
            target.links += 1
            moved.parent = target.number
        if replaced is None:
            return
        if replaced.is_directory:
            target.links -= 1
            del self.nodes[replaced.number]
        else:
            self._unlinked(replaced)

    def _exchange(self, one: tuple[Node, bytes, Node], two: tuple[Node, bytes, Node]) -> None:
        for (directory, name, before), (_, _, after) in ((one, two), (two, one)):
            directory.entries[name] = after.number
            directory.links += after.is_directory - before.is_directory
            after.ctime = self.now
            if after.is_directory:
                after.parent = directory.number

    # -- attributes -------------------------------------------------------------------------------

    def lookup(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        if name in {b".", b".."}:
            directory = self._directory(parent)
            return self.nodes[parent if name == b"." else directory.parent].attributes()
        return self._entry(parent, name).attributes()

    def getattr(self, inode: int) -> Attributes:
        return self._node(inode).attributes()

    def birth(self, inode: int) -> int:
        return self._node(inode).birth

    def access(self, caller: Caller, inode: int, mode: int) -> None:
        self._node(inode)

    def readlink(self, inode: int) -> bytes:
        node = self._node(inode)
        if not stat.S_ISLNK(node.mode):
            raise Refused(errno.EINVAL)
        return node.target

    def setattr(self, caller: Caller, inode: int, changes: Changes) -> Attributes:
        node = self._node(inode)
        if changes.size is not None:
            self._truncate(self._file(inode), caller, changes.size)
        if changes.uid is not None or changes.gid is not None:
            node.uid = node.uid if changes.uid is None else changes.uid
            node.gid = node.gid if changes.gid is None else changes.gid
            if not node.is_directory:
                node.drop_set_ids()
        if changes.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(changes.mode)
        if changes.atime is not None:
            node.atime = self.now if changes.now else changes.atime
        if changes.mtime is not None:
            node.mtime = self.now if changes.now else changes.mtime
        node.ctime = self.now if changes.ctime is None else changes.ctime
        return node.attributes()

    def _truncate(self, node: Node, caller: Caller, size: int) -> None:
        node.resize(size)
        node.blocks = frozenset(block for block in node.blocks if block * BLOCK < size)
        node.written_by(caller)
        node.touch(self.now)

    def setxattr(self, caller: Caller, inode: int, name: bytes, flags: int, value: bytes) -> None:
        node = self._node(inode)
        if len(value) > XATTR_SIZE_LIMIT:
            raise Refused(errno.E2BIG)
        if flags & XATTR_CREATE and name in node.xattrs:
            raise Refused(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in node.xattrs:
            raise Refused(errno.ENODATA)
        if node.xattrs.get(name) != value:
            node.xattrs[name] = value
            node.ctime = self.now

    def getxattr(self, caller: Caller, inode: int, name: bytes, size: int) -> bytes:
        value = self._node(inode).xattrs.get(name)
        if value is None:
            raise Refused(errno.ENODATA)
        if len(value) > size:
            raise Refused(errno.ERANGE)
        return value

    def listxattr(self, caller: Caller, inode: int) -> list[bytes]:
        return sorted(self._node(inode).xattrs)

    def removexattr(self, caller: Caller, inode: int, name: bytes) -> None:
        node = self._node(inode)
        if node.xattrs.pop(name, None) is None:
            raise Refused(errno.ENODATA)
        node.ctime = self.now

    # -- files ------------------------------------------------------------------------------------

    def create(self, caller: Caller, parent: int, name: bytes, mode: int, flags: int) -> Attributes:
        present = self._directory(parent).entries.get(name)
        if present is None:
            node = self._make(caller, parent, name, stat.S_IFREG | stat.S_IMODE(mode))
            node.opens += 1
            return node.attributes()
        if flags & os.O_EXCL:
            raise Refused(errno.EEXIST)
        return self.open(caller, present, flags)

    def tmpfile(self, caller: Caller, parent: int, mode: int, flags: int) -> Attributes:
        node = self._make(caller, parent, b"", stat.S_IFREG | stat.S_IMODE(mode))
        node.opens, node.links = 1, 0
        node.linkable = not flags & os.O_EXCL
        return node.attributes()

    def open(self, caller: Caller, inode: int, flags: int) -> Attributes:
        node = self._file(inode)
        if flags & os.O_TRUNC:
            self._truncate(node, caller, 0)
        node.opens += 1
        return node.attributes()

    def release(self, inode: int) -> None:
        node = self.nodes.get(inode)
        if node is None or not node.opens:
            raise Refused(errno.EBADF)
        node.opens -= 1
        if not node.opens:
            node.locks = ()
        self._drop(node)

    def close(self, inode: int, opened: int) -> None:
        node = self.nodes.get(inode)
        if node is not None:
            node.locks = tuple(held for held in node.locks if held.opened != opened)
        self.release(inode)

    def lock(self, inode: int, lock: Lock, eager: bool) -> Lock | None:
        """The histories' locks of one owner overlap only if they are the same."""
        node = self.nodes.get(inode)
        if node is None or not node.opens:
            raise Refused(errno.EBADF)
        found = self.locked(inode, lock)
        if found is None:
            others = [held for held in node.locks if not _same(held, lock)]
            node.locks = (*others, *([] if lock.kind == LOCK_NONE else [lock]))
        return found

    def locked(self, inode: int, lock: Lock) -> Lock | None:
        node = self.nodes.get(inode)
        if lock.start < 0 or lock.end < lock.start:
            raise Refused(errno.EINVAL)
        for held in sorted(node.locks if node else (), key=lambda held: held.start):
            overlap = held.start <= lock.end and lock.start <= held.end
            exclusive = LOCK_WRITE in {held.kind, lock.kind} and lock.kind != LOCK_NONE
            if held.whole == lock.whole and held.owner != lock.owner and overlap and exclusive:
                return held
        return None

    def unlock(self, inode: int, owner: int) -> None:
        node = self.nodes.get(inode)
        if node is not None:
            node.locks = tuple(held for held in node.locks if held.whole or held.owner != owner)

    def read(self, inode: int, offset: int, size: int) -> bytes:
        node = self._file(inode)
        node.read_at(self.now)
        return node.data[offset : offset + size]

    def write(self, caller: Caller, inode: int, offset: int, data: bytes) -> int:
        node = self._file(inode)
        if not data:
            return 0
        end = offset + len(data)
        self._fill(node, offset, end)
        node.resize(max(node.size, end))
        node.data = node.data[:offset] + data + node.data[end:]
        node.written_by(caller)
        node.touch(self.now)
        return len(data)

    def _fill(self, node: Node, offset: int, end: int) -> None:
        wanted = node.blocks | frozenset(range(offset // BLOCK, (end - 1) // BLOCK + 1))
        if len(wanted) - len(node.blocks) > self.statfs().blocks_free:
            raise Refused(errno.ENOSPC)
        node.blocks = wanted

    def fsync(self, inode: int, data_only: bool) -> None:
        self._node(inode)

    def sync(self) -> None:
        pass

    def opendir(self, caller: Caller, inode: int) -> None:
        self._directory(inode)

    def readdir(self, inode: int, cookie: int, limit: int) -> list[tuple[bytes, Attributes]]:
        """Return (name, attributes): cookies are the server's own. `cookie` is 0 here."""
        node = self._directory(inode)
        named = [(b".", inode), (b"..", node.parent), *node.entries.items()][:limit]
        found = [(name, self.nodes[number].attributes()) for name, number in named]
        node.read_at(self.now)
        return found

    def statfs(self) -> Usage:
        used = sum(len(node.blocks) for node in self.nodes.values())
        count = len(self.nodes)
        free = self.blocks - count
        return Usage(BLOCK, self.blocks, self.blocks - used, self.blocks, free, NAME_LIMIT)

    def allocate(self, caller: Caller, inode: int, mode: int, offset: int, size: int) -> None:
        node = self._file(inode)
        end = offset + size
        if mode & ALLOCATE_PUNCH_HOLE:
            whole = range(-(-offset // BLOCK), end // BLOCK)
            node.blocks = frozenset(block for block in node.blocks if block not in whole)
        else:
            self._fill(node, offset, end)
        if mode & (ALLOCATE_PUNCH_HOLE | ALLOCATE_ZERO_RANGE):
            zeros = bytes(max(0, min(end, node.size) - offset))
            node.data = node.data[:offset] + zeros + node.data[offset + len(zeros) :]
        if not mode & ALLOCATE_KEEP_SIZE:
            node.resize(max(node.size, end))
        node.written_by(caller)
        node.touch(self.now)

    def copy(
        self, caller: Caller, source: int, position: int, inode: int, offset: int, size: int
    ) -> int:
        origin, target = self._file(source), self._file(inode)
        size = min(size, origin.size - position)
        if size <= 0:
            return 0
        if origin is target and abs(position - offset) < size:
            raise Refused(errno.EINVAL)
        block = position // BLOCK
        is_hole = block not in origin.blocks
        while block * BLOCK < position + size and (block not in origin.blocks) == is_hole:
            block += 1
        size = min(size, block * BLOCK - position)
        if not is_hole:
            self.write(caller, inode, offset, origin.data[position : position + size])
        else:
            target.resize(max(target.size, offset + size))
            keep = ALLOCATE_PUNCH_HOLE | ALLOCATE_KEEP_SIZE
            self.allocate(caller, inode, keep, offset, size)
        origin.read_at(self.now)
        return size

    def seek(self, inode: int, offset: int, whence: int) -> int:
        node = self._file(inode)
        if offset >= node.size:
            raise Refused(errno.ENXIO)
        for block in range(offset // BLOCK, -(-node.size // BLOCK)):
            if (block in node.blocks) == (whence == os.SEEK_DATA):
                return max(offset, block * BLOCK)
        if whence == os.SEEK_HOLE:
            return node.size
        raise Refused(errno.ENXIO)


def _same(held: Lock, lock: Lock) -> bool:
    """Tell whether a new lock takes the place of one that is held."""
    one, two = (held.owner, held.whole, held.start), (lock.owner, lock.whole, lock.start)
    return one == two


def replace_umask(caller: Caller) -> Caller:
    """Return the caller with a umask that takes nothing: symbolic links have no mode."""
    return Caller(caller.uid, caller.gid, caller.groups, 0)


def perform(model: Model, operation: str, arguments: tuple[Any, ...]) -> Any:
    """Do an operation on the model; a refusal is returned as its error number's name."""
    try:
        return getattr(model, operation)(*arguments)
    except Refused as error:
        return errno.errorcode[error.errno]
