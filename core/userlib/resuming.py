"""Changes that are made once, although the task that asks for them may die before it is answered.

A task that answers somebody outside of the system (as a front end answers the host's kernel) is
asked again, after its death, for what it had not answered. It does its work in *places*, one for
each piece that may be under way at a time, and says at each for whom it works just now:

    fs = outliving(task.connect(FileSystem, "fs"))

    async def work(place: Place) -> None:
        place.enter()
        async for question in questions:
            place.tag = question.number      # the same when it is asked again
            answer(question, await fs.mkdir(...))

Every operation of such a stub that is not idempotent is then a resumable call
(`core.kernel.resumable`). The next incarnation works on a question that is asked again at the place
where it was worked on before (`Task.resumable` says which that was); it makes the same calls in the
same order, and gets what the first ones came to. To take a new question says that the one before it
has been answered.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

from core.abi import Right

from .interface import Operation
from .stub import InterfaceT, stub_class
from .task import Task


class Place:
    """One of a task's places.

    Attributes:
        number: 0 to `core.abi.RESUMABLE_PLACES` - 1.
        tag: what is worked on; 64 bits.
    """

    __slots__ = ("number", "tag")

    def __init__(self, number: int) -> None:
        self.number = number
        self.tag = 0

    def enter(self) -> None:
        """Work at this place from now on, in this trio task and those that it starts."""
        _here.set(self)


_here: Final[ContextVar[Place | None]] = ContextVar("place", default=None)


class _Outliving:
    """Stands for the task in a stub whose changes are resumable."""

    __slots__ = ("_task",)

    def __init__(self, task: Task) -> None:
        self._task = task

    async def call(self, right: Right, spec: Operation, arguments: tuple[Any, ...]) -> Any:
        place = None if spec.idempotent else _here.get()
        if place is None or not spec.simple_reply:
            return await self._task.call(right, spec, arguments)
        return await self._task.call_resumable(right, spec, arguments, place.number, place.tag)


def outliving(stub: InterfaceT) -> InterfaceT:
    """Return a stub for the same right whose changes are made at the place of who makes them.

    Outside of any place, and for operations that are idempotent or whose reply is more than fields,
    it is a stub like any other. So is a hand-off to a co-located server, which is over before its
    caller can end.
    """
    plain: Any = stub
    task: Any = _Outliving(plain._task)  # noqa: SLF001 - of a derived class of this package
    return stub_class(type(stub).__bases__[0])(task, plain.right)
