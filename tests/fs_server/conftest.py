"""Fixtures of the file server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fs_server.volume import Volume

from .support import Clock, assert_sound, new_volume


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def volume(tmp_path: Path, clock: Clock) -> Iterator[Volume]:
    """An empty volume of 64 MiB; after the test it must be sound."""
    opened = new_volume(tmp_path / "volume", clock=clock)
    yield opened
    opened.close()
    assert_sound(tmp_path / "volume")
