"""`crashes`: crash points of one random history after the other; see `tests.crash_points`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tests.crash_points.boundaries import Boundary, run_boundaries
from tests.crash_points.history import History, history
from tests.crash_points.power import PowerCuts
from tests.crash_points.recorded import Recorded, workplace
from tests.crash_points.table import Table
from tests.crash_points.writes import WritePoints

from .run import Run

_OPERATIONS: Final = 250
_STEPS: Final = 30
"""Steps of each history that are looked at closely, in each of the three ways."""


def crashes(run: Run) -> None:
    """Take turns until the time is over."""
    chance = run.random("turns")
    while not run.over():
        seed = chance.getrandbits(32)
        of = history(seed, _OPERATIONS)
        table = Table()
        try:
            with workplace() as directory:
                _turn(of, table, directory, random.Random(seed))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss
            run.lose(f"history of seed {seed}: {type(error).__name__}: {str(error)[:1500]}")
        for loss in table.losses:
            run.lose(f"history of seed {seed}: {loss}")
        total = table.total()
        run.count("write points", total.points)
        run.count("power cuts", total.cuts)
        run.count("older octets", total.older)
        run.count("message boundaries", total.boundaries)


def _turn(of: History, table: Table, directory: Path, chance: random.Random) -> None:
    recorded = Recorded(of, directory / "recorded")

    def some() -> list[int]:
        return sorted(chance.sample(range(len(of.steps)), _STEPS))

    WritePoints(recorded, table, directory / "writes").run(some())
    PowerCuts(recorded, table, directory / "power").run(some())
    plan = {index: chance.choice(list(Boundary)) for index in some()}
    run_boundaries(of, table, directory / "boundaries", plan.get)
