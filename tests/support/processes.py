"""The processes of a system whose kernel runs in the test's own process."""

from __future__ import annotations

from core.kernel.tasks import State
from core.system.boot import System


async def running_process(system: System, name: str) -> int:
    """Wait until a server serves and its process is known; return the pid, which is never 0.

    A server may say that it is ready before the zygote's report with its pid has come.
    """
    task = system.task(name)
    while True:
        engine = task.engine
        if task.state is State.RUNNING and engine is not None and engine.pid > 0:
            return engine.pid
        await system.wait_changed()
