"""How long each task was away: from the end of an incarnation until a later one served.

The kernel notes every end and every readiness as it learns of them, on the host's monotonic clock,
which all processes share: so a client can lay its own waits beside them. An incarnation that ends
before it served does not end the outage; the next one that serves does.
"""

from __future__ import annotations

import collections
import time
from typing import Final

from core.userlib.kernel_calls import Outage

OUTAGES_LIMIT: Final = 512
"""Outages of one task that are remembered."""


class Outages:
    """The outages of one task, oldest first."""

    def __init__(self) -> None:
        self._over: collections.deque[Outage] = collections.deque(maxlen=OUTAGES_LIMIT)
        self._open: list[Outage] = []

    def ended(self, generation: int, reason: str, *, orderly: bool = False) -> None:
        """An incarnation has ended."""
        lines = reason.strip().splitlines()
        last = lines[-1] if lines else ""
        self._open.append(Outage(generation, last, orderly, time.monotonic(), 0.0))
        del self._open[:-OUTAGES_LIMIT]

    def served(self) -> None:
        """An incarnation serves: whatever was open is over."""
        now = time.monotonic()
        for outage in self._open:
            outage.ready_s = now
        self._over.extend(self._open)
        self._open.clear()

    def since(self, generation: int) -> list[Outage]:
        """Return the outages that began with the end of `generation` or of a later one."""
        return [each for each in (*self._over, *self._open) if each.generation >= generation]
