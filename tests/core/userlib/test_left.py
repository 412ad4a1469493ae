"""Kept descriptors that come with a birth: the kernel's word as long as nothing was changed."""

from __future__ import annotations

import os

import pytest

from core.userlib.left import Left


@pytest.fixture
def numbers() -> list[int]:
    """Two descriptors of their own."""
    return [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_what_was_kept_is_handed_over_once(numbers: list[int]) -> None:
    left = Left(["a", "b"], numbers)
    assert left.knows("a")
    assert left.take("a") == numbers[0]
    assert not left.knows("a")
    left.close()
    assert _is_open(numbers[0])
    assert not _is_open(numbers[1])
    os.close(numbers[0])


def test_that_nothing_was_kept_is_known_too() -> None:
    left = Left([], [])
    assert left.knows("a")
    assert left.take("a") is None


def test_the_kernel_is_asked_for_what_did_not_come_along() -> None:
    assert not Left().knows("a")


def test_the_kernel_is_asked_for_what_was_changed_since(numbers: list[int]) -> None:
    left = Left(["a", "b"], numbers)
    left.touch("a")
    left.touch("new")
    assert not left.knows("a")
    assert not left.knows("new")
    assert left.knows("b")
    assert not _is_open(numbers[0])
    left.close()


def test_after_the_start_the_kernel_is_asked_for_everything(numbers: list[int]) -> None:
    left = Left(["a", "b"], numbers)
    left.close()
    left.close()
    assert not left.knows("a")
    assert not any(map(_is_open, numbers))
