"""Programs that join a system, take hold of something at every server, and are killed.

They are forked by a process of their own, the *farm*, which was itself forked before the kernel had
threads or trio: the kernel's process must not fork. An order is one octet, so is the report.
"""

from __future__ import annotations

import os
import signal
import traceback
from pathlib import Path
from typing import Final, NoReturn

import trio

from core.system.names import Names
from core.system.pipe import Pipes
from core.userlib.isolated import IsolatedTask
from core.userlib.joined import join
from core.userlib.task import complete
from fs_server.interface import ROOT_INODE, Caller, FileSystem
from net_server.network import Network

_ROOT: Final = Caller(0, 0, (), 0)


def _take_hold(task: IsolatedTask) -> None:
    """Get something of every server, of which the server must hear that it is free again."""
    mine = f"visitor-{os.getpid()}"
    port = task.create_port(mine)
    complete(task.connect(Names, "names").register(mine, task.mint(7, None, port)))
    fs = task.connect(FileSystem, "fs")
    name = mine.encode()
    made = complete(fs.create(_ROOT, ROOT_INODE, name, 0o600, os.O_RDWR))
    complete(fs.write(_ROOT, made.inode, 0, b"x" * 10_000))
    complete(fs.unlink(_ROOT, ROOT_INODE, name))
    pipes = task.connect(Pipes, "pipe")
    _, writing = complete(pipes.create())
    complete(task.connect(Pipes, writing).write(b"y" * 10_000))
    complete(pipes.attach(mine, True))
    net = task.connect(Network, "net")
    complete(net.udp_bind(0, False))
    complete(net.capture_start(100))
    task.arm(1000, 1)


def _visit(control: Path, ready: int) -> NoReturn:
    """Join, say that everything is held, and wait for something that never comes."""
    status = 1
    try:
        with join(control) as task:
            _take_hold(task)
            reading, writing = complete(task.connect(Pipes, "pipe").create())
            os.write(ready, b"r")
            complete(task.connect(Pipes, reading).read(100))
            task.drop(writing)
    except BaseException:  # noqa: BLE001 - nothing above this frame may go on in the child
        traceback.print_exc()
    os._exit(status)


class Farm:
    """The process that forks visitors. Make it before trio runs, and before the zygote."""

    def __init__(self, control: Path) -> None:
        orders, self._orders = os.pipe()
        self._reports, reports = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._orders)
            os.close(self._reports)
            _run(control, orders, reports)
        os.close(orders)
        os.close(reports)

    async def visit(self) -> bool:
        """Have a program join, hold things and be killed; False if it could not do so."""
        os.write(self._orders, b"v")
        await trio.lowlevel.wait_readable(self._reports)
        return os.read(self._reports, 1) == b"k"

    def close(self) -> None:
        """End the farm."""
        os.close(self._orders)
        os.close(self._reports)
        os.waitpid(self.pid, 0)


def _run(control: Path, orders: int, reports: int) -> NoReturn:
    while os.read(orders, 1):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(orders)
            os.close(reports)
            os.close(reader)
            _visit(control, writer)
        os.close(writer)
        ready = os.read(reader, 1)
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.write(reports, b"k" if ready else b"f")
    os._exit(0)
