"""The weather of a storm: strikes that come in phases, and what was disturbed when."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from mount.chaos.killer import Killer, Strike

from .door import SERVERS, Door
from .run import Run

RATES: Final = (0.0, 0.5, 1.0, 3.0, 8.0)
"""Strikes in a second, in the phases of a storm."""
BUSY: Final = ("fs", "fs", "pipe", "net")
"""Those that have most to lose are hit more often."""
PHASE_S: Final = (1.0, 6.0)
STOPS: Final = 0.1
"""How many of the strikes stop their victims for a moment instead of killing them."""
AFTERMATH_S: Final = 4.0
"""For so long after a fault, what has no memory (ping, UDP) may still lose something."""


def phases(chance: random.Random) -> Iterator[Strike]:
    """Draw strikes for ever: calms and tempests, at one server, now and then at several at once."""
    calm_s = 0.0
    while True:
        rate, left_s = chance.choice(RATES), chance.uniform(*PHASE_S)
        while rate and (gap_s := chance.expovariate(rate)) < left_s:
            left_s -= gap_s
            count = chance.choice((1, 1, 1, 1, 2, 3))
            victims = dict.fromkeys(chance.sample((*SERVERS, *BUSY), count))
            yield Strike(calm_s + gap_s, tuple(victims), chance.random() < STOPS)
            calm_s = 0.0
        calm_s += left_s


class Storm(Killer):
    """Strikes in phases, at all servers. What it did can be looked at while it works."""

    def __init__(self, run: Run, door: Door) -> None:
        super().__init__(door, phases(run.random("deaths")))

    def disturbed(self, servers: tuple[str, ...], since: float) -> bool:
        """Tell whether one of the servers suffered a fault between `since` and now."""
        return self.struck(servers, since - AFTERMATH_S)
