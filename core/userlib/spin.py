"""Looking for a message a moment longer before blocking: the kernel's policy for processors.

Waking an idle processor costs many times what a message does, on a virtual machine fifty
microseconds and more.
When client and server have a processor each, the one that waits is therefore better off looking
again for a moment: the answer, or the next request, is usually there before it would have gone to
sleep. With a single processor the opposite is right: whoever looks keeps the other from running, so
there one blocks at once and the processor changes hands.

Looking gives the processor away between two looks (sched_yield), so that whatever else is ready to
run loses nothing. It stops after `MISSES_LIMIT` times in vain, until messages follow one another
closely again: a task that is idle costs nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

SPIN_S: Final = 80e-6
"""How long one looks: about what waking a processor costs."""
MISSES_LIMIT: Final = 8
"""Times in vain after which one blocks at once."""


class Spin:
    """One waiting place.

    Args:
        ready: tells without waiting whether there is something.
    """

    def __init__(self, ready: Callable[[], object]) -> None:
        self._ready = ready
        self._misses = 0 if len(os.sched_getaffinity(0)) > 1 else MISSES_LIMIT
        self._single = self._misses > 0
        self._blocked_at = 0.0

    def look(self) -> bool:
        """Return whether something is there, after a moment of looking; if not, block now."""
        ready, clock = self._ready, time.perf_counter
        if self._misses < MISSES_LIMIT:
            end = clock() + SPIN_S
            while clock() < end:
                if ready():
                    self._misses = 0
                    return True
                os.sched_yield()
            self._misses += 1
        if not self._single:
            self._blocked_at = clock()
        return False

    def woke(self) -> None:
        """Something came after all: if it came soon, looking is worth while again."""
        if not self._single and time.perf_counter() - self._blocked_at < 2 * SPIN_S:
            self._misses = 0
