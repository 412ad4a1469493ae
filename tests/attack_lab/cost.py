"""What confinement costs: the same server confined and free, side by side in one run.

All of it is pinned to one processor: where the host's scheduler puts the processes of a call makes
more of a difference than what is measured.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from core.kernel.tasks import State
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from tests.bench.ipc import Measure, Null

ROUNDS: Final = 15
CALLS: Final = 1000
KILLS: Final = 15
_DESCRIPTION: Final = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.confined]
class = "tests.bench.ipc:NullServer"
intensity = 100000
first_delay_s = 0.001
longest_delay_s = 0.001

[server.free]
class = "tests.bench.ipc:NullServer"
confined = false
intensity = 100000
first_delay_s = 0.001
longest_delay_s = 0.001

[server.confined-client]
class = "tests.bench.ipc:MeasureServer"
grants = { null = "confined" }

[server.free-client]
class = "tests.bench.ipc:MeasureServer"
confined = false
grants = { null = "free" }
"""
BOTH: Final = ("confined", "free")


async def _from_kernel_us(system: System, name: str) -> float:
    null: Null = system.connect(Null, name)
    began = time.perf_counter()
    for _ in range(CALLS):
        await null.null()
    return (time.perf_counter() - began) / CALLS * 1e6


async def _between_us(system: System, name: str) -> float:
    measure: Measure = system.connect(Measure, f"{name}-client")
    return await measure.null_us(CALLS)


async def _start_ms(system: System, name: str) -> float:
    """Return how long it takes from a SIGKILL until the next incarnation serves."""
    task = system.task(name)
    generation, engine = task.id.generation, task.engine
    assert engine is not None
    began = time.perf_counter()
    os.kill(engine.pid, signal.SIGKILL)
    while task.id.generation == generation or task.state is not State.RUNNING:
        await system.wait_changed()
    took = (time.perf_counter() - began) * 1e3
    await trio.sleep(0.05)  # the zygote has a spare ready by then, for whoever is next
    return took


Measured = Callable[[System, str], Awaitable[float]]
ROWS: Final[dict[str, tuple[Measured, int]]] = {
    "null call, kernel to server, us": (_from_kernel_us, ROUNDS),
    "null call, server to server, us": (_between_us, ROUNDS),
    "from SIGKILL to served again, ms": (_start_ms, KILLS),
}


def measure() -> dict[str, dict[str, float]]:
    """Return the medians of each row, confined and free; rounds take turns."""
    found: dict[str, dict[str, list[float]]] = {row: {} for row in ROWS}

    async def main(prepared: Prepared) -> None:
        async with booted(prepared, lambda text: None) as system:
            for row, (measured, rounds) in ROWS.items():
                for number in range(rounds):
                    for name in BOTH if number % 2 else BOTH[::-1]:
                        found[row].setdefault(name, []).append(await measured(system, name))

    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    try:
        trio.run(main, Prepared(parse_description(_DESCRIPTION, "cost")))
    finally:
        os.sched_setaffinity(0, processors)
    return {
        row: {name: statistics.median(values) for name, values in sides.items()}
        for row, sides in found.items()
    }


def lines() -> list[str]:
    """Return the table."""
    rows: list[Any] = []
    for row, sides in measure().items():
        free, confined = sides["free"], sides["confined"]
        rows.append(f"  {row:36} {confined:9.2f} {free:9.2f} {confined / free:7.2f} x")
    return [f"  {'cost':36} {'confined':>9} {'free':>9} {'ratio':>9}", *rows]


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
