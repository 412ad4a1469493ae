"""State and replies of a server: committed together, found again, taken over by newer versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.abi import Right
from core.errors import LostError, Refused
from core.userlib.interface import Interface, operation
from core.userlib.keeping import REPLIES_KEPT, SMALL_REPLY, Keeper, in_steps
from core.userlib.server import Server, handlers_of, hooks_of, runs_again
from core.userlib.task import complete
from tests.support.keeping_servers import POINTS, Counting, CountingServer
from tests.support.keeping_task import KeepingTask


@pytest.fixture
def task() -> Iterator[KeepingTask]:
    made = KeepingTask()
    yield made
    made.close()


class Life:
    """One incarnation, and what its serve loop would do."""

    def __init__(self, task: KeepingTask, cls: type[Server] = CountingServer) -> None:
        self.server = cls(task.task)
        self.handlers = handlers_of(self.server)
        complete(hooks_of(self.server).start())

    def call(self, name: str, request: int, *arguments: Any, redelivered: bool = False) -> Any:
        about = self.server.request
        about.id, about.redelivered = request, redelivered
        return self.handlers[self.server.interface.named(name).index](*arguments)

    @property
    def keeper(self) -> Keeper:
        assert self.server.keeper is not None
        return self.server.keeper


class Machine(RuleBasedStateMachine):
    """Requests, refusals and deaths at any instant, against a plain sum."""

    def __init__(self) -> None:
        super().__init__()
        self.task = KeepingTask()
        self.life = Life(self.task)
        self.total = 0
        self.requests = 0

    def teardown(self) -> None:
        self.life.keeper.value.close()
        self.task.close()

    def reborn(self) -> None:
        self.life.keeper.value.close()
        self.life = Life(self.task)

    def number(self) -> int:
        self.requests += 1
        return self.requests

    @rule(amount=st.integers(0, 1000))
    def add(self, amount: int) -> None:
        self.total += amount
        assert self.life.call("add", self.number(), amount) == self.total

    @rule(amount=st.integers(1, 1000), point=st.sampled_from(POINTS[:-1]))
    def add_and_die(self, amount: int, point: str) -> None:
        number = self.number()
        self.total += amount
        self.life.server.die(point)  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError):
            self.life.call("add", number, amount)
        self.reborn()
        assert self.life.call("add", number, amount, redelivered=True) == self.total

    @rule(amount=st.integers(1, 1000), deaths=st.integers(1, REPLIES_KEPT))
    def add_and_be_asked_again_later(self, amount: int, deaths: int) -> None:
        number = self.number()
        self.total += amount
        reply = self.life.call("add", number, amount)
        for _ in range(deaths - 1):
            self.total += 1
            self.life.call("add", self.number(), 1)
        self.reborn()
        assert self.life.call("add", number, amount, redelivered=True) == reply

    @rule(amount=st.integers(1, 1000))
    def decline(self, amount: int) -> None:
        with pytest.raises(Refused):
            self.life.call("refuse", self.number(), amount)

    @rule(size=st.integers(0, 20_000))
    def write(self, size: int) -> None:
        self.life.call("write", self.number(), "x" * size)

    @rule()
    def die(self) -> None:
        self.reborn()

    @invariant()
    def state_is_the_sum(self) -> None:
        assert self.life.call("counts", self.number()).total == self.total
        assert not self.task.losses


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_handler_that_changes_nothing_stores_nothing(
    task: KeepingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(task)
    monkeypatch.setattr(life.keeper.value, "store", pytest.fail)
    assert life.call("add", 1, 0) == 0
    life.call("counts", 2)


def test_many_and_large_replies_are_bounded_and_the_newest_is_always_there(
    task: KeepingTask,
) -> None:
    life = Life(task)
    for number in range(1, 3 * REPLIES_KEPT):
        life.call("add", number, 1)
    assert len(life.keeper._replies) == REPLIES_KEPT
    life.call("write", 999, "x" * 100_000)
    cut = bytes(life.call("cut", 1000, SMALL_REPLY + 1))
    assert life.keeper._replies[-1].request == 1000
    again = Life(task)
    assert bytes(again.call("cut", 1000, SMALL_REPLY + 1, redelivered=True)) == cut
    again.call("add", 1001, 1)
    assert 1000 not in [reply.request for reply in again.keeper._replies]
    assert len(again.keeper._replies) == REPLIES_KEPT - 1


def test_a_handler_is_not_run_inside_of_another_one(task: KeepingTask) -> None:
    life = Life(task)
    add = life.handlers[Counting.named("add").index]
    life.server.notified = lambda bits: add(1)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="inside"):
        life.keeper.notified(1)
    assert life.server.state.total == 0


# -- versions --------------------------------------------------------------------------------------


class Nothing(Interface):
    """No operations."""


class Part(msgspec.Struct):
    size: int = 0
    colour: str = "red"


class First(msgspec.Struct):
    name: str = ""
    parts: dict[str, Part] = {}


class PartWithout(msgspec.Struct):
    size: int = 0


class WithMore(msgspec.Struct):
    name: str = ""
    parts: dict[str, Part] = {}
    since: int = 5


class WithLess(msgspec.Struct):
    name: str = ""


class WithLessInside(msgspec.Struct):
    name: str = ""
    parts: dict[str, PartWithout] = {}


class OtherType(msgspec.Struct):
    name: int = 0
    parts: dict[str, Part] = {}


class Renamed(msgspec.Struct):
    title: str = ""
    parts: dict[str, Part] = {}


class FirstServer(Server):
    interface = Nothing
    state: First


class MoreServer(Server):
    interface = Nothing
    state: WithMore


class LessServer(Server):
    interface = Nothing
    state: WithLess


class LessInsideServer(Server):
    interface = Nothing
    state: WithLessInside


class OtherTypeServer(Server):
    interface = Nothing
    state: OtherType


class RenamingServer(Server):
    interface = Nothing
    state: Renamed

    @classmethod
    def upgrade(cls, old: Any) -> Renamed:
        old["title"] = old.pop("name")
        return msgspec.convert(old, Renamed)


def begun(task: KeepingTask) -> None:
    life = Life(task, FirstServer)
    life.server.state = First("shelf", {"leg": Part(3, "blue")})
    life.server.commit()


def test_a_new_version_with_more_fields_takes_the_state_over(task: KeepingTask) -> None:
    begun(task)
    assert Life(task, MoreServer).server.state == WithMore("shelf", {"leg": Part(3, "blue")}, 5)
    assert Life(task, MoreServer).server.state.since == 5
    assert not task.losses


def test_a_new_version_that_renames_says_so_once(task: KeepingTask) -> None:
    begun(task)
    assert Life(task, RenamingServer).server.state == Renamed("shelf", {"leg": Part(3, "blue")})
    assert Life(task, RenamingServer).server.state.title == "shelf"
    assert not task.losses


@pytest.mark.parametrize("cls", [LessServer, LessInsideServer, OtherTypeServer])
def test_what_a_new_version_cannot_take_over_is_lost_aloud(
    task: KeepingTask, cls: type[Server]
) -> None:
    begun(task)
    life = Life(task, cls)
    assert life.server.state == cls._state_type()
    assert len(task.losses) == 1
    Life(task, cls)
    assert len(task.losses) == 1


def test_an_upgrade_that_fails_loses_nothing(
    task: KeepingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(task)

    def fail(cls: type, old: Any) -> None:
        raise KeyError("a mistake in it")

    with monkeypatch.context() as patch:
        patch.setattr(RenamingServer, "upgrade", classmethod(fail))
        with pytest.raises(KeyError):
            Life(task, RenamingServer)
    assert Life(task, RenamingServer).server.state.title == "shelf"
    assert not task.losses


def test_an_upgrade_may_give_the_state_up(
    task: KeepingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(task)

    def give_up(cls: type, old: Any) -> None:
        raise LostError("too old")

    monkeypatch.setattr(RenamingServer, "upgrade", classmethod(give_up))
    assert Life(task, RenamingServer).server.state == Renamed()
    assert task.losses == ["task lost its state: too old"]


# -- declarations ----------------------------------------------------------------------------------


class Giving(Interface):
    """An operation whose reply cannot be stored."""

    @operation
    async def give(self) -> Right:
        """Return a right."""


class Positional(msgspec.Struct, array_like=True):
    total: int = 0


class Incomplete(msgspec.Struct):
    total: int


class Brief(msgspec.Struct, omit_defaults=True):
    total: int = 0


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (dict, "msgspec.Struct"),
        ("dict[str, int]", "msgspec.Struct"),
        (Positional, "names"),
        (Brief, "names"),
        (Incomplete, "defaults"),
        ("Nowhere", "module level"),
    ],
)
def test_a_state_that_cannot_be_kept_is_refused_at_its_declaration(
    declared: Any, reason: str
) -> None:
    with pytest.raises(TypeError, match=reason):
        type("Bad", (Server,), {"__annotations__": {"state": declared}, "__module__": __name__})


def test_a_reply_with_rights_needs_a_handler_fit_to_run_again() -> None:
    def give(self: Any) -> Any:
        return self.task.mint(1)

    body: dict[str, Any] = {
        "interface": Giving, "__annotations__": {"state": First}, "__module__": __name__,
    }  # fmt: skip
    with pytest.raises(TypeError, match="runs_again"):
        type("Giver", (Server,), {**body, "give": give})
    type("Giver", (Server,), {**body, "give": runs_again(give)})


def test_a_server_without_state_is_served_by_itself(task: KeepingTask) -> None:
    class Plain(Server):
        interface: ClassVar[type[Interface]] = Nothing

    server = Plain(task.task)
    assert hooks_of(server) is server
    assert server.keeper is None


async def test_steps_of_a_coroutine_are_told_and_their_errors_cancel_it() -> None:
    steps: list[int] = []
    finished: list[str] = []

    async def work() -> None:
        await trio.lowlevel.checkpoint()
        with pytest.raises(KeyError):
            await raising()
        try:
            await trio.sleep_forever()
        finally:
            finished.append("cleaned")

    async def raising() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError

    def after() -> None:
        steps.append(1)
        if len(steps) == 3:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        await in_steps(work(), after)
    assert finished == ["cleaned"]

    async def quick() -> int:
        await trio.lowlevel.checkpoint()
        return 3

    assert await in_steps(quick(), lambda: None) == 3
    with trio.move_on_after(0) as scope:
        await in_steps(trio.Event().wait(), lambda: None)
    assert scope.cancelled_caught
