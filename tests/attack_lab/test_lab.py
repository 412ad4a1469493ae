"""Every way out is stopped for a server in a process, and harms nobody; promoted it is not so."""

from __future__ import annotations

import pytest

from .hostile import WAYS
from .laboratory import LIVES, UNTOLD, isolated
from .misuses import MISUSES
from .promoted import DESTROYED, SUCCEEDED, outcomes


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_way_out_is_stopped_written_down_and_harms_nobody() -> None:
    found, log = isolated()
    assert len(found) == len(WAYS) + len(MISUSES) + len(LIVES)
    assert [each.way for each in found if not each.stopped] == []
    assert [(each.way, each.harm) for each in found if each.harm] == []
    assert {each.way for each in found if not each.logged} <= set(UNTOLD)
    assert any("hostile tried openat('/etc/passwd')" in line for line in log)
    assert any("suppressed" in line for line in log if line.startswith("hostile: "))
    assert not any(line.startswith("supervisor: all is well") for line in log)
    assert not any("\n" in line for line in log)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_same_code_promoted_is_stopped_by_nothing_of_ours() -> None:
    found = outcomes([*WAYS, *MISUSES])
    by_host = {way for way, words in found.items() if words.startswith("refused by the host")}
    ours = {
        way
        for way, words in found.items()
        if words != SUCCEEDED and not words.startswith(DESTROYED) and way not in by_host
    }
    assert ours == set()
    assert not by_host & set(MISUSES)
    assert sum(words.startswith(DESTROYED) for words in found.values()) > 10
    assert sum(words == SUCCEEDED for words in found.values()) > 40
