"""File servers as the storm needs them: watched, unlucky, and forgetful.

What makes a death harmless is the record: an answer is stored with the change that it is about, and
a request that comes again gets the recorded answer. A random SIGKILL seldom falls into the few
microseconds between the change and its answer, so:

* `WatchedFileServer` is the one that ships, and logs whenever it answers from the record. It tells
  how often a storm has been there.
* `UnluckyFileServer` also dies just there, every now and then, by SIGKILL.
* `ForgetfulFileServer` does, too, and serves what comes again as if it were new: a `mkdir` that
  worked is made a second time, and fails with EEXIST. A storm has to find that out.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from core.userlib.task import Task
from fs_server.server import FileServer
from mount.settings import SYSTEM

P = ParamSpec("P")
T = TypeVar("T")

FROM_RECORD: Final = "answered from the record"
"""What the log says whenever a redelivered request had taken effect."""
_SHIPPED: Final = '"fs_server.server:FileServer"'
_LIFE_S: Final = 0.6
"""An unlucky one lives so long at least: nobody shall give it up for dying too often."""
_LUCK: Final = 20
"""Then one in so many changes is the last."""


class WatchedFileServer(FileServer):
    """See the module head."""

    def _once(
        self, name: str, function: Callable[P, T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        if self.request.redelivered and self.volume.recorded(self.request.id) is not None:
            self.task.log(f"fs: {name} {FROM_RECORD}")
        return super()._once(name, function, *arguments, **options)


class UnluckyFileServer(WatchedFileServer):
    """See the module head."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._chance = random.Random(task.generation)
        self._began_s = time.monotonic()

    def _changing(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        result = super()._changing(function, *arguments, **options)
        if time.monotonic() - self._began_s > _LIFE_S and self._chance.randrange(_LUCK) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class ForgetfulFileServer(UnluckyFileServer):
    """See the module head."""

    def _once(
        self, name: str, function: Callable[P, T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        self.volume.request = self.request.id
        return self._changing(function, *arguments, **options)


def describe_with(server: type[FileServer], directory: Path) -> Path:
    """Write the description that ships, but with another file server; return its path."""
    text = SYSTEM.read_text()
    assert text.count(_SHIPPED) == 1
    path = directory / f"{server.__name__}.toml"
    path.write_text(text.replace(_SHIPPED, f'"{server.__module__}:{server.__name__}"'))
    return path
