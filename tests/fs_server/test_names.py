"""Making, finding, linking and removing names."""

from __future__ import annotations

import os
import stat

import pytest

from fs_server.interface import ROOT_INODE, Changes
from fs_server.volume import Volume

from .support import (
    ALICE,
    BOB,
    CAROL,
    ROOT,
    TOP,
    Clock,
    make_file,
    names_in,
    refused,
)

BAD_NAMES = [(b"a" * 256, "ENAMETOOLONG"), (b"", "ENOENT"), (b"a/b", "EINVAL"), (b"a\0", "EINVAL")]


def test_what_was_made_is_found(volume: Volume) -> None:
    made = volume.mkdir(ROOT, TOP, b"d", 0o755)
    inner = volume.mknod(ROOT, made.inode, "ü\n".encode(), 0o100644, 0)
    assert volume.lookup(ROOT, TOP, b"d") == volume.getattr(made.inode)
    assert volume.lookup(ROOT, made.inode, "ü\n".encode()).inode == inner.inode
    assert volume.lookup(ROOT, made.inode, b"..").inode == ROOT_INODE
    assert volume.lookup(ROOT, made.inode, b".").inode == made.inode
    assert refused(volume.lookup, ROOT, TOP, b"x") == "ENOENT"
    assert refused(volume.lookup, ROOT, inner.inode, b"x") == "ENOTDIR"


@pytest.mark.parametrize(("name", "error"), BAD_NAMES)
def test_impossible_names_are_refused_everywhere(volume: Volume, name: bytes, error: str) -> None:
    f = make_file(volume, b"f").inode
    assert refused(volume.lookup, ROOT, TOP, name) == error
    assert refused(volume.mknod, ROOT, TOP, name, 0o100644, 0) == error
    assert refused(volume.mkdir, ROOT, TOP, name, 0o755) == error
    assert refused(volume.symlink, ROOT, TOP, name, b"t") == error
    assert refused(volume.link, ROOT, f, TOP, name) == error
    assert refused(volume.unlink, ROOT, TOP, name) == error
    assert refused(volume.rmdir, ROOT, TOP, name) == error
    assert refused(volume.create, ROOT, TOP, name, 0o644, 0) == error
    assert refused(volume.rename, ROOT, TOP, name, TOP, b"g", 0) == error
    assert refused(volume.rename, ROOT, TOP, b"f", TOP, name, 0) == error


def test_a_name_of_255_octets_is_fine(volume: Volume) -> None:
    name = b"\xff" * 255
    made = volume.mkdir(ROOT, TOP, name, 0o755)
    assert volume.lookup(ROOT, TOP, name).inode == made.inode


def test_dots_are_there_already_and_stay(volume: Volume) -> None:
    d = volume.mkdir(ROOT, TOP, b"d", 0o755).inode
    assert refused(volume.mkdir, ROOT, d, b".", 0o755) == "EEXIST"
    assert refused(volume.mknod, ROOT, d, b"..", 0o100644, 0) == "EEXIST"
    assert refused(volume.unlink, ROOT, d, b".") == "EISDIR"
    assert refused(volume.rmdir, ROOT, d, b".") == "EINVAL"
    assert refused(volume.rmdir, ROOT, d, b"..") == "ENOTEMPTY"
    assert refused(volume.create, ROOT, d, b".", 0o644, os.O_RDWR) == "EISDIR"


def test_directories_count_their_sub_directories_as_links(volume: Volume) -> None:
    volume.mkdir(ROOT, TOP, b"a", 0o755)
    d = volume.mkdir(ROOT, TOP, b"b", 0o755).inode
    assert volume.getattr(TOP).links == 4
    volume.mkdir(ROOT, d, b"c", 0o755)
    assert refused(volume.rmdir, ROOT, TOP, b"b") == "ENOTEMPTY"
    volume.rmdir(ROOT, d, b"c")
    volume.rmdir(ROOT, TOP, b"b")
    assert volume.getattr(TOP).links == 3
    assert refused(volume.getattr, d) == "ESTALE"


def test_times_of_a_new_file_and_its_directory_are_the_present(
    volume: Volume, clock: Clock
) -> None:
    made = make_file(volume, b"f")
    top = volume.getattr(TOP)
    assert made.atime == made.mtime == made.ctime == clock.now
    assert (top.mtime, top.ctime) == (clock.now, clock.now)


def test_link_adds_a_name_and_changes_only_ctime_of_the_file(volume: Volume) -> None:
    before = make_file(volume, b"f", b"data")
    after = volume.link(ROOT, before.inode, TOP, b"g")
    assert (after.links, after.mtime) == (2, before.mtime)
    assert after.ctime > before.ctime
    top = volume.getattr(TOP)
    assert top.mtime == top.ctime == after.ctime


def test_link_refuses_directories_and_what_is_gone(volume: Volume) -> None:
    d = volume.mkdir(ROOT, TOP, b"d", 0o755).inode
    f = volume.create(ROOT, TOP, b"f", 0o644, os.O_RDWR, 5).inode
    volume.unlink(ROOT, TOP, b"f")
    assert refused(volume.link, ROOT, d, TOP, b"e") == "EPERM"
    assert refused(volume.link, ROOT, f, TOP, b"e") == "ENOENT"
    assert refused(volume.link, ROOT, 999, TOP, b"e") == "ESTALE"


def test_unlink_of_one_name_leaves_the_other(volume: Volume) -> None:
    f = make_file(volume, b"f", b"data")
    volume.link(ROOT, f.inode, TOP, b"g")
    left = volume.unlink(ROOT, TOP, b"f")
    assert left.links == 1
    assert left.ctime > f.ctime
    assert volume.read(f.inode, 0, 10) == b"data"
    assert volume.unlink(ROOT, TOP, b"g").links == 0
    assert refused(volume.getattr, f.inode) == "ESTALE"


def test_kinds_are_not_confused(volume: Volume) -> None:
    d = volume.mkdir(ROOT, TOP, b"d", 0o755).inode
    f = make_file(volume, b"f").inode
    s = volume.symlink(ROOT, TOP, b"s", b"target").inode
    assert refused(volume.unlink, ROOT, TOP, b"d") == "EISDIR"
    assert refused(volume.rmdir, ROOT, TOP, b"f") == "ENOTDIR"
    assert refused(volume.mkdir, ROOT, f, b"x", 0o755) == "ENOTDIR"
    assert refused(volume.readdir, f, 0, 10) == "ENOTDIR"
    assert refused(volume.opendir, ROOT, f) == "ENOTDIR"
    assert refused(volume.readlink, f) == "EINVAL"
    assert refused(volume.open, ROOT, d, os.O_RDONLY) == "EISDIR"
    assert refused(volume.open, ROOT, s, os.O_RDONLY) == "ELOOP"
    assert refused(volume.open, ROOT, f, os.O_DIRECTORY) == "ENOTDIR"
    assert refused(volume.read, d, 0, 10) == "EISDIR"
    assert refused(volume.write, ROOT, d, 0, b"x") == "EISDIR"
    assert refused(volume.write, ROOT, s, 0, b"x") == "EINVAL"


def test_special_files_keep_kind_and_device(volume: Volume) -> None:
    fifo = volume.mknod(ALICE, TOP, b"p", stat.S_IFIFO | 0o600, 0)
    device = volume.mknod(ROOT, TOP, b"c", stat.S_IFCHR | 0o600, 0x0103)
    plain = volume.mknod(ALICE, TOP, b"r", 0o640, 99)
    assert stat.S_ISFIFO(fifo.mode)
    assert (stat.S_ISCHR(device.mode), device.device) == (True, 0x0103)
    assert (plain.mode, plain.device) == (stat.S_IFREG | 0o640, 0)
    assert refused(volume.open, ROOT, fifo.inode, os.O_RDONLY) == "ENXIO"
    assert refused(volume.mknod, ALICE, TOP, b"b", stat.S_IFBLK | 0o600, 5) == "EPERM"
    assert refused(volume.mknod, ROOT, TOP, b"x", stat.S_IFDIR | 0o600, 0) == "EPERM"
    assert refused(volume.mknod, ROOT, TOP, b"x", stat.S_IFLNK | 0o600, 0) == "EINVAL"
    assert refused(volume.mknod, ROOT, TOP, b"x", 0o170000, 0) == "EINVAL"


def test_symbolic_links_hold_octets(volume: Volume) -> None:
    link = volume.symlink(ALICE, TOP, b"s", b"\xff/../x")
    assert volume.readlink(link.inode) == b"\xff/../x"
    assert (link.size, stat.S_IMODE(link.mode)) == (6, 0o777)
    assert refused(volume.symlink, ROOT, TOP, b"t", b"x" * 4096) == "ENAMETOOLONG"
    assert refused(volume.symlink, ROOT, TOP, b"t", b"") == "ENOENT"
    volume.symlink(ROOT, TOP, b"long", b"x" * 4095)
    assert len(volume.readlink(volume.lookup(ROOT, TOP, b"long").inode)) == 4095


def test_create_opens_what_is_there_unless_told_not_to(volume: Volume) -> None:
    made = make_file(volume, b"f", b"data")
    assert volume.create(ROOT, TOP, b"f", 0o600, os.O_RDWR).inode == made.inode
    assert volume.getattr(made.inode).mode == made.mode
    assert refused(volume.create, ROOT, TOP, b"f", 0o600, os.O_EXCL) == "EEXIST"
    assert volume.create(ROOT, TOP, b"f", 0o600, os.O_RDWR | os.O_TRUNC).size == 0


def test_a_new_file_may_be_opened_against_its_own_mode(volume: Volume) -> None:
    made = volume.create(ALICE, TOP, b"f", 0o400, os.O_RDWR)
    assert volume.write(ALICE, made.inode, 0, b"x") == 1
    assert refused(volume.open, ALICE, made.inode, os.O_RDWR) == "EACCES"


def test_nothing_is_made_in_a_removed_directory(volume: Volume) -> None:
    d = volume.mkdir(ROOT, TOP, b"d", 0o755).inode
    volume.rmdir(ROOT, TOP, b"d")
    assert refused(volume.mkdir, ROOT, d, b"x", 0o755) == "ESTALE"


def test_setgid_directories_hand_on_their_group(volume: Volume) -> None:
    d = volume.mkdir(ROOT, TOP, b"d", 0o777).inode
    volume.setattr(ROOT, d, Changes(gid=2003))
    volume.setattr(ROOT, d, Changes(mode=0o2777))
    f = volume.mknod(ALICE, d, b"f", 0o100644, 0)
    inner = volume.mkdir(ALICE, d, b"e", 0o755)
    assert f.gid == inner.gid == 2003
    assert stat.S_IMODE(inner.mode) == 0o2755
    shared = volume.mknod(ALICE, d, b"g", 0o102775, 0)
    assert stat.S_IMODE(shared.mode) == 0o775
    assert stat.S_IMODE(volume.mknod(CAROL, d, b"h", 0o102775, 0).mode) == 0o2775


def test_the_umask_takes_bits(volume: Volume) -> None:
    caller = ALICE.__class__(1001, 2001, (), 0o027)
    assert stat.S_IMODE(volume.mkdir(caller, TOP, b"d", 0o777).mode) == 0o750
    assert stat.S_IMODE(volume.create(caller, TOP, b"f", 0o666, 0).mode) == 0o640


def test_sticky_directories_protect_entries(volume: Volume) -> None:
    d = volume.mkdir(ALICE, TOP, b"d", 0o777).inode
    volume.setattr(ALICE, d, Changes(mode=0o1777))
    volume.mknod(BOB, d, b"bob", 0o100666, 0)
    volume.mknod(BOB, d, b"other", 0o100666, 0)
    assert refused(volume.unlink, CAROL, d, b"bob") == "EPERM"
    assert refused(volume.rename, CAROL, d, b"bob", d, b"x", 0) == "EPERM"
    assert refused(volume.unlink, ALICE, d, b"bob") == ""
    assert refused(volume.unlink, BOB, d, b"other") == ""


def test_listing_shows_what_stays_exactly_once_while_entries_come_and_go(volume: Volume) -> None:
    stay = [b"stay%d" % number for number in range(40)]
    for number, name in enumerate(stay):
        make_file(volume, name)
        make_file(volume, b"go%d" % number)
    seen: list[bytes] = []
    cookie = 0
    step = 0
    while entries := volume.readdir(TOP, cookie, 7):
        seen.extend(entry.name for entry in entries)
        cookie = entries[-1].cookie
        for number in range(40):
            if number % 5 == step % 5 and not refused(volume.unlink, ROOT, TOP, b"go%d" % number):
                make_file(volume, b"new%d.%d" % (step, number))
        step += 1
        assert step < 200
    assert sorted(name for name in seen if name.startswith(b"stay")) == sorted(stay)
    assert seen.count(b".") == seen.count(b"..") == 1
    assert len(seen) == len(set(seen))


def test_a_replaced_entry_keeps_its_place_in_listings(volume: Volume) -> None:
    for name in (b"a", b"b", b"c"):
        make_file(volume, name)
    volume.rename(ROOT, TOP, b"c", TOP, b"a", 0)
    assert names_in(volume, TOP) == [b"a", b"b"]


def test_a_listing_fits_into_one_packet(volume: Volume) -> None:
    for number in range(600):
        make_file(volume, b"%03d" % number + b"x" * 250)
    entries = volume.readdir(TOP, 0, 100_000)
    assert 100 < len(entries) < 600
    assert len(names_in(volume, TOP)) == 600


def test_dots_are_listed_with_the_right_inodes(volume: Volume) -> None:
    d = volume.mkdir(ROOT, TOP, b"d", 0o755).inode
    entries = volume.readdir(d, 0, 1) + volume.readdir(d, 1, 5)
    assert [(entry.name, entry.attributes.inode) for entry in entries] == [(b".", d), (b"..", TOP)]
    assert volume.readdir(d, 2, 5) == []
