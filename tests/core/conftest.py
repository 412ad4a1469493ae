"""Fixtures: a small system in either placement. Its zygote is forked before trio runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.system.boot import Prepared
from tests.support.small_system import Small, prepare, running


@pytest.fixture(params=["process", "colocated"])
def placement(request: pytest.FixtureRequest) -> str:
    """Where the servers run."""
    return str(request.param)


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Restart policy of the server `mortal`; a test's `policy` marker-free override."""
    return {}


@pytest.fixture
def prepared(placement: str, tmp_path: Path, policy: dict[str, Any]) -> Iterator[Prepared]:
    """A forked zygote; this fixture is no async one, so trio does not run yet."""
    made = prepare(placement, tmp_path / "journal", **policy)
    yield made
    made.close()


@pytest.fixture
async def small(prepared: Prepared, placement: str, tmp_path: Path) -> AsyncIterator[Small]:
    """A booted small system. A mistake of the kernel's own fails the test."""
    async with running(prepared, placement, tmp_path / "journal") as found:
        yield found
