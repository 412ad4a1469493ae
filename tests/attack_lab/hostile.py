"""A server whose operation runs any of the ways out that a hostile program might try."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final

from core.errors import AtollError
from core.userlib.interface import Bulk, Descriptor, Interface, operation
from core.userlib.isolated import IsolatedTask
from core.userlib.server import Server
from core.userlib.system_calls import NUMBERS
from core.userlib.task import Task

from .misuses import MISUSES

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _raw(name: str, *arguments: object) -> int:
    """Make a system call past every library. OSError as the host gives it."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(_libc.syscall(ctypes.c_long(NUMBERS[name]), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


class Hostile(Interface):
    """What the lab asks for."""

    @operation
    async def attempt(self, name: str, target: str, pid: int) -> str:
        """Try a way out; "" if it succeeded, else how it was refused."""

    @operation
    async def misuse(self, name: str, number: int) -> str:
        """Try a way past the kernel's tables; "" if it succeeded, else what stopped it.

        Args:
            number: of somebody else's request.
        """

    @operation
    async def take(self, file: Descriptor) -> None:
        """Close a descriptor."""

    @operation
    async def swallow(self, data: Bulk) -> None:
        """Forget octets."""

    @operation
    async def alive(self) -> int:
        """Return the process' id."""


def _fork(_: str, __: int) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _thread(_: str, __: int) -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def _signal_by_owner(_: str, pid: int) -> None:
    ours, _theirs = socket.socketpair()
    fcntl.fcntl(ours, 10, signal.SIGCONT)  # F_SETSIG
    fcntl.fcntl(ours, fcntl.F_SETOWN, pid)


def _memory(_: str, __: int) -> None:
    held = [mmap.mmap(-1, 1 << 30) for _ in range(4)]
    del held


def _descriptors(_: str, __: int) -> None:
    held: list[int] = []
    try:
        while len(held) < 3000:
            held.append(os.dup(1))
    finally:
        for number in held:
            os.close(number)


def _memory_objects(_: str, __: int) -> None:
    held: list[int] = []
    try:
        while len(held) < 200:
            held.append(os.memfd_create("flood"))
    finally:
        for number in held:
            os.close(number)


def _peek(_: str, pid: int) -> None:
    buffer = ctypes.create_string_buffer(8)
    vector = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(buffer), 8))
    _raw("process_vm_readv", pid, vector, 1, vector, 1, 0)


WAYS: Final[dict[str, Callable[[str, int], object]]] = {
    "read a file": lambda t, p: Path("/etc/passwd").read_text(),
    "read a file, raw": lambda t, p: _raw("openat", -100, b"/etc/passwd", 0, 0),
    "read by openat2": lambda t, p: _raw("openat2", -100, b"/etc/passwd", bytes(24), 24),
    "leave code by dots": lambda t, p: os.open(os.__file__ + "/../../../../../etc/passwd", 0),
    "state of a file": lambda t, p: Path("/etc/passwd").stat(),
    "list a directory": lambda t, p: os.listdir("/"),
    "make a file": lambda t, p: Path(t).write_text("x"),
    "make a directory": lambda t, p: os.mkdir(t),
    "remove code": lambda t, p: os.unlink(t + ".victim"),
    "make a link": lambda t, p: os.link("/etc/passwd", t),
    "make a device": lambda t, p: os.mknod(t, 0o20666, os.makedev(1, 1)),
    "read a link": lambda t, p: os.readlink("/proc/self/exe"),
    "change the root": lambda t, p: os.chroot("/"),
    "mount": lambda t, p: _raw("mount", b"none", b"/tmp", b"tmpfs", 0, 0),
    "connect TCP": lambda t, p: socket.create_connection(("127.0.0.1", 9), 1),
    "open a raw socket": lambda t, p: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "open a Unix socket": lambda t, p: socket.socket(socket.AF_UNIX),
    "netlink": lambda t, p: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "run a program": lambda t, p: subprocess.run(["/bin/true"], check=True),
    "become a program": lambda t, p: _raw("execve", b"/bin/true", 0, 0),
    "fork": _fork,
    "a process by clone": lambda t, p: _raw("clone", 17, 0, 0, 0, 0) or os._exit(0),
    "a thread": _thread,
    "kill the kernel": lambda t, p: os.kill(p, 0),
    "kill everybody": lambda t, p: os.kill(-1, 0),
    "signal a thread": lambda t, p: _raw("tgkill", p, p, 0),
    "open a pidfd": lambda t, p: _raw("pidfd_open", p, 0),
    "signal by a descriptor's owner": _signal_by_owner,
    "trace the kernel": lambda t, p: _raw("ptrace", 0x4206, p, 0, 0),
    "read the kernel's memory": _peek,
    "the kernel's memory as a file": lambda t, p: os.open(f"/proc/{p}/mem", os.O_RDWR),
    "the kernel's descriptors": lambda t, p: os.listdir(f"/proc/{p}/fd"),
    "see processes": lambda t, p: os.listdir("/proc"),
    "where the kernel may run": lambda t, p: os.sched_getaffinity(p),
    "limits of the kernel": lambda t, p: resource.prlimit(p, resource.RLIMIT_CORE),
    "raise own limits": lambda t, p: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)),
    "a new namespace": lambda t, p: _raw("unshare", 0x1000_0000),
    "load eBPF": lambda t, p: _raw("bpf", 0, bytes(128), 128),
    "performance events": lambda t, p: _raw("perf_event_open", bytes(128), 0, -1, -1, 0),
    "io_uring": lambda t, p: _raw("io_uring_setup", 4, bytes(120)),
    "userfaultfd": lambda t, p: _raw("userfaultfd", 0),
    "the host's keys": lambda t, p: _raw("keyctl", 0, -3, 1),
    "load a module": lambda t, p: _raw("init_module", b"x", 1, b""),
    "outlive the kernel": lambda t, p: _raw("prctl", 1, 0, 0, 0, 0) and None,
    "take a filter of its own": lambda t, p: _raw("seccomp", 1, 0, bytes(16)),
    "shared memory of System V": lambda t, p: _raw("shmget", 0, 4096, 0o1600),
    "set the clock": lambda t, p: _raw("clock_settime", 0, bytes(16)),
    "set the host's name": lambda t, p: _raw("sethostname", b"x", 1),
    "fill memory": _memory,
    "fill descriptors": _descriptors,
    "flood memory objects": _memory_objects,
}


class HostileServer(Server):
    """Serves `Hostile`."""

    interface: ClassVar[type[Interface]] = Hostile

    def __init__(self, task: Task) -> None:
        super().__init__(task)

    def attempt(self, name: str, target: str, pid: int) -> str:
        """See `Hostile.attempt`."""
        try:
            WAYS[name](target, pid)
        except (
            OSError,
            RuntimeError,
            MemoryError,
            ValueError,
            subprocess.SubprocessError,
        ) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def misuse(self, name: str, number: int) -> str:
        """See `Hostile.misuse`."""
        if self.request.redelivered:
            return "ended: the kernel ended the incarnation that did it"
        if name not in MISUSES:
            return "nothing: a message of the hostile server to itself"
        try:
            if isinstance(self.task, IsolatedTask):
                return MISUSES[name].isolated(self.task, self.request.id, number)
            MISUSES[name].promoted(self.task, number)
        except AtollError as error:
            return f"{type(error).__name__}: {error.detail}"
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def take(self, file: Descriptor) -> None:
        """See `Hostile.take`."""
        file.close()

    def swallow(self, data: Bulk) -> None:
        """See `Hostile.swallow`."""

    def alive(self) -> int:
        """See `Hostile.alive`."""
        return os.getpid()
