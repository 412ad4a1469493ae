"""How long a client had to wait for each death: its own waits, laid beside the kernel's record."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from core.userlib.kernel_calls import Outage

from .probes import Wait


class Span(msgspec.Struct, frozen=True, order=True):
    """A time for which a server was away, perhaps over several deaths. Monotonic clock."""

    ended_s: float
    ready_s: float


class Figures(msgspec.Struct, frozen=True):
    """What is said of many pauses, in milliseconds. All 0 when there were none."""

    count: int
    median_ms: float
    p99_ms: float
    max_ms: float


def spans_of(outages: Sequence[Outage]) -> list[Span]:
    """Return the outages that are over, those that one start ended taken together."""
    began: dict[float, float] = {}
    for outage in outages:
        if outage.ready_s:
            began[outage.ready_s] = min(outage.ended_s, began.get(outage.ready_s, outage.ended_s))
    return sorted(Span(ended_s, ready_s) for ready_s, ended_s in began.items())


def pauses_s(spans: Sequence[Span], waits: Sequence[Wait]) -> list[float]:
    """Return, for each span, how long a call took that was made when the server died.

    A probe leaves gaps between its calls, and may meet a death late. So a pause begins with the
    death, or with a call before it that the death caught, and ends when the last call is answered
    that had to wait because of it.
    """
    waits = sorted(waits, key=lambda wait: wait.begin_s)
    found = []
    first = 0
    for span in spans:
        while first < len(waits) and waits[first].end_s < span.ended_s:
            first += 1
        begin_s, end_s = span.ended_s, span.ready_s
        for wait in waits[first:]:
            if wait.begin_s >= span.ready_s:
                break
            if wait.end_s > span.ended_s:
                begin_s, end_s = min(begin_s, wait.begin_s), max(end_s, wait.end_s)
        found.append(end_s - begin_s)
    return found


def figures(durations_s: Sequence[float]) -> Figures:
    """Return median, 99th percentile (nearest rank) and maximum."""
    ordered = sorted(durations_s)
    if not ordered:
        return Figures(0, 0.0, 0.0, 0.0)

    def rank(part: float) -> float:
        return ordered[max(0, math.ceil(part * len(ordered)) - 1)] * 1000

    return Figures(len(ordered), rank(0.5), rank(0.99), rank(1.0))
