"""The pure tables: timers against a sorted list, tasks and names against dictionaries."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from core.abi import NAMES_LIMIT
from core.errors import LimitError, NoRightError
from core.kernel.ports import KernelRight, Port, receive_right
from core.kernel.tasks import FIRST_FREE_NAME, KernelTask, Placement, Program, TaskTable
from core.kernel.timers import Timer, Timers
from core.userlib.server import NoOperations


class TimersMachine(RuleBasedStateMachine):
    """Timers under a clock of its own."""

    timers = Bundle("timers")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.fired: list[int] = []
        self.earlier = 0
        self.table = Timers(lambda: self.now, self._note)
        self.model: dict[int, float] = {}
        self.count = 0

    def _note(self) -> None:
        self.earlier += 1

    @rule(target=timers, delay=st.floats(0, 10))
    def arm(self, delay: float) -> tuple[int, Timer]:
        number = self.count
        self.count += 1
        before, told = self.table.next_deadline(), self.earlier
        timer = self.table.arm(delay, lambda: self.fired.append(number))
        self.model[number] = self.now + delay
        assert (self.earlier > told) == (self.now + delay < before)
        return number, timer

    @rule(pair=timers)
    def cancel(self, pair: tuple[int, Timer]) -> None:
        number, timer = pair
        timer.cancel()
        self.model.pop(number, None)

    @rule(step=st.floats(0, 5))
    def pass_time(self, step: float) -> None:
        self.now += step
        due = sorted(
            (deadline, number) for number, deadline in self.model.items() if deadline <= self.now
        )
        self.fired.clear()
        self.table.fire()
        assert self.fired == [number for _, number in due]
        for _, number in due:
            del self.model[number]

    @invariant()
    def the_next_one_is_known(self) -> None:
        assert self.table.next_deadline() == min(self.model.values(), default=math.inf)
        assert len(self.table) == len(self.model)


TestTimers = TimersMachine.TestCase
TestTimers.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_a_timer_that_arms_another_one_due_at_once_lets_it_ring_too() -> None:
    rung: list[str] = []
    timers = Timers(lambda: 1.0)

    def first() -> None:
        rung.append("first")
        timers.arm(0, lambda: rung.append("second"))

    timers.arm(0, first)
    timers.fire()
    assert rung == ["first", "second"]


def program(name: str) -> Program:
    """Return a program."""
    return Program(name, "", Placement.PROCESS)


def right() -> KernelRight:
    """Return a right to a port of nobody."""
    return receive_right(Port(1, "p", NoOperations, None)).derive(badge=1)


class TasksMachine(RuleBasedStateMachine):
    """The task table: no place and generation is ever given to two incarnations."""

    def __init__(self) -> None:
        super().__init__()
        self.table = TaskTable()
        self.model: dict[str, KernelTask] = {}
        self.ids: set[object] = set()
        self.badges: set[int] = set()

    @rule(name=st.sampled_from("abcdef"))
    def add(self, name: str) -> None:
        if name in self.model:
            with pytest.raises(LimitError):
                self.table.add(program(name))
            return
        task = self.model[name] = self.table.add(program(name))
        assert task.id not in self.ids
        assert task.badge not in self.badges
        self.ids.add(task.id)
        self.badges.add(task.badge)

    @rule(name=st.sampled_from("abcdef"))
    def renew(self, name: str) -> None:
        if name in self.model:
            self.table.renew(self.model[name])
            assert self.model[name].id not in self.ids
            self.ids.add(self.model[name].id)

    @rule(name=st.sampled_from("abcdef"))
    def remove(self, name: str) -> None:
        task = self.model.pop(name, None)
        if task is not None:
            self.table.remove(task)
            self.table.remove(task)

    @invariant()
    def names_lead_to_tasks(self) -> None:
        assert {task.name: task for task in self.table} == self.model
        assert len(self.table) == len(self.model)
        indices = [task.id.index for task in self.table]
        assert len(set(indices)) == len(indices)


TestTasks = TasksMachine.TestCase
TestTasks.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=60))
def test_a_name_space_holds_what_was_entered_and_not_dropped(steps: list[int | None]) -> None:
    task = TaskTable().add(program("t"))
    model: dict[int, KernelRight] = {}
    for step in steps:
        if step is None:
            held = right()
            name = task.hold(held)
            assert name >= FIRST_FREE_NAME
            assert name not in model
            model[name] = held
        elif model:
            name = sorted(model)[step % len(model)]
            task.forget(model.pop(name))
            with pytest.raises(NoRightError):
                task.right(name)
    assert task.names == model


def test_a_right_that_another_task_holds_is_not_forgotten_here() -> None:
    table = TaskTable()
    one, other = table.add(program("one")), table.add(program("other"))
    mine, theirs = right(), right()
    assert one.hold(mine) == other.hold(theirs)
    one.forget(theirs)
    assert one.names == {FIRST_FREE_NAME: mine}


def test_a_full_name_space_refuses_the_next_right() -> None:
    task = TaskTable().add(program("t"))
    one = right()
    task.names = dict.fromkeys(range(NAMES_LIMIT), one)
    with pytest.raises(LimitError):
        task.hold(one)


def test_names_begin_again_when_their_numbers_are_used_up() -> None:
    task = TaskTable().add(program("t"))
    task._next_name = 1 << 31
    assert task.hold(right()) == 1 << 31
    assert task.hold(right()) == FIRST_FREE_NAME
