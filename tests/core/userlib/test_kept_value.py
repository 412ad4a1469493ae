"""A kept value is the old one or the new one, wherever its writer died."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from core.errors import LimitError
from core.userlib.kept_value import VALUE_LIMIT, KeptValue, UnreadableError
from tests.support.keeping_task import KeepingTask

HEAD_SIZE = 16


@pytest.fixture
def task() -> Iterator[KeepingTask]:
    made = KeepingTask()
    yield made
    made.close()


def opened(task: KeepingTask) -> KeptValue:
    return KeptValue(task, "value")


def loaded(task: KeepingTask) -> bytes | None:
    value = opened(task)
    try:
        return value.load()
    finally:
        value.close()


class DeathError(BaseException):
    """Ends a writer."""


class Torn:
    """Memory that takes some octets more, and then no other."""

    def __init__(self, memory: Any, left: int) -> None:
        self._memory = memory
        self._left = left

    def __setitem__(self, where: slice, value: bytes) -> None:
        taken = value[: self._left]
        self._memory[where.start : where.start + len(taken)] = taken
        self._left -= len(taken)
        if len(taken) < len(value):
            raise DeathError


def test_what_was_stored_last_is_found_by_the_next_incarnation(task: KeepingTask) -> None:
    assert loaded(task) is None
    value = opened(task)
    value.load()
    for octets in (b"one", b"two", b"", b"three", b"x" * 10_000, b"four", b"five"):
        value.store(octets)
        assert loaded(task) == octets
    value.close()
    again = opened(task)
    assert again.load() == b"five"
    again.store(b"six")
    assert loaded(task) == b"six"
    again.close()


@pytest.mark.parametrize("stores", [1, 2, 3])
@pytest.mark.parametrize("new", [b"", b"n", b"new value", b"longer than what was there before"])
def test_a_store_torn_at_any_octet_leaves_the_old_value_or_the_new(
    task: KeepingTask, new: bytes, stores: int
) -> None:
    first = opened(task)
    first.load()
    for number in range(stores):
        first.store(b"older than the old %d" % number)
    first.store(b"the old value")
    first.close()
    outcomes = []
    for left in range(HEAD_SIZE + len(new) + 1):
        dying = opened(task)
        old = dying.load()
        memory: Any = dying.memory
        dying.memory = Torn(memory, left)  # type: ignore[assignment]
        try:
            dying.store(new)
        except DeathError:
            assert loaded(task) == old == b"the old value"
            outcomes.append("old")
        else:
            assert loaded(task) == new
            outcomes.append("new")
        memory.close()
    assert outcomes == ["old"] * (HEAD_SIZE + len(new)) + ["new"]


def test_a_death_while_the_memory_is_exchanged_leaves_the_old_value(
    task: KeepingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(task)
    first.load()
    first.store(b"old")

    def die(label: str, descriptor: int) -> None:
        raise DeathError

    with monkeypatch.context() as patch:
        patch.setattr(task, "keep", die)
        with pytest.raises(DeathError):
            first.store(b"x" * 100_000)
    assert loaded(task) == b"old"
    first.store(b"new")
    assert loaded(task) == b"new"
    first.close()


def test_damage_is_noticed_and_can_be_stored_over(task: KeepingTask) -> None:
    first = opened(task)
    first.load()
    first.store(b"value")
    first.close()
    number = task.descriptors["value"]
    for damage in (b"\xff" * 4096, b"\0" * 4096):
        os.pwrite(number, damage, 0)
        os.pwrite(number, damage, os.fstat(number).st_size // 2)
        value = opened(task)
        with pytest.raises(UnreadableError):
            value.load()
        value.store(b"anew")
        assert loaded(task) == b"anew"
        value.close()


@pytest.mark.parametrize("size", [0, 1, 33])
def test_what_is_no_value_at_all_is_unreadable(task: KeepingTask, size: int) -> None:
    number = os.memfd_create("foreign")
    os.ftruncate(number, size)
    task.keep("value", number)
    os.close(number)
    value = opened(task)
    with pytest.raises(UnreadableError):
        value.load()
    value.store(b"anew")
    value.close()
    assert loaded(task) == b"anew"


def test_a_value_beyond_the_limit_is_refused_and_the_old_one_stays(task: KeepingTask) -> None:
    value = opened(task)
    value.load()
    value.store(b"x" * VALUE_LIMIT)
    with pytest.raises(LimitError, match=str(VALUE_LIMIT)):
        value.store(b"y" * (2 * VALUE_LIMIT))
    assert loaded(task) == b"x" * VALUE_LIMIT
    value.store(b"small")
    assert loaded(task) == b"small"
    value.close()
