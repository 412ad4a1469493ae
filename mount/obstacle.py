"""What a user can do something about: an error that names the thing, the cause and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FAILED: Final = 1
"""Exit status of a command that could not do what it was asked for."""
USAGE: Final = 2
"""Exit status of a command line that says nothing that could be done."""
NOT_RUNNING: Final = 3
"""Exit status when there is no such system."""


class ObstacleError(Exception):
    """Something stands in the way of a command.

    Attributes:
        thing: what stands in the way: a path, a name or a program.
        cause: why.
        remedy: what the user can do about it; empty if there is nothing.
        status: what the command exits with.
    """

    def __init__(
        self, thing: str | Path, cause: str, remedy: str = "", status: int = FAILED
    ) -> None:
        super().__init__(f"{thing}: {cause}; {remedy}" if remedy else f"{thing}: {cause}")
        self.thing = str(thing)
        self.cause = cause
        self.remedy = remedy
        self.status = status
