"""The name server's table and rights, when it dies in the midst of a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.errors import Refused
from core.system.names import Names, NameServer
from core.userlib.server import handlers_of, hooks_of
from core.userlib.task import complete
from tests.support.keeping_task import KeepingTask

OWNER, OTHER = 7, 8


class DeathError(BaseException):
    """Ends the server."""


class RightsTask(KeepingTask):
    """Keeps rights, too; and the server dies at a step of what it makes last."""

    def __init__(self) -> None:
        super().__init__("names")
        self.rights_kept: dict[str, str] = {}
        self.steps_left = -1

    def step(self) -> None:
        if self.steps_left == 0:
            self.steps_left = -1
            raise DeathError
        self.steps_left -= 1

    def keep_right(self, label: str, right: str) -> None:
        self.step()
        self.rights_kept[label] = right
        self.step()

    def kept_rights(self) -> dict[str, str]:
        return dict(self.rights_kept)

    def forget(self, label: str) -> None:
        self.step()
        self.rights_kept.pop(label, None)
        self.step()

    def drop(self, right: str) -> None:
        self.step()

    def copy(self, right: str) -> str:
        return right


class Life:
    """One incarnation."""

    def __init__(self, task: RightsTask) -> None:
        self.server = NameServer(task.task)
        assert self.server.keeper is not None
        kept = self.server.keeper.value
        store = kept.store

        def stepping(value: bytes) -> None:
            task.step()
            store(value)
            task.step()

        kept.store = stepping  # type: ignore[method-assign]
        self.handlers = handlers_of(self.server)
        complete(hooks_of(self.server).start())

    def call(
        self, name: str, *arguments: Any, request: int = 1, badge: int = OWNER, again: bool = False
    ) -> Any:
        about = self.server.request
        about.id, about.badge, about.redelivered = request, badge, again
        return self.handlers[Names.named(name).index](*arguments)

    def gone(self, badge: int) -> None:
        hooks_of(self.server).no_senders(badge)

    def table(self) -> dict[str, str]:
        return {name: self.call("lookup", name) for name in self.call("entries")}


def change_of(name: str) -> Callable[[Life, bool], Any]:
    return {
        "register": lambda life, again: life.call("register", "new", "n", request=50, again=again),
        "again": lambda life, again: life.call("register", "mine", "m2", request=50, again=again),
        "unregister": lambda life, again: life.call("unregister", "mine", request=50, again=again),
        "gone": lambda life, again: life.gone(OWNER),
    }[name]


RESULTS = {
    "register": {"mine": "m", "mine too": "mm", "theirs": "t", "new": "n"},
    "again": {"mine": "m2", "mine too": "mm", "theirs": "t"},
    "unregister": {"mine too": "mm", "theirs": "t"},
    "gone": {"theirs": "t"},
}


def dies_at(task: RightsTask, change: str, step: int) -> bool:
    """Make a change with a death at a step, and then again; tell whether it came to the death."""
    life = Life(task)
    life.call("register", "mine", "m")
    life.call("register", "mine too", "mm", request=2)
    life.call("register", "theirs", "t", request=3, badge=OTHER)
    task.steps_left = step
    make = change_of(change)
    try:
        make(life, False)
    except DeathError:
        life = Life(task)
        assert make(life, True) is None
        died = True
    else:
        died = False
    task.steps_left = -1
    for _ in range(2):
        assert life.table() == RESULTS[change]
        assert task.rights_kept == {f"name:{n}": right for n, right in RESULTS[change].items()}
        life = Life(task)
    return died


@pytest.mark.parametrize("change", list(RESULTS))
def test_a_change_is_made_once_wherever_the_name_server_dies(change: str) -> None:
    step = 0
    died = True
    while died:
        task = RightsTask()
        died = dies_at(task, change, step)
        task.close()
        step += 1
    assert step > 3


def test_a_right_whose_request_never_comes_again_is_given_up() -> None:
    task = RightsTask()
    life = Life(task)
    task.steps_left = 2
    with pytest.raises(DeathError):
        life.call("register", "half", "h")
    assert task.rights_kept
    life = Life(task)
    assert life.call("entries") == []
    assert not task.rights_kept
    task.close()


def test_names_of_others_stay_theirs_after_a_death() -> None:
    task = RightsTask()
    Life(task).call("register", "mine", "m")
    life = Life(task)
    for operation, arguments in (("register", ("mine", "x")), ("unregister", ("mine",))):
        with pytest.raises(Refused):
            life.call(operation, *arguments, badge=OTHER, request=9)
    assert life.table() == {"mine": "m"}
    task.close()
