"""Who does which work in a storm, turn after turn, and goes on after a loss."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from typing import Final

from core.errors import AtollError

from .building import build
from .changes import changes
from .operations import at_port, through_mount
from .run import LossError
from .works import Workplace, archive, copy, database, datagrams, ping, pipeline, repository

Work = Callable[[Workplace, random.Random, int], None]
WORKS: Final[dict[str, tuple[Work, ...]]] = {
    "trees": (copy, archive),
    "operations": (through_mount, at_port),
    "names": (changes,),
    "history": (repository, build),
    "data": (database,),
    "pipes": (pipeline,),
    "network": (ping, datagrams),
}
"""What each worker does in turn."""
LEFT: Final[dict[Work, tuple[str, ...]]] = {
    archive: ("archive",),
    repository: ("repository", "clone"),
    build: ("building",),
}
"""What a turn leaves in the mount that was not finished."""


def worker(place: Workplace, name: str) -> threading.Thread:
    """Return a thread that works until the run is over, and goes on after a loss."""
    chance = place.run.random(name)

    def work() -> None:
        turn = 0
        while not place.run.over():
            for function in WORKS[name]:
                attempt(place, function, chance, turn)
            turn += 1

    return threading.Thread(target=work, name=name)


def attempt(place: Workplace, function: Work, chance: random.Random, turn: int) -> None:
    """Do one turn; note what was lost, and clear away what it left."""
    try:
        function(place, chance, turn)
    except (LossError, AtollError, OSError, sqlite3.Error, subprocess.SubprocessError) as error:
        place.run.lose(f"{function.__name__}, turn {turn}: {type(error).__name__}: {error}")
        for left in LEFT.get(function, ()):
            shutil.rmtree(place.mount / left, ignore_errors=True)
