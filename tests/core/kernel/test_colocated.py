"""Promoted servers: the same promises as those with a process of their own, kept another way."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from core.abi import Right
from core.errors import TaskError
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from core.userlib.interface import Interface, operation
from core.userlib.server import Server
from core.userlib.task import Task
from tests.support.servers import Probe
from tests.support.small_system import Small

EMPTY = parse_description("", "empty")


class Nested(Interface):
    """Operations that send to their own server."""

    @operation
    async def go(self, depth: int) -> int:
        """Send `note` and notify oneself in the middle of a handler."""

    @operation
    async def note(self, text: str) -> None:
        """Note something."""

    @operation
    async def fail_at_stop(self) -> None:
        """Raise when stopped."""


class NestedServer(Server):
    """Notes what happens in which order."""

    interface = Nested

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.events: list[str] = task.options["events"]
        self._mine: Right = task.mint(9)
        self._fails = False

    def go(self, depth: int) -> int:
        """See `Nested`."""
        self.events.append("go begins")
        self.task.send(self._mine, Nested.named("note"), ("sent",))
        self.task.notify(self._mine, 1)
        self.task.drop(self.task.mint(77))
        self.events.append("go ends")
        return self.request.badge

    def note(self, text: str) -> None:
        """See `Nested`."""
        self.events.append(text)

    def fail_at_stop(self) -> None:
        """See `Nested`."""
        self._fails = True

    def notified(self, bits: int) -> None:
        """Note it."""
        self.events.append("notified")

    def no_senders(self, badge: int) -> None:
        """Note it."""
        self.events.append(f"gone {badge}")

    def stop(self) -> None:
        """Fail, if told to."""
        if self._fails:
            raise RuntimeError("at the very end")


@pytest.fixture
def empty() -> Prepared:
    """A system without servers."""
    return Prepared(EMPTY)


async def nested(system: System, events: list[str]) -> Nested:
    """Bring the nested server along and return a stub for it."""
    system.add_colocated("nested", NestedServer, Nested, options={"events": events})
    await system.wait_running(["nested"])
    stub: Nested = system.connect(Nested, "nested", "user")
    return stub


async def test_a_handler_runs_to_its_end_before_anything_else_begins(empty: Prepared) -> None:
    events: list[str] = []
    async with booted(empty, lambda text: None) as system:
        stub = await nested(system, events)
        badge = await stub.go(1)
        assert badge == system.client("user").place.badge
        assert events == ["go begins", "go ends"]
        await stub.note("called later")
    assert events.index("sent") < events.index("called later")
    assert {"notified", "gone 77"} <= set(events)


async def test_a_server_that_fails_while_it_stops_hurts_nobody(empty: Prepared) -> None:
    log: list[str] = []
    async with booted(empty, log.append) as system:
        stub = await nested(system, [])
        await stub.fail_at_stop()
    assert "at the very end" in system.kernel.tasks.named("nested").last_words[-1]  # type: ignore[union-attr]


class TestPromoted:
    """A whole small system in one process."""

    @pytest.fixture
    def placement(self) -> str:
        return "colocated"

    async def test_killing_it_is_refused_with_the_remedy(self, small: Small) -> None:
        with pytest.raises(TaskError, match='placement = "process"'):
            small.kernel.kill(small.system.task("probe"))

    async def test_a_call_to_it_is_no_checkpoint(self, small: Small) -> None:
        with trio.testing.assert_no_checkpoints():
            assert await small.probe.echo(1, "") == (1, "")

    async def test_a_revoked_right_ends_hand_off(self, small: Small) -> None:
        right = await small.probe.mint(3, [])
        stub: Probe = small.on(Probe, right)
        assert await stub.echo(1, "") == (1, "")
        copy = small.user.copy(right)
        other: Probe = small.on(Probe, copy)
        small.user.revoke(right)
        with pytest.raises(Exception, match="revoked"):
            await other.echo(1, "")
        assert await stub.echo(1, "") == (1, "")

    async def test_a_fault_on_the_callers_turn_is_retried_with_the_same_id(
        self, small: Small, tmp_path: Path
    ) -> None:
        before = (await small.probe.seen()).id
        assert await small.probe.fault(1) == 2
        line = next(line for line in small.journal.lines() if line.startswith("fault"))
        assert int(line.split()[1]) > before
        assert small.journal.count(line) == 2
        assert not (await small.probe.seen()).redelivered
