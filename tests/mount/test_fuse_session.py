"""A real mount: what programs see, and how it begins and ends."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import trio

from core.errors import DeadPortError
from fs_server.interface import Caller
from mount.fuse_session import serve
from mount.mount_options import MountOptions
from mount.mount_point import MountError, is_stale, mounted
from tests.support.memory_file_system import FailingFileSystem, MemoryFileSystem

from .conftest import MountUnderTest

_CALLER = Caller(0, 0)
pytestmark = [pytest.mark.needs_fuse, pytest.mark.slow]


def error_of(function: Callable[[], object]) -> int:
    """Return the error number that a call fails with, 0 if it does not."""
    try:
        function()
    except OSError as error:
        return error.errno or 0
    return 0


async def test_files_and_directories_are_what_programs_expect(mounted: MountUnderTest) -> None:
    def use(root: Path) -> None:
        (root / "d").mkdir()
        (root / "d/f").write_text("text")
        assert (root / "d/f").read_text() == "text"
        (root / "d/f").chmod(0o640)
        assert stat.S_IMODE((root / "d/f").stat().st_mode) == 0o640
        os.utime(root / "d/f", ns=(1_000_000_001, -1_000_000_007))
        assert (root / "d/f").stat().st_mtime_ns == -1_000_000_007
        (root / "link").symlink_to("d/f")
        assert (root / "link").readlink() == Path("d/f")
        (root / "hard").hardlink_to(root / "d/f")
        assert (root / "hard").stat().st_nlink == 2
        (root / "hard").rename(root / "renamed")
        assert sorted(os.listdir(root)) == ["d", "link", "renamed"]
        assert error_of((root / "d").rmdir) == errno.ENOTEMPTY
        os.mkfifo(root / "fifo")
        assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
        assert error_of((root / ("n" * 256)).touch) == errno.ENAMETOOLONG
        usage = os.statvfs(root)
        assert (usage.f_bsize, usage.f_namemax) == (4096, 255)

    await mounted.run(use, mounted.path)


async def test_extended_attributes_are_kept(mounted: MountUnderTest) -> None:
    def use(path: Path) -> None:
        path.touch()
        os.setxattr(path, "user.a", b"1")
        os.setxattr(path, "user.a", b"2", os.XATTR_REPLACE)
        assert error_of(lambda: os.setxattr(path, "user.a", b"", os.XATTR_CREATE)) == errno.EEXIST
        assert os.getxattr(path, "user.a") == b"2"
        assert os.listxattr(path) == ["user.a"]
        os.removexattr(path, "user.a")
        assert error_of(lambda: os.getxattr(path, "user.a")) == errno.ENODATA
        assert error_of(lambda: os.getxattr(path, "system.posix_acl_access")) == errno.EOPNOTSUPP

    await mounted.run(use, mounted.path / "f")


async def test_unlinked_file_stays_usable_while_it_is_open(mounted: MountUnderTest) -> None:
    def use(path: Path) -> None:
        with path.open("w+b", buffering=0) as file:
            file.write(b"before")
            path.unlink()
            file.write(b" after")
            assert os.pread(file.fileno(), 100, 0) == b"before after"
            assert os.fstat(file.fileno()).st_nlink == 0
        assert not path.exists()

    await mounted.run(use, mounted.path / "f")
    assert set(mounted.fs.tree.nodes) == {1}


async def test_huge_and_impossible_sizes_do_not_end_the_mount(mounted: MountUnderTest) -> None:
    def use(path: Path) -> None:
        path.touch()
        os.truncate(path, 1 << 60)
        assert path.stat().st_size == 1 << 60
        with path.open("r+b", buffering=0) as file:
            assert os.pread(file.fileno(), 4, (1 << 60) - 2) == b"\0\0"
            assert os.pwrite(file.fileno(), b"x", (1 << 60) - 1) == 1
            assert error_of(lambda: os.pwrite(file.fileno(), b"x", (1 << 60) + 5)) == errno.EFBIG
        assert error_of(lambda: os.truncate(path, (1 << 60) + 1)) == errno.EFBIG
        assert error_of(lambda: os.truncate(path, (1 << 63) - 1)) == errno.EFBIG
        os.truncate(path, 0)
        assert path.read_bytes() == b""

    await mounted.run(use, mounted.path / "f")


async def test_sparse_file_reads_zeros_where_nothing_was_written(mounted: MountUnderTest) -> None:
    def use(path: Path) -> None:
        with path.open("w+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"end", 1 << 40)
            assert os.pread(file.fileno(), 10, (1 << 40) - 5) == b"\0\0\0\0\0end"
            assert os.pread(file.fileno(), 3, 12345) == b"\0\0\0"

    await mounted.run(use, mounted.path / "f")


async def test_ten_thousand_entries_are_listed_once_each(mounted: MountUnderTest) -> None:
    root = mounted.fs
    for number in range(10_000):
        await root.mknod(_CALLER, 1, b"entry-%d" % number, stat.S_IFREG | 0o644, 0)
    names = await mounted.run(os.listdir, mounted.path)
    assert len(names) == 10_000
    assert set(names) == {f"entry-{number}" for number in range(10_000)}
    await mounted.shell("rm -r -- entry-*[02468] && test $(ls | wc -l) = 5000")


async def test_rename_keeps_its_promises(mounted: MountUnderTest) -> None:
    await mounted.shell(
        """
        echo a > a; echo b > b
        mv -n a b; test "$(cat a b)" = "$(printf 'a\\nb')"
        mv --exchange a b 2>/dev/null || true
        mkdir d e; touch d/x; ! mv -T e d/x 2>/dev/null; mv -T d e; test -e e/x
        """
    )


async def test_locks_of_the_host_work(mounted: MountUnderTest) -> None:
    def use(path: Path) -> None:
        with path.open("w") as one, path.open("w") as two:
            fcntl.flock(one, fcntl.LOCK_EX)
            blocked = error_of(lambda: fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB))
            assert blocked == errno.EWOULDBLOCK

    await mounted.run(use, mounted.path / "f")


TOOLS = {
    "cp": """
        seq 50000 > f; cp f g; cp -a f h; cmp f g; cmp f h; cp --sparse=always f i; cmp f i
        """,
    "tar": """
        mkdir d; seq 999 > d/a; ln -s a d/b; ln d/a d/c; tar cf t.tar d
        mkdir x; tar xf t.tar -C x; diff -r d x/d; test $(stat -c %h x/d/a) = 2
        """,
    "git": """
        export HOME=$PWD; git init -q r; cd r; seq 999 > f; git add f
        git config user.email a@b; git config user.name a; git commit -qm one
        echo x >> f; git commit -qam two; cd ..
        git clone -q r s; cd s; test $(git log --oneline | wc -l) = 2; git fsck
        """,
    "sqlite3": """
        sqlite3 d.db 'create table t(a);
            with recursive n(i) as (select 1 union all select i+1 from n where i<1000)
            insert into t select i from n; select sum(a) from t' | grep -x 500500
        sqlite3 d.db 'pragma integrity_check' | grep -x ok
        """,
    "rsync": """
        mkdir -p a/b; seq 1000 > a/b/f; ln -s f a/b/l; rsync -a a/ c/; diff -r a c
        echo >> a/b/f; rsync -a --inplace a/ c/; diff -r a c
        """,
    "make": """
        printf 'all: out\\nout: in\\n\\tcp in out\\n' > Makefile; echo 1 > in
        make -s; cmp in out; make -q
        echo 2 > in; touch -d '1 minute' in; ! make -q 2>/dev/null; make -s; cmp in out
        """,
    "ed": """
        printf 'a\\none\\ntwo\\n.\\nw f\\n1d\\nw\\nq\\n' | ed -s; test "$(cat f)" = two
        """,
}


@pytest.mark.parametrize("tool", TOOLS)
async def test_unix_tools_work(mounted: MountUnderTest, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    await mounted.shell(TOOLS[tool])


async def test_many_threads_at_once_see_their_own_files(mounted: MountUnderTest) -> None:
    def one(number: int) -> None:
        directory = mounted.path / f"d{number}"
        directory.mkdir()
        for step in range(20):
            path = directory / f"f{step}"
            path.write_bytes(b"%d %d" % (number, step) * 500)
            assert path.read_bytes() == b"%d %d" % (number, step) * 500
        shutil.rmtree(directory)

    def all_at_once() -> None:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(one, range(16)))

    await mounted.run(all_at_once)
    assert await mounted.run(os.listdir, mounted.path) == []


class SlowFileSystem(FailingFileSystem):
    """A file system that answers reads only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.waiting = 0

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        self.waiting += 1
        await self.gate.wait()
        return bytes(await super().read(inode, offset, size))


async def test_requests_that_wait_do_not_hold_up_others(
    tmp_path: Path, options: MountOptions
) -> None:
    fs = SlowFileSystem()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, fs, tmp_path, options))
        names = [tmp_path / f"f{number}" for number in range(8)]
        for name in names:
            await trio.to_thread.run_sync(name.write_text, "text")
        found: list[str] = []

        async def read(name: Path) -> None:
            found.append(await trio.to_thread.run_sync(name.read_text))

        async with trio.open_nursery() as readers:
            for name in names:
                readers.start_soon(read, name)
            while fs.waiting < len(names):
                await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync((tmp_path / "other").write_text, "not held up")
            assert not found
            fs.gate.set()
        assert found == ["text"] * len(names)
        nursery.cancel_scope.cancel()


async def test_error_in_the_server_is_an_error_of_one_call(mounted: MountUnderTest) -> None:
    path = mounted.path / "f"
    await mounted.run(path.write_text, "text")
    for error in (RuntimeError("a mistake"), DeadPortError("gone")):
        mounted.fs.failures["lookup"] = error
        assert await mounted.run(error_of, (mounted.path / "g").stat) == errno.EIO
    mounted.fs.failures.clear()
    assert await mounted.run(path.read_text) == "text"


@pytest.mark.needs_root
async def test_user_makes_files_of_its_own_and_is_kept_out_of_others(
    mounted: MountUnderTest,
) -> None:
    await mounted.shell(
        """
        mkdir -m 1777 open; mkdir -m 700 closed; echo secret > secret; chmod 600 secret
        setpriv --reuid 1234 --regid 1234 --clear-groups bash -c '
            set -e
            echo mine > open/mine; test $(stat -c %u:%g open/mine) = 1234:1234
            ! cat secret 2>/dev/null; ! ls closed 2>/dev/null; ! touch here 2>/dev/null
            ! chmod 777 secret 2>/dev/null; ! chown 0 open/mine 2>/dev/null'
        touch open/roots; ! setpriv --reuid 1234 --clear-groups --regid 1234 rm -f open/roots 2>&1
        chmod 4755 open/mine
        setpriv --reuid 1234 --regid 1234 --clear-groups bash -c 'echo x >> open/mine'
        test $(stat -c %a open/mine) = 755
        """
    )


async def test_mount_from_outside_is_unmounted_and_serve_returns(
    tmp_path: Path, options: MountOptions
) -> None:
    ended = trio.Event()

    async def serve_here(task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED) -> None:
        await serve(MemoryFileSystem(), tmp_path, options, task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_here)
        command = ["umount" if os.geteuid() == 0 else "fusermount3", str(tmp_path)]
        if os.geteuid():
            command.insert(1, "-u")
        await trio.run_process(command)
        with trio.fail_after(20):
            await ended.wait()
    assert mounted_type(tmp_path) is None


def mounted_type(path: Path) -> str | None:
    """Return the type of what is mounted at a path."""
    found = mounted(path)
    return found[1] if found else None


async def test_cancelled_mount_leaves_the_directory_as_it_was(
    tmp_path: Path, options: MountOptions
) -> None:
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, MemoryFileSystem(), tmp_path, options))
            assert mounted_type(tmp_path) == "fuse.atoll"
            nursery.cancel_scope.cancel()
        assert mounted_type(tmp_path) is None
        assert os.listdir(tmp_path) == []


async def test_mount_ends_although_a_file_is_open(tmp_path: Path, options: MountOptions) -> None:
    opened, closed = threading.Event(), threading.Event()
    errors: list[int] = []

    def hold() -> None:
        descriptor = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
        opened.set()
        closed.wait()
        errors.append(error_of(lambda: os.write(descriptor, b"x")))
        error_of(lambda: os.close(descriptor))

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, MemoryFileSystem(), tmp_path, options))
        holder = threading.Thread(target=hold)
        holder.start()
        await trio.to_thread.run_sync(opened.wait)
        nursery.cancel_scope.cancel()
    assert mounted_type(tmp_path) is None
    closed.set()
    await trio.to_thread.run_sync(holder.join)
    assert errors == [errno.ENOTCONN]


@pytest.mark.parametrize("front_end_name", ["pyfuse3"], indirect=True)
async def test_second_mount_in_one_process_is_refused_by_pyfuse3(
    mounted: MountUnderTest, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(MountError, match="serves a mount already"):
        await serve(MemoryFileSystem(), other)
    with pytest.raises(MountError, match="something is mounted there already"):
        await serve(MemoryFileSystem(), mounted.path)


@pytest.mark.parametrize("front_end_name", ["native"], indirect=True)
async def test_one_process_serves_several_native_mounts(
    mounted: MountUnderTest, options: MountOptions, tmp_path: Path
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, MemoryFileSystem(), tmp_path, options))
        await mounted.run((mounted.path / "f").write_text, "one")
        await mounted.run((tmp_path / "f").write_text, "other")
        assert await mounted.run((mounted.path / "f").read_text) == "one"
        nursery.cancel_scope.cancel()
    with pytest.raises(MountError, match="something is mounted there already"):
        await serve(MemoryFileSystem(), mounted.path, options)


def die_mounted(front_end: str, place: Path) -> None:
    """Have another process mount something, and kill it."""
    command = [sys.executable, "-m", "tests.support.memory_mount", front_end, str(place)]
    dead = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert dead.stdout is not None
    assert dead.stdout.readline() == b"ready\n"
    dead.kill()
    dead.communicate()


async def test_mount_of_a_dead_server_is_replaced(tmp_path: Path, options: MountOptions) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    await trio.to_thread.run_sync(die_mounted, options.front_end, place)
    assert await trio.to_thread.run_sync(is_stale, place)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, MemoryFileSystem(), place, options))
        await trio.to_thread.run_sync((place / "f").write_text, "alive")
        nursery.cancel_scope.cancel()
    assert mounted_type(place) is None
    assert not is_stale(place)


@pytest.mark.parametrize(
    "options",
    [
        MountOptions(stock_wait=True),
        MountOptions(linger_s=0.0),
        MountOptions(linger_s=0.0, front_end="native"),
        MountOptions(sole_writer=True, front_end="native"),
    ],
)
async def test_other_ways_of_waiting_serve_as_well(mounted: MountUnderTest) -> None:
    assert mounted.mount.polled is (mounted.mount.workers.requests > 0)
    await mounted.shell("seq 9999 > f; cp f g; cmp f g")


AS_NOBODY = """
test -c $1/fuse; mount --bind $1/fuse /dev/fuse
mkfifo -m 666 $1/end; mkdir $1/mnt; chown nobody $1/mnt
AS="setpriv --reuid nobody --regid 65534 --clear-groups"
$AS {python} -B -m tests.support.memory_mount $2 $1/mnt < $1/end > $1/said & exec 3> $1/end
until grep -q ready $1/said; do kill -0 $! || exit 1; done
$AS bash -c "echo text > $1/mnt/f; cat $1/mnt/f; stat -c %U $1/mnt/f"
exec 3>&-; wait; findmnt $1/mnt || echo unmounted
"""


@pytest.mark.needs_root
def test_ordinary_user_mounts_through_fusermount3(place: Path, front_end_name: str) -> None:
    """In a mount name space of its own, where /dev/fuse is open to all, as Debian has it."""
    nobody = ["setpriv", "--reuid", "nobody", "--regid", "65534", "--clear-groups"]
    able = [*nobody, sys.executable, "-B", "-c", "import mount.fuse_session"]
    if shutil.which("fusermount3") is None or subprocess.run(able, check=False).returncode:
        pytest.skip("needs fusermount3, and a project that other users can read")
    os.mknod(place / "fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
    (place / "fuse").chmod(0o666)
    script = AS_NOBODY.replace("{python}", sys.executable)
    done = subprocess.run(
        ["unshare", "-m", "bash", "-euc", script, "bash", str(place), front_end_name],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split() == ["text", "nobody", "unmounted"]
