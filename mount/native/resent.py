"""What the host says again to a front end that was started anew.

When asked (FUSE_NOTIFY_RESEND) the host's kernel puts every request that was read and not answered
before all others in its queue, with the highest bit of its number set; the answer carries the
number with the bit. The first request without it is therefore the end of them.

A request whose work was begun at a place that the kernel has something kept for is worked on at
that place again; the others wherever a worker is free. As long as not all of them were read nothing
is begun, because a call at a place says that what is kept there is dealt with.
"""

from __future__ import annotations

import collections
import struct
from collections.abc import Iterable
from typing import Final

from .protocol.opcodes import Opcode

RESENT: Final = 1 << 63
"""In a request's number: it is said again."""
UNIQUE: Final = RESENT - 1
"""The bits of a request's number that stay the same when it is said again."""
_HEADER: Final = struct.Struct("=4xIQ")
_INTERRUPT: Final = struct.Struct("=Q")
_HEADER_SIZE: Final = 40
_ASIDE: Final = frozenset({Opcode.FORGET.value, Opcode.BATCH_FORGET.value})
"""What the host's queue gives out between other requests."""


class Resent:
    """Requests that were said again, until workers have taken them.

    Attributes:
        interrupted: numbers of those that were interrupted before they were begun.

    Args:
        kept: place and tag of what the kernel keeps.
    """

    def __init__(self, kept: Iterable[tuple[int, int]] = ()) -> None:
        self.interrupted: set[int] = set()
        self._places = {tag: place for place, tag in kept}
        self._bound: dict[int, bytes] = {}
        self._free: collections.deque[bytes] = collections.deque()

    def take(self, message: bytes) -> bool:
        """Take a message; returns False when there can be no further one that was said again."""
        opcode, unique = _HEADER.unpack_from(message)
        if opcode == Opcode.INTERRUPT:
            self.interrupted.add(_INTERRUPT.unpack_from(message, _HEADER_SIZE)[0])
            return True
        place = self._places.get(unique & UNIQUE) if unique & RESENT else None
        if place is None:
            self._free.append(message)
        else:
            self._bound[place] = message
        return bool(unique & RESENT) or opcode in _ASIDE

    def give(self, place: int) -> memoryview | None:
        """Return what is to be done next at a place; None: nothing of all this."""
        message = self._bound.pop(place, None)
        if message is None and self._free:
            message = self._free.popleft()
        return None if message is None else memoryview(message)

    def __len__(self) -> int:
        return len(self._bound) + len(self._free)
