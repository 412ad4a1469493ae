"""What a task writes into the system's log: one clean line at a time, and not too many of them.

The log is evidence, and the tasks it tells of write into it. So nothing that a task says can look
like a line of somebody else's, and a flood of lines costs the log a bounded number of them: the
rest is counted, and the count is said with the next line, so that it can bury nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .attempts import Budget, printable

LINES_BURST: Final = 256
"""Lines of one task that are written at once; more only as time passes."""
LINES_PER_S: Final = 5.0
LINE_LIMIT: Final = 4096
"""Characters of one line."""


class Voice:
    """One task's, over all its incarnations.

    Attributes:
        suppressed: how many lines were not written.
    """

    def __init__(self, name: str, log: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._name = name
        self._log = log
        self._clock = clock
        self._budget = Budget(LINES_BURST, LINES_PER_S, clock())
        self._unsaid = 0
        self.suppressed = 0

    def say(self, text: str, *, trusted: bool = False) -> None:
        """Write a line.

        Args:
            text: anything; what is not printable is written as an escape.
            trusted: who speaks belongs to the trusted base, and is never cut short.
        """
        if not trusted and not self._budget.take(self._clock()):
            self._unsaid += 1
            self.suppressed += 1
            return
        more = f" (and {self._unsaid} lines before it, suppressed)" if self._unsaid else ""
        self._unsaid = 0
        self._log(f"{self._name}: {printable(text, LINE_LIMIT)}{more}")

    def settle(self) -> None:
        """Say what is still unsaid; the incarnation has ended."""
        if self._unsaid:
            self._log(f"{self._name}: {self._unsaid} more lines were suppressed")
            self._unsaid = 0
