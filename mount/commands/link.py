"""Who holds the network link, and having it change hands: `link`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from core.errors import Refused
from mount.obstacle import ObstacleError

from .output import facts, say_json
from .parser import Commands, seconds

if TYPE_CHECKING:
    from net_server.link import EndedAsk

_DRIVER: Final = "tap"


def register(commands: Commands) -> None:
    """Describe this command to the parser."""
    parser = commands.add(
        "link",
        link,
        "say which server holds the network link, or have it change hands",
        "Another server can only ask the holder for it: the holder may refuse, or not answer in\n"
        "time, and then keeps the link. Both must be in the system description, with a right to\n"
        "the link's driver.\n\nexamples:\n  atoll link\n  atoll link --to net2 --timeout 2",
    )
    parser.add_argument("--to", metavar="SERVER", help="have this server ask for the link")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long the holder may take to answer (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")


def link(arguments: argparse.Namespace) -> int:
    """Run `atoll link`."""
    from net_server.link import Link
    from net_server.network import Network

    from .connection import ask, joined_control

    with joined_control(arguments.name) as (_, task, system):
        if arguments.to is not None:
            asker = task.connect(Network, ask(system.port_of(arguments.to)))
            try:
                ask(asker.link_take(int(arguments.timeout * 1000)))
            except Refused as refusal:
                raise ObstacleError(f"the link is not {arguments.to}'s", refusal.detail) from None
        state = ask(task.connect(Link, ask(system.port_of(_DRIVER))).watch(0))
        names = ask(system.badges())
    holder = names.get(state.holder, "")
    if arguments.json:
        say_json({"device": state.name, "holder": holder, "last": _last(state.last, names)})
        return 0
    facts(
        [
            ("device", state.name),
            ("holder", holder or "nobody"),
            ("asked last", _last(state.last, names) or "nobody has asked"),
        ]
    )
    return 0


def _last(ended: EndedAsk | None, names: dict[int, str]) -> str:
    """Return who asked last, and how that ended; empty if nobody has."""
    if ended is None:
        return ""
    asker = names.get(ended.asker, "a task that is gone")
    holder = names.get(ended.holder, "a task that is gone") if ended.holder else "nobody"
    reason = f" ({ended.reason})" if ended.reason else ""
    return f"{asker} asked {holder}: {ended.outcome}{reason}"
