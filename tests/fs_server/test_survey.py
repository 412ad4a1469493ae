"""Opening after a death: the free blocks that the kernel kept, and finding the others."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import Refused
from fs_server import survey
from fs_server.allocator import Allocator
from fs_server.reserve import Reserve
from fs_server.volume import Volume
from tests.crash_points.served import Machine, _MachineTask, life

from .disturbances import Failing
from .programs import perform, random_program, show
from .support import (
    BOOT,
    ROOT,
    TOP,
    Clock,
    Kernel,
    assert_free_blocks_known,
    assert_sound,
    make_file,
    new_volume,
    refused,
)

seeds = st.integers(0, 1 << 32)
fresh = iter(range(1 << 30))
"""Numbers for directories: hypothesis runs many examples in one."""


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a survey go on by very little at a time."""
    monkeypatch.setattr(survey, "_ROWS", 2)
    monkeypatch.setattr(survey, "_REGION_SHIFT", 4)


# -- the reserve ----------------------------------------------------------------------------------


def test_a_reserve_is_found_in_the_same_boot_and_for_the_same_mark_only() -> None:
    kernel = Kernel()
    reserve = kernel.reserve()
    reserve.begin(5)
    reserve.hold(10, 20)
    reserve.taken(13)
    reserve.close()
    found = kernel.reserve()
    assert (found.low, found.high) == (13, 20)
    assert found.holds(5, 20)
    assert not found.holds(6, 20)
    assert not found.holds(5, 19)  # another volume, by the look of it
    kernel.boot_id += 1
    assert not kernel.reserve().holds(5, 20)


def test_a_reserve_that_belongs_to_no_volume_is_of_none() -> None:
    reserve = Reserve()
    reserve.hold(0, 5)
    assert not reserve.holds(0, 100)


def test_what_is_kept_and_no_reserve_is_not_taken_for_one() -> None:
    for octets in (b"", b"short", bytes(4096), b"\xff" * 4096):
        descriptor = os.memfd_create("other", os.MFD_CLOEXEC)
        os.write(descriptor, octets)
        reserve = Reserve(BOOT, kept=descriptor)
        assert (reserve.low, reserve.high, reserve.mark) == (0, 0, 0)


class _Dying:
    """Words of a reserve that cannot be stored after some more stores."""

    def __init__(self, words: list[int], stores: int) -> None:
        self.words = words
        self._stores = stores

    def __getitem__(self, index: int) -> int:
        return self.words[index]

    def __setitem__(self, index: int, value: int) -> None:
        if not self._stores:
            raise InterruptedError
        self._stores -= 1
        self.words[index] = value


@pytest.mark.parametrize("stores", range(9))
def test_a_death_between_any_two_stores_leaves_a_run_that_was_held_whole_or_none(
    stores: int,
) -> None:
    reserve = Reserve()
    reserve.begin(7)
    reserve.hold(100, 200)
    words = [int(word) for word in reserve._words]
    dying = _Dying(words, stores)
    reserve._words = dying  # type: ignore[assignment]
    try:
        reserve.hold(40, 60)
        reserve.taken(50)
        reserve.begin(8)
        reserve.hold(500, 600)
    except InterruptedError:
        pass
    _, _, mark, low, high = words
    assert low >= high or (mark, low, high) in {(7, 100, 200), (7, 40, 60), (7, 50, 60)}


@given(st.data())
def test_the_reserve_is_always_free(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 60))
    reserve = Reserve()
    allocator = Allocator(total, (), reserve)
    allocator.choose_reserve()
    mine: set[int] = set()
    for _ in range(data.draw(st.integers(0, 40))):
        if allocator.free and data.draw(st.booleans()):
            count = data.draw(st.integers(1, allocator.free))
            for start, length in allocator.take(count, data.draw(st.integers(-1, total))):
                mine |= set(range(start, start + length))
        elif mine:
            start = data.draw(st.sampled_from(sorted(mine)))
            mine.discard(start)
            allocator.give((start, 1))
        assert not set(range(reserve.low, reserve.high)) & mine
    again = Allocator(total, None, reserve)
    assert again.free == max(0, reserve.high - reserve.low)


def test_where_all_runs_are_small_a_new_reserve_is_not_looked_for_each_time() -> None:
    reserve = Reserve()
    allocator = Allocator(2000, [(block, 1) for block in range(0, 2000, 2)], reserve)
    allocator.choose_reserve()
    chosen = 0
    for _ in range(900):
        before = reserve.low, reserve.high
        allocator.take(1)
        chosen += reserve.high > reserve.low and (reserve.low, reserve.high) != before
    assert 1 <= chosen < 50


# -- opening --------------------------------------------------------------------------------------


def steps_of(volume: Volume) -> int:
    """Go on with a survey to its end. Returns how many steps it took."""
    steps = 0
    while volume.surveying:
        volume.survey()
        steps += 1
    return steps


def died(directory: Path, kernel: Kernel) -> None:
    """Leave a volume of some files, of which every second is gone, as a death leaves it."""
    volume = new_volume(directory, size=1 << 20, reserve=kernel.reserve())
    for number in range(20):
        make_file(volume, b"%d" % number, b"x" * 5000)
    for number in range(0, 20, 2):
        volume.unlink(ROOT, TOP, b"%d" % number)
    volume.abandon()


@pytest.mark.usefixtures("small_steps")
def test_after_a_death_the_reserve_is_used_and_the_rest_is_found(tmp_path: Path) -> None:
    kernel = Kernel()
    died(tmp_path / "v", kernel)
    volume = Volume(tmp_path / "v", reserve=kernel.reserve())
    assert volume.surveying
    known = volume.tables.allocator.free
    assert known == 256 - 40
    usage = volume.statfs()
    assert usage.blocks_free == 256 - 20
    make_file(volume, b"new", b"y" * 5000)
    assert steps_of(volume) > 5
    assert volume.statfs().blocks_free == usage.blocks_free - 2
    assert_free_blocks_known(volume)
    allocator = volume.tables.allocator
    assert (allocator.free, allocator.waiting) == (known - 2, 20)  # nobody may see their octets
    volume.reclaim()
    assert (allocator.free, allocator.waiting) == (known + 18, 0)
    for start, count in allocator.runs():
        assert list(volume._data.occupied(start << 12, count << 12)) == []
    volume.close()
    assert_sound(tmp_path / "v")


@pytest.mark.usefixtures("small_steps")
def test_who_needs_more_than_the_reserve_gets_all_that_is_free(tmp_path: Path) -> None:
    kernel = Kernel()
    died(tmp_path / "v", kernel)
    volume = Volume(tmp_path / "v", reserve=kernel.reserve())
    free = volume.statfs().blocks_free
    make_file(volume, b"all", b"y" * (free * 4096))
    assert not volume.surveying
    assert refused(make_file, volume, b"more", b"z") == "ENOSPC"
    assert volume.read(volume.lookup(ROOT, TOP, b"1").inode, 0, 5000) == b"x" * 5000
    assert_free_blocks_known(volume)
    volume.abandon()
    volume = Volume(tmp_path / "v", reserve=kernel.reserve())  # a reserve of nothing
    volume.unlink(ROOT, TOP, b"all")
    make_file(volume, b"again", b"z" * (free * 4096))
    assert_free_blocks_known(volume)
    volume.close()
    assert_sound(tmp_path / "v")


def test_a_reserve_is_void_when_another_has_allocated(tmp_path: Path) -> None:
    kernel = Kernel()
    died(tmp_path / "v", kernel)
    other = Volume(tmp_path / "v")
    make_file(other, b"other", b"o" * 500_000)
    other.abandon()
    volume = Volume(tmp_path / "v", reserve=kernel.reserve())
    assert not volume.surveying
    make_file(volume, b"new", b"n" * 100_000)
    assert volume.read(volume.lookup(ROOT, TOP, b"other").inode, 0, 1 << 20) == b"o" * 500_000
    volume.abandon()
    volume = Volume(tmp_path / "v", reserve=kernel.reserve())
    assert volume.surveying  # its own is good again
    volume.close()
    assert_sound(tmp_path / "v")


def test_a_reserve_is_void_after_the_boot_and_with_another_volume(tmp_path: Path) -> None:
    kernel = Kernel()
    died(tmp_path / "v", kernel)
    new_volume(tmp_path / "w").close()
    volume = Volume(tmp_path / "w", reserve=kernel.reserve())
    assert not volume.surveying
    volume.abandon()
    volume = Volume(tmp_path / "v", reserve=Kernel(BOOT + 1).reserve())
    assert not volume.surveying
    volume.close()


def test_who_cannot_make_others_reserves_void_takes_no_blocks(tmp_path: Path) -> None:
    directory = tmp_path / "v"
    kernel = Kernel()
    died(directory, kernel)
    full = Failing(1, errno.ENOSPC)
    volume = Volume(directory, observer=full)
    assert full.failed
    assert volume.read(volume.lookup(ROOT, TOP, b"1").inode, 0, 5000) == b"x" * 5000
    full.limit = full.count + 1
    with pytest.raises(Refused) as caught:
        volume.write(ROOT, volume.lookup(ROOT, TOP, b"1").inode, 5000, b"y" * 10_000)
    assert caught.value.errno == errno.ENOSPC
    volume.abandon()
    volume = Volume(directory, reserve=kernel.reserve())
    assert volume.surveying  # nobody has taken blocks: it is right
    assert_free_blocks_known(volume)
    volume.abandon()
    full = Failing(1, errno.ENOSPC)
    volume = Volume(directory, observer=full)
    make_file(volume, b"new", b"y" * 10_000)  # the host has room again
    volume.abandon()
    volume = Volume(directory, reserve=kernel.reserve())
    assert not volume.surveying
    volume.close()
    assert_sound(directory)


@pytest.mark.usefixtures("small_steps")
def test_a_survey_that_the_host_fails_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    died(tmp_path / "v", kernel)
    volume = Volume(tmp_path / "v", reserve=kernel.reserve())
    real, calls = os.lseek, 0

    def failing(descriptor: int, position: int, how: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise OSError(errno.EIO, "on purpose")
        return real(descriptor, position, how)

    monkeypatch.setattr(os, "lseek", failing)
    failures = 0
    for _ in range(500):
        if not volume.surveying:
            break
        failures += refused(volume.survey) == "EIO"
    monkeypatch.undo()
    assert failures
    assert_free_blocks_known(volume)
    volume.close()
    assert_sound(tmp_path / "v")


@pytest.mark.usefixtures("small_steps")
def test_the_server_goes_on_with_its_survey_at_each_tick_and_then_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_volume(tmp_path / "v", size=1 << 20).close()
    machine = Machine(tmp_path / "v")
    with life(machine, 10**18) as first:
        for number in range(20):
            make_file(first.volume, b"%d" % number, b"x" * 5000)
    armed: list[int] = []
    monkeypatch.setattr(_MachineTask, "arm", lambda _task, _delay, bits: armed.append(bits))
    with life(machine, 10**18) as second:
        ticks = 0
        while armed:
            assert armed == [2]  # one timer at a time
            second.server.notified(armed.pop())
            ticks += 1
        assert ticks > 5
        assert not second.volume.surveying
        assert_free_blocks_known(second.volume)
        second.volume.store.write("UPDATE inode SET size = size")
        second.volume._recover()
        second.server.notified(1)  # the timer of its other work
        assert armed == [2]
    machine.forget()


@pytest.mark.usefixtures("small_steps")
@given(seed=seeds, luck=seeds)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_deaths_during_surveys_lose_no_block_and_share_none(
    tmp_path: Path, seed: int, luck: int
) -> None:
    """A program on a small volume; the server dies over and over, at any state of its survey."""
    directory = tmp_path / str(next(fresh))
    kernel = Kernel()
    volume = new_volume(directory, size=2 << 20, reserve=kernel.reserve(), clock=Clock())
    steps, models = random_program(seed, 60)
    chance = random.Random(luck)
    for number, step in enumerate(steps):
        perform(volume, step, models[number].names)
        for _ in range(chance.choice((0, 0, 1, 4))):
            volume.survey()
        match chance.randrange(12):
            case 0:
                volume.abandon()
                volume = Volume(directory, reserve=kernel.reserve(), clock=Clock(), cache_limit=64)
                assert volume.surveying
            case 1:  # a change that fails in the middle
                volume.store.write("UPDATE inode SET size = size")
                volume._recover()
                assert volume.surveying
            case 2:
                assert_free_blocks_known(volume)
            case _:
                pass
    assert show(volume) == models[-1].shown()
    assert_free_blocks_known(volume)
    volume.close()
    assert_sound(directory)
