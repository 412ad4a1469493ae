"""The mount over the real file server and a real volume, in both placements, used by programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.mount_point import mounted
from tests.support.volume_mount import VolumeMount

pytestmark = [pytest.mark.needs_fuse, pytest.mark.slow]


@pytest.fixture(params=["colocated", "process"], scope="module")
def system(request: pytest.FixtureRequest, front_end_name: str) -> Iterator[VolumeMount]:
    """A system that all tests here use, one after the other."""
    with tempfile.TemporaryDirectory(prefix="atoll-mount-") as place:
        system = VolumeMount(request.param, place, front_end_name)
        try:
            yield system
        finally:
            system.end()
        assert mounted(Path(place)) is None


@pytest.fixture
def volume(system: VolumeMount) -> Iterator[VolumeMount]:
    """The system with an empty volume."""
    assert os.listdir(system.path) == []
    yield system
    system.shell("rm -rf -- * .[!.]*")


def test_trees_survive_a_round_trip(volume: VolumeMount) -> None:
    source = Path(shutil.__file__).parent / "json"
    volume.shell(
        f"""
        cp -a {source} copy; diff -r {source} copy
        tar cf t.tar copy; mkdir out; tar xf t.tar -C out; diff -r copy out/copy
        ln copy/__init__.py hard; test $(stat -c %h hard) = 2; mv copy moved; rm -r moved out
        test $(stat -c %h hard) = 1; truncate -s 1152921504606846976 huge; rm huge
        """
    )


def test_databases_and_repositories_work(volume: VolumeMount) -> None:
    volume.shell(
        """
        export HOME=$PWD
        git init -q r; cd r; seq 999 > f; git add f
        git -c user.name=a -c user.email=a@b commit -qm one; git fsck; cd ..
        sqlite3 d.db 'pragma journal_mode=wal; create table t(a); insert into t values (1),(2)'
        sqlite3 d.db 'select sum(a) from t' | grep -x 3
        """
    )


def see(path: Path, text: bytes | None) -> None:
    """Wait until a file shows a text, or is gone: a notification takes its way by itself."""
    seen: bytes | None = None
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            seen = path.read_bytes()
        except FileNotFoundError:
            seen = None
        if seen == text:
            return
    assert seen == text


def test_other_clients_changes_are_seen_in_open_files(volume: VolumeMount) -> None:
    path = volume.path / "f"
    path.write_bytes(b"from the mount")
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert os.pread(descriptor, 100, 0) == b"from the mount"
        volume.other("write f FROM")
        see(path, b"FROM the mount")
        assert os.pread(descriptor, 100, 0) == b"FROM the mount"
        volume.other("truncate f 4")
        see(path, b"FROM")
        assert os.fstat(descriptor).st_size == 4
        volume.other("write f longer-than-before")
        see(path, b"longer-than-before")
        assert os.fstat(descriptor).st_size == 18
        missing = volume.path / "g"
        assert not missing.exists()
        volume.other("rename f g")
        see(missing, b"longer-than-before")
        volume.other("unlink g")
        see(missing, None)
        assert os.pread(descriptor, 100, 0) == b"longer-than-before"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("system", ["process"], indirect=True)
def test_killed_file_server_costs_no_call_and_open_files_stay(volume: VolumeMount) -> None:
    path = volume.path / "open"
    with path.open("w+b", buffering=0) as file:
        file.write(b"before")
        path.unlink()
        copying = subprocess.Popen(
            "for i in $(seq 20); do head -c 300000 /dev/zero > f$i; cmp f$i f1; mkdir d$i; done",
            shell=True,
            cwd=volume.path,
            stderr=subprocess.PIPE,
        )
        for _ in range(5):
            volume.other("kill")
            file.write(b".")
        _, errors = copying.communicate(timeout=60)
        assert (copying.returncode, errors) == (0, b"")
        assert os.pread(file.fileno(), 100, 0) == b"before....."
    assert len(list(volume.path.glob("d*"))) == 20
    path.write_bytes(b"cached by the host")
    assert path.read_bytes() == b"cached by the host"
    volume.other("kill")
    volume.other("write open other")
    see(path, b"other" + b"cached by the host"[5:])
