"""Who may do what: tables of callers, modes and outcomes."""

from __future__ import annotations

import os
import stat

import pytest

from fs_server.interface import OPEN_EXECUTE, Caller, Changes
from fs_server.volume import Volume

from .support import ALICE, BOB, CAROL, ROOT, TOP, Clock, make_file, refused

R, W, X = os.R_OK, os.W_OK, os.X_OK
# Alice owns the file and her group has it; Bob is in that group; Carol is nobody to it
ACCESS = [
    (ROOT, 0o000, R | W, True),
    (ROOT, 0o000, X, False),
    (ROOT, 0o001, X, True),
    (ALICE, 0o400, R, True),
    (ALICE, 0o077, R, False),
    (ALICE, 0o777, R | W | X, True),
    (BOB, 0o040, R, True),
    (BOB, 0o707, R, False),
    (BOB, 0o060, R | W, True),
    (BOB, 0o060, X, False),
    (CAROL, 0o004, R, True),
    (CAROL, 0o770, R, False),
    (CAROL, 0o002, W, True),
    (CAROL, 0o000, 0, True),
]


@pytest.fixture
def file(volume: Volume) -> int:
    inode = make_file(volume, b"f").inode
    volume.setattr(ROOT, inode, Changes(uid=ALICE.uid, gid=ALICE.gid))
    return inode


@pytest.mark.parametrize(("caller", "mode", "wanted", "allowed"), ACCESS)
def test_mode_bits_decide(
    volume: Volume, file: int, caller: Caller, mode: int, wanted: int, allowed: bool
) -> None:
    volume.setattr(ROOT, file, Changes(mode=mode))
    assert refused(volume.access, caller, file, wanted) == ("" if allowed else "EACCES")


@pytest.mark.parametrize(
    ("flags", "mode", "allowed"),
    [
        (os.O_RDONLY, 0o400, True),
        (os.O_WRONLY, 0o400, False),
        (os.O_RDWR, 0o400, False),
        (os.O_RDWR, 0o600, True),
        (os.O_RDONLY | os.O_TRUNC, 0o400, False),
        (OPEN_EXECUTE, 0o100, True),
        (OPEN_EXECUTE, 0o600, False),
        (os.O_ACCMODE, 0o400, False),
    ],
)
def test_opening_asks_for_what_the_flags_want(
    volume: Volume, file: int, flags: int, mode: int, allowed: bool
) -> None:
    volume.setattr(ROOT, file, Changes(mode=mode))
    assert refused(volume.open, ALICE, file, flags) == ("" if allowed else "EACCES")


def test_directories_need_search_and_write(volume: Volume) -> None:
    d = volume.mkdir(ALICE, TOP, b"d", 0o700).inode
    volume.mknod(ALICE, d, b"f", 0o100666, 0)
    for mode, look, make, show in [
        (0o700, "EACCES", "EACCES", "EACCES"),
        (0o704, "EACCES", "EACCES", ""),
        (0o701, "", "EACCES", "EACCES"),
        (0o702, "EACCES", "EACCES", "EACCES"),
        (0o703, "", "", "EACCES"),
    ]:
        volume.setattr(ALICE, d, Changes(mode=mode))
        assert refused(volume.lookup, CAROL, d, b"f") == look
        assert refused(volume.mknod, CAROL, d, b"%o" % mode, 0o100644, 0) == make
        assert refused(volume.opendir, CAROL, d) == show
        assert refused(volume.unlink, CAROL, d, b"f") == ("" if not make else "EACCES")


def test_only_owners_change_modes(volume: Volume, file: int) -> None:
    assert refused(volume.setattr, BOB, file, Changes(mode=0o777)) == "EPERM"
    assert stat.S_IMODE(volume.setattr(ALICE, file, Changes(mode=0o640)).mode) == 0o640
    assert stat.S_IMODE(volume.setattr(ROOT, file, Changes(mode=0o4755)).mode) == 0o4755


def test_setgid_needs_the_group(volume: Volume, file: int) -> None:
    volume.setattr(ROOT, file, Changes(gid=2003))
    assert stat.S_IMODE(volume.setattr(ALICE, file, Changes(mode=0o2755)).mode) == 0o755
    assert stat.S_IMODE(volume.setattr(ROOT, file, Changes(mode=0o2755)).mode) == 0o2755


def test_only_root_gives_files_away(volume: Volume, file: int) -> None:
    assert refused(volume.setattr, ALICE, file, Changes(uid=BOB.uid)) == "EPERM"
    assert refused(volume.setattr, ALICE, file, Changes(gid=2003)) == "EPERM"
    assert refused(volume.setattr, CAROL, file, Changes(gid=CAROL.gid)) == "EPERM"
    assert volume.setattr(ALICE, file, Changes(uid=ALICE.uid, gid=ALICE.gid)).uid == ALICE.uid
    assert volume.setattr(ROOT, file, Changes(uid=BOB.uid, gid=2002)).gid == 2002
    assert volume.setattr(BOB, file, Changes(gid=2001)).gid == 2001


def test_a_change_of_owner_takes_set_id_bits(volume: Volume, file: int) -> None:
    volume.setattr(ROOT, file, Changes(mode=0o6777))
    assert stat.S_IMODE(volume.setattr(ROOT, file, Changes(uid=BOB.uid)).mode) == 0o777
    volume.setattr(ROOT, file, Changes(mode=0o6766))
    assert stat.S_IMODE(volume.setattr(ROOT, file, Changes(gid=2003)).mode) == 0o2766


def test_times_are_the_owners_but_touching_needs_only_write(
    volume: Volume, file: int, clock: Clock
) -> None:
    volume.setattr(ROOT, file, Changes(mode=0o646))
    past = Changes(atime=5, mtime=6)
    assert refused(volume.setattr, CAROL, file, past) == "EPERM"
    after = volume.setattr(ALICE, file, past)
    assert (after.atime, after.mtime, after.ctime) == (5, 6, clock.now)
    touched = volume.setattr(CAROL, file, Changes(atime=0, mtime=0, now=True))
    assert touched.atime == touched.mtime == clock.now
    volume.setattr(ROOT, file, Changes(mode=0o644))
    assert refused(volume.setattr, CAROL, file, Changes(atime=0, mtime=0, now=True)) == "EACCES"
    assert refused(volume.setattr, CAROL, file, Changes(mtime=0, now=True)) == "EPERM"


def test_truncation_needs_write_unless_the_file_is_open_for_it(volume: Volume, file: int) -> None:
    volume.setattr(ROOT, file, Changes(mode=0o444))
    assert refused(volume.setattr, ALICE, file, Changes(size=5)) == "EACCES"
    assert volume.setattr(ALICE, file, Changes(size=5, opened=True)).size == 5


def test_a_refused_change_changes_nothing(volume: Volume, file: int) -> None:
    before = volume.getattr(file)
    changes = Changes(size=10, mode=0o777, uid=BOB.uid)
    assert refused(volume.setattr, ALICE, file, changes) == "EPERM"
    assert volume.getattr(file) == before


@pytest.mark.parametrize("value", [-1, 1 << 32, (1 << 32) - 1])
def test_impossible_owners_are_refused(volume: Volume, file: int, value: int) -> None:
    assert refused(volume.setattr, ROOT, file, Changes(uid=value)) == "EINVAL"
    assert refused(volume.mkdir, Caller(value, 0), TOP, b"d", 0o755) == "EINVAL"


def test_moving_a_directory_needs_write_on_it(volume: Volume) -> None:
    a = volume.mkdir(ALICE, TOP, b"a", 0o777).inode
    b = volume.mkdir(ALICE, TOP, b"b", 0o777).inode
    volume.mkdir(BOB, a, b"d", 0o555)
    assert refused(volume.rename, ALICE, a, b"d", b, b"d", 0) == "EACCES"
    assert refused(volume.rename, ALICE, a, b"d", a, b"e", 0) == ""
