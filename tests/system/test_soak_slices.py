"""A short, seeded slice of each soak program: what hours of it are about holds for seconds, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.soak.files import files
from tests.soak.frames import frames
from tests.soak.run import Run
from tests.soak.storm import storm

pytestmark = [pytest.mark.slow, pytest.mark.needs_root, pytest.mark.needs_fuse]


def slice_of(program: Callable[[Run], None], seconds: float, seed: int) -> Run:
    """Run a program for a while and fail with what it lost."""
    lines: list[str] = []
    run = Run(program.__name__, seconds, seed, lines.append)
    program(run)
    assert not run.losses, "\n".join([run.verdict(), *lines])
    return run


def test_work_goes_on_while_servers_are_killed() -> None:
    counts = slice_of(storm, 6, 7).counts
    assert counts["kills"] > 0
    assert counts["commands"] > 0
    assert counts["files compared"] > 0


def test_volumes_do_what_the_host_does_and_survive_disasters() -> None:
    counts = slice_of(files, 3, 7).counts
    assert counts["disasters"] >= 30
    assert counts["operations"] >= 3000


def test_no_frame_keeps_the_system_from_answering() -> None:
    counts = slice_of(frames, 3, 7).counts
    assert counts["bursts answered"] > 0
    assert counts["frames at the device"] > 1000
