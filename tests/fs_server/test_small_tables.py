"""The bounded mapping, the journal of opens and the log of changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs_server.changes import EVERYTHING, LOG_LIMIT, ChangeLog
from fs_server.interface import CHANGES_LIMIT, Change
from fs_server.opens import Opens
from fs_server.recent import Recent

from .support import Kernel


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    recent: Recent[int, str] = Recent(10)
    recent.put(0, "zero")
    recent.put(1, "one")
    for number in range(100, 150):
        recent.put(number, "x")
        assert recent.get(0) == "zero"
    assert recent.get(1) is None
    assert len(recent.young) <= 10


def test_dropped_things_are_gone_from_both_halves() -> None:
    recent: Recent[int, str] = Recent(1)
    recent.put(1, "old")
    recent.put(2, "young")
    recent.drop(1)
    recent.drop(2)
    assert (recent.get(1), recent.get(2)) == (None, None)


def test_opens_survive_the_server_and_not_the_boot() -> None:
    kernel = Kernel()
    opens = kernel.opens()
    opens.add(1, 7, 100)
    opens.add(2, 7, 100)
    opens.add(3, 8, 101)
    assert opens.remove(4, 8, 101)
    after = kernel.opens()
    assert (after.count(7, 100), after.is_open(101), after.last_request) == (2, False, 4)
    kernel.boot_id += 1
    assert kernel.opens().total() == 0


def test_a_request_counts_once() -> None:
    kernel = Kernel()
    opens = kernel.opens()
    opens.add(5, 7, 100)
    after = kernel.opens()
    after.add(5, 7, 100)
    assert after.count(7, 100) == 1
    assert after.remove(6, 7, 100)
    assert kernel.opens().remove(6, 7, 100)
    assert not kernel.opens().remove(7, 7, 100)


def test_the_end_of_a_client_gives_back_what_nobody_else_has() -> None:
    opens = Kernel().opens()
    opens.add(1, 7, 100)
    opens.add(2, 7, 101)
    opens.add(3, 8, 101)
    assert opens.drop_client(7) == [100]
    assert opens.drop_client(7) == []
    assert opens.total() == 1


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.booleans()), max_size=60))
def test_the_journal_of_opens_agrees_with_a_count(steps: list[tuple[int, int, bool]]) -> None:
    kernel = Kernel()
    opens = kernel.opens(capacity=4)
    model: dict[tuple[int, int], int] = {}
    for request, (client, inode, add) in enumerate(steps, start=1):
        count = model.get((client, inode), 0)
        if add:
            opens.add(request, client, inode)
            model[client, inode] = count + 1
        else:
            assert opens.remove(request, client, inode) == (count > 0)
            model[client, inode] = max(0, count - 1)
        after = kernel.opens(capacity=4)
        for table in (opens, after):
            assert table.total() == sum(model.values())
            assert all(table.count(*pair) == count for pair, count in model.items())
            assert all(
                table.is_open(inode) == any(model.get((client, inode)) for client in range(1, 4))
                for inode in range(1, 5)
            )
        after.close()


def test_opens_without_a_kernel_keep_working_beyond_their_first_memory_object() -> None:
    opens = Opens(capacity=2)
    for request in range(1, 50):
        opens.add(request, 1, request)
    assert opens.total() == 49
    opens.close()


def test_a_client_hears_of_others_and_not_of_itself() -> None:
    log = ChangeLog(0)
    start = log.position
    log.add(1, Change(10))
    log.add(2, Change(20))
    log.add(1, Change(11))
    assert log.since(start, 2) == (start + 3, [Change(10), Change(11)])
    assert log.since(start, 1) == (start + 3, [Change(20)])
    assert log.since(start + 3, 1) == (start + 3, [])


def test_a_long_answer_is_given_in_parts() -> None:
    log = ChangeLog(0)
    position = log.position
    for number in range(CHANGES_LIMIT + 5):
        log.add(1, Change(number + 1))
    position, first = log.since(position, 2)
    position, second = log.since(position, 2)
    assert [change.inode for change in first + second] == list(range(1, CHANGES_LIMIT + 6))
    assert position == log.position


@pytest.mark.parametrize("back", [-1, LOG_LIMIT + 1, 1 << 70, -(1 << 70)])
def test_an_unknown_position_means_drop_everything(back: int) -> None:
    log = ChangeLog(3)
    for number in range(LOG_LIMIT + 10):
        log.add(1, Change(number))
    assert log.since(log.position - back, 2) == (log.position, [EVERYTHING])


def test_a_position_of_an_earlier_incarnation_is_unknown() -> None:
    before = ChangeLog(4)
    before.add(1, Change(1))
    assert ChangeLog(5).since(before.position, 2)[1] == [EVERYTHING]
