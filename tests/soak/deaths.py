"""Ending and stopping servers at random instants, and knowing what was disturbed when."""

from __future__ import annotations

import bisect
import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Final

from core.errors import AtollError
from core.userlib.kernel_calls import TaskInfo

from .door import SERVERS, Door
from .run import Run

RATES: Final = (0.0, 0.5, 1.0, 3.0, 8.0)
"""Deaths in a second, in the phases of a storm."""
PHASE_S: Final = (1.0, 6.0)
STOP_S: Final = 0.2
_DEATHS_LIMIT: Final = 30
"""Deaths of one server in ten seconds; the supervisor gives up one that has more than 50."""
AFTERMATH_S: Final = 4.0
"""For so long after a fault, what has no memory (ping, UDP) may still lose something."""


class Storm:
    """A thread that kills. What it did can be looked at while it works."""

    def __init__(self, run: Run, door: Door, zygote: int) -> None:
        self._run = run
        self._door = door
        self._zygote = zygote
        self._chance = run.random("deaths")
        self._end = threading.Event()
        self._killed: set[int] = set()
        self._times: dict[str, list[float]] = {name: [] for name in SERVERS}
        self.kills: dict[str, int] = dict.fromkeys(SERVERS, 0)
        self.stops = 0
        self._thread = threading.Thread(target=self._work, name="storm")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait until the last stopped server goes on."""
        self._end.set()
        self._thread.join()

    def disturbed(self, servers: tuple[str, ...], since: float) -> bool:
        """Tell whether one of the servers suffered a fault between `since` and now."""
        for name in servers:
            times = self._times[name]
            if bisect.bisect_left(times, since - AFTERMATH_S) < len(times):
                return True
        return False

    def _work(self) -> None:
        try:
            while not self._run.over():
                rate = self._chance.choice(RATES)
                end = time.monotonic() + self._chance.uniform(*PHASE_S)
                while time.monotonic() < end and not self._run.over():
                    pause_s = self._chance.expovariate(rate) if rate else 1.0
                    if self._end.wait(min(pause_s, max(0.0, end - time.monotonic()))):
                        return
                    if rate:
                        self._strike()
        except AtollError as error:
            self._run.lose(f"the control port failed: {error!r}")

    def _strike(self) -> None:
        """Do something bad to a server, now and then to several at once."""
        chance = self._chance
        victims = chance.sample(SERVERS, chance.choice((1, 1, 1, 1, 2, 3)))
        kill = chance.random() < 0.9
        tasks = self._door.servers()
        for name in victims:
            task = tasks[name]
            if task.pid and task.pid not in self._killed and self._has_quota(name):
                if kill:
                    self._kill(task)
                else:
                    self._suspend(task)

    def _has_quota(self, name: str) -> bool:
        times = self._times[name]
        return len(times) - bisect.bisect_left(times, time.monotonic() - 10) < _DEATHS_LIMIT

    def _open(self, task: TaskInfo) -> int | None:
        """Return a descriptor of the server's process, if the number is still that process's."""
        try:
            process = os.pidfd_open(task.pid)
        except ProcessLookupError:
            return None
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{task.pid}/stat").read_text()
            if int(stat[stat.rindex(")") + 2 :].split()[1]) == self._zygote:
                return process
        os.close(process)
        return None

    def _kill(self, task: TaskInfo) -> None:
        process = self._open(task)
        if process is None:
            return
        try:
            self._times[task.name].append(time.monotonic())
            signal.pidfd_send_signal(process, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(process)
        self._killed.add(task.pid)
        self.kills[task.name] += 1
        self._run.count("kills")

    def _suspend(self, task: TaskInfo) -> None:
        process = self._open(task)
        if process is None:
            return
        try:
            self._times[task.name].append(time.monotonic())
            signal.pidfd_send_signal(process, signal.SIGSTOP)
            self._end.wait(STOP_S)
            signal.pidfd_send_signal(process, signal.SIGCONT)
            self._times[task.name].append(time.monotonic())
            self.stops += 1
            self._run.count("stops")
        except ProcessLookupError:
            return
        finally:
            os.close(process)


class Probe:
    """A thread that asks the mount something over and over, and notes how long it had to wait."""

    def __init__(self, run: Run, path: Path) -> None:
        self._run = run
        self._path = path
        self._end = threading.Event()
        self.waits_s: list[float] = []
        self._thread = threading.Thread(target=self._work, name="probe")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._end.wait(0.005):
            begin = time.monotonic()
            try:
                os.statvfs(self._path)
            except OSError as error:
                self._run.lose(f"the probe failed: {error}")
                return
            self.waits_s.append(time.monotonic() - begin)
            self._run.count("probes")

    def describe(self, threshold_s: float = 0.05) -> str:
        """Say how long the pauses were."""
        pauses = sorted(wait for wait in self.waits_s if wait >= threshold_s)
        if not pauses:
            return "no pause"
        middle, most = pauses[len(pauses) // 2], pauses[-1]
        return f"{len(pauses)} pauses, median {middle * 1000:.0f} ms, longest {most * 1000:.0f} ms"
