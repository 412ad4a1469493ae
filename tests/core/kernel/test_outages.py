"""The kernel's record of who was away when."""

from __future__ import annotations

import pytest

from core.abi import TaskId
from core.kernel.outages import OUTAGES_LIMIT, Outages
from core.kernel.tasks import KernelTask, Placement, Program


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


def test_a_reason_is_one_line_and_may_become_known_later() -> None:
    outages = Outages()
    outages.ended(0, "Traceback:\n  here\nKeyError: 1\n")
    assert outages.since(0)[0].reason == "KeyError: 1"
    outages.ended(1, "its process ended")
    outages.served()
    outages.ended(2, "its process ended")
    outages.explain(1, "it was ended by SIGKILL")
    assert [each.reason for each in outages.since(0)] == [
        "KeyError: 1",
        "it was ended by SIGKILL",
        "its process ended",
    ]


def test_how_an_incarnation_ended_is_told_of_that_one_though_others_ended_since() -> None:
    task = KernelTask(TaskId(0, 4), Program("a", "", Placement.PROCESS), 1)
    for generation in (5, 6, 7):
        task.remember_end("its process ended")
        task.id = TaskId(0, generation)
    task.explain_end(5, "its process ended", "it was ended by SIGKILL")
    task.explain_end(6, "something else", "it exited with status 1")
    task.explain_end(3, "its process ended", "long forgotten")
    task.explain_end(7, "its process ended", "it has not ended")
    wanted = ["its process ended", "it was ended by SIGKILL", "its process ended"]
    assert task.last_words == wanted
    assert [outage.reason for outage in task.outages.since(0)] == wanted


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
