"""What a task's messages cost the kernel while they are under way, and how much that may be.

A message that waits holds octets in the kernel's memory, and descriptors, of which its process has
few. Their number is bounded for each port, but a task may have many ports of its own and send to
all of them. So each task bears what its messages cost until they are ended, whoever keeps them
waiting. The smallest calls, which are most, are bounded by their number alone (`CALLS_LIMIT`) and
cost nothing to count.
"""

from __future__ import annotations

from typing import Final

from core.abi import CALLS_LIMIT, LENT_LIMIT, WAITING_LIMIT
from core.errors import LimitError

SMALL: Final = 1024
"""Octets of a simple call that is not weighed."""


class Burden:
    """One task's.

    Attributes:
        messages: how many were taken up and not put down.
        octets: what they hold in memory.
        descriptors: what they hold open.
    """

    __slots__ = ("descriptors", "messages", "octets")

    def __init__(self) -> None:
        self.messages = self.octets = self.descriptors = 0

    def take_up(self, octets: int, descriptors: int) -> None:
        """Bear one more message. LimitError: it is too much, and nothing has changed."""
        if self.messages >= CALLS_LIMIT:
            raise LimitError(f"{CALLS_LIMIT} messages of this task are under way")
        if self.octets + octets > WAITING_LIMIT:
            raise LimitError(f"messages of {WAITING_LIMIT} octets of this task are under way")
        if self.descriptors + descriptors > LENT_LIMIT:
            raise LimitError(f"messages with {LENT_LIMIT} descriptors of this task are under way")
        self.messages += 1
        self.octets += octets
        self.descriptors += descriptors

    def put_down(self, octets: int, descriptors: int) -> None:
        """The message is ended."""
        self.messages -= 1
        self.octets -= octets
        self.descriptors -= descriptors
