"""A full volume refuses and stays whole; what is freed can be had again."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import Refused
from fs_server.interface import Changes
from fs_server.layout import DATA_NAME, METADATA_NAME, MIN_BLOCKS, VolumeError
from fs_server.mkfs import make_data, make_volume
from fs_server.volume import Volume

from .support import MIB, ROOT, TOP, assert_sound, make_file, names_in, new_volume, refused


@pytest.fixture
def small(tmp_path: Path) -> Volume:
    return new_volume(tmp_path / "small", size=MIB)


def fill(volume: Volume) -> int:
    """Write files until the volume is full. Returns how many."""
    number = 0
    while True:
        f = make_file(volume, b"f%d" % number).inode
        try:
            volume.write(ROOT, f, 0, b"x" * 40_000)
        except Refused:
            return number
        number += 1


def test_a_full_volume_refuses_and_changes_nothing(small: Volume, tmp_path: Path) -> None:
    count = fill(small)
    last = small.lookup(ROOT, TOP, b"f%d" % count)
    assert (last.size, last.blocks) == (0, 0)
    free = small.statfs().blocks_free
    assert 0 < free < 10
    assert refused(small.write, ROOT, last.inode, 0, b"x" * 4096 * (free + 1)) == "ENOSPC"
    assert refused(small.allocate, ROOT, last.inode, 0, 0, 4096 * (free + 1)) == "ENOSPC"
    assert small.getattr(last.inode) == last
    assert small.write(ROOT, last.inode, 0, b"x" * 4096 * free) == 4096 * free
    assert small.statfs().blocks_free == 0
    small.close()
    assert_sound(tmp_path / "small")


def test_overwriting_needs_no_space(small: Volume) -> None:
    fill(small)
    f = small.lookup(ROOT, TOP, b"f0").inode
    assert small.write(ROOT, f, 0, b"y" * 40_000) == 40_000
    small.close()


def test_space_that_was_freed_is_there_at_once(small: Volume, tmp_path: Path) -> None:
    for _ in range(3):
        count = fill(small)
        assert count >= 24
        for number in range(count + 1):
            small.unlink(ROOT, TOP, b"f%d" % number)
        assert small.statfs().blocks_free == 256
        assert names_in(small, TOP) == []
    small.close()
    assert_sound(tmp_path / "small")


def test_a_fragmented_volume_is_used_to_the_last_block(small: Volume, tmp_path: Path) -> None:
    for number in range(256):
        make_file(small, b"%d" % number, b"x")
    for number in range(0, 256, 2):
        small.unlink(ROOT, TOP, b"%d" % number)
    data = bytes(range(256)) * 16 * 128
    f = make_file(small, b"big", data).inode
    assert small.statfs().blocks_free == 0
    assert small.read(f, 0, len(data)) == data
    small.setattr(ROOT, f, Changes(size=100))
    assert small.statfs().blocks_free == 127
    small.close()
    assert_sound(tmp_path / "small")


def test_usage_is_the_truth(small: Volume) -> None:
    before = small.statfs()
    make_file(small, b"f", b"x" * 5000)
    after = small.statfs()
    assert before.blocks_free - after.blocks_free == 2
    assert before.inodes_free - after.inodes_free == 1
    assert (after.block_size, after.blocks, after.name_limit) == (4096, 256, 255)
    small.close()


def test_a_volume_is_made_once(tmp_path: Path) -> None:
    make_volume(tmp_path / "v", MIB)
    with pytest.raises(VolumeError, match="already"):
        make_volume(tmp_path / "v", MIB)
    assert_sound(tmp_path / "v")


@pytest.mark.parametrize("size", [0, -1, MIN_BLOCKS * 4096 - 1, 1 << 70])
def test_impossible_sizes_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(VolumeError, match="octets"):
        make_data(tmp_path, size)


def test_what_is_wrong_with_a_volume_is_said(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="mkfs"):
        Volume(tmp_path)
    make_volume(tmp_path / "v", MIB)
    first = Volume(tmp_path / "v")
    with pytest.raises(VolumeError, match="in use"):
        Volume(tmp_path / "v")
    first.store.execute("UPDATE volume SET value = 99 WHERE key = 'format'")
    first.close()
    with pytest.raises(VolumeError, match="format 99"):
        Volume(tmp_path / "v")
    (tmp_path / "v" / METADATA_NAME).write_bytes(b"something else" * 1000)
    with pytest.raises(VolumeError, match="damaged"):
        Volume(tmp_path / "v")


def test_another_volumes_or_a_cut_data_file_is_recognised(tmp_path: Path) -> None:
    make_volume(tmp_path / "v", MIB)
    with (tmp_path / "v" / DATA_NAME).open("r+b") as data:
        data.truncate(MIB // 2)
    with pytest.raises(VolumeError, match="cut"):
        Volume(tmp_path / "v")
    (tmp_path / "v" / DATA_NAME).unlink()
    with pytest.raises(VolumeError, match="No such file"):
        Volume(tmp_path / "v")
