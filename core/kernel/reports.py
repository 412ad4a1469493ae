"""System calls that a confined task is not allowed, as the host reports them to the kernel.

Theory of operation. A settled task's filter stops the thread that makes such a call and tells the
listener (seccomp_unotify(2)), which is watched by the rim like a line. Almost always the answer is
a refusal, written down in `Attempts`. A few calls may go on: reading code and asking for its state,
so that a late import and a traceback work; the state of a descriptor; a memory object, as long as
there are few; a declared thread; a signal to itself. What decides is either a plain number, or a
path in memory that nobody can change (`foreign_memory`), so what was checked is what is used.
Landlock stands behind that.

Nothing here waits: a report is taken only when one is there, no path is resolved by the kernel, and
a flood costs the attacker. Reports beyond `REPORTS_BURST` are left unanswered, with their threads
stopped, until `REPORTS_PER_S` allows the next. After `ATTEMPTS_LIMIT` the incarnation is ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import os
import select
import struct
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from core.abi import MEMORY_OBJECTS_LIMIT
from core.errors import BadMessageError
from core.userlib.confine import code_directories
from core.userlib.system_calls import AUDIT_ARCHITECTURES, MACHINE, NAMES

from .attempts import Budget, printable
from .foreign_memory import still_octets, still_text

if TYPE_CHECKING:
    from .line import KernelLine
    from .rim import Rim

REPORTS_BURST: Final = 256
REPORTS_PER_S: Final = 500.0
ATTEMPTS_LIMIT: Final = 1000
"""Refused system calls of one incarnation, after which it is ended as hostile."""
_DEFER_S: Final = 0.02

_RECEIVE: Final = 0xC050_2100
_SEND: Final = 0xC018_2101
_CONTINUE: Final = 1
_REPORT: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TO_CHANGE: Final = (
    os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_PATH | os.O_TMPFILE & ~os.O_DIRECTORY
)
_CLONE_THREAD: Final = 0x0001_0000
_CLONE_ANYTHING_NEW: Final = 0x7E02_0080
_PATH_AT: Final = {
    **dict.fromkeys(("open", "stat", "lstat", "access", "readlink", "creat", "unlink", "rmdir"), 0),
    **dict.fromkeys(("mkdir", "rename", "execve", "chdir", "chroot", "truncate", "mknod"), 0),
    **dict.fromkeys(("chmod", "chown", "lchown", "link", "symlink", "statfs", "umount2"), 0),
    **dict.fromkeys(("openat", "openat2", "newfstatat", "statx", "faccessat", "faccessat2"), 1),
    **dict.fromkeys(("readlinkat", "unlinkat", "mkdirat", "renameat", "renameat2", "mount"), 1),
    **dict.fromkeys(("linkat", "symlinkat", "mknodat", "fchmodat", "fchownat", "execveat"), 1),
}
"""Which argument is a path, of calls whose path is worth a word in the log."""


class Call:
    """A reported system call. `arguments` are plain numbers, as the filter saw them."""

    __slots__ = ("arguments", "id", "name", "pid")

    def __init__(self, octets: bytes) -> None:
        self.id, self.pid, _, number, architecture, _, *arguments = _REPORT.unpack(octets)
        self.name = NAMES.get(number, f"system call {number}")
        if architecture != AUDIT_ARCHITECTURES[MACHINE]:  # other numbers, other meanings
            self.name = f"system call {number} of the processor mode {architecture:#x}"
        self.arguments: list[int] = arguments

    def path(self) -> str | None:
        """Return the path that the caller names; None: it names none in still memory."""
        index = _PATH_AT.get(self.name)
        return None if index is None else still_text(self.pid, self.arguments[index])

    def __str__(self) -> str:
        path = self.path()
        if path is not None:
            return f"{self.name}({printable(path)!r})"
        return f"{self.name}({', '.join(_number(value) for value in self.arguments[:3])})"


def _number(value: int) -> str:
    return str(value) if value < 0x1_0000 else f"{value:#x}"


def listen(line: KernelLine, descriptors: list[int], rim: Rim) -> None:
    """Take the listener that a confined task sends when it is ready.

    Raises:
        BadMessageError: what came is something else.
    """
    if line.declared is None or line.reports is not None or not descriptors:
        return
    kind = str(Path(f"/proc/self/fd/{descriptors[0]}").readlink())
    if len(descriptors) != 1 or kind != "anon_inode:seccomp notify":
        raise BadMessageError("what came is no listener for system calls")
    line.reports = Reports(line, descriptors.pop(), rim)


def stop_listening(line: KernelLine) -> None:
    """The incarnation is over: close its listener, and say what is still unsaid of its attempts."""
    if line.reports is not None:
        line.reports.close()
        line.reports = None  # it knows the line, and thousands may die before the collector comes
    line.task.attempts.settle()
    line.task.voice.settle()


def memory_objects_of(pid: int) -> int:
    """Return how many memory objects a process has open."""
    held = 0
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                held += str(entry.readlink()).startswith("/memfd:")
    return held


class _Listener(io.FileIO):
    """The listener, as something with a descriptor that the rim can watch."""


class Reports:
    """The reports of one incarnation.

    Args:
        line: the incarnation's.
        listener: its descriptor, owned.

    Attributes:
        refused: system calls that were.
        served: those that went on: late imports, in the main.
    """

    def __init__(self, line: KernelLine, listener: int, rim: Rim) -> None:
        assert line.declared is not None
        self.socket = _Listener(listener, "rb")
        self.refused = 0
        self.served = 0
        self._line = line
        self._declared = line.declared
        self._attempts = line.task.attempts
        self._rim = rim
        self._threads = 0
        self._own = tuple(os.path.normpath(path) for path in line.declared.writes)
        self._budget = Budget(REPORTS_BURST, REPORTS_PER_S, time.monotonic())
        rim.add(self)

    # -- watched by the rim ------------------------------------------------------------------------

    def readable(self) -> bool:
        """Take one report and answer it; none when the flood has used its budget up."""
        if not self._budget.take(time.monotonic()):
            self._rim.remove(self)
            self._rim.timers.arm(_DEFER_S, self._resume)
            return False
        buffer = bytearray(_REPORT.size)
        try:
            fcntl.ioctl(self.socket, _RECEIVE, buffer)
        except OSError:  # the caller was killed meanwhile; perhaps the last one
            watch = select.poll()
            watch.register(self.socket, 0)
            if watch.poll(0):
                self.close()
            return False
        try:
            self._answer(Call(bytes(buffer)))
        except Exception:  # noqa: BLE001 - a mistake of ours must not cost the others their kernel
            self._attempts.add("mistake", f"what the kernel failed at\n{traceback.format_exc()}")
            self._line.close("the kernel failed at one of its system calls")
        return True

    def writable(self) -> None:
        """Nothing ever waits here."""

    def _resume(self) -> None:
        if not self.socket.closed:
            self._rim.add(self)

    def close(self) -> None:
        """Stop listening; calls that are still stopped fail."""
        if not self.socket.closed:
            self._rim.remove(self)
            self.socket.close()

    # -- answers -----------------------------------------------------------------------------------

    def _answer(self, call: Call) -> None:
        serve = _SERVED.get(call.name)
        if serve is not None and serve(self, call):
            self.served += 1
            return
        self._refuse(call)

    def _refuse(self, call: Call) -> None:
        number = errno.ENOSYS if call.name == "clone3" else errno.EPERM
        if call.name in _PATH_AT:
            number = errno.EACCES
        self._attempts.add(call.name, f"{call}: refused with {errno.errorcode[number]}")
        self._send(call, -number)
        self.refused += 1
        if self.refused == ATTEMPTS_LIMIT:
            self._line.close(
                f"hostile: {ATTEMPTS_LIMIT} attempts at what it may not, the last: {call}"
            )

    def _send(self, call: Call, error: int, flags: int = 0) -> None:
        try:
            fcntl.ioctl(self.socket, _SEND, _ANSWER.pack(call.id, 0, error, flags))
        except (OSError, ValueError):
            return  # the caller is gone

    def _open(self, call: Call) -> bool:
        """Let code be read, and the directory of a file that is held be opened, to sync it."""
        flags = call.arguments[2 if call.name == "openat" else 1] & 0xFFFF_FFFF
        path = call.path()
        if path is None or flags & _OPEN_TO_CHANGE or not _is_plain(path):
            return False
        return (_is_code(path) or path in self._own) and self._let_go_on(call)

    def _status(self, call: Call) -> bool:
        """Tell the state of code, of a descriptor, or of what the task could open in its start."""
        path = call.path()
        if path is None:
            return False
        if path == "":
            of_descriptor = call.name == "newfstatat" and call.arguments[3] & _AT_EMPTY_PATH
            return bool(of_descriptor) and self._let_go_on(call)
        known = _is_plain(path) and (_below(path, self._own) or _is_code(path))
        return known and self._let_go_on(call)

    def _let_go_on(self, call: Call) -> bool:
        self._send(call, 0, _CONTINUE)
        return True

    def _clone(self, call: Call) -> bool:
        """Let a declared thread begin; its flags are plain numbers, so what was checked is used."""
        wanted = _CLONE_THREAD
        if call.arguments[0] & (_CLONE_THREAD | _CLONE_ANYTHING_NEW) != wanted:
            return False
        if self._threads >= self._declared.threads:
            return False
        self._threads += 1
        return self._let_go_on(call)

    def _clone_anew(self, call: Call) -> bool:
        """Have the C library fall back on `clone`, whose flags can be checked."""
        flags = int.from_bytes(still_octets(call.pid, call.arguments[0], 8), "little")
        if self._threads >= self._declared.threads or not flags & _CLONE_THREAD:
            return False
        self._send(call, -errno.ENOSYS)
        return True

    def _make_memory(self, call: Call) -> bool:
        """Let a task make a memory object, as long as it has few of them open."""
        held = memory_objects_of(self._line.pid)
        return held < MEMORY_OBJECTS_LIMIT and self._let_go_on(call)

    def _signal(self, call: Call) -> bool:
        """Let a task send signals to itself."""
        if call.arguments[0] != self._line.pid:
            return False
        return self._let_go_on(call)


def _is_plain(path: str) -> bool:
    """Tell whether a path is absolute and says itself where it leads."""
    return path.startswith("/") and os.path.normpath(path) == path


def _below(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)


@functools.cache
def _code() -> tuple[str, ...]:
    return tuple(code_directories())


def _is_code(path: str) -> bool:
    return _below(path, _code())


_SERVED: Final[dict[str, Callable[[Reports, Call], bool]]] = {
    "open": Reports._open,  # noqa: SLF001
    "openat": Reports._open,  # noqa: SLF001
    "stat": Reports._status,  # noqa: SLF001
    "lstat": Reports._status,  # noqa: SLF001
    "newfstatat": Reports._status,  # noqa: SLF001
    "clone": Reports._clone,  # noqa: SLF001
    "clone3": Reports._clone_anew,  # noqa: SLF001
    "memfd_create": Reports._make_memory,  # noqa: SLF001
    "kill": Reports._signal,  # noqa: SLF001
    "tgkill": Reports._signal,  # noqa: SLF001
}
