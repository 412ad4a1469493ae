"""What the kernel keeps for a task, set aside for a while: to be put back if it was changed."""

from __future__ import annotations

import os

from core.kernel.tasks import KernelTask


class Kept:
    """The descriptors and rights that were kept for a task at one moment.

    Their labels can be put back. What lies behind a descriptor is the same object as ever: octets
    that were written into kept memory stay.
    """

    def __init__(self, task: KernelTask) -> None:
        self._task = task
        self._descriptors = {label: os.dup(number) for label, number in task.kept.items()}
        self._rights = {
            label: right.derive() for label, right in task.kept_rights.items() if right.port.alive
        }

    def restore(self) -> None:
        """Put everything back, and give up what was kept since."""
        task = self._task
        for number in task.kept.values():
            os.close(number)
        for right in task.kept_rights.values():
            right.release()
        task.kept, self._descriptors = self._descriptors, {}
        task.kept_rights, self._rights = self._rights, {}

    def close(self) -> None:
        """Give up what was set aside."""
        for number in self._descriptors.values():
            os.close(number)
        for right in self._rights.values():
            right.release()
        self._descriptors.clear()
        self._rights.clear()
