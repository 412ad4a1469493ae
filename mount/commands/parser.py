"""The command line's form: one parser, to which each group of commands adds its own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Final

from mount.settings import DEFAULT_NAME

Command = Callable[[argparse.Namespace], int]
"""What runs a command; returns its exit status."""

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Commands:
    """The commands that there are."""

    def __init__(self) -> None:
        self.parser = argparse.ArgumentParser(
            prog="atoll",
            description="A microkernel system on this host: mount it, ping it, pipe through it.",
            epilog="begin with:\n  atoll up --detach\n  atoll status\n  atoll down",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.parser.add_argument(
            "--name",
            default=DEFAULT_NAME,
            help="which system, if there are several (default: %(default)s)",
        )
        self._group = self.parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        self, name: str, command: Command, summary: str, teaching: str
    ) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            summary: what it does, for the list of commands.
            teaching: how it is used, with an example.
        """
        parser = self._group.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=teaching,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(command=command, command_name=name)
        parser.add_argument(
            "--name", default=argparse.SUPPRESS, help="which system (default: default)"
        )
        return parser


def size(text: str) -> int:
    """Return octets: "512M" and the like, in powers of 1024."""
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE)
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 512M, 8G or 1T")
    return int(found[1]) * _UNITS[found[2].upper()]


def count(text: str) -> int:
    """Return a number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def seconds(text: str) -> float:
    """Return a time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value
