"""Speaking to a running system over its control socket."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from core.errors import AtollError, TaskError
from core.userlib.joined import join
from core.userlib.line import ClosedError
from core.userlib.task import Task, complete
from mount.control import Control
from mount.obstacle import NOT_RUNNING, ObstacleError
from mount.run_directory import RunDirectory, find_system

T = TypeVar("T")


def ask(call: Coroutine[Any, Any, T]) -> T:
    """Make a call from plain code. ObstacleError when the system ends meanwhile or declines."""
    try:
        return complete(call)
    except ClosedError:
        cause = "ended before it had answered"
        raise ObstacleError("the system", cause, "see: atoll status", NOT_RUNNING) from None
    except TaskError as error:
        raise ObstacleError("the system", error.detail) from None


@contextlib.contextmanager
def control(name: str) -> Iterator[tuple[RunDirectory, Control]]:
    """Join the system of that name; yield its run directory and its control port.

    Raises:
        ObstacleError: it does not run, or does not answer.
    """
    with joined_control(name) as (run, _, client):
        yield run, client


@contextlib.contextmanager
def joined_control(name: str) -> Iterator[tuple[RunDirectory, Task, Control]]:
    """Like `control`; yield the task too that this program is, which can use other ports."""
    run = find_system(name)
    with contextlib.ExitStack() as stack:
        try:
            task = stack.enter_context(join(run.control_path))
            client = task.connect(Control, "control")
        except AtollError as error:
            record = run.record()
            cause = f"its process {record.pid if record else ''} runs, but: {error}"
            remedy = f"see {run.log_path}, or run: atoll --name {name} down"
            raise ObstacleError(f"system {name}", cause, remedy) from None
        yield run, task, client
