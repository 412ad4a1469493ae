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
        "Read from the host: `declared` is what the description grants during a start. At the end\n"
        "stands the trusted base: the lines of code that run in the kernel's process, and in a\n"
        "zygote until a server is confined; without blanks, comments and docstrings.\n\n"
        "example:\n  atoll audit --json",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")


def audit(arguments: argparse.Namespace) -> int:
    """Run `atoll audit`."""
    from core.kernel.trusted import trusted_files

    from .connection import ask, control

    with control(arguments.name) as (_, system):
        found, loaded = ask(system.audit()), ask(system.loaded())
    files = trusted_files(loaded)
    if arguments.json:
        servers = [named(server) for server in found]
        trusted = {"files": files, "libraries": loaded.libraries}
        say_json({"servers": servers, "trusted": trusted, "lacks": loaded.lacks})
        return 0
    for server in found:
        title = "confined" if server.confined else "NOT confined"
        say(f"{server.name}: {server.placement}, {title}")
        for name, value in named(server).items():
            if name not in ("name", "placement", "confined"):
                say(f"  {name.replace('_', ' '):18} {_words(value)}")
    total = sum(files.values())
    say(f"trusted: {total} lines of code in {len(files)} files, which nothing confines")
    for path, count in files.items():
        say(f"  {count or 'native':>6} {path}")
    say(f"  beside the interpreter, the host, and {', '.join(loaded.libraries)}")
    for lack in loaded.lacks:
        say(f"this host lacks {lack}")
    return 0


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {word}" for name, word in value.items()) or "-"
    return "; ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
