"""`fsck` finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from fs_server.check import check_volume
from fs_server.layout import DATA_NAME, METADATA_NAME, VolumeError

from .support import ROOT, TOP, assert_sound, make_file, new_volume

DAMAGES = [
    ("DELETE FROM inode WHERE number = 4", "every entry names an inode"),
    ("UPDATE entry SET directory = 4 WHERE name = x'66'", "entries lie in directories"),
    ("UPDATE inode SET sequence = 3 WHERE number = 1", "sequence numbers are below"),
    ("UPDATE inode SET links = 5 WHERE number = 4", "as many entries as links"),
    ("DELETE FROM entry WHERE name = x'66'", "as many entries as links"),
    ("UPDATE inode SET links = 9 WHERE number = 1", "two links and one for each"),
    ("UPDATE inode SET parent = 3 WHERE number = 2", "one entry, in its parent"),
    ("INSERT INTO entry VALUES(1, x'7a', 2, 3)", "one entry, in its parent"),
    ("UPDATE inode SET parent = 3 WHERE number IN (2, 3)", "reached from the root"),
    ("UPDATE inode SET parent = 3 WHERE number = 1", "its own parent"),
    ("UPDATE inode SET parent = 1 WHERE number = 4", "only nameless files have a parent"),
    ("UPDATE extent SET inode = 2", "extents belong to files"),
    ("UPDATE extent SET count = 9", "blocks is the sum"),
    ("UPDATE extent SET start = 99999999", "inside the volume"),
    ("UPDATE extent SET count = 0", "inside the volume"),
    ("INSERT INTO extent VALUES(4, 50, 0, 2)", "extents are disjoint"),
    ("INSERT INTO extent VALUES(4, 1, 500, 2)", "extents are disjoint"),
    ("INSERT INTO extent VALUES(4, 2, 2, 2)", "adjoining extents are one"),
    ("UPDATE inode SET size = -1 WHERE number = 4", "sizes are possible"),
    ("UPDATE inode SET target = NULL WHERE number = 5", "sizes are possible"),
    ("UPDATE inode SET mode = 0 WHERE number = 4", "kinds are known"),
    ("INSERT INTO attribute VALUES(99, x'61', x'61')", "attributes belong to inodes"),
    ("UPDATE volume SET value = 3 WHERE key = 'next_inode'", "numbers are below the next"),
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A volume with 2: a/, 3: a/b/, 4: f of two blocks, 5: a symbolic link."""
    path = tmp_path / "volume"
    volume = new_volume(path)
    a = volume.mkdir(ROOT, TOP, b"a", 0o755).inode
    assert volume.mkdir(ROOT, a, b"b", 0o755).inode == 3
    f = make_file(volume, b"f", b"x" * 5000).inode
    volume.setxattr(ROOT, f, b"user.x", 0, b"v")
    assert volume.symlink(ROOT, TOP, b"s", b"target").inode == 5
    volume.close()
    return path


def test_a_sound_volume_has_no_findings(directory: Path) -> None:
    assert_sound(directory)


@pytest.mark.parametrize(("statement", "rule"), DAMAGES)
def test_damage_is_found_and_named(directory: Path, statement: str, rule: str) -> None:
    connection = apsw.Connection(str(directory / METADATA_NAME))
    connection.execute(statement)
    connection.close()
    findings = [str(finding) for finding in check_volume(directory)]
    assert any(rule in finding for finding in findings), findings


def test_a_cut_data_file_is_found(directory: Path) -> None:
    with (directory / DATA_NAME).open("r+b") as data:
        data.truncate(4096)
    assert "the data file is complete" in str(check_volume(directory)[0])


def test_a_ruined_database_is_an_error(directory: Path) -> None:
    path = directory / METADATA_NAME
    octets = bytearray(path.read_bytes())
    octets[1024:] = b"\xff" * (len(octets) - 1024)
    path.write_bytes(octets)
    with pytest.raises(VolumeError, match="damaged"):
        check_volume(directory)


def test_checking_changes_nothing(directory: Path) -> None:
    def look() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    before = look()
    check_volume(directory)
    after = look()
    assert {name: octets for name, octets in after.items() if octets} == {
        name: octets for name, octets in before.items() if octets
    }
