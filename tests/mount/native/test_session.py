"""What the native session does beyond what both front ends do: see tests/mount for the rest."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from fs_server.interface import ROOT_INODE, Attributes, Caller
from mount import host
from mount.fuse_session import serve
from mount.fuse_wait import Workers
from mount.host import ThisProcess
from mount.mount_options import MountOptions
from mount.native.attachment import Terms
from mount.native.front_end import NativeFrontEnd
from mount.native.protocol.opcodes import Opcode
from mount.native.protocol.replies import parse_reply
from mount.native.protocol.requests import Unknown
from mount.native.session import NativeSession
from mount.native.signals import is_ending
from tests.support.memory_file_system import FailingFileSystem, MemoryFileSystem

OPTIONS = MountOptions(front_end="native")


class SlowFileSystem(FailingFileSystem):
    """A file system that looks up `slow` only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.asked = trio.Event()
        self.aborted = trio.Event()

    async def lookup(self, caller: Caller, parent: int, name: bytes) -> Attributes:
        if name == b"slow":
            self.asked.set()
            try:
                await self.gate.wait()
            except trio.Cancelled:
                self.aborted.set()
                raise
        return await super().lookup(caller, parent, name)


@pytest.mark.needs_fuse
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_killed_caller_ends_and_its_call_is_aborted(
    tmp_path: Path, number: signal.Signals
) -> None:
    fs = SlowFileSystem()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, fs, tmp_path, OPTIONS))
        caller = await trio.lowlevel.open_process(["stat", tmp_path / "slow"])
        with trio.fail_after(20):
            await fs.asked.wait()
            caller.send_signal(number)
            await fs.aborted.wait()
            assert await caller.wait() == -number
        fs.gate.set()
        assert not await trio.to_thread.run_sync((tmp_path / "slow").exists)
        nursery.cancel_scope.cancel()


CATCHES = """
import ctypes, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("caught", flush=True))
libc = ctypes.CDLL(None, use_errno=True)
print(libc.access(sys.argv[1].encode(), os.F_OK), ctypes.get_errno(), flush=True)
"""


@pytest.mark.needs_fuse
async def test_signal_that_is_caught_fails_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = SlowFileSystem()
    looked = trio.Event()

    def look(pid: int) -> bool:
        looked.set()
        return is_ending(pid)

    monkeypatch.setattr(host, "is_ending", look)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, fs, tmp_path, OPTIONS))
        command = [sys.executable, "-c", CATCHES, str(tmp_path / "slow")]
        caller = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        assert caller.stdout is not None
        with trio.fail_after(20):
            await fs.asked.wait()
            caller.send_signal(signal.SIGUSR1)
            await looked.wait()
            fs.gate.set()
            said = b"".join([part async for part in caller.stdout]).decode()
            assert await caller.wait() == 0
        assert sorted(said.splitlines()) == [f"-1 {errno.ENOENT}", "caught"]
        nursery.cancel_scope.cancel()


def test_processes_that_end_are_told_from_those_that_do_not() -> None:
    assert not is_ending(os.getpid())
    assert is_ending(0)
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert is_ending(gone.pid)


def test_blocked_signal_ends_nobody() -> None:
    """A signal stays pending for this thread while it is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert signal.SIGUSR1 in signal.sigpending()
        assert not is_ending(threading.get_native_id())
        assert signal.sigtimedwait({signal.SIGUSR1}, 1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class CountingFrontEnd(NativeFrontEnd):
    """Keeps itself for the test, and sees that nothing is forgotten more often than looked up."""

    latest: CountingFrontEnd

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self.mistakes: list[str] = []
        self.forgotten = trio.Event()
        CountingFrontEnd.latest = self

    def forget(self, inode: int, count: int) -> None:
        known = self.lookups().get(inode, 0)
        if known < count:
            self.mistakes.append(f"inode {inode}: {count} of {known}")
        super().forget(inode, count)
        self.forgotten.set()
        self.forgotten = trio.Event()


@pytest.fixture
async def counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[CountingFrontEnd, Path]]:
    monkeypatch.setattr("mount.fuse_session.NativeFrontEnd", CountingFrontEnd)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, MemoryFileSystem(), tmp_path, OPTIONS))
        yield CountingFrontEnd.latest, tmp_path
        nursery.cancel_scope.cancel()


@pytest.mark.needs_fuse
async def test_lookups_are_counted_exactly(counted: tuple[CountingFrontEnd, Path]) -> None:
    front_end, root = counted

    def use() -> None:
        for number in range(150):
            path = root / f"f{number}"
            path.write_text("x")
            path.rename(root / f"g{number}")
            (root / f"h{number}").hardlink_to(root / f"g{number}")
        (root / "d").mkdir()
        (root / "s").symlink_to("d")
        os.mkfifo(root / "p")
        sizes = [entry.stat(follow_symlinks=False).st_size for entry in os.scandir(root)]
        assert min(os.listdir(root)) == "d"
        assert len(sizes) == 303

    await trio.to_thread.run_sync(use)
    assert len(front_end.lookups()) == 153
    assert min(front_end.lookups().values()) >= 1

    def remove() -> None:
        for entry in list(os.scandir(root)):
            (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)

    await trio.to_thread.run_sync(remove)
    with trio.fail_after(20):
        while left := set(front_end.lookups()) - {ROOT_INODE}:
            assert left
            await front_end.forgotten.wait()
    assert not front_end.mistakes
    assert set(front_end.known_inodes()) <= {ROOT_INODE}


@pytest.mark.needs_fuse
async def test_what_pyfuse3_does_not_pass_on_arrives(
    counted: tuple[CountingFrontEnd, Path],
) -> None:
    _, root = counted

    def use() -> None:
        file = os.open(root / "f", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(file, 0, 1 << 20)
        assert os.fstat(file).st_size == 1 << 20
        os.pwrite(file, b"data", 3 << 20)
        assert os.lseek(file, 2 << 20, os.SEEK_DATA) >= 2 << 20
        libc = ctypes.CDLL(None, use_errno=True)
        offset, size = ctypes.c_long(3 << 20), ctypes.c_long(4)
        keep_size, collapse = 1, 8
        assert libc.fallocate(file, keep_size, offset, size) == 0
        assert libc.fallocate(file, collapse, offset, size) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(file, 9 << 20, os.SEEK_DATA)
        os.setxattr(root / "f", "user.a", b"1", os.XATTR_CREATE)
        with pytest.raises(FileExistsError):
            os.setxattr(root / "f", "user.a", b"2", os.XATTR_CREATE)
        os.close(file)

    await trio.to_thread.run_sync(use)


@pytest.mark.needs_fuse
async def test_plain_listing_asks_for_no_attributes_of_what_was_listed_before(
    counted: tuple[CountingFrontEnd, Path],
) -> None:
    """READDIRPLUS_AUTO: attributes come with the first page, and later only if they are used."""
    front_end, root = counted
    asked: list[str] = []
    for name in ("readdir", "readdirplus"):
        opcode = Opcode[name.upper()].value
        handler = front_end.handlers[opcode]

        def note(request: object, name: str = name, handler: object = handler) -> object:
            asked.append(name)
            return handler(request)  # type: ignore[operator]

        front_end.handlers[opcode] = note  # type: ignore[assignment]

    def use() -> None:
        for number in range(400):
            (root / f"a-name-of-some-length-{number:05}").touch()
        assert len(os.listdir(root)) == 400

    await trio.to_thread.run_sync(use)
    assert set(asked) == {"readdirplus", "readdir"}


def test_every_handler_has_an_opcode() -> None:
    front_end = NativeFrontEnd(MemoryFileSystem(), host=ThisProcess(-1))
    named = {name for name in dir(front_end) if re.match("_on_", name)}
    assert len(named) == len(front_end.handlers)


def test_what_nobody_serves_is_declined_and_logged_once_of_each_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    reading, writing = os.pipe()
    front_end = NativeFrontEnd(MemoryFileSystem(), host=ThisProcess(-1))
    workers = Workers(writing, 0)
    served = NativeSession(front_end, writing, Terms(0, 8192), ThisProcess(-1), workers)
    for unique, opcode in enumerate((37, 4000, 37, 4000, 48)):
        served._handle_other(Unknown(opcode, unique, 1, 0, 0, 1, memoryview(b"")))
        answer = parse_reply(memoryview(os.read(reading, 100)))
        assert answer[:2] == (unique, errno.ENOSYS)
    said = [record.getMessage() for record in caplog.records]
    assert ["BMAP" in said[0], "4000" in said[1], "SETUPMAPPING" in said[2]] == [True] * 3
    assert len(said) == 3
    os.close(reading)
    os.close(writing)
