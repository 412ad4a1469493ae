"""Suspicion: which request ended its server, when nobody could say.

A server that waits may have many requests in flight when it dies without a word (a segmentation
fault, `os._exit`). Each of them may be the cause, and redelivering them all would only repeat the
death. So they are *suspects*: the next incarnation gets them one at a time, each when the one
before was answered or has been there for a while without harm, and all that came later waits behind
them. A request counts a death only when it was the only one in flight, or when the task itself
named it.

1. Who was delivered last is tried first next time: what kills at once is alone then.
2. What kills only after some time looks harmless for that long, so the patience doubles with every
   such death, and one trial will be long enough.
3. A request that waits for another one behind it (a reader, for its writer) is passed after the
   patience; so nothing waits for ever.

Thus an innocent request is answered however many guilty ones there are, and a guilty one is found
after its POISON_LIMIT deaths alone and those that it took to be alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .ports import Port
    from .requests import Request

FIRST_PATIENCE_S: Final = 0.05
LONGEST_PATIENCE_S: Final = 3.2
LOOK_S: Final = 0.002
"""How often the kernel looks whether the next one may be tried."""


class Trial:
    """The suspects of one port, tried one at a time."""

    def __init__(self) -> None:
        self.patience_s = 0.0
        self._current: Request | None = None
        self._since = 0.0
        self.looking = False

    def may_try(self, port: Port, request: Request, now: float) -> bool:
        """Tell whether a suspect may be delivered now; if so, it is the one under trial."""
        current = self._current
        harmless = (
            current is None
            or port.in_flight.get(current.id) is not current
            or now - self._since >= self.patience_s
        )
        if harmless:
            self._current, self._since = request, now
        return harmless

    def died(self) -> None:
        """The server died again while there were suspects."""
        self._current = None
        self.patience_s = min(LONGEST_PATIENCE_S, 2 * self.patience_s or FIRST_PATIENCE_S)

    def interrupted(self) -> None:
        """The server died of something else."""
        self._current = None


def suspects_of(delivered: Iterable[Request]) -> list[Request]:
    """Return the requests of one port that may have ended their server.

    Args:
        delivered: what was in flight, in the order of delivery.

    A server none of whose operations waits takes them one by one: it was the first. Else it may be
    any.
    """
    requests = list(delivered)
    if requests and not any(spec.waits for spec in requests[0].port.interface.OPERATIONS):
        return requests[:1]
    return requests


def put_first(port: Port, suspects: list[Request]) -> None:
    """Put suspects at the head of the queue, the one delivered last before all others."""
    if not suspects:
        return
    chosen = {request.id for request in suspects}
    rest = [request for request in port.queue if request.id not in chosen]
    ordered = sorted(suspects[:-1], key=lambda request: request.id)
    port.queue.clear()
    port.queue.extend([suspects[-1], *ordered, *rest])
