"""`python -m tests.crash_points`: enumerate the crash points of a history, and print the table.

    [--operations N] [--seed N] [--only boundaries|writes|power] [--variants N] [--json]

The exit status is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from .boundaries import Boundary, run_boundaries
from .history import History, history
from .power import PowerCuts
from .recorded import Recorded, workplace
from .table import LEGEND, Table
from .writes import WritePoints

_PARTS = ("writes", "power", "boundaries")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash_points")
    parser.add_argument("--operations", type=int, default=200, help="at least; all cases are in")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=_PARTS, help="one of the three parts")
    parser.add_argument("--variants", type=int, default=4, help="disks for each power cut")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _boundaries(of: History, tables: dict[str, Table], directory: Path) -> None:
    for boundary in Boundary:
        table = tables[boundary.name] = Table()
        run_boundaries(
            of, table, directory / boundary.name, dict.fromkeys(range(len(of.steps)), boundary).get
        )
        _say(f"  {boundary.value}: {table.total().deaths} deaths, {table.total().losses} losses")


def main() -> int:
    """Enumerate, and return the exit status."""
    arguments = _arguments()
    of = history(arguments.seed, arguments.operations)
    everything = range(len(of.steps))
    tables: dict[str, Table] = {}
    for part in _PARTS:
        if arguments.only not in {None, part}:
            continue
        began = time.monotonic()
        with workplace() as directory:
            if part == "boundaries":
                _boundaries(of, tables, directory)
            else:
                recorded = Recorded(of, directory / "recorded")
                table = tables[part] = Table()
                if part == "writes":
                    WritePoints(recorded, table, directory / "volume").run(list(everything))
                else:
                    cuts = PowerCuts(
                        recorded, table, directory / "volume", variants=arguments.variants
                    )
                    cuts.run(everything)
        _say(f"{part}: {time.monotonic() - began:.0f} s")
    table = Table()
    for found in tables.values():
        table.add(found)
    for step in of.steps:
        table.row(step.operation).operations += 1
    if arguments.json:
        print(json.dumps(table.as_dict(), indent=2))
    else:
        print(f"history of {len(of.steps)} operations, seed {of.seed}\n\n{table}\n\n{LEGEND}")
    return 1 if table.total().losses else 0


if __name__ == "__main__":
    sys.exit(main())
