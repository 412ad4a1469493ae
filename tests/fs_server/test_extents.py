"""The map from a file's blocks to the volume's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fs_server.extents import HOLE, Extents


def mapping(extents: Extents) -> dict[int, int]:
    return {
        block + step: start + step for block, start, count in extents.rows for step in range(count)
    }


def test_pieces_show_holes_before_between_and_behind() -> None:
    extents = Extents([(2, 100, 2), (6, 200, 1)])
    assert list(extents.pieces(0, 9)) == [
        *((0, HOLE, 2), (2, 100, 2), (4, HOLE, 2), (6, 200, 1), (7, HOLE, 2))
    ]
    assert list(extents.pieces(3, 1)) == [(3, 101, 1)]
    assert list(Extents().pieces(5, 2)) == [(5, HOLE, 2)]


def test_a_file_that_grows_in_place_stays_one_extent() -> None:
    extents = Extents()
    for block in range(5):
        extents.add(block, [(700 + block, 1)])
    assert extents.rows == [(0, 700, 5)]
    assert extents.stale == {0: (0, 700, 5)}


def test_filling_a_gap_joins_both_sides_and_forgets_the_second_row() -> None:
    extents = Extents([(0, 10, 2), (3, 13, 2)])
    extents.add(2, [(12, 1)])
    assert extents.rows == [(0, 10, 5)]
    assert extents.stale == {3: None, 0: (0, 10, 5)}


def test_a_hole_in_the_middle_splits_an_extent() -> None:
    extents = Extents([(0, 10, 10)])
    assert extents.remove(4, 2) == [(14, 2)]
    assert extents.rows == [(0, 10, 4), (6, 16, 4)]


def test_block_before_is_where_the_file_would_go_on() -> None:
    extents = Extents([(2, 100, 2)])
    assert [extents.block_before(block) for block in (0, 2, 3, 4, 9)] == [-1, -1, 102, 102, 102]


@given(st.data())
def test_extents_agree_with_a_plain_map(data: st.DataObject) -> None:
    extents = Extents()
    model: dict[int, int] = {}
    stored: dict[int, tuple[int, int, int]] = {}
    fresh = 1000
    for _ in range(data.draw(st.integers(0, 25))):
        block, count = data.draw(st.integers(0, 30)), data.draw(st.integers(1, 8))
        if data.draw(st.booleans()):
            for first, start, length in list(extents.pieces(block, count)):
                if start == HOLE:
                    fresh += data.draw(st.integers(0, 1))
                    extents.add(first, [(fresh, length)])
                    model.update({first + step: fresh + step for step in range(length)})
                    fresh += length
        else:
            given_up = extents.remove(block, count)
            gone = [model.pop(number) for number in range(block, block + count) if number in model]
            assert sorted(gone) == sorted(
                start + step for start, length in given_up for step in range(length)
            )
        for first, row in extents.stale.items():
            stored.pop(first, None)
            if row is not None:
                stored[first] = row
        extents.stale.clear()
        assert mapping(extents) == model
        assert sorted(stored.values()) == extents.rows
        seen = {
            first + step: start + step
            for first, start, length in extents.pieces(0, 50)
            if start != HOLE
            for step in range(length)
        }
        assert seen == model
        assert extents.allocated() == len(model)
