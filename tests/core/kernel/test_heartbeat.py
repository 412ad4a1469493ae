"""The heartbeat's judgement, with a clock and a host of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.abi import Kind
from core.kernel.heartbeat import BEAT_S, IDLE_BEATS, Heartbeat, Look, Silence
from core.kernel.tasks import KernelTask, Watch

from .test_line import Bench


class Pulse:
    """A bench whose task is watched, and what the host would say of it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.now = 0.0
        self.seen = Look("R", 0.0, 0.0)
        self.told: list[str] = []
        self.blames: list[bool] = []
        bench.task.watch = Watch(1.0, 10.0, 5.0)
        bench.line.pid = 1  # never signalled: the bench's line ends no process
        self.heart = Heartbeat(bench.kernel, lambda: self.now, self._note, lambda pid: self.seen)

    def _note(self, task: KernelTask, silence: Silence) -> None:
        self.told.append(silence.how)
        self.blames.append(silence.blames)

    def beat(self, count: int = 1, passed_s: float = BEAT_S) -> None:
        """Let time pass."""
        for _ in range(count):
            self.now += passed_s
            self.heart.beat()

    def work(self, user_s: float, state: str = "R", system_s: float = 0.0) -> None:
        """Let the task have used processor time."""
        self.seen = Look(state, self.seen.user_s + user_s, self.seen.system_s + system_s)


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    """A watched task that has requests."""
    bench = Bench()
    yield Pulse(bench)
    bench.close()


def test_an_idle_task_is_asked_now_and_then_and_its_answer_is_enough(pulse: Pulse) -> None:
    for _ in range(3):
        pulse.beat(IDLE_BEATS + 2)
        assert pulse.bench.server.receive().kind == Kind.PING
        pulse.bench.server.send(Kind.PONG)
    pulse.beat(2)
    assert not pulse.told


def test_a_task_with_requests_is_asked_at_the_next_beat(pulse: Pulse) -> None:
    pulse.bench.call("echo", 1, "")
    assert pulse.bench.server.receive().kind == Kind.CALL
    pulse.beat(2)
    assert pulse.bench.server.receive().kind == Kind.PING


def test_one_that_uses_its_time_up_spins_and_is_told_again(pulse: Pulse) -> None:
    request = pulse.bench.call("echo", 1, "")
    pulse.beat(2)
    for _ in range(5):
        pulse.work(0.24)
        pulse.beat()
    assert pulse.told[0].startswith("spun for 1.2 s of processor time, in Probe.echo of request")
    assert pulse.told[0].endswith(str(request.id))
    assert pulse.blames == [True]
    pulse.beat(8)
    assert len(pulse.told) >= 2


def test_one_that_gets_no_processor_is_not_judged(pulse: Pulse) -> None:
    pulse.bench.call("echo", 1, "")
    pulse.beat(2)
    for _ in range(200):
        pulse.work(0.001)
        pulse.beat()
    assert not pulse.told


def test_a_wait_in_the_host_takes_longer_and_so_does_the_hosts_own_work(pulse: Pulse) -> None:
    pulse.bench.call("echo", 1, "")
    pulse.beat(2)
    pulse.work(0.1, "D", 3.0)
    pulse.beat(30)
    assert not pulse.told
    pulse.beat(20)
    assert pulse.told[0].startswith("waited for 1")


def test_one_that_is_stopped_blames_nobody(pulse: Pulse) -> None:
    pulse.beat(IDLE_BEATS + 2)
    pulse.work(0.0, "T")
    pulse.beat(5)
    assert pulse.told[0].startswith("stopped by a signal (SIGSTOP) for 1.0 s")
    assert pulse.blames == [False]


def test_a_time_in_which_the_kernel_was_stopped_does_not_count(pulse: Pulse) -> None:
    pulse.beat(IDLE_BEATS + 2)
    pulse.work(0.0, "T")
    pulse.beat(1, passed_s=100.0)
    assert not pulse.told


def test_a_sign_that_nobody_has_read_yet_counts(pulse: Pulse) -> None:
    pulse.bench.call("echo", 1, "")
    pulse.beat(2)
    pulse.work(50.0)
    pulse.bench.server.send(Kind.PONG)
    pulse.beat(3)
    assert not pulse.told


def test_who_may_be_silent_is_not_even_asked(pulse: Pulse) -> None:
    pulse.bench.task.watch = Watch(0.0)
    pulse.work(50.0, "T")
    pulse.beat(20)
    assert not pulse.told
    pulse.bench.call("echo", 1, "")
    assert pulse.bench.server.receive().kind == Kind.CALL
