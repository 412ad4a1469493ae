"""`make soak`: long runs under faults.

    python -m tests.soak [--seconds N] [--seed N] [--cycles N]
                         [--only NAME | --unlucky | --forgetful]

The programs share the time. Each prints its seed, how far it is, and a verdict of one line; the
exit status is 1 if anything was lost. A seed gives the same faults and the same work again, though
not the same interleaving of processes.

`--unlucky` is the storm, and a file server that also dies between a change and its answer, where a
random kill seldom finds it. `--forgetful` shows that the storm can fail: the same, and the file
server does not look its answers up. There the exit status is 0 if that was found out.
"""

from __future__ import annotations

import argparse
import math
import secrets
import sys
from collections.abc import Callable
from typing import Final

from .crashes import crashes
from .cycles import cycles
from .file_servers import ForgetfulFileServer, UnluckyFileServer
from .files import files
from .frames import frames
from .front_end import front_end
from .packets import packets
from .run import Run
from .storm import storm

PROGRAMS: Final[dict[str, tuple[Callable[[Run], None], float]]] = {
    "storm": (storm, 0.42),
    "front-end": (front_end, 0.1),
    "files": (files, 0.1),
    "packets": (packets, 0.1),
    "frames": (frames, 0.1),
    "crashes": (crashes, 0.1),
    "cycles": (cycles, 0.08),
}
"""What there is, and its share of the time."""


def unlucky(run: Run) -> None:
    """The storm, and a file server that dies at the worst instants."""
    storm(run, UnluckyFileServer)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=60, help="for all together")
    parser.add_argument("--seed", type=int, default=None)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", choices=PROGRAMS, help="one program, for all of the time")
    which.add_argument(
        "--unlucky", action="store_true", help="the storm, also at the worst instants"
    )
    which.add_argument(
        "--forgetful", action="store_true", help="the same for a file server that has to fail it"
    )
    parser.add_argument("--cycles", type=int, default=0, help="so many, however long they take")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, flush=True)


def _show_forgetful(seconds: float, seed: int) -> int:
    """Let the storm loose on what has to fail it; return 0 if it does."""
    run = Run("forgetful", seconds, seed, _say)
    storm(run, ForgetfulFileServer)
    _say(run.verdict())
    _say("found out, as it has to be" if run.losses else "NOT FOUND OUT: the storm is too weak")
    return 0 if run.losses else 1


def main() -> int:
    """Run the programs one after the other; return the exit status."""
    arguments = _arguments()
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    if arguments.forgetful:
        return _show_forgetful(arguments.seconds, seed)
    verdicts = []
    lost = 0
    programs = {"unlucky": (unlucky, 1.0)} if arguments.unlucky else PROGRAMS
    for name, (program, share) in programs.items():
        if arguments.only not in (None, name):
            continue
        counted = name == "cycles" and arguments.cycles > 0
        seconds = arguments.seconds * (1 if arguments.only else share)
        run = Run(name, math.inf if counted else seconds, seed, _say)
        try:
            if counted:
                cycles(run, arguments.cycles)
            else:
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
