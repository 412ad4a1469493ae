"""Observers that end a process, or fail, when a volume writes. `images` has one that records."""

from __future__ import annotations

import os
import signal


class Counting:
    """Counts what reaches the host, and does something about the `limit`-th of it."""

    def __init__(self, limit: int = -1) -> None:
        self.limit = limit
        self.count = 0

    def _step(self) -> None:
        self.count += 1
        if self.count == self.limit:
            self.act()

    def act(self) -> None:
        """What happens at the limit: nothing here."""

    def write(self, file: str, offset: int, data: bytes) -> bool:
        self._step()
        return True

    def truncate(self, file: str, size: int) -> None:
        self._step()

    def punch(self, file: str, offset: int, size: int) -> None:
        self._step()

    def sync(self, file: str) -> bool:
        self._step()
        return True

    def remove(self, file: str) -> None:
        self._step()


class Killing(Counting):
    """Kills this process before the `limit`-th write."""

    def act(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Failing(Counting):
    """Lets the `limit`-th operation fail as the host would."""

    def __init__(self, limit: int, number: int) -> None:
        super().__init__(limit)
        self._number = number
        self.failed = False

    def act(self) -> None:
        self.failed = True
        raise OSError(self._number, "on purpose")
