"""What another client does is seen through the mount, also by programs that have the file open."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from core.errors import DeadPortError
from fs_server.interface import ROOT_INODE, Caller, Change, Changes
from mount.fuse_invalidation import merged
from mount.fuse_session import serve
from mount.mount_options import MountOptions
from tests.support.memory_file_system import MemoryFileSystem

from .conftest import MountUnderTest

ROOT = Caller(0, 0)
real_mount = pytest.mark.needs_fuse


class OpenFile:
    """A file of the mount that stays open over several steps of a test."""

    def __init__(self, mounted: MountUnderTest, name: str, flags: int = os.O_RDWR) -> None:
        self.mounted = mounted
        self.path = mounted.path / name
        self.flags = flags
        self.descriptor = -1

    async def __aenter__(self) -> OpenFile:
        self.descriptor = await self.mounted.run(os.open, self.path, self.flags)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.mounted.run(os.close, self.descriptor)

    def read(self) -> bytes:
        return os.pread(self.descriptor, 1 << 20, 0)

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def write(self, data: bytes) -> int:
        return os.write(self.descriptor, data)


async def until(mounted: MountUnderTest, function: Callable[[], Any], expected: Any) -> None:
    """Wait until the mount shows what is expected: a notification takes its way by itself."""
    seen = None
    with trio.move_on_after(10):
        while True:
            seen = await mounted.run(function)
            if seen == expected:
                return
            await trio.lowlevel.checkpoint()
    assert seen == expected


async def make_file(fs: MemoryFileSystem, name: bytes, data: bytes) -> int:
    """Make a file and return its inode."""
    made = await fs.create(ROOT, ROOT_INODE, name, 0o644, os.O_RDWR)
    await fs.write(ROOT, made.inode, 0, data)
    await fs.release(made.inode)
    return made.inode


@real_mount
async def test_open_file_shows_what_another_client_wrote(mounted: MountUnderTest) -> None:
    other = mounted.fs.other()
    inode = await make_file(mounted.fs, b"f", b"old data")
    async with OpenFile(mounted, "f") as file:
        assert await mounted.run(file.read) == b"old data"
        assert await mounted.run(file.size) == 8
        await other.write(ROOT, inode, 0, b"new")
        await until(mounted, file.read, b"new data")


@real_mount
async def test_open_file_grows_and_shrinks_with_another_client(mounted: MountUnderTest) -> None:
    other = mounted.fs.other()
    inode = await make_file(mounted.fs, b"f", b"x" * 5000)
    async with OpenFile(mounted, "f") as file:
        assert await mounted.run(file.read) == b"x" * 5000
        await other.write(ROOT, inode, 5000, b"y" * 5000)
        await until(mounted, file.size, 10_000)
        assert await mounted.run(file.read) == b"x" * 5000 + b"y" * 5000
        await other.setattr(ROOT, inode, Changes(size=100))
        await until(mounted, file.size, 100)
        assert await mounted.run(file.read) == b"x" * 100
        await other.setattr(ROOT, inode, Changes(size=200))
        await until(mounted, file.size, 200)
        assert await mounted.run(file.read) == b"x" * 100 + bytes(100)


@real_mount
async def test_file_that_the_mount_wrote_shows_what_another_client_wrote_then(
    mounted: MountUnderTest,
) -> None:
    other = mounted.fs.other()
    async with OpenFile(mounted, "f", os.O_RDWR | os.O_CREAT) as file:
        await mounted.run(file.write, b"mine " * 100)
        assert await mounted.run(file.read) == b"mine " * 100
        inode = (await other.lookup(ROOT, ROOT_INODE, b"f")).inode
        await other.write(ROOT, inode, 0, b"ours ")
        await until(mounted, file.read, b"ours " + b"mine " * 99)
        await other.write(ROOT, inode, 500, b"more")
        await until(mounted, file.read, b"ours " + b"mine " * 99 + b"more")
        assert await mounted.run(file.size) == 504


@real_mount
async def test_append_after_another_client_appended_loses_nothing(mounted: MountUnderTest) -> None:
    other = mounted.fs.other()
    async with OpenFile(mounted, "log", os.O_RDWR | os.O_CREAT | os.O_APPEND) as log:
        await mounted.run(log.write, b"1")
        inode = (await other.lookup(ROOT, ROOT_INODE, b"log")).inode
        for size in range(1, 20, 2):
            end = mounted.fs.told
            await other.write(ROOT, inode, size, b"o")
            await mounted.fs.wait_told(end)
            await mounted.run(log.write, b"m")
        await until(mounted, log.read, b"1" + b"om" * 10)
        assert bytes(await other.read(inode, 0, 100)) == b"1" + b"om" * 10


@real_mount
async def test_names_come_and_go_with_another_client(mounted: MountUnderTest) -> None:
    other = mounted.fs.other()
    path = mounted.path / "f"
    assert not await mounted.run(path.exists)  # a missing name is cached too
    await make_file(other, b"f", b"data")
    await until(mounted, path.exists, expected=True)
    assert await mounted.run(path.read_bytes) == b"data"
    await other.rename(ROOT, ROOT_INODE, b"f", ROOT_INODE, b"g", 0)
    await until(mounted, path.exists, expected=False)
    assert await mounted.run((mounted.path / "g").read_bytes) == b"data"
    await other.unlink(ROOT, ROOT_INODE, b"g")
    await until(mounted, (mounted.path / "g").exists, expected=False)
    assert await mounted.run(os.listdir, mounted.path) == []


@real_mount
async def test_file_that_another_client_unlinked_stays_readable_while_open(
    mounted: MountUnderTest,
) -> None:
    other = mounted.fs.other()
    await make_file(mounted.fs, b"f", b"data")
    async with OpenFile(mounted, "f") as file:
        await other.unlink(ROOT, ROOT_INODE, b"f")
        await until(mounted, file.path.exists, expected=False)
        assert await mounted.run(file.read) == b"data"


@real_mount
async def test_attributes_follow_another_client(mounted: MountUnderTest) -> None:
    other = mounted.fs.other()
    inode = await make_file(mounted.fs, b"f", b"")
    mode = lambda: (mounted.path / "f").stat().st_mode & 0o777  # noqa: E731
    assert await mounted.run(mode) == 0o644
    await other.setattr(ROOT, inode, Changes(mode=0o600))
    await until(mounted, mode, 0o600)


@real_mount
async def test_mount_and_other_client_at_once_do_not_block_each_other(
    mounted: MountUnderTest, nursery: trio.Nursery
) -> None:
    """Invalidations wait for locks that the requests under way hold."""
    other = mounted.fs.other()
    inode = await make_file(mounted.fs, b"f", b"." * 100_000)

    async def disturb() -> None:
        for number in range(10**9):
            await other.write(ROOT, inode, number % 90_000, b"x" * 5000)
            await make_file(other, b"o%d" % (number % 50), b"")
            if number >= 49:
                await other.unlink(ROOT, ROOT_INODE, b"o%d" % ((number + 1) % 50))
            await trio.lowlevel.checkpoint()

    nursery.start_soon(disturb)
    await mounted.shell(
        "for i in $(seq 8); do cat f > m; ls -l > list 2> errors || :; echo $i >> f; rm m; done"
    )
    nursery.cancel_scope.cancel()


class ForgetfulFileSystem(MemoryFileSystem):
    """A server that was restarted: it has forgotten positions, or fails for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten = False
        self.failures = 0

    async def changes(self, after: int) -> tuple[int, list[Change]]:
        if self.failures:
            self.failures -= 1
            raise DeadPortError("restarting")
        if self.forgotten:
            self.forgotten = False
            return 0, [Change(0)]
        return await super().changes(after)


@real_mount
@pytest.mark.parametrize("way", ["forgotten", "failures"])
async def test_everything_is_dropped_when_the_server_has_lost_track(
    place: Path, options: MountOptions, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mount.fuse_invalidation.PATIENCE_S", 0.0)
    fs = ForgetfulFileSystem()
    other = fs.other()
    async with trio.open_nursery() as nursery:
        mount = await nursery.start(partial(serve, fs, place, options, watch=fs))
        mounted = MountUnderTest(fs, mount)  # type: ignore[arg-type]
        inode = await make_file(fs, b"f", b"old")
        async with OpenFile(mounted, "f") as file:
            assert await mounted.run(file.read) == b"old"
            assert not await mounted.run((place / "g").exists)
            setattr(fs, way, 1)
            fs.tree.record.clear()
            watcher, fs.tree.watcher = fs.tree.watcher, None
            await other.write(ROOT, inode, 0, b"newer")
            await make_file(other, b"g", b"")
            fs.tree.record.clear()
            fs.tree.watcher = watcher
            fs.changed.set()
            await until(mounted, file.read, b"newer")
            await until(mounted, (place / "g").exists, expected=True)
            await other.write(ROOT, inode, 0, b"again")
            await until(mounted, file.read, b"again")
        nursery.cancel_scope.cancel()


def test_changes_of_one_inode_are_told_once_with_its_data() -> None:
    changes = [
        Change(5),
        Change(5, data=True),
        Change(5),
        Change(1, b"f"),
        Change(1),
        Change(1, b"f"),
    ]
    assert merged(changes) == [Change(5, data=True), Change(1, b"f"), Change(1)]
