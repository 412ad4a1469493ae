"""Timers: what shall be done when, as a heap.

The clock is passed in; the rim waits and calls `fire`.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable


class Timer:
    """One armed timer."""

    __slots__ = ("_timers", "action", "deadline", "order")

    def __init__(
        self, timers: Timers, deadline: float, order: int, action: Callable[[], None]
    ) -> None:
        self._timers = timers
        self.deadline = deadline
        self.order = order
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Cancel it; a fired or cancelled timer is ignored."""
        self._timers.cancel(self)

    def __lt__(self, other: Timer) -> bool:
        return (self.deadline, self.order) < (other.deadline, other.order)


class Timers:
    """All armed timers.

    Args:
        clock: returns the present in seconds, monotonic.
        earlier: called when the next deadline has become earlier than it was.
    """

    def __init__(
        self, clock: Callable[[], float], earlier: Callable[[], None] = lambda: None
    ) -> None:
        self.clock = clock
        self.earlier = earlier
        self._heap: list[Timer] = []
        self._order = itertools.count().__next__
        self._cancelled = 0

    def arm(self, delay_s: float, action: Callable[[], None]) -> Timer:
        """Have `action` called once, `delay_s` seconds from now. It must not raise."""
        timer = Timer(self, self.clock() + delay_s, self._order(), action)
        heapq.heappush(self._heap, timer)
        if self._heap[0] is timer:
            self.earlier()
        return timer

    def cancel(self, timer: Timer) -> None:
        """Cancel a timer; a fired or cancelled one is ignored."""
        if timer.action is None:
            return
        timer.action = None
        self._cancelled += 1
        if self._cancelled * 2 > len(self._heap):
            self._heap = [held for held in self._heap if held.action is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_deadline(self) -> float:
        """Return when `fire` has something to do; infinity if never."""
        while self._heap and self._heap[0].action is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0].deadline if self._heap else math.inf

    def fire(self) -> None:
        """Call the actions that are due, in the order of their deadlines."""
        now = self.clock()
        while self._heap and self._heap[0].deadline <= now:
            timer = heapq.heappop(self._heap)
            action, timer.action = timer.action, None
            if action is None:
                self._cancelled -= 1
            else:
                action()

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled
