"""A host that cannot be asked to say things again: the front end's death is the mount's."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from core.kernel.tasks import State
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from mount.mount_point import detach, mounted

pytestmark = [pytest.mark.slow, pytest.mark.needs_root, pytest.mark.needs_fuse]

DESCRIPTION = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.disk]
class = "fs_server.disk:DiskServer"
options = {{ state = "{state}" }}
writes = ["{{state}}"]
file_mib = 0

[server.fs]
class = "fs_server.server:FileServer"
grants = {{ disk = "disk" }}
options = {{ state = "{state}" }}
writes = ["{{state}}"]
file_mib = 0

[server.mount]
class = "tests.support.old_host:OldHostAttachment"
placement = "colocated"
options = {{ path = "{path}" }}

[server.front-end]
class = "mount.native.server:FrontEndServer"
grants = {{ fs = "fs", mount = "mount" }}
"""


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if mounted(path) is not None:
        detach(path)


@pytest.fixture
def prepared(tmp_path: Path, mountpoint: Path) -> Iterator[Prepared]:
    state = tmp_path / "state"
    state.mkdir()
    made = Prepared(parse_description(DESCRIPTION.format(state=state, path=mountpoint), "old"))
    yield made
    made.close()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - other processes bring it about
            await trio.sleep(0.005)


async def test_death_of_the_front_end_ends_the_mount_and_leaves_nobody_waiting(
    prepared: Prepared, mountpoint: Path
) -> None:
    log: list[str] = []
    async with booted(prepared, log.append) as system:
        path = mountpoint / "file"
        await trio.to_thread.run_sync(path.write_text, "x")
        held = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY)
        await end_front_end(system)
        await until(lambda: mounted(mountpoint) is None)
        with pytest.raises(OSError) as failed:  # noqa: PT011 - its number is looked at
            await trio.to_thread.run_sync(os.pread, held, 1 << 20, 1 << 20)
        assert failed.value.errno in {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
        with contextlib.suppress(OSError):  # it is closed all the same
            os.close(held)
    assert any("cannot be restarted" in line for line in log), log


async def end_front_end(system: System) -> None:
    task = system.task("front-end")
    assert task.engine is not None
    os.kill(task.engine.pid, signal.SIGKILL)
    await until(lambda: task.id.generation == 1 and task.state is State.RUNNING)
