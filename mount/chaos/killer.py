"""Who dies when: a seeded schedule, and the thread that carries it out.

A schedule is drawn from its seed alone, so the same seed strikes the same servers after the same
times again. What the strikes hit is up to the host's scheduler: a server in the middle of a
request, one that is idle, or one that is still starting because of an earlier strike.

A supervisor lets a server that dies ever so often wait before it starts it again, and in the end
gives it up. That is right, and not what is looked for here: a server that has died `QUOTA` times
within `QUOTA_PERIOD_S` is spared, and counted.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from core.errors import AtollError, TaskError

from .door import Door
from .pauses import Span

QUOTA: Final = 18
QUOTA_PERIOD_S: Final = 10.0
STOP_S: Final = 0.2
"""For so long a stopped server stands still: less than what is taken for a hang."""
STOP_SHARE: Final = 0.1
"""How many of the strikes stop a server instead of killing it, where stopping is asked for."""


class Strike(msgspec.Struct, frozen=True):
    """One event of a schedule.

    Attributes:
        after_s: seconds since the one before.
        victims: the servers that it hits.
        stop: they are stopped for `STOP_S`, and not killed.
    """

    after_s: float
    victims: tuple[str, ...]
    stop: bool = False


def steady(
    chance: random.Random, rate: float, kill: Sequence[str], stop: Sequence[str] = ()
) -> Iterator[Strike]:
    """Draw strikes for ever, each at one server, at exponential distances.

    Args:
        rate: strikes in a second, on average.
        kill: servers that may be killed.
        stop: servers that may be stopped.
    """
    while True:
        after_s = chance.expovariate(rate)
        stops = bool(stop) and (not kill or chance.random() < STOP_SHARE)
        yield Strike(after_s, (chance.choice(stop if stops else kill),), stops)


class Killer:
    """A thread that strikes. What it did can be looked at while it works.

    Attributes:
        kills: orders to kill that found a process, by server.
        last: the process that each server's last order to kill was for.
        stops: when servers stood still, by server.
        missed: strikes at a server that was away already.
        spared: strikes left out because of the quota.
        failure: why it ended early; empty: it did not.
    """

    def __init__(self, door: Door, schedule: Iterator[Strike]) -> None:
        self._door = door
        self._schedule = schedule
        self._end = threading.Event()
        self._times: dict[str, list[float]] = collections.defaultdict(list)
        self.kills: collections.Counter[str] = collections.Counter()
        self.last: dict[str, int] = {}
        self.stops: dict[str, list[Span]] = collections.defaultdict(list)
        self.missed = 0
        self.spared = 0
        self.failure = ""
        self._thread = threading.Thread(target=self._work, name="killer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait until the last stopped server goes on. It need not have begun."""
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()

    def struck(self, servers: Sequence[str], since_s: float) -> bool:
        """Tell whether one of the servers was hit at or after an instant of the monotonic clock."""
        return any(
            bisect.bisect_left(self._times[name], since_s) < len(self._times[name])
            for name in servers
        )

    def _work(self) -> None:
        due_s = time.monotonic()
        try:
            for strike in self._schedule:
                due_s += strike.after_s
                if self._end.wait(max(0.0, due_s - time.monotonic())):
                    return
                for name in strike.victims:
                    if not self._has_quota(name):
                        self.spared += 1
                    elif strike.stop:
                        self._suspend(name)
                    else:
                        self._kill(name)
        except (AtollError, OSError) as error:
            self.failure = f"the control port failed: {error}"

    def _has_quota(self, name: str) -> bool:
        times = self._times[name]
        recent = len(times) - bisect.bisect_left(times, time.monotonic() - QUOTA_PERIOD_S)
        return recent < QUOTA

    def _kill(self, name: str) -> None:
        self._times[name].append(time.monotonic())
        try:
            self.last[name] = self._door.ask(self._door.control.kill(name))
        except TaskError:  # nothing of it runs at this instant
            self.missed += 1
        else:
            self.kills[name] += 1

    def _suspend(self, name: str) -> None:
        task = self._door.servers().get(name)
        if task is None or not task.pid:
            self.missed += 1
            return
        with contextlib.ExitStack() as stack:
            try:
                process = os.pidfd_open(task.pid)
                stack.callback(os.close, process)
                if self._door.servers()[name].pid != task.pid:
                    self.missed += 1  # it has died, and the number may be another process's
                    return
                signal.pidfd_send_signal(process, signal.SIGSTOP)
                begin_s = time.monotonic()
                self._times[name].append(begin_s)
                self._end.wait(STOP_S)
                signal.pidfd_send_signal(process, signal.SIGCONT)
            except ProcessLookupError:
                self.missed += 1
                return
            end_s = time.monotonic()
            self._times[name].append(end_s)
            self.stops[name].append(Span(begin_s, end_s))
