"""Programs of the host inside a system: `exec`, `run`."""

from __future__ import annotations

import argparse
import errno
import os
from typing import Final

from mount.obstacle import FAILED, USAGE, ObstacleError
from mount.run_directory import find_system

from .parser import Commands

NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
"""Exit statuses of a shell for a program that could not be started."""


def register(commands: Commands) -> None:
    """Describe these commands to the parser."""
    parser = commands.add(
        "exec",
        execute,
        "run a program in the network namespace of a system",
        "The system answers there at the address that `atoll status` shows.\n\n"
        "examples:\n  atoll exec -- ping -c3 10.90.0.2\n  atoll exec -- sh\n\n"
        "exit status: the program's",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...")
    parser = commands.add(
        "run",
        run,
        "run a pipeline whose pipes are ports of the kernel",
        "Each command between the pipes is run by `sh -c`. Lists (; && ||) beside a pipe belong\n"
        "into parentheses.\n\n"
        "examples:\n  atoll run 'cat /etc/services | grep tcp | wc -l'\n"
        "  atoll run --pipefail 'tar c . | gzip > /tmp/x.tgz'\n\n"
        "exit status: the last command's, 128 + n if signal n ended it",
    )
    parser.add_argument(
        "--pipefail", action="store_true", help="exit status of the rightmost command that failed"
    )
    parser.add_argument("line", metavar="'A | B | C'")


def execute(arguments: argparse.Namespace) -> int:
    """Run `atoll exec`."""
    from core.errors import Refused
    from mount.network_entry import enter

    from .connection import ask, control

    program = list(arguments.program)
    if program[:1] == ["--"]:
        del program[0]
    if not program:
        remedy = "name one, as in: atoll exec -- ping -c3 10.90.0.2"
        raise ObstacleError("exec", "there is no program", remedy, USAGE)
    with control(arguments.name) as (_, system):
        net = ask(system.status()).net
        if net == "none":
            remedy = "start it without --net none"
            raise ObstacleError(f"system {arguments.name}", "has no network", remedy)
        try:
            namespace = ask(system.network_namespace()) if net == "private" else None
        except Refused as error:
            remedy = "see: atoll why tap"
            raise ObstacleError(f"system {arguments.name}", error.detail, remedy) from None
    if namespace is not None:
        enter(namespace.fileno())
    try:
        os.execvp(program[0], program)  # noqa: S606 - the user's program, as it was given
    except OSError as error:
        status = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
        raise ObstacleError(program[0], error.strerror or "", "", status) from None


def run(arguments: argparse.Namespace) -> int:
    """Run `atoll run`."""
    from mount.shell_line import LineError, split

    system = find_system(arguments.name)
    try:
        pipeline = split(arguments.line)
    except LineError as error:
        raise ObstacleError(f"column {error.column}", error.reason, "", USAGE) from None
    from mount.run import run_pipeline

    try:
        return run_pipeline(system.control_path, pipeline, pipefail=arguments.pipefail)
    except OSError as error:
        raise ObstacleError("run", error.strerror or str(error), "", FAILED) from None
