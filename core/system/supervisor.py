"""The supervisor: it decides what follows a death.

The kernel tells it of every incarnation that ended. A server that dies now and then is started
again at once; the more often it died lately, the longer the supervisor waits first; one that dies
more than `intensity` times within `period_s` seconds is given up, and its clients get an error
instead of waiting for ever. Words and rules follow Erlang's supervisor: a *permanent* server is
always restarted, a *transient* one only after a fault, a *temporary* one never.

The supervisor is an ordinary server with one more right: it may ask the kernel to spawn and to
retire. Its own death is the kernel's to mend; it then hears again of all tasks that are down, so
nothing is forgotten.
"""

from __future__ import annotations

import collections
import errno
import time
from typing import Final

import msgspec

from core.errors import Refused, TaskError
from core.userlib.kernel_calls import Supervision
from core.userlib.server import Server
from core.userlib.task import Task

FREE_DEATHS: Final = 20
"""Deaths within the period that are mended without delay."""
FIRST_DELAY_S: Final = 0.01
LONGEST_DELAY_S: Final = 2.0


class Policy(msgspec.Struct, frozen=True):
    """When a server is restarted, and when it is given up."""

    restart: str = "permanent"
    intensity: int = 50
    period_s: float = 10.0


class SupervisorServer(Server):
    """Restarts what ended, by policy. Options: `policies`, a table of `Policy` by server."""

    interface = Supervision

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._policies = msgspec.convert(task.options.get("policies", {}), dict[str, Policy])
        self._deaths: dict[str, collections.deque[float]] = collections.defaultdict(
            collections.deque
        )
        self._due: dict[str, float] = {}
        self._heard: dict[str, int] = {}

    def died(self, name: str, generation: int, reason: str, orderly: bool) -> None:
        """Decide. See the module head."""
        if self.request.badge:
            raise Refused(errno.EPERM, "only the kernel tells of deaths")
        if generation <= self._heard.get(name, -1):
            return  # told twice: by the kernel, and again when the supervisor itself had ended
        self._heard[name] = generation
        policy = self._policies.get(name, Policy())
        now = time.monotonic()
        last = reason.strip().splitlines()[-1] if reason.strip() else "unknown"
        if policy.restart == "temporary" or (policy.restart == "transient" and orderly):
            self.task.log(f"{name} ended ({last}); its policy is {policy.restart}, so that was all")
            self.task.retire(name)
            return
        deaths = self._deaths[name]
        deaths.append(now)
        while deaths[0] < now - policy.period_s:
            deaths.popleft()
        if len(deaths) > policy.intensity:
            self.task.log(
                f"{name} ended {len(deaths)} times in {policy.period_s:g} s and is given up: {last}"
            )
            self.task.retire(name)
            return
        excess = len(deaths) - FREE_DEATHS
        delay_s = 0.0 if excess <= 0 else min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(excess, 20))
        self.task.log(f"{name} generation {generation} ended ({last}); again in {delay_s:.2f} s")
        if delay_s:
            self._due[name] = now + delay_s
            self.task.arm(delay_s, 1)
        else:
            self._spawn(name)

    def notified(self, bits: int) -> None:
        """A delay is over."""
        now = time.monotonic() + 0.002  # the kernel's timers may be a little early
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            self._spawn(name)

    def _spawn(self, name: str) -> None:
        try:
            self.task.spawn(name)
        except TaskError as error:
            self.task.log(f"{name} was not started: {error.detail}")
