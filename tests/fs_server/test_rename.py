"""`rename`: every rule of rename(2) and renameat2(2)."""

from __future__ import annotations

import pytest

from fs_server.interface import RENAME_EXCHANGE, RENAME_NOREPLACE, Changes
from fs_server.volume import Volume

from .support import ALICE, ROOT, TOP, make_file, names_in, refused


@pytest.fixture
def tree(volume: Volume) -> dict[bytes, int]:
    """a/ with a/b/ with a/b/f; empty/; f; g."""
    a = volume.mkdir(ROOT, TOP, b"a", 0o755).inode
    b = volume.mkdir(ROOT, a, b"b", 0o755).inode
    return {
        b"a": a,
        b"b": b,
        b"inner": volume.mknod(ROOT, b, b"f", 0o100644, 0).inode,
        b"empty": volume.mkdir(ROOT, TOP, b"empty", 0o755).inode,
        b"f": make_file(volume, b"f", b"F").inode,
        b"g": make_file(volume, b"g", b"G").inode,
    }


def move(volume: Volume, old: bytes, new: bytes, flags: int = 0) -> str:
    return refused(volume.rename, ROOT, TOP, old, TOP, new, flags)


def test_a_file_replaces_a_file(volume: Volume, tree: dict[bytes, int]) -> None:
    before = volume.getattr(tree[b"f"])
    assert move(volume, b"f", b"g") == ""
    after = volume.lookup(ROOT, TOP, b"g")
    assert after.inode == tree[b"f"]
    assert (after.mtime, after.ctime > before.ctime) == (before.mtime, True)
    assert refused(volume.getattr, tree[b"g"]) == "ESTALE"


def test_kinds_must_fit(volume: Volume, tree: dict[bytes, int]) -> None:
    assert move(volume, b"a", b"f") == "ENOTDIR"
    assert move(volume, b"f", b"a") == "EISDIR"
    assert move(volume, b"empty", b"a") == "ENOTEMPTY"
    assert move(volume, b"a", b"empty") == ""
    assert volume.lookup(ROOT, TOP, b"empty").inode == tree[b"a"]
    assert refused(volume.getattr, tree[b"empty"]) == "ESTALE"
    assert volume.getattr(TOP).links == 3


def test_a_directory_does_not_go_into_itself(volume: Volume, tree: dict[bytes, int]) -> None:
    a, b = tree[b"a"], tree[b"b"]
    assert refused(volume.rename, ROOT, TOP, b"a", a, b"x", 0) == "EINVAL"
    assert refused(volume.rename, ROOT, TOP, b"a", b, b"x", 0) == "EINVAL"
    assert refused(volume.rename, ROOT, b, b"f", TOP, b"a", 0) == "ENOTEMPTY"
    assert refused(volume.rename, ROOT, b, b"f", TOP, b"a", RENAME_EXCHANGE) == "EINVAL"


def test_a_moved_directory_has_a_new_parent(volume: Volume, tree: dict[bytes, int]) -> None:
    a, b, empty = tree[b"a"], tree[b"b"], tree[b"empty"]
    volume.rename(ROOT, a, b"b", empty, b"c", 0)
    assert volume.lookup(ROOT, b, b"..").inode == empty
    assert (volume.getattr(a).links, volume.getattr(empty).links) == (2, 3)
    assert names_in(volume, a) == []


def test_nothing_happens_between_two_names_of_one_file(
    volume: Volume, tree: dict[bytes, int]
) -> None:
    volume.link(ROOT, tree[b"f"], TOP, b"h")
    before = volume.getattr(tree[b"f"])
    assert move(volume, b"f", b"h") == ""
    assert move(volume, b"f", b"f") == ""
    assert volume.getattr(tree[b"f"]) == before
    assert sorted(names_in(volume, TOP)) == [b"a", b"empty", b"f", b"g", b"h"]


def test_flags_are_obeyed(volume: Volume, tree: dict[bytes, int]) -> None:
    assert move(volume, b"f", b"g", RENAME_NOREPLACE) == "EEXIST"
    assert move(volume, b"f", b"n", RENAME_EXCHANGE) == "ENOENT"
    assert move(volume, b"f", b"n", RENAME_NOREPLACE) == ""
    for flags in (RENAME_NOREPLACE | RENAME_EXCHANGE, 4, 8, -1, 1 << 70):
        assert move(volume, b"n", b"g", flags) == "EINVAL"


def test_exchange_swaps_anything(volume: Volume, tree: dict[bytes, int]) -> None:
    a, b, f = tree[b"a"], tree[b"b"], tree[b"f"]
    volume.rename(ROOT, a, b"b", TOP, b"f", RENAME_EXCHANGE)
    assert volume.lookup(ROOT, TOP, b"f").inode == b
    assert volume.lookup(ROOT, a, b"b").inode == f
    assert volume.lookup(ROOT, b, b"..").inode == TOP
    assert (volume.getattr(a).links, volume.getattr(TOP).links) == (2, 5)


def test_dots_are_busy(volume: Volume, tree: dict[bytes, int]) -> None:
    a = tree[b"a"]
    assert refused(volume.rename, ROOT, a, b".", TOP, b"x", 0) == "EBUSY"
    assert refused(volume.rename, ROOT, a, b"b", a, b"..", 0) == "EBUSY"
    assert refused(volume.rename, ROOT, a, b"b", a, b"..", RENAME_NOREPLACE) == "EEXIST"


def test_what_is_not_there_is_not_moved(volume: Volume, tree: dict[bytes, int]) -> None:
    assert move(volume, b"x", b"y") == "ENOENT"
    assert refused(volume.rename, ROOT, tree[b"f"], b"x", TOP, b"y", 0) == "ENOTDIR"
    assert refused(volume.rename, ROOT, 999, b"x", TOP, b"y", 0) == "ESTALE"


def test_a_replaced_open_file_stays_until_its_release(
    volume: Volume, tree: dict[bytes, int]
) -> None:
    volume.open(ROOT, tree[b"g"], 0, 9)
    assert move(volume, b"f", b"g") == ""
    assert volume.read(tree[b"g"], 0, 10) == b"G"
    volume.release(tree[b"g"], 9)
    assert refused(volume.getattr, tree[b"g"]) == "ESTALE"


def test_kinds_are_looked_at_before_the_directory_that_moves(
    volume: Volume, tree: dict[bytes, int]
) -> None:
    """As the host does: whoever may not write the moved directory hears that first."""
    shared = volume.mkdir(ROOT, TOP, b"shared", 0o777).inode
    volume.setattr(ROOT, shared, Changes(mode=0o777))
    volume.mknod(ROOT, shared, b"file", 0o100644, 0)
    assert refused(volume.rename, ALICE, TOP, b"a", shared, b"file", 0) == "ENOTDIR"
    assert refused(volume.rename, ALICE, TOP, b"a", shared, b"new", 0) == "EACCES"
