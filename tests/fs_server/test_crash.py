"""Deaths, failures and power cuts at any write: nothing acknowledged is lost or half done."""

from __future__ import annotations

import errno
import os
import random
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import Refused
from fs_server.volume import Volume

from .disturbances import Counting, Failing, Killing
from .images import Recording, after_power_cut, load, store
from .programs import Model, perform, random_program, show
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

_FEW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
seeds = st.integers(0, 1 << 32)
fresh = iter(range(1 << 30))
"""Numbers for directories: hypothesis runs many examples in one."""


def in_child(
    directory: Path, limit: int, seed: int, length: int, kernel: Kernel
) -> tuple[int, int]:
    """Run a program in a process that dies before its `limit`-th write.

    Returns how many steps were acknowledged, and the status with which the process ended.
    """
    steps, models = random_program(seed, length)
    kernel.reserve().close()  # the kernel has the memory that the child will fill
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            volume = Volume(
                directory,
                opens=Kernel().opens(),
                reserve=kernel.reserve(),
                observer=Killing(limit),
                clock=Clock(),
            )
            for number, step in enumerate(steps):
                volume.request = number + 1
                perform(volume, step, models[number].names)
                os.write(writer, b".")
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, it must not run the tests on
            os._exit(1)
    os.close(writer)
    acknowledged = 0
    while octets := os.read(reader, 4096):
        acknowledged += len(octets)
    os.close(reader)
    return acknowledged, os.waitpid(child, 0)[1]


@given(seed=seeds, limit=st.integers(1, 250))
@_FEW
def test_a_killed_server_has_lost_nothing_and_repeats_nothing(
    tmp_path: Path, seed: int, limit: int
) -> None:
    directory = tmp_path / str(next(fresh))
    new_volume(directory, size=4 << 20).close()
    length = 40
    kernel = Kernel()
    acknowledged, status = in_child(directory, limit, seed, length, kernel)
    assert status == signal.SIGKILL or (status, acknowledged) == (0, length)
    steps, models = random_program(seed, length)
    volume = Volume(directory, opens=Kernel(BOOT).opens(), reserve=kernel.reserve())
    if acknowledged < length:
        # the kernel delivers the request under way again
        if volume.recorded(acknowledged + 1) is None:
            perform(volume, steps[acknowledged], models[acknowledged].names)
        acknowledged += 1
    assert show(volume) == models[acknowledged].shown()
    for number in range(acknowledged, length):
        perform(volume, steps[number], models[number].names)
        if number % 3 == 0:
            volume.survey()
    assert show(volume) == models[length].shown()
    assert_free_blocks_known(volume)
    volume.close()
    assert_sound(directory)


def test_a_recorded_answer_counts_for_its_boot_and_request_only(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    volume = new_volume(directory, opens=Kernel(BOOT).opens())
    volume.request = 5
    made = volume.mkdir(ROOT, TOP, b"d", 0o755)
    refused(volume.mkdir, ROOT, TOP, b"d", 0o755)
    assert volume.recorded(5) is not None
    assert volume.recorded(6) is None
    volume.close()
    volume = Volume(directory, opens=Kernel(BOOT + 1).opens())
    assert volume.recorded(5) is None
    assert volume.lookup(ROOT, TOP, b"d") == made
    volume.close()


@given(seed=seeds, limit=st.integers(1, 250), number=st.sampled_from([errno.EIO, errno.ENOSPC]))
@_FEW
def test_a_failing_host_refuses_one_operation_and_spoils_none(
    tmp_path: Path, seed: int, limit: int, number: int
) -> None:
    directory = tmp_path / str(next(fresh))
    new_volume(directory, size=4 << 20).close()
    observer = Failing(limit, number)
    try:
        volume = Volume(directory, observer=observer, clock=Clock())
    except Refused:
        assert observer.failed
        return
    steps, models = random_program(seed, 40)
    index = 0
    for step in steps:
        before = observer.failed
        try:
            perform(volume, step, models[index].names)
        except Refused as error:
            assert (observer.failed, before, error.errno) == (True, False, number)  # noqa: PT017
            if step[0] == "write":  # octets may be there already, the rest must not be
                perform(volume, step, models[index].names)
            else:
                assert show(volume) == models[index].shown()
                perform(volume, step, models[index].names)
        index += 1
    observer.limit = -1
    assert show(volume) == models[index].shown()
    volume.close()
    assert_sound(directory)


def plausible(shown: dict[bytes, object], model: Model) -> bool:
    """Tell whether names, links and sizes are those of the model, and no octets are foreign."""
    wanted = model.shown()
    if shown.keys() != wanted.keys():
        return False
    for name, there in shown.items():
        if (there is None) != (wanted[name] is None):
            return False
        if isinstance(there, tuple):
            links, octets = wanted[name]
            if (there[0], len(there[1])) != (links, len(octets)):
                return False
            if set(there[1]) - {0, model.names[name]}:
                return False
    return True


@given(seed=seeds, luck=seeds)
@_FEW
def test_a_power_cut_leaves_a_sound_volume_with_all_that_was_synced(
    tmp_path: Path, seed: int, luck: int
) -> None:
    directory = tmp_path / str(next(fresh))
    new_volume(directory, size=2 << 20).close()
    before = load(directory)
    recording = Recording()
    volume = Volume(directory, observer=recording, clock=Clock())
    steps, models = random_program(seed, 40)
    chance = random.Random(luck)
    ends = []
    for number, step in enumerate(steps):
        perform(volume, step, models[number].names)
        ends.append(len(recording.events))
    volume.abandon()
    cut = chance.randrange(len(recording.events) + 1)
    done = sum(end <= cut for end in ends)
    synced = max((n + 1 for n in range(done) if steps[n][0] == "sync"), default=0)
    after = tmp_path / f"{directory.name}-after"
    store(after, after_power_cut(before, recording.events[:cut], chance))
    assert_sound(after)
    volume = Volume(after)
    shown = show(volume)
    possible = range(synced, min(done + 1, len(steps)) + 1)
    assert any(plausible(shown, models[number]) for number in possible)
    untouched = {name: mark for name, mark in models[synced].names.items() if mark}
    for number in range(synced, min(done + 1, len(steps))):
        for name in steps[number][1:]:
            mark = models[number].names.get(name) if isinstance(name, bytes) else None
            untouched = {key: value for key, value in untouched.items() if value != mark}
    for name, mark in untouched.items():
        there = shown[name]
        assert isinstance(there, tuple)
        assert there[1] == models[synced].contents[mark]
    volume.close()
    assert_sound(after)


def test_a_replaced_file_is_whole_after_a_power_cut(tmp_path: Path) -> None:
    """Write a new file, sync it, rename it over the old one: the old or the new, never neither."""
    directory = tmp_path / "volume"
    volume = new_volume(directory, size=2 << 20)
    make_file(volume, b"config", b"A" * 20_000)
    volume.close()
    before = load(directory)
    recording = Recording()
    volume = Volume(directory, observer=recording)
    new = make_file(volume, b"config.new", b"B" * 30_000)
    volume.fsync(new.inode)
    start = len(recording.events)
    volume.rename(ROOT, TOP, b"config.new", TOP, b"config", 0)
    make_file(volume, b"other", b"C" * 60_000)
    volume.settle()
    make_file(volume, b"more", b"D" * 60_000)
    volume.abandon()
    for cut in range(start, len(recording.events) + 1):
        rng = random.Random(cut)
        after = tmp_path / f"after-{cut}"
        store(after, after_power_cut(before, recording.events[:cut], rng))
        volume = Volume(after)
        config = show(volume)[b"config"][1]
        assert config in {b"A" * 20_000, b"B" * 30_000}
        volume.close()
        assert_sound(after)


def test_orphans_live_as_long_as_their_opens(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    kernel = Kernel(BOOT)
    volume = new_volume(directory, opens=kernel.opens())
    f = volume.create(ROOT, TOP, b"f", 0o644, os.O_RDWR, 7).inode
    g = volume.create(ROOT, TOP, b"g", 0o644, os.O_RDWR, 8).inode
    volume.write(ROOT, f, 0, b"still here")
    volume.unlink(ROOT, TOP, b"f")
    volume.unlink(ROOT, TOP, b"g")
    volume.abandon()
    volume = Volume(directory, opens=kernel.opens())
    assert volume.read(f, 0, 100) == b"still here"
    assert volume.getattr(f).links == 0
    volume.drop_client(7)
    assert refused(volume.getattr, f) == "ESTALE"
    assert volume.getattr(g).links == 0
    volume.abandon()
    assert_sound(directory)
    volume = Volume(directory, opens=Kernel(BOOT + 1).opens())
    assert refused(volume.getattr, g) == "ESTALE"
    volume.close()
    assert_sound(directory)


def test_an_inode_number_never_comes_back(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    volume = new_volume(directory)
    numbers = []
    for _ in range(5):
        numbers.append(make_file(volume, b"f").inode)
        volume.unlink(ROOT, TOP, b"f")
        volume.abandon()
        volume = Volume(directory)
    assert len(set(numbers)) == 5
    volume.close()


def test_the_log_stays_bounded(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    volume = new_volume(directory)
    f = make_file(volume, b"f").inode
    log = directory / "meta.db-wal"
    for number in range(9000):
        volume.setxattr(ROOT, f, b"user.x", 0, b"%d" % number * 500)
    assert log.stat().st_size < 40 << 20
    volume.close()
    assert_sound(directory)


@pytest.mark.parametrize("what", ["fsync", "settle"])
def test_syncing_puts_data_before_metadata(tmp_path: Path, what: str) -> None:
    recording = Recording()
    volume = new_volume(tmp_path / "volume", observer=recording)
    f = make_file(volume, b"f", b"data").inode
    recording.events.clear()
    getattr(volume, what)(*([f] if what == "fsync" else []))
    syncs = [event[1] for event in recording.events if event[0] == "sync"]
    assert syncs[:2] == ["data", "meta.db-wal"]
    volume.close()


def test_an_observer_sees_every_write(tmp_path: Path) -> None:
    counting = Counting()
    volume = new_volume(tmp_path / "volume", observer=counting)
    before = counting.count
    make_file(volume, b"f", b"data")
    assert counting.count >= before + 3
    volume.close()
