"""Acting on servers: `kill`, `restart`."""

from __future__ import annotations

import argparse
from typing import Any, Final

from mount.obstacle import FAILED
from mount.settings import DEFAULT_NAME, PATIENCE_S, PROBATION_S

from .output import advise, complain, facts, named, say, say_json
from .parser import Commands, seconds

_HELP: Final = """\
Without --reload the server is stopped in good order and started again from the code that it has.

With --reload its source files are loaded anew by a fresh interpreter, while the old code serves on.
Then the server is stopped, and the new code starts with the state that the old one leaves, as after
any restart; clients only see time pass. The old code returns by itself
  - if the new code does not start, or is not ready within --patience;
  - if it fails within --probation. SIGKILL is no failure of the code.

Code that cannot be loaded is refused, and so is code that does not fit the system that runs: its
interface has to keep every operation, with number, parameters, reply and declaration. Operations
may be added after the others, but nobody can call them before the system is started again. Nor can
the interfaces change that it calls, nor the line to the kernel. Not reloaded are: the kernel, the
system description, and servers that are promoted into the kernel's process, as is the front end as
a rule.

exit status: 0 the new code serves, 1 it does not

examples:
  atoll restart net
  atoll restart echo --reload
  atoll restart fs --reload --wait && echo accepted"""


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
    parser = commands.add("restart", restart, "start a server again, or changed code of it", _HELP)
    parser.add_argument("server", help="its name in `atoll ps`")
    parser.add_argument("--reload", action="store_true", help="take changed code")
    parser.add_argument(
        "--patience",
        type=seconds,
        default=PATIENCE_S,
        help="seconds within which it has to be ready (default: %(default)g)",
    )
    parser.add_argument(
        "--probation",
        type=seconds,
        default=PROBATION_S,
        help="seconds for which a failure brings the old code back (default: %(default)g)",
    )
    parser.add_argument("--wait", action="store_true", help="wait for the end of the probation")
    parser.add_argument("--json", action="store_true", help="for scripts")


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

    name, patience_s = arguments.server, arguments.patience
    with control(arguments.name) as (_, system):
        if not arguments.reload:
            done = ask(system.restart(name, patience_s))
        else:
            done = ask(system.reload(name, patience_s, arguments.probation))
        result = named(done)
        if arguments.wait and done.probation_s:
            result["failure"] = ask(system.probation(name))
            task = next(task for task in ask(system.tasks()) if task.name == name)
            serves = task.state == "running"
            result |= {"version": task.version, "generation": task.generation, "serves": serves}
    if arguments.json:
        say_json(result)
    else:
        _say_restarted(arguments, result)
    return FAILED if result["failure"] else 0


def _say_restarted(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Say what was done, and what may be done next."""
    name, version, failure = result["name"], result["version"], result["failure"]
    option = "" if arguments.name == DEFAULT_NAME else f" --name {arguments.name}"
    pause = f"its clients waited {result['pause_ms']:.1f} ms"
    if failure:
        state = f"version {version} serves again" if result["serves"] else "it does not serve"
        complain(f"{name} failed to start anew; {state}, and {pause}\n{failure.rstrip()}")
        again = " --reload" if arguments.reload else ""
        remedy = f"atoll{option} restart {name}{again}"
        advise(f"the log has all of it: atoll{option} log; once corrected: {remedy}")
        return
    say(
        f"{'reloaded' if arguments.reload else 'restarted'} {name}, now generation "
        f"{result['generation']} after {result['old_generation']}; {pause}"
    )
    if not arguments.reload:
        return
    passed = "passed" if arguments.wait else ""
    trial = f"{result['probation_s']:g} s: if it fails, the version before returns"
    files = ", ".join(result["changed"]) or "no source file, since the version before was loaded"
    facts(
        [
            ("version", version),
            ("changed", files),
            ("probation", passed or trial),
            *(("note", note) for note in result["notes"]),
            ("see", f"atoll{option} ps; atoll{option} why {name}"),
        ]
    )
