"""Servers that die while a command runs: `chaos`."""

from __future__ import annotations

import argparse
import contextlib
import re
import secrets
import sys
from typing import TYPE_CHECKING

from mount.obstacle import NOT_RUNNING, USAGE, ObstacleError
from mount.run_directory import find_system

from .output import columns, complain, say_json
from .parser import Commands

if TYPE_CHECKING:
    from mount.chaos.report import Report


def register(commands: Commands) -> None:
    """Describe this command to the parser."""
    parser = commands.add(
        "chaos",
        chaos,
        "run a command while servers die at random instants",
        "In the command, {mount} and the variable ATOLL_MOUNT name the mount point, {name} the\n"
        "system. If no such system runs, one with an empty volume is made, and goes with the\n"
        "command. The report is written to standard error. A pause is what a client sees that\n"
        "asked when the server died; `away` is the kernel's own figure. The seed decides who is\n"
        "struck after what time, not what the servers are doing just then.\n\n"
        "examples:\n"
        "  atoll chaos -- cp -r /usr/share/doc {mount}/doc\n"
        "  atoll chaos --seed 7 --kill fs,disk --rate 5 -- sh -c 'cd {mount} && tar xf ~/x.tar'\n"
        "  atoll chaos --kill net,tap -- atoll exec -- ping -c 100 -i 0.1 10.90.0.2\n"
        "  atoll chaos --rate 4 -- sh -c 'cd {mount} && git clone -q ~/project && cd project &&\n"
        "    git fsck'\n\n"
        "exit status: the command's, 128 + n if signal n ended it; 125 if it succeeded and yet\n"
        "something was lost",
    )
    parser.add_argument("--seed", type=_seed, help="the same strikes again (default: by chance)")
    parser.add_argument(
        "--kill", type=_names, default=[], metavar="LIST",
        help="servers, with commas (default: fs,disk,net,tap,pipe,names,supervisor,front-end)",
    )  # fmt: skip
    parser.add_argument(
        "--stop", type=_names, default=[], metavar="LIST",
        help="servers that a tenth of the strikes stop for 0.2 s (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=_rate, default=2.0, help="strikes in a second (default: %(default)g)"
    )
    parser.add_argument(
        "--json", action="store_true",
        help="the report as JSON to standard output, where the command's output goes to"
        " standard error",
    )  # fmt: skip
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- CMD ...")


def _seed(text: str) -> int:
    if not re.fullmatch(r"\d{1,20}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: write a number")
    return int(text)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("name servers, as in: fs,disk")
    return list(dict.fromkeys(names))


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate: write a number up to 100")
    return value


def chaos(arguments: argparse.Namespace) -> int:
    """Run `atoll chaos`."""
    from mount.chaos.session import CHAOS_FAILED, Plan, run, throwaway

    command = list(arguments.program)
    if command[:1] == ["--"]:
        del command[0]
    if not command:
        remedy = "name one, as in: atoll chaos -- cp -r /etc {mount}/etc"
        raise ObstacleError("chaos", "there is no command", remedy, USAGE)
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    plan = Plan(
        arguments.name, command, seed, arguments.rate, arguments.kill, arguments.stop,
        output=2 if arguments.json else 1,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        if not _runs(arguments.name):
            complain(f"no system {arguments.name} runs: making one, with an empty volume")
            stack.enter_context(throwaway(arguments.name))
        report = run(plan)
    if arguments.json:
        say_json(report)
    else:
        _tell(report)
    return report.status or (CHAOS_FAILED if report.losses else 0)


def _runs(name: str) -> bool:
    try:
        find_system(name)
    except ObstacleError as error:
        if error.status == NOT_RUNNING:
            return False
        raise
    return True


def _tell(report: Report) -> None:
    from mount.chaos.report import client_table, last_lines, server_table

    blocks = [columns(*server_table(report)), last_lines(report)]
    if report.clients:
        blocks.insert(1, columns(*client_table(report)))
    sys.stderr.write("\n" + "\n\n".join("\n".join(block) for block in blocks) + "\n")
