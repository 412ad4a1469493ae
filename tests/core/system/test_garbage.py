"""What a dead incarnation held is freed by its death, not by a collector that may come late."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from collections.abc import Iterator

import pytest
import trio

from core.kernel.line import KernelLine
from core.kernel.tasks import State
from core.system.boot import Prepared, booted
from core.system.description import parse_description

_TEXT = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.names]
class = "core.system.names:NameServer"
"""
DEATHS = 3


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Have only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
async def test_a_dead_incarnation_leaves_no_garbage() -> None:
    log: list[str] = []
    prepared = Prepared(parse_description(_TEXT, "garbage"))
    dead: list[weakref.ref[object]] = []
    async with booted(prepared, log.append) as system:
        names = system.task("names")
        for _ in range(DEATHS):
            line = names.engine
            assert isinstance(line, KernelLine)
            assert line.reports is not None  # it is confined: the listener is what knows its line
            assert line.pid > 0
            dead += [weakref.ref(line), weakref.ref(line.reports)]
            generation = names.id.generation
            os.kill(line.pid, signal.SIGKILL)
            del line
            with trio.fail_after(20):
                while names.id.generation == generation or names.state is not State.RUNNING:
                    await system.wait_changed()
        assert [ref() for ref in dead] == [None] * len(dead)
    prepared.close()
