"""Where running systems are known by name: who lives, who is stale, and what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from mount.obstacle import NOT_RUNNING, ObstacleError
from mount.run_directory import (
    OVERRIDE,
    SOCKET_PATH_LIMIT,
    Record,
    RunDirectory,
    check_name,
    find_system,
    list_systems,
    roots,
    started,
)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of its own for each test, with a name short enough for sockets."""
    place = tmp_path / "r"
    monkeypatch.setenv(OVERRIDE, str(place))
    monkeypatch.setattr("mount.run_directory.SOCKET_PATH_LIMIT", 4096)
    return place


def _bury(run: RunDirectory, **changes: object) -> None:
    """Make it look as if the system's process had died."""
    record = run.record()
    assert record is not None
    buried = msgspec.structs.replace(record, **{"started": record.started + 1, **changes})
    run.pid_path.write_bytes(msgspec.json.encode(buried))


def test_system_that_was_made_is_found_and_listed() -> None:
    run = RunDirectory.create("a")
    assert find_system("a").path == run.path
    assert [found.name for found in list_systems()] == ["a"]
    run.enter("/state", "/mountpoint")
    record = run.record()
    assert record is not None
    assert record == Record(
        os.getpid(), started(os.getpid()) or 0, record.host_boot, "/state", "/mountpoint"
    )


def test_directory_is_its_users_alone(root: Path) -> None:
    run = RunDirectory.create("a")
    for path in (root, run.path):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o066


def test_name_of_a_live_system_is_refused_to_another() -> None:
    RunDirectory.create("a")
    with pytest.raises(ObstacleError, match="is running already") as error:
        RunDirectory.create("a")
    assert "--name a down" in error.value.remedy


@pytest.mark.parametrize("change", [{}, {"host_boot": "another"}, {"pid": 2**22 + 1}])
def test_stale_directory_is_no_system_and_its_name_is_free(change: dict[str, object]) -> None:
    run = RunDirectory.create("a")
    _bury(run, **change)
    assert not run.is_alive()
    assert list_systems() == []
    with pytest.raises(ObstacleError):
        find_system("a")
    assert RunDirectory.create("a").is_alive()


def test_damaged_record_is_no_system() -> None:
    run = RunDirectory.create("a")
    run.pid_path.write_text("{")
    assert run.record() is None
    assert not run.is_alive()
    RunDirectory.create("a")


def test_missing_system_is_named_with_those_that_run() -> None:
    RunDirectory.create("b")
    with pytest.raises(ObstacleError, match="system a: is not running") as error:
        find_system("a")
    assert "running: b" in error.value.remedy
    assert error.value.status == NOT_RUNNING


def test_removed_directory_leaves_nothing(root: Path) -> None:
    run = RunDirectory.create("a")
    run.log_path.write_text("x")
    run.default_mountpoint.mkdir()
    run.remove()
    assert list(root.iterdir()) == []


def test_what_others_put_there_is_not_removed() -> None:
    run = RunDirectory.create("a")
    (run.path / "theirs").write_text("x")
    run.remove()
    assert [path.name for path in run.path.iterdir()] == ["theirs"]


def test_root_that_others_may_write_is_refused(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(ObstacleError, match="only you may write"):
        RunDirectory.create("a")


def test_root_that_is_a_symbolic_link_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ObstacleError, match="only you may write"):
        RunDirectory.create("a")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "a" * 33, "ä", "a\n"])
def test_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ObstacleError, match="no name for a system"):
        check_name(name)


def test_root_too_long_for_a_socket_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mount.run_directory.SOCKET_PATH_LIMIT", SOCKET_PATH_LIMIT)
    monkeypatch.setenv(OVERRIDE, str(tmp_path / ("x" * 80)))
    with pytest.raises(ObstacleError, match="too long"):
        RunDirectory.create("a")


def test_root_is_in_run_for_root_and_private_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OVERRIDE)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert roots() == [Path("/run/atoll")]
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    assert roots() == [Path("/tmp/atoll-54321")]


def test_session_directory_comes_first_if_it_is_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(OVERRIDE)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    uid = tmp_path.stat().st_uid or 1
    if uid == 1:
        os.chown(tmp_path, 1, 1)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert roots() == [tmp_path / "atoll", Path(f"/tmp/atoll-{uid}")]
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert roots() == [Path(f"/tmp/atoll-{uid + 1}")]
