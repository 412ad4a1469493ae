"""File server and disk server as tasks of a system, in both placements."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from core.abi import ALL_OPERATIONS
from core.errors import AtollError, Refused
from core.kernel.ports import KernelRight
from core.system.boot import System
from core.system.description import Grant
from core.userlib.server import Server
from core.userlib.task import Task
from fs_server.disk import Disk, DiskInfo
from fs_server.interface import (
    CHANGED,
    LOCK_READ,
    LOCK_WRITE,
    UNLOCKED,
    Caller,
    Change,
    Changes,
    FileSystem,
    Lock,
)
from fs_server.layout import DATA_NAME, METADATA_NAME, VolumeError
from fs_server.server import BUSY_PERIODS, FileServer, prepare_volume

from .support import MIB, ROOT, TOP, assert_sound
from .systems import PLACEMENTS, run_system

both = pytest.mark.parametrize("placement", PLACEMENTS)


def kill(system: System, name: str) -> None:
    """Kill a server's process."""
    engine = system.task(name).engine
    assert engine is not None
    assert engine.pid > 0
    os.kill(engine.pid, signal.SIGKILL)


async def refusal(call: Any) -> int:
    """Return the error number with which a call is refused, 0 if it is not."""
    try:
        await call
    except Refused as error:
        return error.errno
    return 0


@both
def test_every_operation_works_through_its_port(tmp_path: Path, placement: str) -> None:
    async def scenario(system: System) -> None:
        fs: FileSystem = system.connect(FileSystem, "fs")
        d = await fs.mkdir(ROOT, TOP, b"d", 0o755)
        f = await fs.create(ROOT, d.inode, b"f", 0o644, os.O_RDWR)
        data = random.Random(1).randbytes(MIB)
        assert await fs.write(ROOT, f.inode, 0, data) == MIB
        assert bytes(await fs.read(f.inode, 0, MIB)) == data
        assert bytes(await fs.read(f.inode, MIB - 5, 100)) == data[-5:]
        assert bytes(await fs.read(f.inode, MIB, 100)) == b""
        assert (await fs.getattr(f.inode)).size == MIB
        assert await fs.lookup(ROOT, TOP, b"d") == await fs.getattr(d.inode)
        assert (await fs.setattr(ROOT, f.inode, Changes(size=10))).size == 10
        await fs.access(ROOT, f.inode, os.R_OK)
        await fs.open(ROOT, f.inode, os.O_RDONLY)
        await fs.release(f.inode)
        await fs.link(ROOT, f.inode, TOP, b"hard")
        s = await fs.symlink(ROOT, TOP, b"s", b"target")
        assert await fs.readlink(s.inode) == b"target"
        await fs.mknod(ROOT, TOP, b"p", 0o010644, 0)
        await fs.rename(ROOT, TOP, b"p", d.inode, b"q", 0)
        await fs.setxattr(ROOT, f.inode, b"user.x", 0, b"v" * 50_000)
        assert bytes(await fs.getxattr(ROOT, f.inode, b"user.x", 65_536)) == b"v" * 50_000
        assert await fs.listxattr(ROOT, f.inode) == [b"user.x"]
        await fs.removexattr(ROOT, f.inode, b"user.x")
        await fs.allocate(ROOT, f.inode, 0, 0, 5000)
        assert await fs.seek(f.inode, 0, os.SEEK_HOLE) == 5000
        t = await fs.tmpfile(ROOT, d.inode, 0o600, os.O_RDWR)
        assert await fs.copy(ROOT, f.inode, 0, t.inode, 100, 5000) == 5000
        assert await fs.birth(t.inode) >= await fs.birth(f.inode) > 0
        await fs.release(t.inode)
        assert await refusal(fs.getattr(t.inode)) == errno.ESTALE
        await fs.opendir(ROOT, d.inode)
        listing = await fs.readdir(d.inode, 0, 100)
        assert [entry.name for entry in listing] == [b".", b"..", b"f", b"q"]
        assert (await fs.unlink(ROOT, TOP, b"hard")).links == 1
        await fs.fsync(f.inode, False)
        await fs.sync()
        assert (await fs.statfs()).blocks == 64 * MIB // 4096
        assert await refusal(fs.rmdir(ROOT, TOP, b"d")) == errno.ENOTEMPTY
        assert await refusal(fs.lookup(ROOT, TOP, b"x")) == errno.ENOENT
        assert await refusal(fs.readdir(d.inode, -1, 100)) == errno.EINVAL

    log = run_system(tmp_path, placement, scenario)
    assert log == []
    assert_sound(tmp_path)


def test_killed_servers_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """Clients work on while their servers are killed again and again."""

    async def client(fs: FileSystem, number: int, rng: random.Random) -> None:
        d = (await fs.mkdir(ROOT, TOP, b"c%d" % number, 0o755)).inode
        f = (await fs.create(ROOT, d, b"f", 0o644, os.O_RDWR | os.O_EXCL)).inode
        await fs.unlink(ROOT, d, b"f")
        written = b""
        for step in range(60):
            name = b"%d" % step
            await fs.mkdir(ROOT, d, name, 0o755)  # again would be EEXIST
            await fs.rename(ROOT, d, name, d, b"x" + name, 0)  # again would be ENOENT
            if step % 3:
                await fs.rmdir(ROOT, d, b"x" + name)
            octets = rng.randbytes(rng.randrange(1, 30_000))
            assert await fs.write(ROOT, f, len(written), octets) == len(octets)
            written += octets
            assert bytes(await fs.read(f, 0, len(written)))[-100:] == written[-100:]
        assert bytes(await fs.read(f, 0, MIB)) == written[:MIB]
        await fs.release(f)
        assert await refusal(fs.getattr(f)) == errno.ESTALE
        names = [entry.name for entry in await fs.readdir(d, 2, 100)]
        assert names == [b"x%d" % step for step in range(0, 60, 3)]

    async def scenario(system: System) -> None:
        rng = random.Random(5)
        async with trio.open_nursery() as nursery:
            running = trio.CancelScope()

            async def trouble() -> None:
                with running:
                    for _ in range(12):
                        for _ in range(rng.randrange(20, 60)):
                            await system.connect(FileSystem, "fs", "pace").statfs()
                        kill(system, rng.choice(["fs", "fs", "disk"]))
                        await system.wait_running(["fs", "disk"])

            async def clients() -> None:
                async with trio.open_nursery() as inner:
                    for number in range(3):
                        fs = system.connect(FileSystem, "fs", f"client{number}")
                        inner.start_soon(client, fs, number, random.Random(number))
                running.cancel()

            nursery.start_soon(trouble)
            nursery.start_soon(clients)

    log = run_system(tmp_path, "process", scenario)
    assert any("fs" in line for line in log), log
    assert_sound(tmp_path)


def join(system: System, name: str) -> tuple[FileSystem, KernelRight]:
    """Return another client of the file server, and the right whose release ends it."""
    user = system.client(name)
    right = system.task("fs").names[1].derive(badge=user.place.badge)
    return user.connect(FileSystem, right), right


@both
def test_locks_are_had_by_one_client_and_end_with_it(tmp_path: Path, placement: str) -> None:
    async def scenario(system: System) -> None:
        fs: FileSystem = system.connect(FileSystem, "fs")
        f = (await fs.create(ROOT, TOP, b"f", 0o666, os.O_RDWR)).inode
        one, two = Lock(LOCK_WRITE, 0, 9, owner=1), Lock(LOCK_WRITE, 9, 9, owner=1)
        other, right = join(system, "user")
        assert await refusal(other.lock(f, one, False)) == errno.EBADF
        await other.open(ROOT, f, os.O_RDWR)
        assert await other.lock(f, one, False) is None
        found = await fs.lock(f, two, False)
        assert found == Lock(LOCK_WRITE, 0, 9, owner=-1)
        assert await fs.locked(f, two) == found
        for hostile in (
            Lock(7),
            Lock(LOCK_READ, -1, 5),
            Lock(LOCK_READ, 5, 4),
            Lock(LOCK_READ, 0, 1 << 63),
            Lock(LOCK_READ, owner=-1),
            Lock(LOCK_READ, pid=1 << 40),
            Lock(LOCK_READ, 0, 5, whole=True),
        ):
            assert await refusal(fs.lock(f, hostile, True)) == errno.EINVAL
            assert await refusal(fs.locked(f, hostile)) == errno.EINVAL
        await other.unlock(f, 99)
        await other.unlock(12_345, -5)
        assert await refusal(other.close(12_345, 1 << 63)) == errno.EBADF
        assert await fs.locked(f, two) == found
        await restart(system, placement)
        assert await fs.locked(f, two) == found
        right.release()
        with trio.fail_after(10):
            while await fs.lock(f, two, False) is not None:
                await trio.lowlevel.checkpoint()
        await fs.release(f)
        assert await refusal(fs.lock(f, two, False)) == errno.EBADF

    run_system(tmp_path, placement, scenario)


def test_locks_outlive_the_server(tmp_path: Path) -> None:
    async def scenario(system: System) -> None:
        fs: FileSystem = system.connect(FileSystem, "fs")
        f = (await fs.create(ROOT, TOP, b"f", 0o666, os.O_RDWR)).inode
        other, right = join(system, "user")
        await other.open(ROOT, f, os.O_RDWR)
        for start in range(0, 40, 2):
            mine = Lock(LOCK_WRITE, start, start, owner=1, opened=start, pid=5)
            assert await other.lock(f, mine, False) is None
            if not start % 10:
                kill(system, "fs")
        for start in range(40):
            found = await fs.locked(f, Lock(LOCK_READ, start, start))
            assert (found is None) == bool(start % 2)
            assert found is None or found.pid == 5
        right.release()
        kill(system, "fs")
        with trio.fail_after(10):
            while await fs.lock(f, Lock(LOCK_WRITE), False) is not None:
                await trio.lowlevel.checkpoint()

    run_system(tmp_path, "process", scenario)


@both
def test_opens_outlive_the_server_and_end_with_the_client(tmp_path: Path, placement: str) -> None:
    async def scenario(system: System) -> None:
        user = system.client("user")
        right = system.task("fs").names[1].derive(badge=user.place.badge)
        fs = user.connect(FileSystem, right)
        other: FileSystem = system.connect(FileSystem, "fs", "other")
        f = (await fs.create(ROOT, TOP, b"f", 0o644, os.O_RDWR)).inode
        await fs.write(ROOT, f, 0, b"octets")
        assert (await other.unlink(ROOT, TOP, b"f")).links == 0
        assert await refusal(other.release(f)) == errno.EBADF
        await restart(system, placement)
        assert bytes(await fs.read(f, 0, 100)) == b"octets"
        right.release()
        with trio.fail_after(10):
            while not await refusal(other.getattr(f)):
                await trio.lowlevel.checkpoint()

    run_system(tmp_path, placement, scenario)
    assert_sound(tmp_path)


async def restart(system: System, placement: str) -> None:
    """Have the file server die, and come back."""
    if placement == "process":
        kill(system, "fs")
    else:
        await fault(system)
    await system.connect(FileSystem, "fs", "kernel").statfs()


async def fault(system: System) -> None:
    """Have a promoted file server fail in the middle of a change."""
    server = system.task("fs").engine.server  # type: ignore[union-attr]
    assert isinstance(server, FileServer)
    entries = server.volume.tables.entries
    add: Callable[..., None] = entries.add

    def fail(*arguments: Any) -> None:
        add(*arguments)
        raise RuntimeError("a fault on purpose")

    entries.add = fail  # type: ignore[method-assign, assignment]
    await system.connect(FileSystem, "fs").mkdir(ROOT, TOP, b"made", 0o755)


def test_a_promoted_server_that_fails_in_the_middle_is_mended(tmp_path: Path) -> None:
    async def scenario(system: System) -> None:
        fs: FileSystem = system.connect(FileSystem, "fs")
        await fs.mkdir(ROOT, TOP, b"before", 0o755)
        await fault(system)
        names = [entry.name for entry in await fs.readdir(TOP, 2, 10)]
        assert names == [b"before", b"made"]

    run_system(tmp_path, "colocated", scenario)
    assert_sound(tmp_path)


def test_changes_become_durable_when_the_server_has_time(tmp_path: Path) -> None:
    async def scenario(system: System) -> None:
        fs: FileSystem = system.connect(FileSystem, "fs")
        server = system.task("fs").engine.server  # type: ignore[union-attr]
        assert isinstance(server, FileServer)
        f = await fs.create(ROOT, TOP, b"f", 0o644, os.O_RDWR)
        await fs.write(ROOT, f.inode, 0, b"x" * MIB)
        await fs.release(f.inode)
        await fs.unlink(ROOT, TOP, b"f")
        server.notified(1)
        restless = [server.volume.restless]  # it was busy since the timer was armed
        for _ in range(5):
            server.notified(1)
            restless.append(server.volume.restless)
        assert restless[::5] == [True, False]
        assert (tmp_path / DATA_NAME).stat().st_blocks * 512 < MIB
        await fs.mkdir(ROOT, TOP, b"d", 0o755)
        for _ in range(BUSY_PERIODS):
            await fs.setattr(ROOT, TOP, Changes(mode=0o755))
            server.notified(1)
        assert not server.volume.store.unsynced

    run_system(tmp_path, "colocated", scenario)
    assert_sound(tmp_path)


class Watching(Server):
    """A client that watches, and collects what it is told."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.told = trio.Event()
        self.seen: list[Change] = []
        self.ready = trio.Event()

    async def run(self) -> None:
        fs = self.fs = self.task.connect(FileSystem, "fs")
        position = await fs.watch(self.task.mint(9))
        self.ready.set()
        while True:
            await self.told.wait()
            self.told = trio.Event()
            while True:
                position, changes = await fs.changes(position)
                self.seen.extend(changes)
                if not changes:
                    break

    def notified(self, bits: int) -> None:
        assert bits in {CHANGED, CHANGED | UNLOCKED}
        self.told.set()

    async def wait_seen(self, change: Change) -> None:
        with trio.fail_after(10):
            while change not in self.seen:
                await trio.lowlevel.checkpoint()


@both
def test_who_watches_hears_of_others_also_after_a_restart(tmp_path: Path, placement: str) -> None:
    async def scenario(system: System) -> None:
        watchers: list[Watching] = []

        def make(task: Task) -> Watching:
            watchers.append(Watching(task))
            return watchers[-1]

        system.add_colocated("watcher", make, grants={"fs": Grant("fs", ALL_OPERATIONS)})
        await system.wait_running(["watcher"])
        watcher = watchers[0]
        await watcher.ready.wait()
        other: FileSystem = system.connect(FileSystem, "fs", "other")
        await watcher.fs.mkdir(ROOT, TOP, b"mine", 0o755)
        f = (await other.mknod(ROOT, TOP, b"theirs", 0o100644, 0)).inode
        await watcher.wait_seen(Change(TOP, b"theirs"))
        await other.write(ROOT, f, 0, b"x")
        await watcher.wait_seen(Change(f, data=True))
        assert Change(TOP, b"mine") not in watcher.seen
        watcher.seen.clear()
        await restart(system, placement)
        await watcher.wait_seen(Change(0))
        await other.unlink(ROOT, TOP, b"theirs")
        await watcher.wait_seen(Change(TOP, b"theirs"))

    run_system(tmp_path, placement, scenario)
    assert_sound(tmp_path)


@both
def test_the_disk_lends_itself_or_works_by_message(tmp_path: Path, placement: str) -> None:
    async def scenario(system: System) -> None:
        disk: Disk = system.connect(Disk, "disk")
        info, descriptor = await disk.lend()
        assert (info.size, info.block_size) == (4 * MIB, 4096)
        await disk.write(MIB, b"octets" * 10_000)
        assert bytes(await disk.read(MIB, 60_000)) == b"octets" * 10_000
        assert os.pread(descriptor.fileno(), 6, MIB) == b"octets"
        await disk.sync()
        await disk.discard(MIB, 60_000)
        assert bytes(await disk.read(MIB, 60_000)) == bytes(60_000)
        for offset, size in [(-1, 5), (4 * MIB - 4, 5), (4 * MIB, 1), (0, -1), (1 << 63, 1)]:
            assert await refusal(disk.discard(offset, size)) == errno.EINVAL
        assert await refusal(disk.read(4 * MIB - 4, 5)) == errno.EINVAL
        assert await refusal(disk.write(4 * MIB - 4, b"12345")) == errno.EINVAL
        assert await refusal(disk.read(-1, 5)) == errno.EINVAL
        with pytest.raises(AtollError):
            await disk.read(0, 2 * MIB)
        assert (await disk.describe()).size == 4 * MIB
        descriptor.close()

    run_system(tmp_path, placement, scenario, size=4 * MIB)


def test_the_disk_server_gets_its_open_file_back(tmp_path: Path) -> None:
    async def scenario(system: System) -> None:
        disk: Disk = system.connect(Disk, "disk")
        before = await disk.describe()
        (tmp_path / DATA_NAME).rename(tmp_path / "moved")
        kill(system, "disk")
        assert await disk.describe() == before
        (tmp_path / "moved").rename(tmp_path / DATA_NAME)

    run_system(tmp_path, "process", scenario)


def test_a_volume_is_found_again_at_the_next_boot(tmp_path: Path) -> None:
    async def first(system: System) -> None:
        fs: FileSystem = system.connect(FileSystem, "fs")
        f = await fs.create(ROOT, TOP, b"f", 0o644, os.O_RDWR)
        await fs.write(ROOT, f.inode, 0, b"octets")
        gone = await fs.create(ROOT, TOP, b"gone", 0o644, os.O_RDWR)
        await fs.unlink(ROOT, TOP, b"gone")
        numbers.append(gone.inode)

    async def second(system: System) -> None:
        fs: FileSystem = system.connect(FileSystem, "fs")
        f = await fs.lookup(ROOT, TOP, b"f")
        assert bytes(await fs.read(f.inode, 0, 10)) == b"octets"
        assert await refusal(fs.getattr(numbers[0])) == errno.ESTALE

    numbers: list[int] = []
    run_system(tmp_path, "process", first)
    run_system(tmp_path, "colocated", second)
    assert_sound(tmp_path)


def test_data_without_metadata_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="restore"):
        prepare_volume(tmp_path, DiskInfo(size=MIB, block_size=4096, used=4096))
    assert not (tmp_path / METADATA_NAME).exists()
    prepare_volume(tmp_path, DiskInfo(size=MIB, block_size=4096, used=0))
    prepare_volume(tmp_path, DiskInfo(size=MIB, block_size=4096, used=4096))


def test_callers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    async def scenario(system: System) -> None:
        fs: FileSystem = system.connect(FileSystem, "fs")
        nobody = Caller(-1, -1)
        assert await refusal(fs.mkdir(nobody, TOP, b"d", 0o755)) == errno.EINVAL
        assert await refusal(fs.read(TOP, 0, 10)) == errno.EISDIR
        assert await refusal(fs.getattr(1 << 63)) == errno.ESTALE

    run_system(tmp_path, "process", scenario)
