"""Who holds a link, and how it changes hands: a state machine without I/O and without a clock.

A client is known by its badge, which belongs to a task for as long as the system runs, over all of
its incarnations. At most one client is the *holder*. Another one becomes it by *asking*; the holder
answers, and a yes makes the asker the *heir*. The link is then *renewed* (by the driver, see
`tap`): the descriptor that the holder had is made useless, which the host itself confirms, and a
new one is attached. Only then is the heir the holder. Every ask ends in one of `Outcome`.

The whole state is one value, `State`, which is stored after every change and before anybody is told
of it. A new incarnation of the driver goes on from it, also in the midst of a renewal, for which
`heir` stands: renewing is repeated until it is done or has failed.

Invariants:
1. There is one holder, or none. An ask, an answer that comes late, a death change nothing about it.
2. An ask that no yes has met ends at its deadline at the latest; one that a yes has met ends with
   the renewal.
3. Nobody but the holder can be handed the descriptor; whoever else has had it since it was attached
   makes it `used`, and it is renewed before the next holder gets it.
"""

from __future__ import annotations

import errno
import math
from enum import Enum
from typing import Final

import msgspec

from core.errors import Refused

NOBODY: Final = 0
"""The badge of rights that belong to no task: it cannot hold a link."""
_NONE_IS_LEFT: Final = -1
"""The heir of a link that is being renewed for one who is gone meanwhile."""
TIMEOUT_LIMIT_S: Final = 60.0
REASON_LIMIT: Final = 500


class Outcome(Enum):
    """How an ask ended."""

    YIELDED = "yielded"
    """The holder agreed and let go: the asker is the holder."""
    FREE = "free"
    """There was no holder, or its task was given up: the asker is the holder."""
    REFUSED = "refused"
    """The holder declined: nothing has changed."""
    TIMED_OUT = "timed out"
    """The holder did not answer: nothing has changed, and a yes that comes now is void."""
    WITHDRAWN = "withdrawn"
    """The asker gave up, or its incarnation ended: nothing has changed."""
    NOT_LET_GO = "not let go"
    """Whoever had the link said yes, or is gone, but the host says that it is still open."""


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """A client wants the link and waits for the holder's answer."""

    number: int
    asker: int
    request: int
    deadline: float
    """When it ends without an answer, on the clock of whoever passes `now`."""


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """How an ask ended."""

    number: int
    asker: int
    holder: int
    """Who was asked; NOBODY if nobody was."""
    request: int
    outcome: Outcome
    reason: str
    errno: int

    def check(self) -> None:
        """Raise what the asker is told; nothing if the link is its own."""
        if self.errno:
            raise Refused(self.errno, self.reason)


class State(msgspec.Struct, array_like=True):
    """All that has to outlive the driver's incarnations."""

    version: int = 1
    """Grows with every change."""
    holder: int = NOBODY
    heir: int = NOBODY
    """For whom the link is being renewed; NOBODY: it is not."""
    epoch: int = 0
    """How often it has been renewed."""
    used: bool = False
    """Somebody has had the descriptor of this epoch."""
    ask: Ask | None = None
    last: Ended | None = None
    """The ask that ended last."""
    asks: int = 0
    """How many there have been."""


class Consent:
    """The holder of one link, and the ask that is under way."""

    def __init__(self, stored: bytes | None = None) -> None:
        """Begin with a link that nobody has had, or where `encode` left off."""
        self.state = State() if stored is None else msgspec.msgpack.decode(stored, type=State)

    def encode(self) -> bytes:
        """Return the state, to be stored."""
        return msgspec.msgpack.encode(self.state)

    @property
    def deadline(self) -> float:
        """When `expire` has something to do."""
        ask = self.state.ask
        return math.inf if ask is None or self._is_met(ask) else ask.deadline

    def _is_met(self, ask: Ask) -> bool:
        """Return whether a yes (or a death) has already decided for the asker."""
        return self.state.heir in (ask.asker, _NONE_IS_LEFT)

    def _changed(self) -> None:
        self.state.version += 1

    def _end(self, outcome: Outcome, reason: str = "", number: int = 0) -> None:
        """End the ask that is under way; `number` is the error that its asker gets."""
        ask = self.state.ask
        assert ask is not None
        self.state.ask = None
        self.state.last = Ended(
            ask.number,
            ask.asker,
            self.state.holder,
            ask.request,
            outcome,
            reason[:REASON_LIMIT],
            number,
        )

    # -- what clients do ---------------------------------------------------------------------------

    def claim(self, badge: int) -> bool:
        """Return whether the client may be lent the link now; False: when it has been renewed.

        A link that nobody holds becomes the client's.

        Raises:
            Refused: EBUSY, another one holds it; EPERM, the right belongs to no task.
        """
        state = self.state
        self._check_task(badge)
        if state.heir in (badge, _NONE_IS_LEFT):
            return False
        if state.heir or state.holder not in (NOBODY, badge):
            raise Refused(errno.EBUSY, "the link is held by another server, which may be asked")
        if state.holder == badge:
            return True
        if state.used:
            state.heir = badge
        else:
            state.holder, state.used = badge, True
        self._changed()
        return not state.heir

    def renew(self) -> None:
        """The descriptor that the holder shall be lent is lost: let it be attached anew."""
        if not self.state.heir:
            self.state.heir = self.state.holder
            self._changed()

    def ask(self, badge: int, request: int, now: float, timeout_s: float) -> int:
        """Return the number of the client's ask; 0: the link is its own already.

        The same number is returned for the same request, whether it has ended meanwhile or not.

        Raises:
            Refused: EALREADY, another ask is under way; EINVAL; EPERM.
        """
        state = self.state
        self._check_task(badge)
        if not 0 <= timeout_s <= TIMEOUT_LIMIT_S:
            raise Refused(errno.EINVAL, f"a time-out is 0 to {TIMEOUT_LIMIT_S:g} s")
        last = state.last
        if last is not None and last.request == request and last.outcome is not Outcome.WITHDRAWN:
            return last.number
        if state.ask is not None and state.ask.request == request:
            return state.ask.number
        if state.holder == badge and state.heir in (NOBODY, badge):
            return 0
        if state.ask is not None or state.heir not in (NOBODY, state.holder):
            raise Refused(errno.EALREADY, "somebody else is asking for the link just now")
        state.asks += 1
        state.ask = Ask(state.asks, badge, request, now + timeout_s)
        if state.holder == NOBODY:
            state.heir = badge
        self._changed()
        return state.asks

    def _check_task(self, badge: int) -> None:
        if badge <= NOBODY:
            raise Refused(errno.EPERM, "a right that belongs to no task cannot hold a link")

    def result(self, number: int) -> Ended | None:
        """Return how an ask ended that was the last one to end; None: it has not."""
        last = self.state.last
        return last if last is not None and last.number == number else None

    def answer(self, badge: int, number: int, yields: bool, reason: str, now: float) -> bool:
        """The holder answers; return whether the answer counts.

        False: it is void, because the ask has ended: the holder is still the holder.

        Raises:
            Refused: EPERM, the client does not hold the link.
        """
        state, last = self.state, self.state.last
        if last is not None and (last.number, last.holder) == (number, badge):
            return last.outcome is (Outcome.YIELDED if yields else Outcome.REFUSED)
        if badge != state.holder:
            raise Refused(errno.EPERM, "only the holder of the link answers")
        self.expire(now)
        ask = state.ask
        if ask is None or ask.number != number:
            return False
        if self._is_met(ask):
            return yields
        if yields:
            state.heir = ask.asker
        else:
            self._end(Outcome.REFUSED, reason or "the holder keeps the link", errno.EBUSY)
        self._changed()
        return True

    # -- what happens ------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """End the ask whose time is over."""
        if now >= self.deadline:
            self._end(Outcome.TIMED_OUT, "the holder of the link did not answer", errno.ETIMEDOUT)
            self._changed()

    def withdraw(self, number: int) -> None:
        """Its asker does not wait any more: end the ask, unless a yes has met it already."""
        ask = self.state.ask
        if ask is not None and ask.number == number and not self._is_met(ask):
            self._end(Outcome.WITHDRAWN, "the asker gave up", errno.ECANCELED)
            self._changed()

    def gone(self, badge: int) -> None:
        """A client's task was given up for good: it neither holds nor wants the link any more."""
        state, ask = self.state, self.state.ask
        if badge not in (state.holder, state.heir, ask and ask.asker):
            return
        if ask is not None and ask.asker == badge and state.heir != badge:
            self._end(Outcome.WITHDRAWN, "the asker is gone", errno.ECANCELED)
            ask = None
        if state.heir == badge:
            state.heir = _NONE_IS_LEFT if ask is None or ask.asker == badge else ask.asker
        elif state.holder == badge and ask is not None and not state.heir:
            state.heir = ask.asker
        if state.holder == badge:
            state.holder = NOBODY
        self._changed()

    def renewed(self) -> None:
        """A new descriptor is attached, and nobody has another one: the heir is the holder."""
        state, ask = self.state, self.state.ask
        if ask is not None and self._is_met(ask):
            self._end(Outcome.FREE if state.holder == NOBODY else Outcome.YIELDED)
        state.holder = max(state.heir, NOBODY)
        state.used = state.holder != NOBODY
        state.heir = NOBODY
        state.epoch += 1
        self._changed()

    def not_renewed(self, number: int, reason: str) -> None:
        """Somebody still has the old descriptor, or the host declined: all stays as it was."""
        state, ask = self.state, self.state.ask
        if ask is not None and self._is_met(ask):
            self._end(Outcome.NOT_LET_GO, reason, number)
        state.heir = NOBODY
        self._changed()
