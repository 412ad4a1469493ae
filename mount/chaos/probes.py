"""Clients that never stop asking: each notes how long it had to wait, and whatever was wrong.

A probe is a thread. It looks at a system the way programs do: over a server's port (`PortProbe`),
through the mount (`FileProbe`), or from the other end of the link (`EchoProbe`, whose work is done
by a process in the system's network namespace; see `echo`).
"""

from __future__ import annotations

import abc
import contextlib
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from core.errors import AtollError

from .door import Door, opened
from .questions import QUESTIONS, Ask, WrongAnswerError

GAP_S: Final = 0.004
"""Between an answer and the next question: enough to leave the machine to others."""
NOTED_S: Final = 0.001
"""A wait that is shorter is no pause."""
FAILURES_LIMIT: Final = 100
"""So many failures of one probe are told word by word."""
_BLOCK: Final = 4096
_ECHO_PATIENCE_S: Final = 10.0


class Wait(msgspec.Struct, frozen=True, array_like=True):
    """A call that took its time: from `begin_s` to `end_s` on the monotonic clock."""

    begin_s: float
    end_s: float


class Probe(abc.ABC):
    """Asks over and over.

    Attributes:
        name: what reports call it.
        servers: those whose absence it has to sit out.
        calls: questions asked.
        waits: those that took longer than `NOTED_S`.
        failures: what went wrong, in words.
    """

    def __init__(self, name: str, servers: tuple[str, ...]) -> None:
        self.name = name
        self.servers = servers
        self.calls = 0
        self.waits: list[Wait] = []
        self.failures: list[str] = []
        self._end = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"probe {name}", daemon=True)

    def start(self) -> None:
        """Begin, and return when it asks."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """End after the question that is being asked."""
        self._end.set()
        self._thread.join()

    def _fail(self, what: str) -> None:
        if len(self.failures) < FAILURES_LIMIT:
            self.failures.append(what)

    def _work(self) -> None:
        try:
            self._probe()
        except (AtollError, OSError, WrongAnswerError) as error:
            self._fail(f"{self.name} cannot go on: {error}")
        finally:
            self._ready.set()

    @abc.abstractmethod
    def _probe(self) -> None:
        """Ask until told to end."""

    def _turns(self, ask: Ask) -> None:
        """Call `ask` until told to end, and note what it took."""
        self._ready.set()
        while not self._end.wait(GAP_S):
            begin_s = time.monotonic()
            try:
                ask()
            except (AtollError, OSError, WrongAnswerError) as error:
                self._fail(f"{self.name}: {error}")
            end_s = time.monotonic()
            self.calls += 1
            if end_s - begin_s >= NOTED_S:
                self.waits.append(Wait(begin_s, end_s))


class PortProbe(Probe):
    """A joined program that asks one server over its port."""

    def __init__(self, control_path: Path, server: str) -> None:
        super().__init__(server, (server,))
        self._control_path = control_path

    def _probe(self) -> None:
        with opened(self._control_path) as door:
            self._turns(QUESTIONS[self.name](door))


class FileProbe(Probe):
    """A program that writes a block of a file, reads it again past every cache, and stats it."""

    def __init__(self, mountpoint: Path) -> None:
        super().__init__("files", ("fs",))
        self._path = mountpoint / f".atoll-chaos-{os.getpid()}"

    def _probe(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_DIRECT
        file = os.open(self._path, flags, 0o600)
        self._path.unlink()  # the command sees nothing of it, and there is one thing more to keep
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, file)
            out = stack.enter_context(mmap.mmap(-1, _BLOCK))
            back = stack.enter_context(mmap.mmap(-1, _BLOCK))
            number = 0

            def ask() -> None:
                nonlocal number
                number += 1
                out[:] = number.to_bytes(8, "big") * (_BLOCK // 8)
                written = os.pwritev(file, [out], 0)
                read = os.preadv(file, [back], 0)
                if written != _BLOCK or read != _BLOCK or back[:] != out[:]:
                    found = int.from_bytes(back[:8], "big")
                    raise WrongAnswerError(
                        f"block {number}: {written} octets written, {read} read, of block {found}"
                    )
                if (size := os.fstat(file).st_size) != _BLOCK:
                    raise WrongAnswerError(f"a file of {_BLOCK} octets has {size}")

            self._turns(ask)


class EchoReport(msgspec.Struct):
    """What the process of an `EchoProbe` says in the end. `lost`: when those left were sent."""

    error: str = ""
    sent: int = 0
    waits: list[Wait] = []
    lost: list[float] = []
    wrong: list[str] = []


class EchoProbe(Probe):
    """Sends echo requests over the link.

    Attributes:
        lost: when echo requests were sent that nobody answered.
        unavailable: why this host does not let it; empty: it does.
    """

    def __init__(self, system: str) -> None:
        super().__init__("ping", ("net", "tap"))
        self._system = system
        self.lost: list[float] = []
        self.unavailable = ""

    def _probe(self) -> None:
        command = [sys.executable, "-m", "mount.chaos.echo", self._system]
        with subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()  # it sends now, or has ended
            self._ready.set()
            self._end.wait()
            try:
                said = process.communicate(timeout=_ECHO_PATIENCE_S)[0]
                report = msgspec.json.decode(said, type=EchoReport)
            except (subprocess.TimeoutExpired, msgspec.MsgspecError) as error:
                process.kill()
                report = EchoReport(f"its process failed: {error}")
        self.unavailable = report.error
        self.calls, self.waits, self.lost = report.sent, report.waits, report.lost
        for what in report.wrong:
            self._fail(what)


def probes_for(
    control_path: Path, system: str, door: Door, servers: list[str], mountpoint: str
) -> list[Probe]:
    """Return a probe for each of the servers, and for what lies above them."""
    running = door.servers()
    found: list[Probe] = [PortProbe(control_path, name) for name in servers if name in QUESTIONS]
    if mountpoint and "fs" in servers:
        found.append(FileProbe(Path(mountpoint)))
    if "net" in running and {"net", "tap"} & set(servers):
        found.append(EchoProbe(system))
    return found
