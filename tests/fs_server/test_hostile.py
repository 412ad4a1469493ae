"""Whatever a client passes, it gets an answer or a refusal, and the volume stays sound."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from core.errors import Refused
from core.userlib.interface import encode
from fs_server.interface import Attributes, Caller, Changes, FileSystem
from fs_server.volume import Volume

from .support import ROOT, TOP, assert_sound, new_volume

_INT64: Final = 1 << 63
integers = st.one_of(
    st.integers(-3, 12),
    st.integers(-_INT64, 2 * _INT64 - 1),
    st.sampled_from([0o100644, 0o40755, 0o120777, 0o20600, 0o10600, 4096, 1 << 40, 1 << 60]),
)
names = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"a", b".", b"..", b"", b"/", b"\0", b"x/y"]),
    st.sampled_from([b"user.a", b"trusted.a", b"security.capability", b"system.posix_acl_access"]),
    st.binary(max_size=10),
    st.sampled_from([b"n" * 255, b"n" * 256, b"n" * 5000]),
)
inodes = st.one_of(st.integers(1, 12), integers)
callers = st.one_of(
    st.sampled_from([ROOT, ROOT, Caller(1001, 2001)]),
    st.builds(Caller, integers, integers, st.lists(integers, max_size=2).map(tuple), integers),
)
maybe = st.none() | integers
changes = st.builds(
    Changes, maybe, maybe, maybe, maybe, maybe, maybe, maybe, st.booleans(), st.booleans()
)
octets = st.one_of(st.binary(max_size=20), st.integers(0, 70_000).map(bytes))


class Hostile(RuleBasedStateMachine):
    """Calls every operation with anything its types allow."""

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.TemporaryDirectory(prefix="fs-hostile-")
        self.directory = Path(self.home.name) / "volume"
        self.volume = new_volume(self.directory, size=1 << 20, cache_limit=64)
        self.volume.watch(on=True)
        for name in (b"a", b"b"):
            self.volume.mknod(ROOT, TOP, name, 0o100666, 0)
        self.volume.mkdir(ROOT, TOP, b"c", 0o777)

    def teardown(self) -> None:
        self.volume.close()
        assert_sound(self.directory)
        self.home.cleanup()

    def call(self, name: str, *arguments: Any) -> None:
        """Call an operation; its answer must be one that the interface allows to be sent."""
        self.volume.request = 1
        try:
            result = getattr(self.volume, name)(*arguments)
        except Refused as error:
            assert error.errno in ALLOWED, error  # noqa: PT017 - a refusal is one of two outcomes
            return
        spec = FileSystem.named(name)
        if spec.reply_has_field and not spec.reply_carried:
            packet = encode(result)
            assert len(packet) < 60_000
            msgspec.msgpack.decode(packet, type=spec.reply_type)
        if isinstance(result, Attributes):
            assert result.size >= 0
            assert result.blocks >= 0

    @rule(caller=callers, inode=inodes, name=names)
    def lookup(self, caller: Caller, inode: int, name: bytes) -> None:
        self.call("lookup", caller, inode, name)

    @rule(inode=inodes)
    def getattr(self, inode: int) -> None:
        self.call("getattr", inode)
        self.call("readlink", inode)

    @rule(caller=callers, inode=inodes, change=changes)
    def setattr(self, caller: Caller, inode: int, change: Changes) -> None:
        self.call("setattr", caller, inode, change)

    @rule(caller=callers, inode=inodes, mode=integers)
    def access(self, caller: Caller, inode: int, mode: int) -> None:
        self.call("access", caller, inode, mode)

    @rule(caller=callers, inode=inodes, name=names, mode=integers, device=integers)
    def mknod(self, caller: Caller, inode: int, name: bytes, mode: int, device: int) -> None:
        self.call("mknod", caller, inode, name, mode, device)

    @rule(caller=callers, inode=inodes, name=names, mode=integers)
    def mkdir(self, caller: Caller, inode: int, name: bytes, mode: int) -> None:
        self.call("mkdir", caller, inode, name, mode)

    @rule(caller=callers, inode=inodes, name=names, value=names)
    def symlink(self, caller: Caller, inode: int, name: bytes, value: bytes) -> None:
        self.call("symlink", caller, inode, name, value)

    @rule(caller=callers, inode=inodes, parent=inodes, name=names)
    def link(self, caller: Caller, inode: int, parent: int, name: bytes) -> None:
        self.call("link", caller, inode, parent, name)

    @rule(caller=callers, inode=inodes, name=names)
    def remove(self, caller: Caller, inode: int, name: bytes) -> None:
        self.call("unlink", caller, inode, name)
        self.call("rmdir", caller, inode, name)

    @rule(caller=callers, old=inodes, name=names, new=inodes, new_name=names, flags=integers)
    def rename(
        self, caller: Caller, old: int, name: bytes, new: int, new_name: bytes, flags: int
    ) -> None:
        self.call("rename", caller, old, name, new, new_name, flags)
        self.call("rename", caller, old, name, new, new_name, flags & 3)

    @rule(caller=callers, inode=inodes, name=names, mode=integers, flags=integers)
    def create(self, caller: Caller, inode: int, name: bytes, mode: int, flags: int) -> None:
        self.call("create", caller, inode, name, mode, flags)

    @rule(caller=callers, inode=inodes, mode=integers, flags=integers, name=names)
    def tmpfile(self, caller: Caller, inode: int, mode: int, flags: int, name: bytes) -> None:
        self.call("tmpfile", caller, inode, mode, flags)
        for orphan in self.volume.tables.inodes.orphans():
            self.call("link", caller, orphan, TOP, name)
            self.call("birth", orphan)

    @rule(caller=callers, one=inodes, at=integers, other=inodes, offset=integers, size=integers)
    def copy(self, caller: Caller, one: int, at: int, other: int, offset: int, size: int) -> None:
        self.call("copy", caller, one, at, other, offset, size)
        self.call("copy", caller, one, at & 0xFFFF, other, offset & 0xFFFFF, size & 0xFFFF)
        self.call("birth", one)

    @rule(caller=callers, inode=inodes, flags=integers)
    def open(self, caller: Caller, inode: int, flags: int) -> None:
        self.call("open", caller, inode, flags)

    @rule(inode=inodes)
    def release(self, inode: int) -> None:
        self.call("release", inode)

    @rule(inode=inodes, offset=integers, size=integers)
    def read(self, inode: int, offset: int, size: int) -> None:
        self.call("read", inode, offset, size)

    @rule(caller=callers, inode=inodes, offset=integers, data=octets)
    def write(self, caller: Caller, inode: int, offset: int, data: bytes) -> None:
        self.call("write", caller, inode, offset, data)

    @rule(inode=inodes, cookie=integers, limit=integers)
    def readdir(self, inode: int, cookie: int, limit: int) -> None:
        self.call("readdir", inode, cookie, limit)

    @rule(caller=callers, inode=inodes, name=names, flags=integers, value=octets, size=integers)
    def xattr(
        self, caller: Caller, inode: int, name: bytes, flags: int, value: bytes, size: int
    ) -> None:
        self.call("setxattr", caller, inode, name, flags, value)
        self.call("getxattr", caller, inode, name, size)
        self.call("listxattr", caller, inode)

    @rule(caller=callers, inode=inodes, name=names)
    def removexattr(self, caller: Caller, inode: int, name: bytes) -> None:
        self.call("removexattr", caller, inode, name)

    @rule(caller=callers, inode=inodes, mode=integers, offset=integers, size=integers)
    def allocate(self, caller: Caller, inode: int, mode: int, offset: int, size: int) -> None:
        self.call("allocate", caller, inode, mode, offset, size)
        self.call("allocate", caller, inode, mode & 0x13, offset, size)

    @rule(inode=inodes, offset=integers, whence=integers)
    def seek(self, inode: int, offset: int, whence: int) -> None:
        self.call("seek", inode, offset, whence)

    @rule(inode=inodes)
    def others(self, inode: int) -> None:
        self.call("statfs")
        self.call("opendir", ROOT, inode)
        try:
            self.volume.fsync(inode)
        except Refused as error:
            assert error.errno in ALLOWED  # noqa: PT017

    @rule(client=inodes)
    def end_of_client(self, client: int) -> None:
        self.volume.drop_client(client)
        self.volume.take_changes()

    @rule()
    def restart(self) -> None:
        self.volume.abandon()
        self.volume = Volume(self.directory, cache_limit=64)


_NAMES: Final = (
    *("EPERM", "ENOENT", "EACCES", "EEXIST", "ENOTDIR", "EISDIR", "EINVAL", "ENOSPC", "EFBIG"),
    *("EMLINK", "ERANGE", "ENXIO", "ENAMETOOLONG", "ENOTEMPTY", "ELOOP", "ENODATA"),
    *("EOPNOTSUPP", "ESTALE", "EBUSY", "EBADF", "E2BIG"),
)
ALLOWED: Final = {getattr(errno, name) for name in _NAMES}

TestHostile = Hostile.TestCase
TestHostile.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
