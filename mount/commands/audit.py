"""What servers hold and may do: `audit`."""

from __future__ import annotations

import argparse

from .output import named, say, say_json
from .parser import Commands


def register(commands: Commands) -> None:
    """Describe the command to the parser."""
    parser = commands.add(
        "audit",
        audit,
        "say what every server holds and may do",
        "Read from the host: `declared` is what the description grants during a start.\n\n"
        "example:\n  atoll audit --json",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")


def audit(arguments: argparse.Namespace) -> int:
    """Run `atoll audit`."""
    from .connection import ask, control

    with control(arguments.name) as (_, system):
        found = ask(system.audit())
    if arguments.json:
        say_json([named(server) for server in found])
        return 0
    for server in found:
        title = "confined" if server.confined else "NOT confined"
        say(f"{server.name}: {server.placement}, {title}")
        for name, value in named(server).items():
            if name not in ("name", "placement", "confined"):
                say(f"  {name.replace('_', ' '):18} {_words(value)}")
    return 0


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {word}" for name, word in value.items()) or "-"
    return "; ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
