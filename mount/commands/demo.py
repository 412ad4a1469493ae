"""Showing what a system can do: `demo`."""

from __future__ import annotations

import argparse

from .parser import Commands


def register(commands: Commands) -> None:
    """Describe this command to the parser."""
    commands.add(
        "demo",
        demo,
        "show it all, in about a minute",
        "Makes a system of its own in a temporary directory, and leaves nothing behind.\n\n"
        "example:\n  atoll demo",
    )


def demo(arguments: argparse.Namespace) -> int:
    """Run `atoll demo`."""
    import mount.demo

    return mount.demo.demo(arguments)
