"""The supervisor: it decides what follows a death, and when silence is one.

The kernel tells it of every incarnation that ended, and of every one that hangs. A server that dies
now and then is started again at once; the more often it died lately, the longer the supervisor
waits first; one that dies more than `intensity` times within `period_s` seconds is beyond mending,
and its `escalation` says what follows. Words and rules follow Erlang's supervisor: a *permanent*
server is always restarted, a *transient* one only after a fault, a *temporary* one never. The
`dependents` of a server, and theirs, are restarted with it: they are ended, and when all have
ended, started in the order in which they are named. That counts as no death of theirs.

An answer also gives leave for the next death, where its decision is certain: as long as a permanent
server without dependents dies rarely, it is started again whatever ended it. The kernel does so
before it tells of such a death, so that clients wait for no decision that has been made.

The supervisor is an ordinary server with one more right: it may ask the kernel to spawn, to kill
and to retire. Its own death is the kernel's to mend.

Invariant: what is decided is kept before it is done. `_act` does what stands in the kept memory and
is not done yet; everything that it does may be done twice. So an incarnation that begins with
`_act` goes on where the last one ended, and death counts, delays and decisions outlive it.
"""

from __future__ import annotations

import contextlib
import errno
import time
from typing import Final

import msgspec

from core.errors import Refused, TaskError
from core.userlib.kept_value import KeptValue, UnreadableError
from core.userlib.kernel_calls import Supervision, Verdict
from core.userlib.server import Server
from core.userlib.task import Task

FREE_DEATHS: Final = 20
"""Deaths within the period that are mended without delay."""
FIRST_DELAY_S: Final = 0.01
LONGEST_DELAY_S: Final = 2.0
ESCALATIONS: Final = ("give-up", "restart-all", "end-system")
ESCALATION_PERIODS: Final = 10
"""Periods within which a second escalation "restart-all" gives the server up instead."""
_LABEL: Final = "supervision"
_EARLY_S: Final = 0.002
"""How early the kernel's timers may be."""


class Policy(msgspec.Struct, frozen=True):
    """When a server is restarted, with whom, and what follows when that does not help.

    Attributes:
        restart: "permanent", "transient" or "temporary".
        intensity: deaths within `period_s` that are mended.
        first_delay_s: of the first delayed restart; it doubles with every further death.
        longest_delay_s: where the doubling ends.
        dependents: servers that are restarted with this one, in this order.
        escalation: what follows more deaths than that: "give-up" (its clients get an error),
            "restart-all" (once; then it is given up), "end-system".
    """

    restart: str = "permanent"
    intensity: int = 50
    period_s: float = 10.0
    first_delay_s: float = FIRST_DELAY_S
    longest_delay_s: float = LONGEST_DELAY_S
    dependents: list[str] = []
    escalation: str = "give-up"


class _Memory(msgspec.Struct):
    """What outlives the supervisor.

    Attributes:
        heard: the last generation of each server whose death was told.
        decided: what followed, in words.
        deaths: times of the deaths within the period.
        due: when each server that is down shall be started.
        retire: servers to give up, and why.
        retired: those that were.
        ending: servers that are being ended, and whom they are restarted with.
        groups: what is to be started once all that are restarted with a server have ended.
        escalated: when all were restarted because of a server.
        halt: why the system is to end.
    """

    heard: dict[str, int] = {}
    decided: dict[str, str] = {}
    deaths: dict[str, list[float]] = {}
    due: dict[str, float] = {}
    retire: dict[str, str] = {}
    retired: list[str] = []
    ending: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    escalated: dict[str, float] = {}
    halt: str = ""


_decode: Final = msgspec.msgpack.Decoder(_Memory).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class SupervisorServer(Server):
    """Restarts what ended, by policy. Options: `policies`, a table of `Policy` by server."""

    interface = Supervision

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._policies = msgspec.convert(task.options.get("policies", {}), dict[str, Policy])
        self._kept = KeptValue(task, _LABEL)
        self._memory = self._load()
        self._ordered: set[str] = set()
        """Those of `ending` that this incarnation has ordered to be killed."""

    async def start(self) -> None:
        """Go on with what an earlier incarnation had decided and not done."""
        for due in self._memory.due.values():
            self.task.arm(max(0.0, due - time.monotonic()), 1)
        self._act()

    def died(self, name: str, generation: int, cause: str, orderly: bool, started: bool) -> Verdict:
        """Decide. See the module head."""
        self._only_for_the_kernel()
        memory = self._memory
        if generation <= memory.heard.get(name, -1):
            return self._verdict(name)  # delivered again, after a death of this server
        memory.heard[name] = generation
        cause = cause.strip() or "unknown"
        leader = "" if started else memory.ending.pop(name, "")
        decision = memory.decided[name] = self._decide(name, leader, cause, orderly=orderly)
        if started:
            memory.due.pop(name, None)
        self._store()
        self._spawn_due()  # first of all: clients wait
        self.task.log(f"{name} generation {generation} ended ({cause[:1000]}); {decision[:2000]}")
        self._act()
        return self._verdict(name)

    def _verdict(self, name: str) -> Verdict:
        """Return what was decided last, and whether the next decision is certain."""
        memory, policy = self._memory, self._policies.get(name, Policy())
        occupied = (memory.ending, memory.due, memory.retire, memory.retired)
        certain = policy.restart == "permanent" and not policy.dependents
        certain = certain and not any(name in table for table in occupied)
        deaths = len(memory.deaths.get(name, ()))
        leave = certain and deaths < min(FREE_DEATHS, policy.intensity)
        return Verdict(memory.decided.get(name, ""), leave)

    def silent(self, name: str, generation: int, how: str) -> str:
        """End what hangs; its death will be told, and is decided upon then."""
        self._only_for_the_kernel()
        self.task.log(f"{name} generation {generation} {how}; it is ended")
        try:
            self.task.kill(name, generation, f"{how}; ended by the supervisor")
        except TaskError as error:
            return error.detail
        return "ended"

    def notified(self, bits: int) -> None:
        """A delay is over."""
        self._act()

    def _only_for_the_kernel(self) -> None:
        if self.request.badge:
            raise Refused(errno.EPERM, "only the kernel tells of deaths")

    # -- decisions: they change the memory and nothing else ---------------------------------------

    def _decide(self, name: str, leader: str, cause: str, *, orderly: bool) -> str:
        """Decide what follows a death.

        Args:
            leader: whom it was ended for, to be restarted with; "" if it died by itself.
        """
        memory, policy, now = self._memory, self._policies.get(name, Policy()), time.monotonic()
        if leader:
            self._ordered.discard(name)
            self._start_group(leader)
            return f"restarted with {leader}"
        if policy.restart == "temporary" or (policy.restart == "transient" and orderly):
            memory.retire[name] = f"{name} ended ({cause}) and is {policy.restart}: not restarted"
            return f"not restarted, because it is {policy.restart}"
        deaths = [death for death in memory.deaths.get(name, ()) if death >= now - policy.period_s]
        deaths.append(now)
        memory.deaths[name] = deaths
        if len(deaths) > policy.intensity:
            count = f"it ended {len(deaths)} times in {policy.period_s:g} s"
            return self._escalate(name, policy, f"{count}, the last time: {cause}")
        excess = len(deaths) - FREE_DEATHS
        delay_s = 0.0
        if excess > 0:
            delay_s = min(policy.longest_delay_s, policy.first_delay_s * 2 ** min(excess, 20))
        memory.due[name] = now + delay_s
        if delay_s:
            self.task.arm(delay_s, 1)
        decision = f"started again in {delay_s:.2f} s" if delay_s else "started again at once"
        others = self._dependents(name)
        if others:
            self._restart_with(name, others)
            decision += f", and {', '.join(others)} with it"
        return decision

    def _escalate(self, name: str, policy: Policy, trouble: str) -> str:
        memory, now = self._memory, time.monotonic()
        if policy.escalation == "end-system":
            memory.halt = f"{name} cannot be mended: {trouble}"
            memory.retire[name] = f"{name} is given up: {trouble}"
            return f"the system ends: {trouble}"
        last = memory.escalated.get(name, -1e9)
        if policy.escalation == "restart-all" and (
            now - last > ESCALATION_PERIODS * policy.period_s
        ):
            memory.escalated[name] = now
            memory.deaths.pop(name, None)
            memory.due[name] = now
            me = self.task.name
            self._restart_with(name, [each for each in self._policies if each not in (name, me)])
            return f"all servers are restarted: {trouble}"
        memory.retire[name] = f"{name} is given up: {trouble}"
        return f"given up: {trouble}"

    def _dependents(self, name: str) -> list[str]:
        """Return who is restarted with a server: its dependents, and theirs, each once."""
        found: list[str] = []
        todo = [name]
        while todo:
            for other in self._policies.get(todo.pop(0), Policy()).dependents:
                if other != name and other not in found:
                    found.append(other)
                    todo.append(other)
        return found

    def _restart_with(self, leader: str, others: list[str]) -> None:
        memory = self._memory
        others = [other for other in others if other not in memory.ending]
        memory.groups[leader] = others
        for other in others:
            memory.ending[other] = leader

    def _start_group(self, leader: str) -> None:
        """Let those start that were restarted with a server, if all of them have ended."""
        memory = self._memory
        if leader not in memory.ending.values():
            now = time.monotonic()
            for other in memory.groups.pop(leader, []):
                if other not in memory.retired:
                    memory.due[other] = now

    # -- actions: they may all be done twice -------------------------------------------------------

    def _act(self) -> None:
        """Do what has been decided and is due."""
        memory = self._memory
        for name, reason in list(memory.retire.items()):
            with contextlib.suppress(TaskError):
                self.task.retire(name, reason)
            memory.due.pop(name, None)
            memory.retired.append(name)
            del memory.retire[name]
        self._spawn_due()
        for name, leader in list(memory.ending.items()):
            if name not in self._ordered:
                self._ordered.add(name)
                self._end_with(leader, name)
        self._spawn_due()
        self._store()
        if memory.halt:
            self.task.halt(memory.halt)

    def _end_with(self, leader: str, name: str) -> None:
        memory = self._memory
        try:
            self.task.kill(name, -1, f"restarted with {leader}")
        except TaskError:
            # It is down. Either the news of that are still to come, or they never will.
            if name in memory.due or name in memory.retired:
                memory.ending.pop(name, None)
                self._ordered.discard(name)
                self._start_group(leader)

    def _spawn_due(self) -> None:
        memory, now = self._memory, time.monotonic() + _EARLY_S
        for name in [name for name, due in memory.due.items() if due <= now]:
            try:
                self.task.spawn(name)
            except TaskError as error:
                self.task.log(f"{name} was not started: {error.detail}")
            del memory.due[name]

    # -- memory ------------------------------------------------------------------------------------

    def _load(self) -> _Memory:
        try:
            found = self._kept.load()
            return _Memory() if found is None else _decode(found)
        except (UnreadableError, msgspec.MsgspecError):
            self.task.log("what was decided before is lost")
            return _Memory()

    def _store(self) -> None:
        self._kept.store(_encode(self._memory))
