"""Every way to end, as a user sees it: the system goes on, and `atoll why` names what it was."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from core.errors import PoisonError
from core.userlib.joined import join
from core.userlib.task import complete
from mount.obstacle import NOT_RUNNING
from tests.support.afflicted import Afflicted
from tests.support.live_system import COMMAND_TIMEOUT_S, NO_DEVICES, LiveSystem

pytestmark = pytest.mark.slow

_DESCRIPTION = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.sick]
class = "tests.support.afflicted:AfflictedServer"
options = {{ journal = "{directory}/journal" }}
writes = ["{directory}"]
memory_mib = 64
silence_s = 0.5

[joined]
grants = {{ sick = "sick" }}
"""
_WAYS = {
    "halt": "stopped by a signal (SIGSTOP)",
    "spin": "processor time, in Afflicted.spin of request",
    "hog": "ran out of memory (MemoryError: under a limit of",
    "fail": "exception ZeroDivisionError",
    "leave": "exited by itself with status 3",
    "crash": "segmentation fault (SIGSEGV)",
}


@pytest.fixture
def system() -> Iterator[LiveSystem]:
    """A system of one afflicted server, up."""
    found = LiveSystem("why")
    try:
        description = found.top / "why.toml"
        description.write_text(_DESCRIPTION.format(directory=found.top))
        found.up("--system", str(description), *NO_DEVICES)
        yield found
    finally:
        found.close()


def _pid(system: LiveSystem) -> int:
    tasks = json.loads(system.atoll("ps", "--json").stdout)
    return next(int(task["pid"]) for task in tasks if task["name"] == "sick")


def test_each_way_is_recovered_and_named(system: LiveSystem) -> None:
    with join(system.run.control_path) as task:
        sick = task.connect(Afflicted, "sick")
        for way in _WAYS:
            if way == "halt":  # a confined server cannot stop itself
                os.kill(_pid(system), signal.SIGSTOP)
                assert complete(sick.halt(0)) == 1
            else:
                assert complete(getattr(sick, way)(1)) == 2
        with pytest.raises(PoisonError):
            complete(sick.crash(100))
    told = json.loads(system.atoll("why", "sick", "--json", "--last", "20").stdout)
    assert len(told) == len(_WAYS) + 3
    for record, cause in zip(told, _WAYS.values(), strict=False):
        assert cause in record["cause"]
        assert record["decision"] == "started again at once"
        assert record["restart_s"] > 0
    assert told[-1]["messages"][-1]["state"] == "poison"
    read = system.atoll("why", "sick", "--last", "1").stdout
    assert "segmentation fault (SIGSEGV)" in read
    assert "poison    request" in read
    assert "in crash_now" in read
    counts = system.atoll("why").stdout
    assert "segmentation fault" in counts
    assert "supervisor  running" in counts


def test_why_a_server_ended_can_still_be_read_when_the_system_is_dead(system: LiveSystem) -> None:
    with join(system.run.control_path) as task:
        assert complete(task.connect(Afflicted, "sick").crash(1)) == 2
    os.kill(system.kernel, signal.SIGKILL)
    end = time.monotonic() + COMMAND_TIMEOUT_S
    while system.run.is_alive():
        assert time.monotonic() < end
        os.sched_yield()
    done = system.atoll("why", "sick")
    assert done.returncode == NOT_RUNNING
    assert "segmentation fault (SIGSEGV)" in done.stdout
