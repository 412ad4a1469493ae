"""What the kernel does for a task that keeps descriptors, without a kernel."""

from __future__ import annotations

import os
from typing import Any, cast

from core.userlib.task import Task


class KeepingTask:
    """Keeps descriptors across incarnations, which are objects here; notes what it is told."""

    def __init__(self, name: str = "task") -> None:
        self.name = name
        self.options: dict[str, Any] = {}
        self.generation = 0
        self.succession = ""
        self.descriptors: dict[str, int] = {}
        self.losses: list[str] = []

    def keep(self, label: str, descriptor: int) -> None:
        old, self.descriptors[label] = self.descriptors.get(label), os.dup(descriptor)
        if old is not None:
            os.close(old)

    def kept(self, label: str) -> int | None:
        number = self.descriptors.get(label)
        return None if number is None else os.dup(number)

    def lost(self, detail: str) -> None:
        self.losses.append(detail)

    def close(self) -> None:
        """Give up what is kept."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()

    @property
    def task(self) -> Task:
        """The same, for what wants a whole task."""
        return cast("Task", self)
