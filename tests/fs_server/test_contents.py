"""Octets of files: holes, growth, truncation, allocation, and the times that go with them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs_server.interface import (
    ALLOCATE_KEEP_SIZE,
    ALLOCATE_PUNCH_HOLE,
    FILE_LIMIT,
    XATTR_SIZE_LIMIT,
    Changes,
)
from fs_server.layout import BLOCK_SIZE, DATA_NAME
from fs_server.volume import Volume, host_clock

from .support import ALICE, ROOT, TOP, Clock, assert_sound, make_file, new_volume, refused

TIB = 1 << 40


def used(volume: Volume) -> int:
    usage = volume.statfs()
    return usage.blocks - usage.blocks_free


def test_a_write_far_out_allocates_only_itself(volume: Volume) -> None:
    f = make_file(volume, b"f").inode
    before = used(volume)
    assert volume.write(ROOT, f, TIB, b"end") == 3
    assert used(volume) - before == 1
    assert (volume.getattr(f).size, volume.getattr(f).blocks) == (TIB + 3, BLOCK_SIZE // 512)
    assert volume.read(f, TIB - 5, 100) == b"\0" * 5 + b"end"
    assert volume.read(f, 12345, 10) == b"\0" * 10


def test_sizes_have_a_limit(volume: Volume) -> None:
    f = make_file(volume, b"f").inode
    assert refused(volume.write, ROOT, f, FILE_LIMIT, b"x") == "EFBIG"
    assert refused(volume.setattr, ROOT, f, Changes(size=FILE_LIMIT + 1)) == "EFBIG"
    assert refused(volume.allocate, ROOT, f, 0, FILE_LIMIT, 1) == "EFBIG"
    assert volume.setattr(ROOT, f, Changes(size=FILE_LIMIT)).size == FILE_LIMIT
    assert volume.write(ROOT, f, FILE_LIMIT - 1, b"x") == 1


def test_reading_ends_at_the_end(volume: Volume) -> None:
    f = make_file(volume, b"f", b"0123456789").inode
    assert volume.read(f, 7, 100) == b"789"
    assert volume.read(f, 10, 100) == b""
    assert volume.read(f, 1 << 62, 100) == b""
    assert volume.read(f, 0, 0) == b""
    assert refused(volume.read, f, -1, 10) == "EINVAL"


@pytest.mark.parametrize("size", [1, 100, 4095, 4096, 4097, 8192])
def test_what_was_cut_off_does_not_come_back(volume: Volume, size: int) -> None:
    f = make_file(volume, b"f", b"x" * 9000).inode
    volume.setattr(ROOT, f, Changes(size=size))
    volume.setattr(ROOT, f, Changes(size=9000))
    assert volume.read(f, 0, 9000) == b"x" * size + b"\0" * (9000 - size)
    volume.setattr(ROOT, f, Changes(size=size))
    volume.write(ROOT, f, size + 50, b"y")
    assert volume.read(f, 0, 9000) == b"x" * size + b"\0" * 50 + b"y"


def test_new_blocks_show_nothing_of_their_past(volume: Volume) -> None:
    total = volume.statfs().blocks
    f = make_file(volume, b"f").inode
    for number in range(total // 256):
        volume.write(ROOT, f, number << 20, b"S" * (1 << 20))
    volume.setattr(ROOT, f, Changes(size=0))
    g = make_file(volume, b"g").inode
    volume.write(ROOT, g, 5000, b"here")
    volume.write(ROOT, g, 100, b"there")
    volume.allocate(ROOT, g, 0, 20_000, 100_000)
    octets = volume.read(g, 0, 200_000)
    assert octets.strip(b"\0").replace(b"\0", b"") == b"therehere"


def test_freed_space_goes_back_to_the_host(volume: Volume, tmp_path: Path) -> None:
    data = tmp_path / "volume" / DATA_NAME
    f = make_file(volume, b"f", b"x" * (1 << 20)).inode
    assert data.stat().st_blocks * 512 >= 1 << 20
    before = used(volume)
    volume.unlink(ROOT, TOP, b"f")
    assert before - used(volume) == 256
    volume.settle()
    assert data.stat().st_blocks * 512 < 1 << 20
    assert refused(volume.getattr, f) == "ESTALE"


def test_a_sequential_file_is_one_extent(volume: Volume) -> None:
    f = make_file(volume, b"f").inode
    for number in range(64):
        volume.write(ROOT, f, number * 5000, b"x" * 5000)
    extents = volume.tables.inodes.find(f).extents
    assert extents is not None
    assert len(extents.rows) == 1


def test_holes_are_found(volume: Volume) -> None:
    f = make_file(volume, b"f").inode
    volume.write(ROOT, f, 8192, b"x" * 4096)
    volume.setattr(ROOT, f, Changes(size=30_000))
    assert volume.seek(f, 0, os.SEEK_DATA) == 8192
    assert volume.seek(f, 9000, os.SEEK_DATA) == 9000
    assert volume.seek(f, 0, os.SEEK_HOLE) == 0
    assert volume.seek(f, 9000, os.SEEK_HOLE) == 12288
    assert refused(volume.seek, f, 12288, os.SEEK_DATA) == "ENXIO"
    assert refused(volume.seek, f, 30_000, os.SEEK_HOLE) == "ENXIO"
    assert refused(volume.seek, f, 0, os.SEEK_SET) == "EINVAL"


def test_allocation_keeps_or_moves_the_end(volume: Volume) -> None:
    f = make_file(volume, b"f", b"abc").inode
    volume.allocate(ROOT, f, ALLOCATE_KEEP_SIZE, 0, 100_000)
    assert (volume.getattr(f).size, volume.getattr(f).blocks) == (3, 25 * 8)
    volume.allocate(ROOT, f, 0, 0, 50_000)
    assert volume.read(f, 0, 60_000) == b"abc" + b"\0" * 49_997
    mode = ALLOCATE_PUNCH_HOLE | ALLOCATE_KEEP_SIZE
    volume.allocate(ROOT, f, mode, 1, 25 * 4096 - 1)
    assert volume.read(f, 0, 10) == b"a" + b"\0" * 9
    assert volume.getattr(f).blocks == 8
    assert refused(volume.allocate, ROOT, f, ALLOCATE_PUNCH_HOLE, 0, 1) == "EOPNOTSUPP"
    assert refused(volume.allocate, ROOT, f, 0x08, 0, 4096) == "EOPNOTSUPP"
    assert refused(volume.allocate, ROOT, f, 0, 0, 0) == "EINVAL"


def test_set_id_bits_go_when_others_write(volume: Volume) -> None:
    f = make_file(volume, b"f", mode=0o6777).inode
    volume.write(ROOT, f, 0, b"x")
    assert stat.S_IMODE(volume.getattr(f).mode) == 0o6777
    volume.write(ALICE, f, 0, b"x")
    assert stat.S_IMODE(volume.getattr(f).mode) == 0o777
    volume.setattr(ROOT, f, Changes(mode=0o6777))
    volume.setattr(ALICE, f, Changes(size=0))
    assert stat.S_IMODE(volume.getattr(f).mode) == 0o777


def test_capabilities_go_with_any_write(volume: Volume) -> None:
    f = make_file(volume, b"f").inode
    volume.setxattr(ROOT, f, b"security.capability", 0, b"caps")
    volume.setxattr(ROOT, f, b"user.note", 0, b"stays")
    volume.write(ROOT, f, 0, b"x")
    assert volume.listxattr(ROOT, f) == [b"user.note"]


def test_reads_move_the_access_time_once_after_each_change(volume: Volume, clock: Clock) -> None:
    f = make_file(volume, b"f", b"data")
    volume.read(f.inode, 0, 4)
    first = volume.getattr(f.inode).atime
    assert first > f.mtime
    volume.read(f.inode, 0, 4)
    assert volume.getattr(f.inode).atime == first
    clock.now += 25 * 3600 * 10**9
    volume.read(f.inode, 0, 4)
    assert volume.getattr(f.inode).atime > first


def test_overwriting_within_one_tick_of_the_clock_commits_nothing(tmp_path: Path) -> None:
    volume = new_volume(tmp_path / "volume", clock=lambda: 10**18)
    f = make_file(volume, b"f", b"x" * 5000).inode
    before = volume.store.connection.total_changes()
    volume.write(ROOT, f, 10, b"yy")
    assert volume.store.connection.total_changes() == before
    assert volume.read(f, 9, 4) == b"xyyx"
    volume.close()
    assert_sound(tmp_path / "volume")


def test_the_clock_of_the_host_is_its_wall_clock() -> None:
    stamp = Path("/proc/self").stat().st_mtime_ns
    assert abs(host_clock() - stamp) < 10**9 * 86_400


def test_times_beyond_what_can_be_stored_are_brought_near(volume: Volume) -> None:
    f = make_file(volume, b"f").inode
    after = volume.setattr(ROOT, f, Changes(atime=-(1 << 80), mtime=1 << 80))
    assert (after.atime, after.mtime) == (-(1 << 63) + 1, (1 << 63) - 1)


def test_attributes_have_limits(volume: Volume) -> None:
    f = make_file(volume, b"f").inode
    assert refused(volume.setxattr, ROOT, f, b"user.a", 0, b"x" * (XATTR_SIZE_LIMIT + 1)) == "E2BIG"
    volume.setxattr(ROOT, f, b"user.a", 0, b"x" * XATTR_SIZE_LIMIT)
    assert len(volume.getxattr(ROOT, f, b"user.a", XATTR_SIZE_LIMIT)) == XATTR_SIZE_LIMIT
    assert refused(volume.getxattr, ROOT, f, b"user.a", 10) == "ERANGE"
    assert refused(volume.setxattr, ROOT, f, b"user." + b"n" * 251, 0, b"") == "ERANGE"
    assert refused(volume.setxattr, ROOT, f, b"", 0, b"") == "ERANGE"
    assert refused(volume.setxattr, ROOT, f, b"user.a", 4, b"") == "EINVAL"
    number = 0
    while not (error := refused(volume.setxattr, ROOT, f, b"user.%0240d" % number, 0, b"")):
        number += 1
        assert number < 1000
    assert error == "ENOSPC"
    assert sum(map(len, volume.listxattr(ROOT, f))) < 64 * 1024


def test_attribute_name_spaces_have_their_rules(volume: Volume) -> None:
    f = make_file(volume, b"f", mode=0o666).inode
    s = volume.symlink(ROOT, TOP, b"s", b"t").inode
    assert refused(volume.setxattr, ALICE, f, b"trusted.x", 0, b"") == "EPERM"
    assert refused(volume.setxattr, ALICE, f, b"security.x", 0, b"") == "EPERM"
    assert refused(volume.setxattr, ROOT, f, b"system.x", 0, b"") == "EOPNOTSUPP"
    assert refused(volume.setxattr, ROOT, f, b"nothing", 0, b"") == "EOPNOTSUPP"
    assert refused(volume.setxattr, ROOT, s, b"user.x", 0, b"") == "EPERM"
    volume.setxattr(ROOT, f, b"trusted.x", 0, b"t")
    volume.setxattr(ROOT, f, b"security.x", 0, b"s")
    assert refused(volume.getxattr, ALICE, f, b"trusted.x", 10) == "ENODATA"
    assert volume.getxattr(ALICE, f, b"security.x", 10) == b"s"
    assert volume.listxattr(ALICE, f) == [b"security.x"]
    assert volume.listxattr(ROOT, f) == [b"security.x", b"trusted.x"]
    volume.removexattr(ROOT, f, b"trusted.x")
    assert refused(volume.removexattr, ROOT, f, b"trusted.x") == "ENODATA"


steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "truncate", "punch", "zero", "allocate", "reopen"]),
        st.integers(0, 40_000),
        st.integers(1, 20_000),
    ),
    max_size=25,
)


@given(steps=steps)
def test_a_file_agrees_with_an_array(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("file") / "volume"
    volume = new_volume(directory, size=1 << 20)
    f = make_file(volume, b"f").inode
    model = bytearray()
    for number, (step, offset, size) in enumerate(steps):
        end = offset + size
        if step == "write":
            volume.write(ROOT, f, offset, bytes([number + 1]) * size)
            model.extend(b"\0" * (end - len(model)))
            model[offset:end] = bytes([number + 1]) * size
        elif step == "truncate":
            volume.setattr(ROOT, f, Changes(size=offset))
            del model[offset:]
            model.extend(b"\0" * (offset - len(model)))
        elif step == "reopen":
            volume.abandon()
            volume = Volume(directory)
        else:
            volume.allocate(ROOT, f, {"punch": 3, "zero": 0x10, "allocate": 0}[step], offset, size)
            if step != "punch":
                model.extend(b"\0" * (end - len(model)))
            if step != "allocate":
                stop = min(end, len(model))
                model[offset:stop] = b"\0" * max(0, stop - offset)
        assert volume.read(f, 0, 1 << 20) == model
        assert volume.getattr(f).size == len(model)
    volume.close()
    assert_sound(directory)
