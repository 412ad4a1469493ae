"""A real mount over a file system in memory, used from threads and subprocesses."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from mount.fuse_session import serve
from mount.mount_options import FRONT_ENDS, Mount, MountOptions
from mount.settings import FrontEndName
from tests.support.memory_file_system import FailingFileSystem

T = TypeVar("T")


class MountUnderTest:
    """A mount served by this very thread: touch it only through `run` and `shell`."""

    def __init__(self, fs: FailingFileSystem, mount: Mount) -> None:
        self.fs = fs
        self.mount = mount
        self.path = mount.path

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in a thread."""
        return await trio.to_thread.run_sync(partial(function, *arguments))

    async def shell(self, script: str) -> str:
        """Run a shell script in the mount; it must succeed. Returns what it wrote.

        The shell itself goes there: with `cwd=` the new process would, while this one, which
        serves the mount, is suspended by vfork until it has.
        """
        done = await trio.run_process(
            ["bash", "-euo", "pipefail", "-c", f'cd "$0"; {script}', str(self.path)],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        assert done.returncode == 0, output
        return output


@pytest.fixture(params=FRONT_ENDS, scope="module")
def front_end_name(request: pytest.FixtureRequest) -> FrontEndName:
    """Who speaks with the host's kernel: every mount is tried with each."""
    name: FrontEndName = request.param
    return name


@pytest.fixture
def options(front_end_name: FrontEndName) -> MountOptions:
    """How the mount is made; a module may override it."""
    return MountOptions(front_end=front_end_name)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory to mount on that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="atoll-mount-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def mounted(place: Path, options: MountOptions) -> AsyncIterator[MountUnderTest]:
    fs = FailingFileSystem()
    async with trio.open_nursery() as serving:
        mount = await serving.start(partial(serve, fs, place, options, watch=fs))
        # The kernel learns from pyfuse3's first close(2) that there is nothing to flush. A test
        # that is killed with a file open would else wait for an answer from itself, as it does
        # under the native front end, where closing gives locks back: abort the connection then.
        await trio.to_thread.run_sync((mount.path / "flush").touch)
        await trio.to_thread.run_sync((mount.path / "flush").unlink)
        yield MountUnderTest(fs, mount)
        serving.cancel_scope.cancel()
