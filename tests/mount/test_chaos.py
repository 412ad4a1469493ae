"""Chaos, piece by piece: schedules, and pauses reckoned from waits and outages."""

from __future__ import annotations

import itertools
import random

import pytest

from core.userlib.kernel_calls import Outage
from mount.__main__ import main
from mount.chaos.killer import STOP_SHARE, Strike, steady
from mount.chaos.pauses import Span, figures, pauses_s, spans_of
from mount.chaos.probes import Wait


def drawn(seed: int, count: int, stop: tuple[str, ...] = ()) -> list[Strike]:
    return list(itertools.islice(steady(random.Random(seed), 4.0, ("fs", "net"), stop), count))


def test_a_seed_draws_the_same_strikes_again_and_another_seed_others() -> None:
    assert drawn(1, 50) == drawn(1, 50)
    assert drawn(1, 50) != drawn(2, 50)


def test_strikes_fall_at_the_rate_that_was_asked_for_and_on_everybody() -> None:
    strikes = drawn(3, 4000)
    assert sum(strike.after_s for strike in strikes) / 4000 == pytest.approx(1 / 4.0, rel=0.1)
    assert {strike.victims for strike in strikes} == {("fs",), ("net",)}
    assert not any(strike.stop for strike in strikes)


def test_a_share_of_the_strikes_stops_who_may_be_stopped() -> None:
    stops = [strike for strike in drawn(3, 4000, ("net",)) if strike.stop]
    assert {strike.victims for strike in stops} == {("net",)}
    assert len(stops) / 4000 == pytest.approx(STOP_SHARE, rel=0.3)


def test_deaths_that_one_start_mended_are_one_outage_and_open_ones_none() -> None:
    outages = [
        Outage(0, "", False, 1.0, 3.0),
        Outage(1, "", False, 2.0, 3.0),
        Outage(2, "", False, 5.0, 6.0),
        Outage(3, "", False, 9.0, 0.0),
    ]
    assert spans_of(outages) == [Span(1.0, 3.0), Span(5.0, 6.0)]


def test_a_pause_is_the_wait_of_a_call_made_when_the_server_died() -> None:
    spans = [Span(10.0, 12.0)]
    caught = Wait(9.9, 12.1)
    late = Wait(11.0, 12.2)
    assert pauses_s(spans, [caught]) == pytest.approx([2.2])
    assert pauses_s(spans, [late]) == pytest.approx([2.2])
    assert pauses_s(spans, [late, caught]) == pytest.approx([2.3])
    assert pauses_s(spans, []) == pytest.approx([2.0])


def test_waits_before_and_after_an_outage_are_not_its_pause() -> None:
    waits = [Wait(1.0, 9.0), Wait(12.5, 40.0)]
    assert pauses_s([Span(10.0, 12.0), Span(50.0, 50.5)], waits) == pytest.approx([2.0, 0.5])


def test_one_wait_over_two_outages_counts_for_both() -> None:
    spans = [Span(1.0, 2.0), Span(3.0, 4.0)]
    assert pauses_s(spans, [Wait(0.9, 4.5)]) == pytest.approx([3.6, 3.6])


def test_figures_are_nearest_ranks() -> None:
    found = figures([number / 1000 for number in range(1, 201)])
    assert (found.count, found.median_ms, found.p99_ms, found.max_ms) == (200, 100, 198, 200)
    assert figures([]).count == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chaos"], "there is no command"),
        (["chaos", "--rate", "0", "--", "true"], "is no rate"),
        (["chaos", "--seed", "x", "--", "true"], "is no seed"),
        (["chaos", "--kill", ",", "--", "true"], "name servers"),
    ],
)
def test_a_command_line_that_says_nothing_is_declined(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(words)
    except SystemExit as end:
        status = int(str(end.code))
    assert status == 2
    assert said in capsys.readouterr().err
