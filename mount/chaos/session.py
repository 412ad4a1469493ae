"""One run: a command at work in a system, strikes at its servers, probes, and what came of it all.

Order: what stands before is written down; the probes begin; the first strike falls a moment after
the command has started. When the command has ended nothing is killed any more; what was killed last
has to come back, and only then the probes end and the books are closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from core.userlib.kernel_calls import Outage, TaskInfo
from mount.obstacle import FAILED, USAGE, ObstacleError
from mount.run_directory import RunDirectory, find_system, started

from .door import Door, opened
from .killer import Killer, steady
from .pauses import Span, figures, pauses_s, spans_of
from .probes import EchoProbe, PortProbe, Probe, probes_for
from .report import ClientRow, Report, ServerRow, again

DEFAULT_SERVERS: Final = ("fs", "disk", "net", "tap", "pipe", "names", "supervisor", "front-end")
RETURN_S: Final = 15.0
"""A server that does not serve again within this time is lost."""
CHAOS_FAILED: Final = 125
"""Exit status when the command succeeded and yet something was lost, or chaos itself failed."""
_GATHER_S: Final = 5.0
KILLED: Final = frozenset(
    {"killed by SIGKILL (not by this system)", "killed with SIGKILL by `atoll kill`"}
)
"""What the kernel gives as the reason of a death when it was a kill."""
_ECHO_GRACE_S: Final = 1.0
"""An echo request that was sent this long before a death may have been read, and died with it: on a
busy machine much lies between the two."""


class Plan(msgspec.Struct, frozen=True):
    """What is asked for.

    Attributes:
        kill, stop: servers; empty ones: all of `DEFAULT_SERVERS` that there are, and none.
        output: the descriptor that is the command's standard output.
    """

    system: str
    command: list[str]
    seed: int
    rate: float
    kill: list[str] = []
    stop: list[str] = []
    output: int = 1


class Books:
    """The kernel's record of who was away, from the beginning of a run."""

    def __init__(self, door: Door, servers: list[str]) -> None:
        self._door = door
        self.before: dict[str, TaskInfo] = door.servers()
        self._next = {name: self.before[name].generation for name in servers}
        self.outages: dict[str, list[Outage]] = {name: [] for name in servers}

    def gather(self) -> None:
        """Read on; only outages that are over are taken for good."""
        for name, known in self.outages.items():
            while known and not known[-1].ready_s:
                known.pop()
            since = known[-1].generation + 1 if known else self._next[name]
            known.extend(self._door.ask(self._door.control.outages(name, since)))

    def settle(self, killed: dict[str, int]) -> list[str]:
        """Wait until all servers serve; return those that do not.

        Args:
            killed: processes that were told to end, by server: they may look alive for a moment.
        """
        deadline = time.monotonic() + RETURN_S
        while True:
            tasks = self._door.tasks()
            down = [
                name
                for name in self.before
                if tasks[name].state != "running" or tasks[name].pid == killed.get(name)
            ]
            if not down or time.monotonic() > deadline:
                self.gather()
                return down
            time.sleep(0.02)  # noqa: TID251 - tasks can only be looked at

    def deaths(self, name: str) -> int:
        """Return how often a server ended and was not asked to."""
        return sum(not outage.orderly for outage in self.outages[name])

    def spans(self, *servers: str) -> list[Span]:
        """Return when any of the servers was away."""
        return sorted(span for name in servers for span in spans_of(self.outages.get(name, [])))


def run(plan: Plan) -> Report:
    """Run the command in the running system. ObstacleError: it cannot be started, or no system."""
    directory = find_system(plan.system)
    with opened(directory.control_path) as door, opened(directory.control_path) as killing:
        kill = _checked(door, plan.kill or _present(door), "--kill")
        stop = _checked(door, plan.stop, "--stop")
        mountpoint = door.ask(door.control.status()).mountpoint
        command = _filled(plan.command, plan.system, mountpoint)
        chance = random.Random(plan.seed)
        killer = Killer(killing, steady(chance, plan.rate, kill, stop))
        everybody = list(dict.fromkeys([*kill, *stop]))
        books = Books(door, list(door.servers()))
        probes = probes_for(directory.control_path, plan.system, door, everybody, mountpoint)
        begin_s = time.monotonic()
        with _asking(probes):
            status = _work(command, plan.output, mountpoint, killer, books)
            down = books.settle(killer.last)
        elapsed_s = time.monotonic() - begin_s
        plan = msgspec.structs.replace(plan, kill=kill, stop=stop)
        losses = list(_losses(directory, killer, books, probes, down))
        return _report(plan, status, elapsed_s, killer, books, probes, losses)


def _present(door: Door) -> list[str]:
    running = door.servers()
    return [name for name in DEFAULT_SERVERS if name in running]


def _checked(door: Door, names: list[str], option: str) -> list[str]:
    running, all_tasks = door.servers(), door.tasks()
    for name in names:
        if name in running:
            continue
        if name in all_tasks and all_tasks[name].placement == "colocated":
            cause = f"{name} is promoted into the kernel's process, and has none of its own"
            remedy = "start the system without --fast, or leave it out"
        else:
            cause, remedy = f"there is no server {name!r}", f"there are {', '.join(running)}"
        raise ObstacleError(option, cause, remedy, USAGE)
    if option == "--kill" and not names:
        remedy = "start the system without --fast"
        raise ObstacleError("chaos", "all servers are promoted", remedy, USAGE)
    return names


def _filled(command: list[str], system: str, mountpoint: str) -> list[str]:
    if any("{mount}" in word for word in command) and not mountpoint:
        remedy = "start it without --no-mount"
        raise ObstacleError(f"system {system}", "has no mount", remedy)
    return [word.replace("{mount}", mountpoint).replace("{name}", system) for word in command]


@contextlib.contextmanager
def _asking(probes: list[Probe]) -> Iterator[None]:
    begun: list[Probe] = []
    try:
        for probe in probes:
            probe.start()
            begun.append(probe)
        yield
    finally:
        for probe in begun:
            probe.stop()


def _work(command: list[str], output: int, mountpoint: str, killer: Killer, books: Books) -> int:
    """Run the command under strikes and return its status.

    The terminal sends ^C to the command, too: it is waited for, and killed at the second one. What
    is sent to this process alone is passed on.
    """
    children: list[subprocess.Popen[bytes]] = []
    interrupts = []

    def interrupted(*_: object) -> None:
        interrupts.append(True)
        for child in children:
            if len(interrupts) > 1:
                child.kill()

    def terminated(*_: object) -> None:
        for child in children:
            child.terminate()

    previous = signal.signal(signal.SIGINT, interrupted), signal.signal(signal.SIGTERM, terminated)
    try:
        environment = {**os.environ, "ATOLL_MOUNT": mountpoint}
        process = subprocess.Popen(command, env=environment, stdout=output)
        children.append(process)
        killer.start()
        while not _ended(process.pid):
            books.gather()
    except OSError as error:
        status = 127 if isinstance(error, FileNotFoundError) else 126
        raise ObstacleError(command[0], error.strerror or "", "", status) from None
    finally:
        killer.stop()
        signal.signal(signal.SIGINT, previous[0])
        signal.signal(signal.SIGTERM, previous[1])
    code = process.wait()
    return code if code >= 0 else 128 - code


def _ended(pid: int) -> bool:
    """Wait a while for the end of a child; tell whether it has come."""
    ending = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(ending, select.POLLIN)
        return bool(poll.poll(_GATHER_S * 1000))
    finally:
        os.close(ending)


def _report(
    plan: Plan, status: int, elapsed_s: float, killer: Killer,
    books: Books, probes: list[Probe], losses: list[str],
) -> Report:  # fmt: skip
    by_server = {probe.name: probe for probe in probes if isinstance(probe, PortProbe)}
    rows = []
    for name in dict.fromkeys([*plan.kill, *plan.stop]):
        spans = books.spans(name)
        pause = figures(pauses_s(spans, by_server[name].waits) if name in by_server else [])
        away = figures([span.ready_s - span.ended_s for span in spans])
        rows.append(ServerRow(name, books.deaths(name), pause, away))
    clients = [probe for probe in probes if not isinstance(probe, PortProbe)]
    echo = [probe for probe in clients if isinstance(probe, EchoProbe)]
    return Report(
        system=plan.system,
        seed=plan.seed,
        again=again(plan.system, plan.seed, plan.rate, plan.kill, plan.stop),
        seconds=elapsed_s,
        status=status,
        servers=rows,
        clients=[_client_row(probe, books) for probe in clients],
        calls=sum(probe.calls for probe in probes),
        kills=killer.kills.total(),
        stops=sum(map(len, killer.stops.values())),
        missed=killer.missed,
        spared=killer.spared,
        echoes_lost=_echoes(killer, books, probes)[1],
        losses=losses,
        notes=[f"no ping: {probe.unavailable}" for probe in echo if probe.unavailable],
    )


def _client_row(probe: Probe, books: Books) -> ClientRow:
    pause = figures(pauses_s(books.spans(*probe.servers), probe.waits))
    return ClientRow(probe.name, probe.calls, pause)


def _losses(
    directory: RunDirectory, killer: Killer, books: Books, probes: list[Probe], down: list[str]
) -> Iterator[str]:
    record = directory.record()
    if record is None or started(record.pid) != record.started:
        yield "kernel: its process has ended"
    if killer.failure:
        yield killer.failure
    for probe in probes:
        yield from probe.failures
    for name in down:
        yield f"{name} does not serve, {RETURN_S:g} s after the last strike"
    lost, _ = _echoes(killer, books, probes)
    if lost:
        yield f"ping: {lost} echo requests unanswered while all servers were there"
    for name, outages in books.outages.items():
        for outage in outages:
            if outage.reason not in KILLED and not outage.orderly:
                yield f"{name}, generation {outage.generation}, was not killed: {outage.reason}"


def _echoes(killer: Killer, books: Books, probes: list[Probe]) -> tuple[int, int]:
    """Return how many echo requests were lost in a calm, and how many with a server.

    One that was sent while a server stood still is read when it goes on, and may yet die with it.
    """
    lost = [sent for probe in probes if isinstance(probe, EchoProbe) for sent in probe.lost]
    spans = [*books.spans("net", "tap"), *killer.stops["net"], *killer.stops["tap"]]
    excused = sum(
        any(span.ended_s - _ECHO_GRACE_S <= sent <= span.ready_s for span in spans) for sent in lost
    )
    return len(lost) - excused, excused


@contextlib.contextmanager
def throwaway(name: str) -> Iterator[None]:
    """Have a system of that name for a while, with an empty volume. ObstacleError: it cannot be."""
    top = Path(tempfile.mkdtemp(prefix="atoll-chaos-"))
    atoll = [sys.executable, "-m", "mount", "--name", name]
    try:
        words = [*atoll, "up", "--detach", "--json", "--state", str(top / "volume")]
        up = subprocess.run(words, capture_output=True, check=False, start_new_session=True)
        if up.returncode:
            try:
                said = str(json.loads(up.stdout)["error"])
            except (ValueError, KeyError):
                said = up.stderr.decode(errors="replace").strip()
            raise ObstacleError(f"system {name}", said, "", FAILED)
        try:
            yield
        finally:
            down = [*atoll, "down"]
            subprocess.run(down, capture_output=True, check=False, start_new_session=True)
    finally:
        shutil.rmtree(top, ignore_errors=True)
