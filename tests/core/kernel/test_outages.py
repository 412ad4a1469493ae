"""The kernel's record of who was away when."""

from __future__ import annotations

import pytest

from core.kernel.outages import OUTAGES_LIMIT, Outages


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(f"{Outages.__module__}.time.monotonic", lambda: now[0])
    return now


def test_an_outage_lasts_from_the_end_until_the_next_serves(clock: list[float]) -> None:
    outages = Outages()
    clock[0] = 10.0
    outages.ended(3, "it was ended by SIGKILL")
    assert outages.since(0)[0].ready_s == 0
    clock[0] = 10.5
    outages.served()
    (found,) = outages.since(0)
    assert (found.generation, found.reason) == (3, "it was ended by SIGKILL")
    assert (found.ended_s, found.ready_s) == (10.0, 10.5)


def test_who_ends_before_serving_prolongs_the_outage(clock: list[float]) -> None:
    outages = Outages()
    clock[0] = 1.0
    outages.ended(0, "it was ended by SIGKILL")
    clock[0] = 2.0
    outages.ended(1, "it was ended by SIGKILL")
    clock[0] = 4.0
    outages.served()
    assert [(each.ended_s, each.ready_s) for each in outages.since(0)] == [(1, 4), (2, 4)]


def test_a_reason_is_one_line() -> None:
    outages = Outages()
    outages.ended(0, "Traceback:\n  here\nKeyError: 1\n")
    assert outages.since(0)[0].reason == "KeyError: 1"


def test_only_what_began_since_a_generation_is_told_and_not_for_ever() -> None:
    outages = Outages()
    for generation in range(OUTAGES_LIMIT + 5):
        outages.ended(generation, "")
        outages.served()
    assert len(outages.since(0)) == OUTAGES_LIMIT
    assert [each.generation for each in outages.since(OUTAGES_LIMIT + 3)] == [
        OUTAGES_LIMIT + 3,
        OUTAGES_LIMIT + 4,
    ]
