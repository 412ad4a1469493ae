"""What a task may have the kernel hold, and how much it may say."""

from __future__ import annotations

import pytest

from core.abi import CALLS_LIMIT, LENT_LIMIT, WAITING_LIMIT
from core.errors import LimitError
from core.kernel.burden import Burden
from core.kernel.voice import LINES_BURST, LINES_PER_S, Voice


@pytest.mark.parametrize(
    ("octets", "descriptors", "times"),
    [(0, 0, CALLS_LIMIT), (WAITING_LIMIT // 4, 0, 4), (0, LENT_LIMIT // 4, 4)],
)
def test_a_burden_has_limits_and_is_put_down_again(
    octets: int, descriptors: int, times: int
) -> None:
    burden = Burden()
    for _ in range(times):
        burden.take_up(octets, descriptors)
    before = (burden.messages, burden.octets, burden.descriptors)
    with pytest.raises(LimitError):
        burden.take_up(octets, descriptors)
    assert (burden.messages, burden.octets, burden.descriptors) == before
    burden.put_down(octets, descriptors)
    burden.take_up(octets, descriptors)


def test_a_voice_is_one_line_whatever_is_said() -> None:
    lines: list[str] = []
    Voice("server", lines.append, lambda: 0.0).say("x\nsupervisor: all is well\x1b[2J\r")
    assert lines == ["server: x\\nsupervisor: all is well\\x1b[2J\\r"]


def test_what_a_flood_leaves_unsaid_is_counted_and_said() -> None:
    lines: list[str] = []
    now = 0.0
    voice = Voice("server", lines.append, lambda: now)
    for number in range(LINES_BURST + 10):
        voice.say(str(number))
    assert len(lines) == LINES_BURST
    assert voice.suppressed == 10
    now += 1 / LINES_PER_S
    voice.say("later")
    assert lines[-1] == "server: later (and 10 lines before it, suppressed)"
    voice.say("unsaid")
    voice.settle()
    assert lines[-1] == "server: 1 more lines were suppressed"
    voice.say("said", trusted=True)
    assert lines[-1] == "server: said"
