"""A booted system with a volume and a mount, as a program, for tests and benchmarks.

Run `python -m tests.support.system_mount PLACEMENT DIR [FRONT_END]`: PLACEMENT of disk and file
server is `process` or `colocated`. The volume is made in a temporary directory. It says "ready"
when the mount can be used. A line `write NAME TEXT`, `truncate NAME SIZE`, `rename NAME NAME`,
`unlink NAME`, `lock NAME OCTET`, `unlock NAME OCTET` or `kill` on its standard input is done to the
file server by a second client, and answered with "done". It unmounts when its standard input ends.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from core.abi import ALL_OPERATIONS, Right
from core.system.boot import Prepared, System, booted
from core.system.description import Grant, load_description
from core.userlib.server import Server
from core.userlib.task import Task
from fs_server.interface import (
    LOCK_NONE,
    LOCK_WRITE,
    ROOT_INODE,
    Caller,
    Changes,
    FileSystem,
    Lock,
)
from mount.fuse_session import serve
from mount.mount_options import MountOptions
from mount.settings import FrontEndName

DESCRIPTION = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.disk]
class = "fs_server.disk:DiskServer"
placement = "{placement}"
options = {{ state = "{state}" }}
writes = ["{{state}}"]
file_mib = 0

[server.fs]
class = "fs_server.server:FileServer"
placement = "{placement}"
grants = {{ disk = "disk" }}
options = {{ state = "{state}" }}
writes = ["{{state}}"]
file_mib = 0
"""
ROOT = Caller(0, 0, (), 0)


class FrontEndTask(Server):
    """The mount as a task of the system."""

    def __init__(
        self, task: Task, mountpoint: str, options: MountOptions, mounted: trio.Event
    ) -> None:
        super().__init__(task)
        self._options = options
        self._mountpoint = mountpoint
        self._mounted = mounted
        self._changed = trio.Event()

    async def run(self) -> None:
        fs = self.task.connect(FileSystem, "fs")
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, fs, self._mountpoint, self._options, watch=self))
            self._mounted.set()

    @property
    def port(self) -> Right:
        return self.task.mint(1)

    async def wait_changed(self) -> None:
        await self._changed.wait()
        self._changed = trio.Event()

    def notified(self, bits: int) -> None:
        self._changed.set()


async def other_client(system: System, fs: FileSystem, words: list[str]) -> None:
    """Do what a line of standard input says, as a client other than the mount."""
    if words[0] == "kill":
        os.kill(system.task("fs").engine.pid, 9)  # type: ignore[union-attr]
        return
    name = os.fsencode(words[1])
    match words:
        case ["write", _, text]:
            made = await fs.create(ROOT, ROOT_INODE, name, 0o644, 0)
            await fs.write(ROOT, made.inode, 0, text.encode())
            await fs.release(made.inode)
        case ["truncate", _, size]:
            found = await fs.lookup(ROOT, ROOT_INODE, name)
            await fs.setattr(ROOT, found.inode, Changes(size=int(size)))
        case ["rename", _, new]:
            await fs.rename(ROOT, ROOT_INODE, name, ROOT_INODE, os.fsencode(new), 0)
        case ["lock", _, octet]:
            found = await fs.lookup(ROOT, ROOT_INODE, name)
            await fs.open(ROOT, found.inode, os.O_RDWR)
            lock = Lock(LOCK_WRITE, int(octet), int(octet))
            assert await fs.lock(found.inode, lock, eager=False) is None
        case ["unlock", _, octet]:
            found = await fs.lookup(ROOT, ROOT_INODE, name)
            await fs.lock(found.inode, Lock(LOCK_NONE, int(octet), int(octet)), eager=False)
            await fs.release(found.inode)
        case ["unlink", _]:
            await fs.unlink(ROOT, ROOT_INODE, name)
        case _:
            raise ValueError(words)


async def run(prepared: Prepared, mountpoint: str, options: MountOptions) -> None:
    async with booted(prepared) as system:
        mounted = trio.Event()
        system.add_colocated(
            "front-end",
            lambda task: FrontEndTask(task, mountpoint, options, mounted),
            grants={"fs": Grant("fs", ALL_OPERATIONS)},
        )
        await mounted.wait()
        print("ready", flush=True)
        fs = system.connect(FileSystem, "fs")
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            await other_client(system, fs, line.split())
            print("done", flush=True)


def main(placement: str, mountpoint: str, front_end: FrontEndName = "pyfuse3") -> None:
    with tempfile.TemporaryDirectory(prefix="atoll-volume-") as state:
        description = Path(state) / "system.toml"
        description.write_text(DESCRIPTION.format(placement=placement, state=state))
        trio.run(
            run,
            Prepared(load_description(description)),
            mountpoint,
            MountOptions(front_end=front_end),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
