"""Why servers ended: `why`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from mount.obstacle import NOT_RUNNING, ObstacleError
from mount.run_directory import RunDirectory, find_system, roots

from .output import say, say_json, table
from .parser import Commands, count

if TYPE_CHECKING:
    from core.system.faults import FaultCount, FaultMessage, FaultRecord
    from mount.control import Attempted

_DEFAULT_LAST = 5
_NOTABLE = ("poison", "blamed", "suspect")


def register(commands: Commands) -> None:
    """Describe the command to the parser."""
    parser = commands.add(
        "why",
        why,
        "say why a server's incarnations ended",
        "Without a server: a line for each. With one: the cause of each end, the requests blamed\n"
        "for it, the last messages, the trace, what was decided, and how long it took until the\n"
        "server served again. What the server tried and may not stands before them. The same, but\n"
        "for that, is in the file `faults` of the run directory, one JSON object a line; of a\n"
        "system that has died, it is read from there.\n\n"
        "examples:\n  atoll kill fs; atoll why fs\n  atoll why fs --last 1 --json",
    )
    parser.add_argument("server", nargs="?", default="", help="its name in `atoll ps`")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument(
        "-n", "--last", type=count, default=_DEFAULT_LAST, help="ends shown; default: %(default)s"
    )


def why(arguments: argparse.Namespace) -> int:
    """Run `atoll why`."""
    dead = _dead_system(arguments.name)
    if dead is not None:
        return _why_of_file(dead, arguments)
    from .connection import ask, control

    with control(arguments.name) as (_, system):
        if not arguments.server:
            _show_counts(ask(system.fault_counts()), as_json=arguments.json)
            return 0
        numbers = ask(system.fault_numbers(arguments.server))
        found = [ask(system.fault(number)) for number in numbers[-arguments.last :]]
        attempts = ask(system.attempts(arguments.server))
    if not arguments.json:
        _show_attempts(attempts)
    _show(arguments.server, found, len(numbers), as_json=arguments.json)
    return 0


def _show_attempts(found: Attempted) -> None:
    """Say what the server tried and may not, if it did."""
    if found.kinds:
        kinds = ", ".join(f"{kind} {count} times" for kind, count in found.kinds.items())
        say(f"tried what it may not: {kinds}")
        say(f"   the last   {found.newest[-1]}")
    if found.unwritten or found.unsaid:
        say(f"   not in the log: {found.unwritten} attempts, {found.unsaid} lines of its own")


def _dead_system(name: str) -> RunDirectory | None:
    """Return the directory of a system that has died and left a fault log."""
    for root in roots():
        run = RunDirectory(root / name)
        if run.is_alive():
            return None
        if run.faults_path.exists():
            return run
    find_system(name)  # says that there is none
    return None


def _why_of_file(run: RunDirectory, arguments: argparse.Namespace) -> int:
    from core.system.faults import read_faults

    records = read_faults(run.faults_path)
    if arguments.server:
        records = [record for record in records if record.server == arguments.server]
        if not records:
            raise ObstacleError(
                f"system {arguments.name}",
                "is not running, and its fault log says nothing of that server",
                "look at all of it with: atoll why",
                NOT_RUNNING,
            )
    _show(arguments.server, records[-arguments.last :], len(records), as_json=arguments.json)
    return NOT_RUNNING


def _show_counts(counts: list[FaultCount], *, as_json: bool) -> None:
    if as_json:
        from core.system.faults import named

        say_json([named(each) for each in counts])
        return
    table(
        ["server", "state", "ends", "last", "cause", "decision"],
        [
            [
                *(each.server, each.state, each.ends, _clock(each.last_time)),
                *(_short(each.last_cause) or "-", _short(each.last_decision) or "-"),
            ]
            for each in counts
        ],
    )


def _show(server: str, records: list[FaultRecord], total: int, *, as_json: bool) -> None:
    if as_json:
        from core.system.faults import named

        say_json([named(record) for record in records])
        return
    if not records:
        say(f"{server} has not ended since the system started")
    if total > len(records):
        say(f"the last {len(records)} of {total} ends; see more with --last")
    for number, record in enumerate(records, total - len(records) + 1):
        _show_record(number, record)


def _show_record(number: int, record: FaultRecord) -> None:
    say(f"{number}. {record.cause}")
    say(f"   {record.server} generation {record.generation}, {_clock(record.time)}")
    for message in record.messages:
        if message.state in _NOTABLE:
            say(f"   {message.state:9} {_message(message)}{_deaths(message)}")
    if record.decision:
        restart_s = record.restart_s
        mended = "" if restart_s is None else f"; served again after {restart_s:.3f} s"
        say(f"   decision  {record.decision}{mended}")
    if record.messages:
        say("   last messages")
        for message in record.messages:
            say(f"     {message.state:9} {_message(message)}")
    if record.detail:
        say("   trace")
        for line in record.detail.strip().splitlines():
            say(f"     {line}")


def _message(message: FaultMessage) -> str:
    octets = f", {message.octets} octets" if message.octets else ""
    return (
        f"request {message.id} {message.operation} of {message.client or 'the kernel'}"
        f" (badge {message.badge}){octets}, {message.age_s:.3f} s old"
    )


def _deaths(message: FaultMessage) -> str:
    if not message.deaths:
        return ""
    return f", {message.deaths} death{'s' if message.deaths > 1 else ''} counted"


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment)) if moment else "-"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
