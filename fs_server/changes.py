"""What clients did, for other clients that cache: a bounded log with positions.

Positions grow by one with each change and start anew, far higher, with each incarnation of the
server. So a position that another incarnation gave out, or that the log has outgrown, is
recognised: its holder is told to drop everything it caches.

Invariant: a client never hears of its own changes.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

from .interface import CHANGES_LIMIT, Change

LOG_LIMIT: Final = 4096
"""Changes that are remembered."""
_GENERATION_SHIFT: Final = 40
EVERYTHING: Final = Change(inode=0)
"""Drop all that you cache."""


class ChangeLog:
    """The log. `generation`: a number that is higher in each incarnation."""

    def __init__(self, generation: int) -> None:
        self.position = (generation + 1) << _GENERATION_SHIFT
        """Position of the newest change."""
        self._entries: deque[tuple[int, Change]] = deque(maxlen=LOG_LIMIT)

    def add(self, client: int, change: Change) -> None:
        """Remember what a client did."""
        self.position += 1
        self._entries.append((client, change))

    def since(self, after: int, client: int) -> tuple[int, list[Change]]:
        """Return where to go on, and what others than `client` did after a position.

        The list has at most `CHANGES_LIMIT` changes; it is [`EVERYTHING`] when the log does not
        reach back so far, or the position is none of this log.
        """
        behind = self.position - after
        if not 0 <= behind <= len(self._entries):
            return self.position, [EVERYTHING]
        found: list[Change] = []
        position = after
        for author, change in islice(self._entries, len(self._entries) - behind, None):
            position += 1
            if author != client:
                found.append(change)
                if len(found) == CHANGES_LIMIT:
                    break
        return position, found
