"""What a death costs a client: how long the call takes that meets it, with the machine else quiet.

    python -m tests.bench.pauses [KILLS [SERVER...]]

One system as it ships is up. In turn, each server is killed while a client asks it over and over;
the pause is the longest call from the order to kill until the kernel has seen the next incarnation
serve. "away" is the kernel's own figure: from when it learned of the death until the next served.
`mount` kills `fs` under a client of the mount, which comes through the front end.

The bare reference is the least that can come back from a SIGKILL: a child is killed and reaped, the
next is forked from a process in which everything is loaded, and answers an octet over a socket
pair.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from core.userlib.kernel_calls import Outage
from mount.chaos.door import Door, opened
from mount.chaos.questions import QUESTIONS, Ask
from tests.support.live_system import LiveSystem

KILLS: Final = 200
MOUNT: Final = "mount"
BARE: Final = "bare fork"
_CALM_CALLS: Final = 50
_NEXT_KILL_S: Final = 0.55
"""One server dies no more often than this, so that the supervisor never makes it wait."""
_ALONE_S: Final = 0.1
"""After each kill: one death at a time, so that the zygote has forked its next spare."""
_PRELOADED: Final = ("fs_server.server", "net_server.server", "core.system.supervisor")

Figures = dict[str, float]
"""In ms: `median`, `p99`, `max` as a client sees them, and `away`, the kernel's own median."""


class BareServer:
    """A child that answers octets, and its successors."""

    def __init__(self) -> None:
        self._pid = 0
        self._line: socket.socket | None = None
        self._fork()

    def _fork(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            while octets := theirs.recv(64):
                theirs.send(octets)
            os._exit(0)
        theirs.close()
        self._line = ours

    def close(self) -> None:
        """End the child."""
        assert self._line is not None
        self._line.close()
        os.waitpid(self._pid, 0)

    def ask(self) -> None:
        """Send an octet and wait for it."""
        assert self._line is not None
        self._line.send(b"?")
        self._line.recv(64)

    def pause_s(self) -> float:
        """Kill the child and return how long it takes until the next one answers."""
        self.ask()
        begin = time.monotonic()
        os.kill(self._pid, signal.SIGKILL)
        assert self._line is not None
        self._line.recv(1)  # the end
        self._line.close()
        os.waitpid(self._pid, 0)
        self._fork()
        self.ask()
        return time.monotonic() - begin


def pause(control: Door, server: str, ask: Ask) -> tuple[float, Outage]:
    """Kill a server under a client; return the pause in seconds, and the kernel's record."""
    for _ in range(_CALM_CALLS):
        ask()
    generation = control.tasks()[server].generation
    control.ask(control.control.kill(server))
    longest = 0.0
    while True:
        begin = time.monotonic()
        ask()
        now = time.monotonic()
        longest = max(longest, now - begin)
        outages = control.ask(control.control.outages(server, generation))
        if outages and 0 < outages[-1].ready_s < now:
            return longest, outages[-1]


@contextlib.contextmanager
def asking(system: LiveSystem, names: list[str]) -> Iterator[dict[str, Ask]]:
    """Yield what asks each server: a program of its own joined for each."""
    with contextlib.ExitStack() as stack:
        asks: dict[str, Ask] = {}
        for name in names:
            if name == MOUNT:
                asks[name] = lambda: _look(os.statvfs(system.mountpoint))
            else:
                door = stack.enter_context(opened(system.run.control_path))
                asks[name] = QUESTIONS[name](door)
        yield asks


def _look(answer: object) -> None:
    """Any answer will do."""


def measure(kills: int, names: list[str]) -> dict[str, Figures]:
    """Return the figures by server, and of the bare reference, `kills` of each, interleaved."""
    for module in _PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    bare = BareServer()
    system = LiveSystem("pauses")
    pauses: dict[str, list[float]] = {name: [] for name in (BARE, *names)}
    away: dict[str, list[float]] = {name: [] for name in names}
    try:
        system.up()
        with opened(system.run.control_path) as control, asking(system, names) as asks:
            turns: list[tuple[str, Callable[[], float]]] = [(BARE, bare.pause_s)]
            turns += [(name, _turn(control, name, asks[name], away[name])) for name in names]
            for _ in range(kills):
                end = time.monotonic() + _NEXT_KILL_S * (1 + (MOUNT in names))
                for name, turn in turns:
                    pauses[name].append(turn())
                    time.sleep(_ALONE_S)
                time.sleep(max(0.0, end - time.monotonic()))
    finally:
        system.close()
        bare.close()
    return {name: _figures(pauses[name], away.get(name, [])) for name in pauses}


def _turn(control: Door, name: str, ask: Ask, away: list[float]) -> Callable[[], float]:
    def turn() -> float:
        longest, outage = pause(control, "fs" if name == MOUNT else name, ask)
        away.append(outage.ready_s - outage.ended_s)
        return longest

    return turn


def _figures(pauses: list[float], away: list[float]) -> Figures:
    ordered = sorted(pauses)
    return {
        "median": statistics.median(ordered) * 1000,
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000,
        "max": ordered[-1] * 1000,
        "away": statistics.median(away) * 1000 if away else 0.0,
    }


def table(results: dict[str, Figures], kills: int) -> str:
    """Return the table for people."""
    bare = results[BARE]["median"]
    lines = [
        f"  {'server':12}{'kills':>6}{'median ms':>11}{'p99 ms':>9}{'max ms':>9}"
        f"{'x bare':>8}{'away ms':>9}"
    ]
    for name, row in results.items():
        away = f"{row['away']:9.2f}" if row["away"] else ""
        lines.append(
            f"  {name:12}{kills:6}{row['median']:11.2f}{row['p99']:9.2f}{row['max']:9.2f}"
            f"{row['median'] / bare:8.2f}{away}"
        )
    return "\n".join(lines)


def run(kills: int = KILLS, names: list[str] | None = None) -> dict[str, Figures]:
    """Return all figures."""
    return measure(kills, names or [MOUNT, *QUESTIONS])


def main(*words: str) -> None:
    """Print the table."""
    kills = int(words[0]) if words else KILLS
    print(table(run(kills, list(words[1:])), kills))


if __name__ == "__main__":
    main(*sys.argv[1:])
