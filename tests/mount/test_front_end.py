"""The handlers, called as pyfuse3 calls them, without a mount."""

from __future__ import annotations

import errno
import inspect
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pyfuse3
import pytest
from pyfuse3 import EntryAttributes, FUSEError

from core.abi import BULK_LIMIT
from core.errors import AtollError, DeadPortError, PoisonError, Refused
from fs_server.interface import ROOT_INODE, Caller, Changes
from mount.file_operations import APPEND
from mount.front_end import FrontEnd
from tests.support.memory_file_system import FailingFileSystem


class Context(NamedTuple):
    """What pyfuse3 tells of the process behind a request."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0


class Fields(NamedTuple):
    """Which attributes a setattr is about."""

    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False
    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False


USER: Any = Context(1000, 1000)
ROOT: Any = Context()
Call = Callable[[FrontEnd], Awaitable[Any]]

CALLS: dict[str, tuple[str, Call]] = {
    "lookup": ("lookup", lambda end: end.lookup(1, b"f", ROOT)),
    "getattr": ("getattr", lambda end: end.getattr(2, ROOT)),
    "setattr": (
        "setattr",
        lambda end: end.setattr(2, EntryAttributes(), Fields(update_size=True), None, ROOT),  # type: ignore[arg-type]
    ),
    "readlink": ("readlink", lambda end: end.readlink(2, ROOT)),
    "mknod": ("mknod", lambda end: end.mknod(1, b"n", stat.S_IFIFO | 0o600, 0, ROOT)),
    "mkdir": ("mkdir", lambda end: end.mkdir(1, b"n", 0o755, ROOT)),
    "symlink": ("symlink", lambda end: end.symlink(1, b"n", b"to", ROOT)),
    "link": ("link", lambda end: end.link(2, 1, b"n", ROOT)),
    "unlink": ("unlink", lambda end: end.unlink(1, b"f", ROOT)),
    "rmdir": ("rmdir", lambda end: end.rmdir(1, b"f", ROOT)),
    "rename": ("rename", lambda end: end.rename(1, b"f", 1, b"g", 0, ROOT)),
    "open": ("open", lambda end: end.open(2, os.O_RDONLY, ROOT)),
    "create": ("create", lambda end: end.create(1, b"n", 0o644, os.O_RDWR, ROOT)),
    "read": ("read", lambda end: end.read(2, 0, 10)),
    "write": ("write", lambda end: end.write(2, 0, b"x")),
    "release": ("release", lambda end: end.release(2)),
    "fsync": ("fsync", lambda end: end.fsync(2, True)),
    "fsyncdir": ("fsync", lambda end: end.fsyncdir(1, False)),
    "readdir": ("readdir", lambda end: end.readdir(1, 0, None)),  # type: ignore[arg-type]
    "statfs": ("statfs", lambda end: end.statfs(ROOT)),
    "getxattr": ("getxattr", lambda end: end.getxattr(2, b"user.a", ROOT)),
    "setxattr": ("setxattr", lambda end: end.setxattr(2, b"user.a", b"v", ROOT)),
    "removexattr": ("removexattr", lambda end: end.removexattr(2, b"user.a", ROOT)),
    "listxattr": ("listxattr", lambda end: end.listxattr(2, ROOT)),
    "access": ("access", lambda end: end.access(2, os.R_OK, Context(pid=os.getpid()))),  # type: ignore[arg-type]
}
"""By handler: the operation of the file server behind it, and a call."""
ASKS_NOBODY = {"init", "forget", "flush", "opendir", "releasedir", "poll"}


@pytest.fixture
def fs() -> FailingFileSystem:
    return FailingFileSystem()


@pytest.fixture
async def front_end(fs: FailingFileSystem) -> FrontEnd:
    """A front end whose root has a file `f`, inode 2, of three octets."""
    made = await fs.create(Caller(0, 0), ROOT_INODE, b"f", 0o644, os.O_RDWR)
    await fs.write(Caller(0, 0), made.inode, 0, b"abc")
    return FrontEnd(fs)


def test_every_handler_is_tried_below() -> None:
    handlers = {
        name
        for name, value in vars(pyfuse3.Operations).items()
        if inspect.isfunction(value) and not name.startswith("_") and name != "stacktrace"
    }
    assert handlers == set(CALLS) | ASKS_NOBODY


@pytest.mark.parametrize("handler", CALLS)
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a mistake"),
        KeyError("key"),
        OSError(errno.ENOENT, "not an answer of the server"),
        DeadPortError("gone"),
        PoisonError("poison"),
        AtollError("any"),
        Refused(0),
        Refused(4096, "no error number"),
    ],
    ids=lambda error: type(error).__name__ + str(getattr(error, "errno", "")),
)
async def test_no_error_but_fuse_error_escapes_a_handler(
    front_end: FrontEnd, fs: FailingFileSystem, handler: str, error: Exception
) -> None:
    operation, call = CALLS[handler]
    fs.failures[operation] = error
    with pytest.raises(FUSEError) as caught:
        await call(front_end)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("handler", CALLS)
async def test_refusal_becomes_its_error_number(
    front_end: FrontEnd, fs: FailingFileSystem, handler: str
) -> None:
    operation, call = CALLS[handler]
    fs.failures[operation] = Refused(errno.EDQUOT)
    with pytest.raises(FUSEError) as caught:
        await call(front_end)
    assert caught.value.errno == errno.EDQUOT


async def test_missing_name_is_an_answer_that_may_be_cached(front_end: FrontEnd) -> None:
    missing = await front_end.lookup(ROOT_INODE, b"nothing", ROOT)
    assert missing.st_ino == 0
    assert missing.entry_timeout > 0


async def test_attributes_are_shown_in_one_object_for_each_inode(
    front_end: FrontEnd, fs: FailingFileSystem
) -> None:
    shown = await front_end.lookup(ROOT_INODE, b"f", ROOT)
    assert (shown.st_ino, shown.st_size, stat.S_ISREG(shown.st_mode)) == (2, 3, True)
    await fs.setattr(Caller(0, 0), 2, Changes(size=7, mtime=5))
    again = await front_end.getattr(2, ROOT)
    assert again is shown
    assert (again.st_size, again.st_mtime_ns) == (7, 5)
    await front_end.forget([(2, 1)])
    assert await front_end.getattr(2, ROOT) is not shown


async def test_removed_directory_that_is_still_known_has_no_links(front_end: FrontEnd) -> None:
    made = await front_end.mkdir(ROOT_INODE, b"d", 0o755, ROOT)
    inode = made.st_ino
    await front_end.rmdir(ROOT_INODE, b"d", ROOT)
    left = await front_end.getattr(inode, ROOT)
    assert (left.st_ino, left.st_nlink) == (inode, 0)
    await front_end.forget([(inode, 1)])
    with pytest.raises(FUSEError) as caught:
        await front_end.getattr(inode, ROOT)
    assert caught.value.errno == errno.ESTALE


async def test_what_a_user_makes_is_the_users(front_end: FrontEnd) -> None:
    made = await front_end.mkdir(ROOT_INODE, b"mine", 0o700, USER)
    assert (made.st_uid, made.st_gid) == (1000, 1000)
    _, created = await front_end.create(ROOT_INODE, b"too", 0o600, os.O_RDWR, USER)
    assert (created.st_uid, created.st_gid) == (1000, 1000)


async def test_supplementary_groups_are_read_when_the_server_refuses(
    front_end: FrontEnd, fs: FailingFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: list[Caller] = []
    make = FailingFileSystem.mkdir

    async def mkdir(self: Any, caller: Caller, parent: int, name: bytes, mode: int) -> Any:
        callers.append(caller)
        if 77 not in caller.groups:
            raise Refused(errno.EACCES)
        return await make(self, caller, parent, name, mode)

    monkeypatch.setattr(FailingFileSystem, "mkdir", mkdir)
    monkeypatch.setattr(pyfuse3, "get_sup_groups", lambda pid: {77, 3} if pid == 4711 else set())
    made = await front_end.mkdir(ROOT_INODE, b"d", 0o755, Context(1000, 1000, 4711))  # type: ignore[arg-type]
    assert made.st_uid == 1000
    assert [caller.groups for caller in callers] == [(), (3, 77)]
    with pytest.raises(FUSEError) as caught:
        await front_end.mkdir(ROOT_INODE, b"e", 0o755, Context(1000, 1000, 1))  # type: ignore[arg-type]
    assert caught.value.errno == errno.EACCES


async def test_access_control_lists_are_refused_since_nobody_would_enforce_them(
    front_end: FrontEnd, fs: FailingFileSystem
) -> None:
    name = b"system.posix_acl_access"
    for call in (
        front_end.getxattr(2, name, ROOT),
        front_end.setxattr(2, name, b"", ROOT),
        front_end.removexattr(2, name, ROOT),
    ):
        with pytest.raises(FUSEError) as caught:
            await call
        assert caught.value.errno == errno.EOPNOTSUPP


async def test_absent_attribute_is_asked_for_once_until_it_may_be_there(
    front_end: FrontEnd, fs: FailingFileSystem
) -> None:
    name = b"security.capability"
    await front_end.getattr(2, ROOT)

    async def ask() -> int:
        with pytest.raises(FUSEError) as caught:
            await front_end.getxattr(2, name, ROOT)
        return int(caught.value.errno)

    assert await ask() == errno.ENODATA
    fs.failures["getxattr"] = Refused(errno.EBUSY, "asked again")
    assert await ask() == errno.ENODATA
    front_end.changed(2, data=False)
    assert await ask() == errno.EBUSY
    fs.failures.clear()
    assert await ask() == errno.ENODATA
    await front_end.setxattr(2, name, b"caps", ROOT)
    assert await front_end.getxattr(2, name, ROOT) == b"caps"


async def test_bulk_beyond_one_message_is_cut_into_several(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = FailingFileSystem.write

    async def counting(self: Any, caller: Caller, inode: int, offset: int, data: Any) -> int:
        sizes.append(len(data))
        return await write(self, caller, inode, offset, data)

    monkeypatch.setattr(FailingFileSystem, "write", counting)
    data = os.urandom(2 * BULK_LIMIT + 5)
    assert await front_end.write(2, 1, data) == len(data)
    assert sizes == [BULK_LIMIT, BULK_LIMIT, 5]
    assert bytes(await front_end.read(2, 1, len(data))) == data
    assert bytes(await front_end.read(2, 0, 3 * BULK_LIMIT)) == b"a" + data


async def test_append_goes_to_the_end_that_another_client_has_moved(
    front_end: FrontEnd, fs: FailingFileSystem
) -> None:
    stale: list[int] = []
    front_end.stale = stale.append
    info = await front_end.open(2, os.O_WRONLY | os.O_APPEND, ROOT)
    handle = info.fh
    assert handle == 2 | APPEND
    await front_end.getattr(2, ROOT)
    await front_end.write(handle, 3, b"d")
    await fs.other().write(Caller(0, 0), 2, 4, b"efg")
    front_end.changed(2, data=True)
    await front_end.write(handle, 4, b"h")  # where the kernel believes the end to be
    assert bytes(await front_end.read(handle, 0, 100)) == b"abcdefgh"
    assert stale == [2]


class Listing:
    """Takes the place of pyfuse3's buffer: holds so many entries and no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.names: list[bytes] = []
        self.cookie = 0
        self.room = self.left = room
        monkeypatch.setattr(pyfuse3, "readdir_reply", self.reply)

    def reply(self, token: object, name: bytes, shown: EntryAttributes, cookie: int) -> bool:
        if not self.left:
            return False
        self.left -= 1
        self.names.append(name)
        self.cookie = cookie
        return True

    async def more(self, front_end: FrontEnd) -> bool:
        self.left, before = self.room, len(self.names)
        await front_end.readdir(ROOT_INODE, self.cookie, None)  # type: ignore[arg-type]
        return len(self.names) > before


@pytest.mark.parametrize("room", [1, 7, 128, 129, 1000])
async def test_listing_is_complete_whatever_the_kernels_buffer_holds(
    front_end: FrontEnd, fs: FailingFileSystem, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    names = [b"%d" % number for number in range(300)]
    for name in names:
        await fs.mknod(Caller(0, 0), ROOT_INODE, name, stat.S_IFREG | 0o644, 0)
    listing = Listing(monkeypatch, room)
    while await listing.more(front_end):
        pass
    assert listing.names == [b".", b"..", b"f", *names]


async def test_what_did_not_fit_is_read_again_after_a_change(
    front_end: FrontEnd, fs: FailingFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"1", b"2", b"3"):
        await fs.mknod(Caller(0, 0), ROOT_INODE, name, stat.S_IFREG | 0o644, 0)
    listing = Listing(monkeypatch, 4)
    await listing.more(front_end)
    assert listing.names == [b".", b"..", b"f", b"1"]
    await front_end.unlink(ROOT_INODE, b"2", ROOT)
    await listing.more(front_end)
    assert listing.names == [b".", b"..", b"f", b"1", b"3"]
