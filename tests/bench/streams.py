"""What a stream carries: two commands by `/pipe/NAME`, beside a host pipe and `atoll run`.

    python -m tests.bench.streams

Every row is the same file, from one `cat` to another. Rounds are interleaved; medians are shown.
"""

from __future__ import annotations

import statistics
import subprocess
import time

from tests.support.live_system import LiveSystem
from tests.support.native_system import up_native

SIZE = 100_000_000
ROUNDS = 5


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def run(rounds: int = ROUNDS) -> dict[str, float]:
    """Return megabytes a second by name."""
    system = LiveSystem("bench-streams")
    try:
        name = up_native(system) / "pipe" / "x"
        source = system.top / "source"
        source.write_bytes(bytes(SIZE))
        line = f"cat {source} | cat"
        commands = {
            "host pipe": ["sh", "-c", line],
            "atoll run": system.command("run", line),
            "stream": ["sh", "-c", f"cat {source} > {name} & cat {name}; wait"],
        }
        found: dict[str, list[float]] = {peer: [] for peer in commands}
        for _ in range(rounds):
            for peer, command in commands.items():
                found[peer].append(SIZE / 1e6 / _seconds(command, system.environment))
        return {peer: statistics.median(values) for peer, values in found.items()}
    finally:
        system.close()


def main() -> None:
    """Print the table."""
    rows = run()
    for name, value in rows.items():
        print(f"  {name:12} {value:8.0f} MB/s {value / rows['host pipe']:6.2f} x host pipe")


if __name__ == "__main__":
    main()
