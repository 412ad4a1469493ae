"""What goes into a line: at once if the socket takes it, else kept until the task reads.

Nothing here waits. A request for a server is only ever sent at once, because it can wait at its
port; answers and notices are kept, in their order, up to a limit: a task that leaves more unread is
at fault.
"""

from __future__ import annotations

import collections
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Final

from core.abi import HEADER, LENT_LIMIT, NO_SLOT, WAITING_LIMIT, Kind
from core.userlib.interface import Bulk

from .cargo import duplicates
from .descriptors import give_up

PACKETS_LIMIT: Final = 4096
"""Packets that wait for a task to read."""
SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Outbox:
    """The packets for one task.

    Args:
        connection: the line's socket; owned by the line.
        blocked: called when the socket is full, to have `flush` called once it is not.
    """

    def __init__(self, connection: socket.socket, blocked: Callable[[], None]) -> None:
        self._socket = connection
        self._blocked = blocked
        self._octets = self._lent = 0
        self._waiting: collections.deque[tuple[Sequence[Bulk], tuple[int, ...]]] = (
            collections.deque()
        )

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, parts: Sequence[Bulk], descriptors: tuple[int, ...] = ()) -> bool:
        """Send a packet if the socket takes it now; descriptors stay the caller's."""
        try:
            if descriptors:
                socket.send_fds(self._socket, parts, list(descriptors), SEND_FLAGS)
            else:
                self._socket.send(b"".join(parts), SEND_FLAGS)
        except BlockingIOError:
            self._blocked()
            return False
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # too many are under way on the host: it passes
                self._blocked()
            # Else the process is gone. What its line still holds is read first; the rim then finds
            # the end.
            return False
        return True

    def send_or_keep(self, parts: Sequence[Bulk], descriptors: tuple[int, ...] = ()) -> bool:
        """Send a packet now or as soon as the task reads; False when too many wait already."""
        if not self._waiting and self.send(parts, descriptors):
            return True
        octets, lent = self._octets + _size(parts), self._lent + len(descriptors)
        if len(self._waiting) >= PACKETS_LIMIT or octets > WAITING_LIMIT:
            return False
        if descriptors and lent > LENT_LIMIT:
            return False
        self._waiting.append((list(parts), duplicates(descriptors)))
        self._octets, self._lent = octets, lent
        return True

    def flush(self) -> bool:
        """Send what waits, as far as the socket takes it; True when nothing waits any more."""
        while self._waiting:
            parts, descriptors = self._waiting[0]
            if not self.send(parts, descriptors):
                return False
            self._waiting.popleft()
            self._octets -= _size(parts)
            self._lent -= len(descriptors)
            for number in descriptors:
                give_up(number)
        return True

    def close(self) -> None:
        """Give up what waits."""
        for _, descriptors in self._waiting:
            for number in descriptors:
                give_up(number)
        self._waiting.clear()


def _size(parts: Sequence[Bulk]) -> int:
    return sum(len(part) for part in parts)


def short_header(
    kind: Kind,
    request: int,
    fields: int = 0,
    *,
    badge: int = 0,
    name: int = 1,
    rights: int = 0,
    descriptors: int = 0,
) -> bytes:
    """Return the header of a packet without bulk."""
    return HEADER.pack(
        kind, 0, 0, name, request, badge, fields, 0, NO_SLOT, 0, 0, rights, descriptors
    )
