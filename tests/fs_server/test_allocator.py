"""The table of free blocks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs_server.allocator import Allocator


def test_take_continues_where_the_file_ends() -> None:
    allocator = Allocator(100, [(0, 10), (20, 5)])
    assert allocator.take(3, near=10) == [(10, 3)]
    assert allocator.take(3, near=13) == [(13, 3)]


def test_take_prefers_one_run_that_is_large_enough() -> None:
    allocator = Allocator(100, [(3, 1), (10, 1)])
    assert allocator.take(20) == [(11, 20)]


def test_take_answers_in_pieces_when_no_run_is_large_enough() -> None:
    allocator = Allocator(10, [(2, 1), (5, 1), (8, 1)])
    runs = allocator.take(7)
    assert sorted(block for start, count in runs for block in range(start, start + count)) == [
        *(0, 1, 3, 4, 6, 7, 9)
    ]
    assert allocator.free == 0


def test_released_blocks_are_free_after_two_syncs_and_not_before() -> None:
    allocator = Allocator(10, [(0, 10)])
    allocator.release((2, 3))
    allocator.release((5, 1))
    assert (allocator.free, allocator.available) == (0, 4)
    allocator.data_synced()
    assert allocator.metadata_synced() == [(2, 4)]
    assert allocator.free == 0
    allocator.data_synced()
    assert allocator.metadata_synced() == [(2, 4)]  # not punched: it is still to be done
    allocator.punched((2, 4))
    assert allocator.free == 0
    allocator.data_synced()
    assert (allocator.free, allocator.available, allocator.runs()) == (4, 4, [(2, 4)])
    assert allocator.metadata_synced() == []


def test_set_aside_blocks_are_not_handed_out() -> None:
    allocator = Allocator(10)
    allocator.set_aside((4, 2))
    assert allocator.runs() == [(0, 4), (6, 4)]
    assert (allocator.free, allocator.available) == (8, 10)


@pytest.mark.parametrize("used", [[(0, 5), (4, 2)], [(8, 3)], [(3, 0)], [(5, 1), (2, 1)]])
def test_impossible_runs_are_an_error(used: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="block"):
        Allocator(10, used)


@given(st.data())
def test_blocks_are_never_handed_out_twice_nor_lost(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 60))
    allocator = Allocator(total)
    mine: set[int] = set()
    for _ in range(data.draw(st.integers(0, 40))):
        if allocator.free and data.draw(st.booleans()):
            count = data.draw(st.integers(1, allocator.free))
            for start, length in allocator.take(count, data.draw(st.integers(-1, total))):
                blocks = set(range(start, start + length))
                assert len(blocks) == length
                assert not blocks & mine
                mine |= blocks
        elif mine:
            start = data.draw(st.sampled_from(sorted(mine)))
            mine.discard(start)
            allocator.give((start, 1))
        runs = allocator.runs()
        free = {block for start, count in runs for block in range(start, start + count)}
        assert free == set(range(total)) - mine
        assert allocator.free == len(free)
        assert all(a[0] + a[1] < b[0] for a, b in pairwise(runs))
