"""A run of a soak program: its time, its seeds, what it counted and what it lost."""

from __future__ import annotations

import collections
import random
import threading
import time
from collections.abc import Callable
from typing import Final

LOSSES_LIMIT: Final = 10
"""A run that has lost so much ends early: there is enough to look at."""
PROGRESS_S: Final = 10.0


class LossError(Exception):
    """Something was lost, changed or refused that should not have been."""


class Run:
    """One run of one program. Threads may share it.

    Args:
        name: the program's.
        seconds: for how long new work is begun.
        seed: what is drawn by chance follows from it; the order in which threads run does not.
        say: where progress goes.
        small: every piece of work is a small one, because the time is short.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        seed: int,
        say: Callable[[str], None] = print,
        *,
        small: bool = False,
    ) -> None:
        self.name = name
        self.small = small
        self.seconds = seconds
        self.seed = seed
        self.counts: collections.Counter[str] = collections.Counter()
        self.facts: list[str] = []
        self.losses: list[str] = []
        self._say = say
        self._lock = threading.Lock()
        self._began = self._told = time.monotonic()
        say(f"{name}: seed {seed}, {seconds:g} s")

    def random(self, label: str) -> random.Random:
        """Return the chance that belongs to one part of the program."""
        return random.Random(f"{self.seed}/{self.name}/{label}")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def begin_now(self) -> None:
        """Count the seconds from here: what came before was preparation."""
        self._began = self._told = time.monotonic()

    def over(self) -> bool:
        """Tell whether no new work shall begin."""
        return self.elapsed_s >= self.seconds or len(self.losses) >= LOSSES_LIMIT

    def count(self, what: str, by: int = 1) -> None:
        """Count something, and say every now and then how far it all is."""
        with self._lock:
            self.counts[what] += by
            now = time.monotonic()
            tell = now - self._told >= PROGRESS_S
            if tell:
                self._told = now
        if tell:
            self._say(f"{self.name}: {self.elapsed_s:.0f} s, {self._figures()}")

    def lose(self, what: str) -> None:
        """Note a loss."""
        with self._lock:
            self.losses.append(what)
        self._say(f"{self.name}: LOSS after {self.elapsed_s:.1f} s: {what}")

    def check(self, holds: bool, what: str) -> None:
        """Note a loss unless something holds."""
        if not holds:
            self.lose(what)

    def _figures(self) -> str:
        with self._lock:
            return ", ".join(f"{number} {what}" for what, number in sorted(self.counts.items()))

    def verdict(self) -> str:
        """Say in one line what came of it."""
        result = "CLEAN" if not self.losses else f"{len(self.losses)} LOSSES"
        facts = "".join(f"; {fact}" for fact in self.facts)
        return (
            f"{self.name}: {result}, seed {self.seed}, {self.elapsed_s:.0f} s: "
            f"{self._figures()}{facts}"
        )
