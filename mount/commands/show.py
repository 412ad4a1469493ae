"""Looking at a system: `status`, `ps`, `ports`, `log`."""

from __future__ import annotations

import argparse
import collections

from mount.obstacle import NOT_RUNNING, ObstacleError
from mount.run_directory import RunDirectory, find_system, roots

from .output import duration, facts, named, say, say_json, table
from .parser import Commands, count


def register(commands: Commands) -> None:
    """Describe these commands to the parser."""
    parser = commands.add(
        "status",
        status,
        "say what a system is and where",
        "examples:\n  atoll status\n  ls $(atoll status --json | jq -r .mountpoint)\n\n"
        "exit status: 0 it runs, 3 it does not",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser = commands.add(
        "ps",
        ps,
        "list the tasks of a system",
        "The generation counts a task's incarnations: it grows whenever a server was restarted.\n"
        "The version counts those of its code, which `atoll restart --reload` changes.\n\n"
        "example:\n  atoll kill fs; atoll ps",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser = commands.add(
        "ports",
        ports,
        "list the ports of a system",
        "A port is a queue of messages with one receiver; `waiting` were sent and not yet taken,\n"
        "`in flight` are being served.\n\nexample:\n  watch -n1 atoll ports",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser = commands.add(
        "log", log, "show what a system has logged", "example:\n  atoll log --lines 20"
    )
    parser.add_argument("-n", "--lines", type=count, default=100, help="default: %(default)s")


def status(arguments: argparse.Namespace) -> int:
    """Run `atoll status`."""
    from .connection import ask, control

    with control(arguments.name) as (run, system):
        found = ask(system.status())
    if arguments.json:
        say_json(found)
        return 0
    facts(
        [
            ("system", f"{found.name}, process {found.pid}, up {duration(found.uptime_s)}"),
            ("servers", f"{found.servers_running} of {found.servers} running"),
            ("files", found.mountpoint or "not mounted"),
            ("volume", found.state_directory),
            ("network", _network(found.net, found.address, found.host_address)),
            ("description", found.placement_file),
            ("control", run.control_path),
            ("log", run.log_path),
        ]
    )
    return 0


def _network(net: str, address: str, host_address: str) -> str:
    if net == "none":
        return "none"
    place = "a namespace of its own" if net == "private" else "the host's namespace"
    return f"{address}, the host is {host_address} in {place}"


def ps(arguments: argparse.Namespace) -> int:
    """Run `atoll ps`."""
    from .connection import ask, control

    with control(arguments.name) as (_, system):
        tasks = ask(system.tasks())
    if arguments.json:
        say_json([named(task) for task in tasks])
        return 0
    table(
        [
            *("task", "generation", "version", "placement", "state"),
            *("pid", "rights", "handled", "last end"),
        ],
        [
            [
                *(task.name, task.generation, task.version, task.placement, task.state),
                *(task.pid or "-", task.rights, task.handled, _short(task.last_end)),
            ]
            for task in tasks
        ],
    )
    return 0


def ports(arguments: argparse.Namespace) -> int:
    """Run `atoll ports`."""
    from .connection import ask, control

    with control(arguments.name) as (_, system):
        found = ask(system.ports())
    if arguments.json:
        say_json([named(port) for port in found])
        return 0
    table(
        ["port", "label", "interface", "receiver", "waiting", "in flight", "senders", "handled"],
        [
            [
                *(port.port, port.label, port.interface, port.receiver),
                *(port.queued, port.in_flight, port.senders, port.handled),
            ]
            for port in found
        ],
    )
    return 0


def _short(reason: str) -> str:
    lines = reason.strip().splitlines()
    return lines[-1] if lines else ""


def log(arguments: argparse.Namespace) -> int:
    """Run `atoll log`. Also for a system that has died and not yet been cleared away."""
    for root in roots():
        run = RunDirectory(root / arguments.name)
        if run.log_path.exists():
            break
    else:
        run = find_system(arguments.name)
    try:
        with run.log_path.open(encoding="utf-8", errors="replace") as file:
            for line in collections.deque(file, maxlen=arguments.lines):
                say(line.rstrip("\n"))
    except OSError as error:
        raise ObstacleError(run.log_path, error.strerror or str(error)) from None
    return 0 if run.is_alive() else NOT_RUNNING
