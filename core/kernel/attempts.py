"""What tasks tried that they may not: counted, and written into the log within limits.

An attempt is a system call that a confined task is not allowed (`reports`), or a message that only
a mistake or an attacker sends: a right that is not there, a reply to somebody else's request, a
packet that is none. Each was refused where it was made; here it becomes visible, out of the
attacker's reach. Whoever floods the log costs it a bounded number of lines: the rest is counted,
and the count is said with the next line.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Final

from core.errors import (
    AtollError,
    BadMessageError,
    LimitError,
    MessageTooLargeError,
    NoRightError,
    ServerFaultError,
    WrongRightError,
)

LINES_BURST: Final = 64
"""Lines about one task that are written at once; more only as time passes."""
LINES_PER_S: Final = 4.0
KINDS_LIMIT: Final = 128
"""Different kinds of attempt that are counted by name; the rest goes under `other`."""
NEWEST: Final = 16
"""Attempts that are remembered word for word."""
_SUSPICIOUS: Final = (
    BadMessageError,
    LimitError,
    MessageTooLargeError,
    NoRightError,
    ServerFaultError,
    WrongRightError,
)
_TEXT_LIMIT: Final = 240
_OTHER: Final = "other"


def printable(text: str, limit: int = _TEXT_LIMIT) -> str:
    """Return one line of printable text, whatever a task made up."""
    cut = text[:limit] + ("…" if len(text) > limit else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


class Budget:
    """A token bucket: so many at once, so many a second in the long run."""

    def __init__(self, burst: float, per_s: float, now: float) -> None:
        self._burst = self._tokens = burst
        self._per_s = per_s
        self._at = now

    def take(self, now: float) -> bool:
        """Return whether one more is within the budget, which it is charged to then."""
        passed, self._at = now - self._at, now
        self._tokens = min(self._burst, self._tokens + passed * self._per_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Attempts:
    """One task's, over all its incarnations.

    Attributes:
        total: all there were.
        kinds: how many of each kind.
        newest: the last ones, oldest first.
        suppressed: how many were not written into the log.
    """

    def __init__(self, name: str, log: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._name = name
        self._log = log
        self._clock = clock
        self._budget = Budget(LINES_BURST, LINES_PER_S, clock())
        self._unsaid = 0
        self.total = 0
        self.suppressed = 0
        self.kinds: dict[str, int] = {}
        self.newest: collections.deque[str] = collections.deque(maxlen=NEWEST)

    def add(self, kind: str, text: str) -> None:
        """Note an attempt.

        Args:
            kind: what it is counted as: the name of a system call or of an error.
            text: what was tried and how it was refused; anything in it may be the attacker's.
        """
        self.total += 1
        known = kind in self.kinds or len(self.kinds) < KINDS_LIMIT
        counted = kind if known else _OTHER
        self.kinds[counted] = self.kinds.get(counted, 0) + 1
        line = printable(text)
        self.newest.append(line)
        if not self._budget.take(self._clock()):
            self._unsaid += 1
            self.suppressed += 1
            return
        more = f" (and {self._unsaid} attempts before it)" if self._unsaid else ""
        self._unsaid = 0
        self._log(f"{self._name} tried {line}{more}")

    def refused(self, error: AtollError, *, asked_kernel: bool = False) -> None:
        """Note a message that was refused with an error that only a mistake or an attacker gets.

        Args:
            asked_kernel: it was a kernel call; asking for what is not kept is no offence there.
        """
        if isinstance(error, _SUSPICIOUS) and not (
            asked_kernel and isinstance(error, NoRightError)
        ):
            self.add(type(error).__name__, f"what it may not: {error.detail}")

    def settle(self) -> None:
        """Say what is still unsaid; the incarnation has ended."""
        if self._unsaid:
            self._log(f"{self._name} tried {self._unsaid} more things that it may not")
            self._unsaid = 0
