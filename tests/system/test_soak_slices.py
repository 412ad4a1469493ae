"""A short, seeded slice of each soak program: what hours of it are about holds for seconds, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.system import mending
from fs_server import server as file_server
from fs_server.server import FileServer
from tests.soak.__main__ import unlucky
from tests.soak.changes import Changer
from tests.soak.crashes import crashes
from tests.soak.cycles import cycles
from tests.soak.door import opened
from tests.soak.file_servers import (
    FROM_RECORD,
    ForgetfulFileServer,
    UnluckyFileServer,
    describe_with,
)
from tests.soak.files import files
from tests.soak.frames import frames
from tests.soak.run import LossError, Run
from tests.support.live_system import NO_DEVICES, LiveSystem

pytestmark = [pytest.mark.slow, pytest.mark.needs_root, pytest.mark.needs_fuse]


def slice_of(program: Callable[[Run], None], seconds: float, seed: int) -> Run:
    """Run a program for a while and fail with what it lost."""
    lines: list[str] = []
    run = Run(getattr(program, "__name__", ""), seconds, seed, lines.append, small=True)
    program(run)
    assert not run.losses, "\n".join([run.verdict(), *lines])
    return run


@pytest.mark.timeout(180)  # a busy machine makes much of a little work
def test_work_goes_on_while_servers_are_killed() -> None:
    counts = slice_of(unlucky, 6, 7).counts
    assert counts["kills"] > 0
    assert counts["commands"] > 0
    assert counts["files compared"] > 0
    assert counts["operations"] > 0
    assert counts["builds"] > 0
    assert counts["answers from the record"] > 0


def changed_under_deaths(server: type[FileServer], deaths: int) -> str:
    """Change names until the file server has died so often; return the first loss."""
    system = LiveSystem("answers")
    try:
        system.up("--system", str(describe_with(server, system.top)), *NO_DEVICES)
        with opened(system) as door:
            changer = Changer(door, b"names")
            while door.tasks()["fs"].generation < deaths:
                changer.round()
            changer.leave()
        log = system.run.log_path.read_text()
    except LossError as error:
        return str(error)
    finally:
        system.close()
    assert FROM_RECORD in log
    return ""


def test_a_death_between_a_change_and_its_answer_is_harmless_because_of_the_record() -> None:
    assert not changed_under_deaths(UnluckyFileServer, 3)


def test_the_same_deaths_are_found_out_when_nobody_looks_into_the_record() -> None:
    loss = changed_under_deaths(ForgetfulFileServer, 3)
    assert "File exists" in loss or "No such file" in loss, loss


def test_volumes_do_what_the_host_does_and_survive_disasters() -> None:
    counts = slice_of(files, 3, 7).counts
    assert counts["disasters"] >= 30
    assert counts["operations"] >= 3000


def test_no_frame_keeps_the_system_from_answering() -> None:
    counts = slice_of(frames, 3, 7).counts
    assert counts["bursts answered"] > 0
    assert counts["frames at the device"] > 1000


def test_crash_points_of_random_histories_lose_nothing() -> None:
    counts = slice_of(crashes, 1, 7).counts
    assert counts["write points"] > 50
    assert counts["power cuts"] > 50
    assert counts["message boundaries"] > 15


@pytest.mark.timeout(180)
def test_deaths_of_servers_and_clients_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is held is counted, before and after, when no timer is armed any more: when deaths of
    # the supervisor are forgiven, and all changes of files are durable.
    monkeypatch.setattr(mending, "_PERIOD_S", 1.0)
    monkeypatch.setattr(file_server, "SYNC_PERIOD_S", 0.25)
    counts = slice_of(lambda run: cycles(run, 100), 1000, 7).counts
    assert counts["cycles"] >= 160
    assert counts["visitors"] >= 20
