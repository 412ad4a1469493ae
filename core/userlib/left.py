"""Kept descriptors that come with a task's birth, so that its start need not ask for them.

What earlier incarnations kept cannot change before this one changes it itself. So as long as it has
not touched a label, what came with its birth is what the kernel keeps, also that there is nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence


class Left:
    """What earlier incarnations left.

    Args:
        labels: all that is kept, in the order of `numbers`; None: it did not come along.
        numbers: the descriptors; owned.
    """

    def __init__(self, labels: Sequence[str] | None = None, numbers: Sequence[int] = ()) -> None:
        self._complete = labels is not None
        self._numbers = dict(zip(labels or (), numbers, strict=True))
        self._touched: set[str] = set()

    def knows(self, label: str) -> bool:
        """Tell whether the kernel need not be asked what it keeps under a label."""
        return self._complete and label not in self._touched

    def take(self, label: str) -> int | None:
        """Return the descriptor kept under a label, which is the caller's now; None: there is none.

        Once for each label that `knows` tells of.
        """
        self._touched.add(label)
        return self._numbers.pop(label, None)

    def touch(self, label: str) -> None:
        """Note that something else may be kept under the label from now on."""
        number = self.take(label)
        if number is not None:
            os.close(number)

    def close(self) -> None:
        """Close what nobody took; the kernel is asked from now on."""
        self._complete = False
        for number in self._numbers.values():
            os.close(number)
        self._numbers.clear()
