"""Acting on servers: `kill`, `restart`."""

from __future__ import annotations

import argparse

from .output import say
from .parser import Commands


def register(commands: Commands) -> None:
    """Describe these commands to the parser."""
    parser = commands.add(
        "kill",
        kill,
        "end a server's process with SIGKILL",
        "The kernel keeps what the server held, restarts it and delivers again what was not\n"
        "answered: programs that use it only see time pass.\n\n"
        "example:\n  cp -r /usr/share $(atoll status --json | jq -r .mountpoint) & atoll kill fs",
    )
    parser.add_argument("server", help="its name in `atoll ps`")
    parser = commands.add(
        "restart",
        restart,
        "stop a server in good order and start it again",
        "example:\n  atoll restart net",
    )
    parser.add_argument("server", help="its name in `atoll ps`")


def kill(arguments: argparse.Namespace) -> int:
    """Run `atoll kill`."""
    from .connection import ask, control

    with control(arguments.name) as (_, system):
        pid = ask(system.kill(arguments.server))
    say(f"killed {arguments.server}, which was process {pid}")
    return 0


def restart(arguments: argparse.Namespace) -> int:
    """Run `atoll restart`."""
    from .connection import ask, control

    with control(arguments.name) as (_, system):
        generation = ask(system.restart(arguments.server))
    say(f"restarted {arguments.server}, now generation {generation}")
    return 0
