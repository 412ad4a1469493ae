"""Echoes of our own that wait for their answers."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator

import trio

from core.errors import Refused

from .stack.icmp import ECHOES_LIMIT, EchoReply, Icmp
from .wire.icmpv4 import ECHO_LIMIT


class WaitingEcho:
    """One echo. `answered` is set once `reply` is there."""

    def __init__(self, identifier: int) -> None:
        self.identifier = identifier
        self.answered = trio.Event()
        self.answered_at = 0.0
        self.reply: EchoReply | None = None

    def hear(self, reply: EchoReply) -> None:
        """Take the first answer; a second is a duplicate."""
        if self.reply is None:
            self.reply = reply
            self.answered_at = trio.current_time()
            self.answered.set()


class Echoes:
    """Gives every echo an identifier of its own, by which its answer is known."""

    def __init__(self, icmp: Icmp, draw: Callable[[int], int]) -> None:
        self._icmp = icmp
        self._draw = draw

    @contextlib.contextmanager
    def open(self) -> Iterator[WaitingEcho]:
        """Listen for the answer to one echo while the block runs.

        Raises:
            Refused: ENOBUFS, too many wait already.
        """
        listening = self._icmp.echoes
        if len(listening) >= ECHOES_LIMIT:
            raise Refused(errno.ENOBUFS, f"{ECHOES_LIMIT} echoes are under way already")
        identifier = self._draw(16)
        while identifier in listening:
            identifier = identifier + 1 & 0xFFFF
        echo = WaitingEcho(identifier)
        listening[identifier] = echo.hear
        try:
            yield echo
        finally:
            del listening[identifier]

    def send(self, echo: WaitingEcho, destination: int, payload: bytes, now: float) -> None:
        """Send the echo.

        Raises:
            Refused: EMSGSIZE or ENETUNREACH.
        """
        if len(payload) > ECHO_LIMIT:
            raise Refused(errno.EMSGSIZE, f"{len(payload)} octets exceed {ECHO_LIMIT}")
        if not self._icmp.send_echo(destination, echo.identifier, 1, payload, now):
            raise Refused(errno.ENETUNREACH, "no route to the destination")
