"""Volumes against the host's own file system: same errors, same attributes, same contents.

Random programs run on both. After each step the refusals are compared, then the two trees: names,
kinds, modes, owners, sizes, link counts, contents, extended attributes, and which times changed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from core.errors import Refused
from fs_server.interface import Attributes, Caller, Changes
from fs_server.volume import Volume

from .support import ALICE, BOB, CAROL, ROOT, TOP, Clock, assert_sound, names_in, new_volume

pytestmark = pytest.mark.needs_root

Path_ = tuple[bytes, ...]

_libc: Final = ctypes.CDLL(None, use_errno=True)
_NAMES: Final = (b"a", b"b", b"c")
paths = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3).map(tuple)
callers = st.sampled_from([ROOT, ALICE, BOB, CAROL])
modes = st.sampled_from([0o777, 0o755, 0o700, 0o750, 0o070, 0o1777, 0o2777, 0o6755, 0o644, 0])
sizes = st.sampled_from([0, 1, 100, 4095, 4096, 4097, 9000, 20_000])
flags = st.sampled_from([0, 0, 0, 1, 2, 3])


@contextmanager
def acting(caller: Caller) -> Iterator[None]:
    """Be somebody else on the host."""
    os.setgroups(list(caller.groups))
    os.setegid(caller.gid)
    os.seteuid(caller.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


class Host:
    """The operations on the host; paths are relative to a directory."""

    def __init__(self, root: int) -> None:
        self.root = root

    def name(self, path: Path_) -> bytes:
        return b"/".join(path)

    def mkdir(self, caller: Caller, path: Path_, mode: int) -> None:
        os.mkdir(self.name(path), mode, dir_fd=self.root)

    def mknod(self, caller: Caller, path: Path_, mode: int) -> None:
        os.mknod(self.name(path), mode, dir_fd=self.root)

    def symlink(self, caller: Caller, path: Path_, target: bytes) -> None:
        os.symlink(target, self.name(path), dir_fd=self.root)

    def link(self, caller: Caller, path: Path_, new: Path_) -> None:
        os.link(
            self.name(path),
            self.name(new),
            src_dir_fd=self.root,
            dst_dir_fd=self.root,
            follow_symlinks=False,
        )

    def unlink(self, caller: Caller, path: Path_) -> None:
        os.unlink(self.name(path), dir_fd=self.root)

    def rmdir(self, caller: Caller, path: Path_) -> None:
        os.rmdir(self.name(path), dir_fd=self.root)

    def rename(self, caller: Caller, path: Path_, new: Path_, flags: int) -> None:
        old, target = self.name(path), self.name(new)
        if _libc.renameat2(self.root, old, self.root, target, ctypes.c_uint(flags)):
            raise OSError(ctypes.get_errno(), "")

    def _open(self, path: Path_, flags: int) -> int:
        return os.open(self.name(path), flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.root)

    def chmod(self, caller: Caller, path: Path_, mode: int) -> None:
        os.chmod(self.name(path), mode, dir_fd=self.root)

    def chown(self, caller: Caller, path: Path_, uid: int, gid: int) -> None:
        os.chown(self.name(path), uid, gid, dir_fd=self.root, follow_symlinks=False)

    def utimes(self, caller: Caller, path: Path_, times: tuple[int, int] | None) -> None:
        name = self.name(path)
        if times is None:
            os.utime(name, dir_fd=self.root, follow_symlinks=False)
        else:
            os.utime(name, ns=times, dir_fd=self.root, follow_symlinks=False)

    def truncate(self, caller: Caller, path: Path_, size: int) -> None:
        descriptor = self._open(path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def write(self, caller: Caller, path: Path_, offset: int, data: bytes) -> None:
        descriptor = self._open(path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)

    def read(self, caller: Caller, path: Path_, offset: int, size: int) -> bytes:
        descriptor = self._open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def allocate(self, caller: Caller, path: Path_, mode: int, offset: int, size: int) -> None:
        descriptor = self._open(path, os.O_WRONLY)
        try:
            if _libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(size)):
                raise OSError(ctypes.get_errno(), "")
        finally:
            os.close(descriptor)

    def setxattr(self, caller: Caller, path: Path_, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._by_number(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, caller: Caller, path: Path_, name: bytes) -> None:
        os.removexattr(self._by_number(path), name, follow_symlinks=False)

    def getxattr(self, caller: Caller, path: Path_, name: bytes) -> bytes:
        return os.getxattr(self._by_number(path), name, follow_symlinks=False)

    def _by_number(self, path: Path_) -> bytes:
        return b"/proc/self/fd/%d/" % self.root + self.name(path)

    def access(self, caller: Caller, path: Path_, mode: int) -> None:
        name = self.name(path)
        if not os.access(name, mode, dir_fd=self.root, effective_ids=True, follow_symlinks=False):
            os.stat(name, dir_fd=self.root, follow_symlinks=False)
            raise OSError(errno.EACCES, "")


class Ours:
    """The same operations on a volume: paths are walked as a Unix kernel would."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    def parent(self, caller: Caller, path: Path_) -> tuple[int, bytes]:
        number = TOP
        for name in path[:-1]:
            found = self.volume.lookup(caller, number, name)
            if stat.S_ISLNK(found.mode):
                raise Refused(errno.ENOENT)  # all symbolic links of these tests dangle
            if not stat.S_ISDIR(found.mode):
                raise Refused(errno.ENOTDIR)
            number = found.inode
        self.volume.access(caller, number, os.X_OK)  # before anything else of the call is looked at
        return number, path[-1]

    def find(self, caller: Caller, path: Path_) -> Attributes:
        return self.volume.lookup(caller, *self.parent(caller, path))

    def mkdir(self, caller: Caller, path: Path_, mode: int) -> None:
        self.volume.mkdir(caller, *self.parent(caller, path), mode)

    def mknod(self, caller: Caller, path: Path_, mode: int) -> None:
        self.volume.mknod(caller, *self.parent(caller, path), mode, 0)

    def symlink(self, caller: Caller, path: Path_, target: bytes) -> None:
        self.volume.symlink(caller, *self.parent(caller, path), target)

    def link(self, caller: Caller, path: Path_, new: Path_) -> None:
        inode = self.find(caller, path).inode
        self.volume.link(caller, inode, *self.parent(caller, new))

    def unlink(self, caller: Caller, path: Path_) -> None:
        self.volume.unlink(caller, *self.parent(caller, path))

    def rmdir(self, caller: Caller, path: Path_) -> None:
        self.volume.rmdir(caller, *self.parent(caller, path))

    def rename(self, caller: Caller, path: Path_, new: Path_, flags: int) -> None:
        if flags == 3:
            raise Refused(errno.EINVAL)
        old = self.parent(caller, path)
        self.volume.rename(caller, *old, *self.parent(caller, new), flags)

    def chmod(self, caller: Caller, path: Path_, mode: int) -> None:
        found = self.find(caller, path)
        if stat.S_ISLNK(found.mode):
            raise Refused(errno.ENOENT)
        self.volume.setattr(caller, found.inode, Changes(mode=mode))

    def chown(self, caller: Caller, path: Path_, uid: int, gid: int) -> None:
        self.volume.setattr(caller, self.find(caller, path).inode, Changes(uid=uid, gid=gid))

    def utimes(self, caller: Caller, path: Path_, times: tuple[int, int] | None) -> None:
        atime, mtime = times or (0, 0)
        changes = Changes(atime=atime, mtime=mtime, now=times is None)
        self.volume.setattr(caller, self.find(caller, path).inode, changes)

    def truncate(self, caller: Caller, path: Path_, size: int) -> None:
        found = self.find(caller, path)
        self.volume.open(caller, found.inode, os.O_WRONLY)
        self.volume.setattr(caller, found.inode, Changes(size=size, opened=True))
        self.volume.release(found.inode)

    def write(self, caller: Caller, path: Path_, offset: int, data: bytes) -> None:
        found = self.find(caller, path)
        self.volume.open(caller, found.inode, os.O_WRONLY)
        self.volume.write(caller, found.inode, offset, data)
        self.volume.release(found.inode)

    def read(self, caller: Caller, path: Path_, offset: int, size: int) -> bytes:
        found = self.find(caller, path)
        self.volume.open(caller, found.inode, os.O_RDONLY)
        data = self.volume.read(found.inode, offset, size)
        self.volume.release(found.inode)
        return data

    def allocate(self, caller: Caller, path: Path_, mode: int, offset: int, size: int) -> None:
        found = self.find(caller, path)
        self.volume.open(caller, found.inode, os.O_WRONLY)
        try:
            self.volume.allocate(caller, found.inode, mode, offset, size)
        finally:
            self.volume.release(found.inode)

    def setxattr(self, caller: Caller, path: Path_, name: bytes, value: bytes, flags: int) -> None:
        self.volume.setxattr(caller, self.find(caller, path).inode, name, flags, value)

    def removexattr(self, caller: Caller, path: Path_, name: bytes) -> None:
        self.volume.removexattr(caller, self.find(caller, path).inode, name)

    def getxattr(self, caller: Caller, path: Path_, name: bytes) -> bytes:
        return self.volume.getxattr(caller, self.find(caller, path).inode, name, 70_000)

    def access(self, caller: Caller, path: Path_, mode: int) -> None:
        self.volume.access(caller, self.find(caller, path).inode, mode)


Shown = dict[Path_, tuple[Any, ...]]
Times = dict[Path_, tuple[int, tuple[int, int]]]
"""Inode number, and times of last modification and change."""


class AgainstHost(RuleBasedStateMachine):
    """Runs every step on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="fs-host-"))
        (self.directory / "host").mkdir()
        (self.directory / "host").chmod(0o777)
        self.root = os.open(self.directory / "host", os.O_PATH | os.O_DIRECTORY)
        self.volume = new_volume(self.directory / "volume", clock=Clock(), cache_limit=64)
        self.host, self.ours = Host(self.root), Ours(self.volume)
        self.umask = os.umask(0)
        self.times: list[dict[int, tuple[int, int]]] = [{}, {}]

    @initialize()
    def begin(self) -> None:
        self.compare("begin", with_times=False)

    def teardown(self) -> None:
        os.umask(self.umask)
        os.close(self.root)
        self.volume.close()
        try:
            assert_sound(self.directory / "volume")
        finally:
            shutil.rmtree(self.directory)

    def both(self, operation: str, caller: Caller, *arguments: Any) -> None:
        """Run an operation on both sides and compare what came of it."""
        results = []
        for side, failure in ((self.host, OSError), (self.ours, Refused)):
            function: Callable[..., Any] = getattr(side, operation)
            try:
                if side is self.host:
                    with acting(caller):
                        results.append(function(caller, *arguments))
                else:
                    results.append(function(caller, *arguments))
            except failure as error:
                results.append(errno.errorcode[error.errno or 0])
        step = f"{operation}{arguments} by {caller.uid}"
        assert results[0] == results[1], f"{step}: host {results[0]!r}, volume {results[1]!r}"
        self.compare(step, with_times=operation != "read")

    def compare(self, step: str, *, with_times: bool) -> None:
        """Compare the two trees."""
        host, ours = self.show_host(), self.show_ours()
        assert host == ours, step
        times = [self.host_times(host), self.our_times(host)]
        # by inode: after an exchange a path shows the times of another file
        changed = [
            {
                path: tuple(map(int.__ne__, before[number], now))
                for path, (number, now) in new.items()
                if number in before
            }
            for before, new in zip(self.times, times, strict=True)
        ]
        if with_times:
            assert changed[0] == changed[1], f"{step}: (mtime, ctime) changed on host and volume"
        self.times = [dict(side.values()) for side in times]

    def show_host(self) -> Shown:
        shown: Shown = {}
        queue: list[Path_] = [()]
        while queue:
            path = queue.pop()
            name = b"/".join((b"/proc/self/fd/%d" % self.root, *path))
            status = os.lstat(name + b"/." if not path else name)
            content: Any = b""
            attributes: Any = ()
            if stat.S_ISDIR(status.st_mode):
                content = sorted(os.listdir(name))
                queue.extend((*path, inner) for inner in content)
            elif stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(name)).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(name)
            if not stat.S_ISLNK(status.st_mode):
                attributes = sorted(
                    (os.fsencode(key), os.getxattr(name, key)) for key in os.listxattr(name)
                )
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            kind = (status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size)
            shown[path] = (*kind, content, attributes)
        return shown

    def show_ours(self) -> Shown:
        shown: Shown = {}
        queue: list[tuple[Path_, int]] = [((), TOP)]
        volume = self.volume
        while queue:
            path, number = queue.pop()
            view = volume.getattr(number)
            content: Any = b""
            attributes: Any = ()
            if stat.S_ISDIR(view.mode):
                content = sorted(names_in(volume, number))
                queue.extend(
                    ((*path, inner), volume.lookup(ROOT, number, inner).inode) for inner in content
                )
            elif stat.S_ISREG(view.mode):
                content = volume.read(number, 0, 1 << 20)
            elif stat.S_ISLNK(view.mode):
                content = volume.readlink(number)
            if not stat.S_ISLNK(view.mode):
                attributes = [
                    (name, volume.getxattr(ROOT, number, name, 70_000))
                    for name in volume.listxattr(ROOT, number)
                ]
            kind = (view.mode, view.links, view.uid, view.gid, view.size)
            shown[path] = (*kind, content, attributes)
        return shown

    def host_times(self, shown: Shown) -> Times:
        times = {}
        for path in shown:
            name = b"/".join((b"/proc/self/fd/%d" % self.root, *path, *(() if path else (b".",))))
            status = os.lstat(name)
            times[path] = (status.st_ino, (status.st_mtime_ns, status.st_ctime_ns))
        return times

    def our_times(self, shown: Shown) -> Times:
        times = {}
        for path in shown:
            view = self.ours.find(ROOT, path) if path else self.volume.getattr(TOP)
            times[path] = (view.inode, (view.mtime, view.ctime))
        return times

    @rule(caller=callers, path=paths, mode=modes)
    def mkdir(self, caller: Caller, path: Path_, mode: int) -> None:
        self.both("mkdir", caller, path, mode)

    @rule(path=paths)
    def mkdir_for_all(self, path: Path_) -> None:
        self.both("mkdir", ROOT, path, 0o777)

    @rule(
        caller=callers,
        path=paths,
        mode=modes,
        kind=st.sampled_from([stat.S_IFREG] * 3 + [stat.S_IFIFO]),
    )
    def mknod(self, caller: Caller, path: Path_, mode: int, kind: int) -> None:
        self.both("mknod", caller, path, kind | mode)

    @rule(caller=callers, path=paths)
    def symlink(self, caller: Caller, path: Path_) -> None:
        self.both("symlink", caller, path, b"dangling")

    @rule(path=paths, new=paths)
    def link(self, path: Path_, new: Path_) -> None:
        self.both("link", ROOT, path, new)

    @rule(caller=callers, path=paths)
    def unlink(self, caller: Caller, path: Path_) -> None:
        self.both("unlink", caller, path)

    @rule(caller=callers, path=paths)
    def rmdir(self, caller: Caller, path: Path_) -> None:
        self.both("rmdir", caller, path)

    @rule(caller=callers, path=paths, new=paths, flag=flags)
    def rename(self, caller: Caller, path: Path_, new: Path_, flag: int) -> None:
        self.both("rename", caller, path, new, flag)

    @rule(caller=callers, path=paths, mode=modes)
    def chmod(self, caller: Caller, path: Path_, mode: int) -> None:
        self.both("chmod", caller, path, mode)

    @rule(
        caller=callers,
        path=paths,
        uid=st.sampled_from([0, 1001, 1002]),
        gid=st.sampled_from([0, 2001, 2002]),
    )
    def chown(self, caller: Caller, path: Path_, uid: int, gid: int) -> None:
        self.both("chown", caller, path, uid, gid)

    @rule(caller=callers, path=paths, times=st.sampled_from([None, (10**18, 2 * 10**18)]))
    def utimes(self, caller: Caller, path: Path_, times: tuple[int, int] | None) -> None:
        self.both("utimes", caller, path, times)

    def is_fifo(self, path: Path_) -> bool:
        """FIFOs are not opened through a file server; the host's kernel does that."""
        try:
            return stat.S_ISFIFO(self.ours.find(ROOT, path).mode)
        except Refused:
            return False

    @rule(caller=callers, path=paths, size=sizes)
    def truncate(self, caller: Caller, path: Path_, size: int) -> None:
        if not self.is_fifo(path):
            self.both("truncate", caller, path, size)

    @rule(
        caller=callers,
        path=paths,
        offset=sizes,
        data=st.binary(min_size=1, max_size=8),
        copies=st.sampled_from([1, 1000]),
    )
    def write(self, caller: Caller, path: Path_, offset: int, data: bytes, copies: int) -> None:
        if not self.is_fifo(path):
            self.both("write", caller, path, offset, data * copies)

    @rule(caller=callers, path=paths, offset=sizes, size=sizes)
    def read(self, caller: Caller, path: Path_, offset: int, size: int) -> None:
        if not self.is_fifo(path):
            self.both("read", caller, path, offset, size)

    @rule(
        caller=callers,
        path=paths,
        mode=st.sampled_from([0, 1, 3, 0x10, 0x11]),
        offset=sizes,
        size=sizes,
    )
    def allocate(self, caller: Caller, path: Path_, mode: int, offset: int, size: int) -> None:
        if not self.is_fifo(path):
            self.both("allocate", caller, path, mode, offset, size)

    @rule(
        caller=callers,
        path=paths,
        name=st.sampled_from([b"user.a", b"user.b", b"trusted.a", b"bad.a", b"user.", b"plain"]),
        value=st.binary(max_size=20),
        flag=st.sampled_from([0, 0, 1, 2]),
    )
    def setxattr(self, caller: Caller, path: Path_, name: bytes, value: bytes, flag: int) -> None:
        self.both("setxattr", caller, path, name, value, flag)

    @rule(caller=callers, path=paths, name=st.sampled_from([b"user.a", b"user.b", b"trusted.a"]))
    def removexattr(self, caller: Caller, path: Path_, name: bytes) -> None:
        self.both("removexattr", caller, path, name)

    @rule(caller=callers, path=paths, name=st.sampled_from([b"user.a", b"trusted.a", b"bad.a"]))
    def getxattr(self, caller: Caller, path: Path_, name: bytes) -> None:
        self.both("getxattr", caller, path, name)

    @rule(caller=callers, path=paths, mode=st.integers(0, 7))
    def access(self, caller: Caller, path: Path_, mode: int) -> None:
        self.both("access", caller, path, mode)


TestAgainstHost = AgainstHost.TestCase
TestAgainstHost.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
