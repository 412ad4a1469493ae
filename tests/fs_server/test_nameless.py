"""Files without a name, copies from file to file, and times of birth."""

from __future__ import annotations

import os
from pathlib import Path

import apsw
import pytest

from core.errors import Refused
from fs_server.interface import COPY_LIMIT, Changes
from fs_server.layout import METADATA_NAME, HostError
from fs_server.volume import Volume

from .support import (
    ALICE,
    MIB,
    ROOT,
    TOP,
    Clock,
    Kernel,
    assert_sound,
    make_file,
    names_in,
    new_volume,
    refused,
)


def test_nameless_file_has_no_link_and_goes_with_its_last_open(volume: Volume) -> None:
    made = volume.tmpfile(ALICE, TOP, 0o4640, os.O_RDWR)
    assert (made.links, made.uid, made.mode) == (0, 1001, 0o104640 & ~ALICE.umask)
    volume.write(ROOT, made.inode, 0, b"x" * 10_000)
    assert names_in(volume, TOP) == []
    assert volume.read(made.inode, 0, 5) == b"xxxxx"
    volume.release(made.inode)
    assert refused(volume.getattr, made.inode) == "ESTALE"


def test_nameless_file_gets_one_name_and_then_others(volume: Volume) -> None:
    made = volume.tmpfile(ROOT, TOP, 0o600, os.O_RDWR)
    assert volume.link(ROOT, made.inode, TOP, b"a").links == 1
    assert volume.link(ROOT, made.inode, TOP, b"b").links == 2
    volume.release(made.inode)
    assert names_in(volume, TOP) == [b"a", b"b"]


def test_file_that_lost_its_name_gets_none_again(volume: Volume) -> None:
    made = volume.tmpfile(ROOT, TOP, 0o600, os.O_RDWR)
    volume.link(ROOT, made.inode, TOP, b"a")
    volume.unlink(ROOT, TOP, b"a")
    assert refused(volume.link, ROOT, made.inode, TOP, b"b") == "ENOENT"
    exclusive = volume.tmpfile(ROOT, TOP, 0o600, os.O_RDWR | os.O_EXCL)
    assert refused(volume.link, ROOT, exclusive.inode, TOP, b"b") == "ENOENT"


def test_nobody_makes_a_nameless_file_where_he_may_not_make_files(volume: Volume) -> None:
    closed = volume.mkdir(ROOT, TOP, b"closed", 0o755).inode
    assert refused(volume.tmpfile, ALICE, closed, 0o600, os.O_RDWR) == "EACCES"
    f = make_file(volume, b"f")
    assert refused(volume.tmpfile, ROOT, f.inode, 0o600, os.O_RDWR) == "ENOTDIR"
    assert refused(volume.tmpfile, ROOT, TOP, -1, os.O_RDWR) == "EINVAL"
    assert refused(volume.tmpfile, ROOT, 999, 0o600, os.O_RDWR) == "ESTALE"


def test_nameless_file_outlives_the_server_and_ends_with_the_boot(tmp_path: Path) -> None:
    kernel = Kernel()
    volume = new_volume(tmp_path, opens=kernel.opens())
    volume.request = 5
    made = volume.tmpfile(ROOT, TOP, 0o600, os.O_RDWR, 9).inode
    volume.abandon()
    volume = Volume(tmp_path, opens=kernel.opens())
    assert volume.getattr(made).links == 0
    volume.abandon()
    assert_sound(tmp_path)
    volume = Volume(tmp_path, opens=Kernel(kernel.boot_id + 1).opens())
    assert refused(volume.getattr, made) == "ESTALE"
    volume.close()
    assert_sound(tmp_path)


def test_open_of_a_nameless_file_that_was_never_committed_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    volume = new_volume(tmp_path, opens=kernel.opens())
    volume.close()
    volume = Volume(tmp_path, opens=kernel.opens())

    class DeathError(Exception):
        """Stands for the end of the process."""

    def die(reply: bytes | None = None) -> None:
        raise DeathError

    monkeypatch.setattr(volume.store, "commit", die)
    volume.request = 5
    with pytest.raises(DeathError):
        volume.tmpfile(ROOT, TOP, 0o600, os.O_RDWR, 9)
    volume.abandon()
    opens = kernel.opens()
    assert opens.total() == 1
    volume = Volume(tmp_path, opens=opens)
    assert opens.total() == 0
    volume.request = 5
    made = volume.tmpfile(ROOT, TOP, 0o600, os.O_RDWR, 9).inode
    assert opens.count(9, made) == 1
    volume.close()


def test_refused_nameless_file_leaves_no_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    opens = kernel.opens()
    volume = new_volume(tmp_path, opens=opens)

    def fail(reply: bytes | None = None) -> None:
        raise HostError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(volume.store, "commit", fail)
        assert refused(volume.tmpfile, ROOT, TOP, 0o600, os.O_RDWR, 9) == "ENOSPC"
    assert opens.total() == 0
    assert volume.tables.inodes.orphans() == []
    volume.close()
    assert_sound(tmp_path)


def copied(volume: Volume, source: int, target: int, size: int) -> int:
    """Copy all of a file. Returns in how many steps."""
    done = steps = 0
    while count := volume.copy(ROOT, source, done, target, done, size - done):
        done += count
        steps += 1
    assert done == size
    return steps


def test_copy_has_the_octets_and_the_holes_of_its_source(volume: Volume) -> None:
    source, target = make_file(volume, b"s").inode, make_file(volume, b"t", b"old" * 40_000).inode
    volume.write(ROOT, source, 5000, os.urandom(9000))
    volume.write(ROOT, source, 30 * MIB, os.urandom(5 * MIB)[: MIB - 7])
    size = volume.getattr(source).size
    assert copied(volume, source, target, size) == 4
    for at in (0, 5000, 13_000, 100_000, 30 * MIB):
        assert volume.read(target, at, MIB) == volume.read(source, at, MIB)
    assert volume.getattr(target).blocks == volume.getattr(source).blocks
    assert volume.seek(target, 100_000, os.SEEK_DATA) == 30 * MIB


def test_one_copy_has_a_limit_but_a_hole_has_none(volume: Volume) -> None:
    source, target = make_file(volume, b"s").inode, make_file(volume, b"t").inode
    for part in range(6):
        volume.write(ROOT, source, part * MIB, os.urandom(MIB))
    assert volume.copy(ROOT, source, 0, target, 0, 6 * MIB) == COPY_LIMIT
    volume.setattr(ROOT, source, Changes(size=1 << 50))
    assert volume.copy(ROOT, source, 6 * MIB, target, 6 * MIB, 1 << 50) == (1 << 50) - 6 * MIB
    assert volume.getattr(target).size == 1 << 50


def test_impossible_copies_are_refused(volume: Volume) -> None:
    f = make_file(volume, b"f", b"x" * 10_000).inode
    d = volume.mkdir(ROOT, TOP, b"d", 0o755).inode
    assert refused(volume.copy, ROOT, f, 0, f, 5000, 5001) == "EINVAL"
    assert volume.copy(ROOT, f, 0, f, 5000, 5000) == 5000
    assert refused(volume.copy, ROOT, d, 0, f, 0, 1) == "EISDIR"
    assert refused(volume.copy, ROOT, f, 0, d, 0, 1) == "EISDIR"
    assert refused(volume.copy, ROOT, f, -1, f, 0, 1) == "EINVAL"
    assert refused(volume.copy, ROOT, f, 0, f, 1 << 61, 1) == "EFBIG"
    assert volume.copy(ROOT, f, 10_000, f, 0, 1) == 0


def test_copy_into_a_full_volume_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    volume = new_volume(tmp_path, size=MIB)
    f, g = make_file(volume, b"f", b"x" * (600 << 10)).inode, make_file(volume, b"g").inode
    before = volume.getattr(g)
    assert refused(volume.copy, ROOT, f, 0, g, 0, 600 << 10) == "ENOSPC"
    assert volume.getattr(g) == before
    volume.close()
    assert_sound(tmp_path)


def test_birth_stays_whatever_happens_later(volume: Volume, clock: Clock) -> None:
    before = clock.now
    f = make_file(volume, b"f").inode
    born = volume.birth(f)
    assert before < born <= clock.now
    volume.write(ROOT, f, 0, b"x")
    volume.rename(ROOT, TOP, b"f", TOP, b"g", 0)
    assert volume.birth(f) == born < volume.getattr(f).ctime
    assert volume.birth(TOP) > 0
    with pytest.raises(Refused):
        volume.birth(99)


def test_volume_made_before_births_were_stored_is_opened(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    f = make_file(volume, b"f").inode
    volume.close()
    connection = apsw.Connection(str(tmp_path / METADATA_NAME))
    connection.execute("ALTER TABLE inode DROP COLUMN birth")
    connection.close()
    assert_sound(tmp_path)
    volume = Volume(tmp_path)
    assert volume.birth(f) == 0
    assert volume.birth(make_file(volume, b"g").inode) > 0
    volume.close()
    assert_sound(tmp_path)
