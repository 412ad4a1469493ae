"""The supervisor's decisions, with a task that only notes what it is asked."""

from __future__ import annotations

import os
from typing import Any

import pytest

from core.abi import Right
from core.errors import TaskError
from core.system.supervisor import FREE_DEATHS, LONGEST_DELAY_S, SupervisorServer
from core.userlib.kernel_calls import Verdict
from core.userlib.task import Task


class FakeTask(Task):
    """Notes what it is asked."""

    def __init__(self, **policy: Any) -> None:
        self.name = "supervisor"
        self.options = {"policies": {"fs": policy}}
        self.rights: dict[str, Right] = {}
        self.spawned: list[str] = []
        self.retired: list[str] = []
        self.reasons: list[str] = []
        self.down: set[str] = set()
        self.armed: list[float] = []
        self.logged: list[str] = []
        self.killed: list[tuple[str, int]] = []
        self.halted: list[str] = []
        self.memory = -1

    def keep(self, label: str, descriptor: int) -> None:
        """Keep it."""
        self.forget(label)
        self.memory = os.dup(descriptor)

    def kept(self, label: str) -> int | None:
        """Give it back."""
        return os.dup(self.memory) if self.memory >= 0 else None

    def forget(self, label: str) -> None:
        """Close it."""
        if self.memory >= 0:
            os.close(self.memory)
        self.memory = -1

    def kill(self, name: str, generation: int, reason: str) -> None:
        """Note it."""
        if name in self.down:
            raise TaskError(f"task {name} is down")
        self.killed.append((name, generation))

    def halt(self, reason: str) -> None:
        """Note it."""
        self.halted.append(reason)

    def spawn(self, name: str) -> None:
        """Note it."""
        if name == "running":
            raise TaskError("task running is running")
        self.spawned.append(name)

    def retire(self, name: str, reason: str) -> None:
        """Note it."""
        self.retired.append(name)
        self.reasons.append(reason)

    def arm(self, delay_s: float, bits: int) -> int:
        """Note it."""
        self.armed.append(delay_s)
        return 1

    def log(self, text: str) -> None:
        """Note it."""
        self.logged.append(text)


FakeTask.__abstractmethods__ = frozenset()


class Bench:
    """A supervisor under a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **policy: Any) -> None:
        self.now = 1000.0
        self.task = FakeTask(**policy)  # type: ignore[abstract]
        self.server = SupervisorServer(self.task)
        self.generation = -1
        monkeypatch.setattr("core.system.supervisor.time.monotonic", lambda: self.now)

    def die(
        self,
        *,
        orderly: bool = False,
        reason: str = "trace\nKeyError: 1\n",
        started: bool = False,
    ) -> Verdict:
        """Tell of a death of `fs`."""
        self.generation += 1
        return self.server.died("fs", self.generation, reason, orderly, started)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A supervisor of a permanent server."""
    return Bench(monkeypatch)


def test_a_death_now_and_then_is_mended_at_once(bench: Bench) -> None:
    for _ in range(200):
        bench.die()
        bench.now += 5
    assert bench.task.spawned == ["fs"] * 200
    assert not bench.task.armed
    assert not bench.task.retired
    assert "KeyError: 1" in bench.task.logged[0]


def test_leave_is_given_for_a_death_whose_decision_is_certain(bench: Bench) -> None:
    for number in range(1, FREE_DEATHS + 2):
        assert bench.die().leave == (number < FREE_DEATHS)


@pytest.mark.parametrize(
    "policy", [{"restart": "transient"}, {"intensity": 1}, {"dependents": ["other"]}], ids=str
)
def test_no_leave_is_given_where_the_cause_or_the_count_matters(
    monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any]
) -> None:
    assert not Bench(monkeypatch, **policy).die().leave


def test_no_leave_is_given_while_a_server_is_ended_with_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch)
    bench.server._restart_with("other", ["fs"])
    assert not bench.die(started=True).leave  # it died by itself, a moment before
    assert bench.die().decision == "restarted with other"


def test_a_server_that_was_started_with_leave_is_not_started_twice(bench: Bench) -> None:
    assert bench.die(started=True).decision == "started again at once"
    assert not bench.task.spawned
    assert bench.die().leave
    assert bench.task.spawned == ["fs"]


def test_deaths_that_were_mended_with_leave_count(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, intensity=3)
    for _ in range(3):
        bench.die(started=True)
    bench.die(started=True)
    assert bench.task.retired == ["fs"]


def test_the_more_deaths_the_longer_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, intensity=1000, period_s=100.0)
    for _ in range(FREE_DEATHS + 30):
        bench.die()
    assert len(bench.task.spawned) == FREE_DEATHS
    assert bench.task.armed == sorted(bench.task.armed)
    assert len(set(bench.task.armed)) > 3
    assert bench.task.armed[-1] == LONGEST_DELAY_S


def test_a_delayed_start_happens_when_its_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, intensity=1000, period_s=100.0)
    for _ in range(FREE_DEATHS + 1):
        bench.die()
    started = len(bench.task.spawned)
    bench.server.notified(1)
    assert len(bench.task.spawned) == started
    bench.now += bench.task.armed[-1]
    bench.server.notified(1)
    bench.server.notified(1)
    assert len(bench.task.spawned) == started + 1


def test_more_deaths_than_the_intensity_give_a_server_up(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, intensity=3, period_s=10.0)
    for _ in range(3):
        bench.die()
    assert not bench.task.retired
    bench.die()
    assert bench.task.retired == ["fs"]
    assert len(bench.task.spawned) == 3


def test_deaths_outside_the_period_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, intensity=3, period_s=10.0)
    for _ in range(20):
        bench.die()
        bench.now += 4
    assert not bench.task.retired


@pytest.mark.parametrize(
    ("restart", "orderly", "again"),
    [
        ("permanent", True, True),
        ("permanent", False, True),
        ("transient", True, False),
        ("transient", False, True),
        ("temporary", True, False),
        ("temporary", False, False),
    ],
)
def test_a_policy_decides_after_which_ends_a_server_comes_back(
    monkeypatch: pytest.MonkeyPatch, restart: str, orderly: bool, again: bool
) -> None:
    bench = Bench(monkeypatch, restart=restart)
    bench.die(orderly=orderly)
    assert bool(bench.task.spawned) == again
    assert bool(bench.task.retired) != again


def test_a_death_told_twice_is_mended_once(bench: Bench) -> None:
    bench.die()
    bench.server.died("fs", bench.generation, "down while the supervisor was", False, False)
    assert bench.task.spawned == ["fs"]


def test_a_server_that_runs_already_is_left_alone(bench: Bench) -> None:
    bench.server.died("running", 0, "", False, False)
    assert any("not started" in line for line in bench.task.logged)
    assert not bench.task.spawned


def test_last_words_of_any_shape_are_logged(bench: Bench) -> None:
    for reason in ("", " \n ", "\n\n", "x" * 4000):
        bench.die(reason=reason)
    assert len(bench.task.spawned) == 4
