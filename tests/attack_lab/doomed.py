"""Servers that will not live, will not begin, or will not end: from when they are told to, on."""

from __future__ import annotations

import os
from typing import ClassVar

from core.userlib.interface import Interface, operation
from core.userlib.server import Server
from core.userlib.task import Task

_LABEL = "doom"


class Doomed(Interface):
    """What the lab asks for."""

    @operation
    async def doom(self, how: str) -> None:
        """Be doomed: "die" or "hang" in every start from the next one on, or be "deaf" to STOP."""

    @operation
    async def alive(self) -> int:
        """Return the process' id."""


class DoomedServer(Server):
    """Serves `Doomed`. What it is doomed to, the kernel keeps for it."""

    interface: ClassVar[type[Interface]] = Doomed

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        number = task.kept(_LABEL)
        how = os.pread(number, 10, 0) if number is not None else b""
        if how == b"die":
            os._exit(3)
        while how == b"hang":
            pass
        self._how = how

    def doom(self, how: str) -> None:
        """See `Doomed.doom`."""
        number = os.memfd_create(_LABEL)
        os.write(number, how.encode())
        self.task.keep(_LABEL, number)
        os.close(number)
        self._how = how.encode()

    def stop(self) -> None:
        """Do not."""
        while self._how == b"deaf":
            pass

    def alive(self) -> int:
        """See `Doomed.alive`."""
        return os.getpid()
