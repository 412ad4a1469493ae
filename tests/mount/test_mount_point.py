"""What stands in the way of a mount is named, with its cause and a remedy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mount import mount_point
from mount.mount_point import (
    MountError,
    check_allow_other,
    check_device,
    is_stale,
    mounted,
    prepare,
    unescape,
)


def test_directory_that_is_missing_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(MountError) as caught:
        prepare(tmp_path / "nowhere")
    error = caught.value
    assert error.thing == str(tmp_path / "nowhere")
    assert "does not exist" in str(error)
    assert "mkdir" in error.remedy


def test_file_is_no_mount_point(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(MountError, match="is no directory"):
        prepare(tmp_path / "f")


def test_directory_with_files_is_refused_unless_hiding_them_is_meant(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(MountError, match="not empty"):
        prepare(tmp_path)
    assert prepare(tmp_path, nonempty=True) == tmp_path


def test_mount_point_in_use_is_refused_with_its_type() -> None:
    with pytest.raises(MountError, match=r"something is mounted there already \(type proc\)"):
        prepare("/proc")


def test_symbolic_links_on_the_way_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real/mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "last").symlink_to("real/mnt")
    for way in ("link/mnt", "last"):
        assert prepare(tmp_path / way) == (tmp_path / "real/mnt").resolve()


def test_live_directory_is_not_stale(tmp_path: Path) -> None:
    assert not is_stale(tmp_path)
    assert not is_stale(tmp_path / "nowhere")
    assert mounted(tmp_path) is None


def test_escapes_of_the_mount_table_are_undone() -> None:
    assert unescape(r"/a\040b\134c\011") == "/a b\\c\t"
    assert unescape("/plain") == "/plain"


def test_missing_device_names_the_module_to_load(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="modprobe fuse"):
        check_device(tmp_path / "fuse")


def test_closed_device_names_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "fuse"
    device.touch(mode=0o600)

    def closed(path: object, flags: int) -> int:
        raise PermissionError(13, "closed")

    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(MountError, match=r"mode 0600.*chmod 0666") as caught:
        check_device(device)
    assert caught.value.thing == str(device)


def test_missing_fusermount3_is_named_to_an_ordinary_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fuse").touch()
    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_device(tmp_path / "fuse")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MountError, match="apt install fuse3"):
        check_device(tmp_path / "fuse")


def test_user_without_a_name_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fuse").touch()
    monkeypatch.setattr(shutil, "which", lambda program: "/bin/fusermount3")
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    with pytest.raises(MountError, match=r"uid 4000000000: has no entry in /etc/passwd"):
        check_device(tmp_path / "fuse")


def test_allow_other_needs_the_hosts_configuration_unless_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_allow_other(conf)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for text in ("", "#user_allow_other\n"):
        conf.write_text(text)
        with pytest.raises(MountError, match="user_allow_other"):
            check_allow_other(conf)
    conf.write_text("# comment\n user_allow_other \n")
    check_allow_other(conf)


def test_dead_mount_that_cannot_be_detached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_point, "is_stale", lambda path: True)
    monkeypatch.setattr(mount_point, "detach", lambda path: False)
    with pytest.raises(MountError, match="fusermount3 -u -z"):
        prepare(tmp_path)
