"""`make soak`: long runs under faults.

    python -m tests.soak [--seconds N] [--seed N] [--only NAME]

The programs share the time. Each prints its seed, how far it is, and a verdict of one line; the
exit status is 1 if anything was lost. A seed gives the same faults and the same work again, though
not the same interleaving of processes.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Callable
from typing import Final

from .files import files
from .frames import frames
from .packets import packets
from .run import Run
from .storm import storm

PROGRAMS: Final[dict[str, tuple[Callable[[Run], None], float]]] = {
    "storm": (storm, 0.4),
    "files": (files, 0.2),
    "packets": (packets, 0.2),
    "frames": (frames, 0.2),
}
"""What there is, and its share of the time."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=60, help="for all together")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=PROGRAMS, help="one program, for all of the time")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Run the programs one after the other; return the exit status."""
    arguments = _arguments()
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    verdicts = []
    lost = 0
    for name, (program, share) in PROGRAMS.items():
        if arguments.only not in (None, name):
            continue
        run = Run(name, arguments.seconds * (1 if arguments.only else share), seed, _say)
        try:
            program(run)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss, and told
            run.lose(f"{type(error).__name__}: {error}")
        lost += len(run.losses)
        verdicts.append(run.verdict())
        _say(verdicts[-1])
    if len(verdicts) > 1:
        _say("\n" + "\n".join(verdicts))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
