"""What clients hold of the network server: sockets and captures, each by the badge of its right.

The table is written to kept memory whenever it changes, before the change is answered. After a
death the next incarnation binds the same ports again under the same badges, so a client's right
goes on meaning its socket. A request that was applied but not answered is found again by its id.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Final, TypeVar

import msgspec
import trio

from core.errors import Refused
from core.userlib.kept_value import KeptValue, UnreadableError

from .capture import CAPTURES_LIMIT, SNAPLEN_LIMIT, Capture, Captures
from .stack.udp import Socket, Udp, UdpError

FIRST_BADGE: Final = 1 << 32
"""Above the badges that the kernel gives with granted rights."""


class _Entry(msgspec.Struct, array_like=True):
    """A holding as it is kept. `port` is 0 for a capture, `snaplen` for a socket."""

    badge: int
    request: int
    port: int
    broadcast: bool
    snaplen: int


class _Table(msgspec.Struct, array_like=True):
    next_badge: int
    entries: list[_Entry]


_decode: Final = msgspec.msgpack.Decoder(_Table).decode


class Waiters:
    """Those who wait for one thing to have something for them."""

    def __init__(self) -> None:
        self._event: trio.Event | None = None

    async def wait(self) -> None:
        """Wait until `wake` is called."""
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()
        # woken and withdrawn in one turn: whoever comes next shall have it
        await trio.lowlevel.checkpoint_if_cancelled()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        event, self._event = self._event, None
        if event is not None:
            event.set()


class BoundSocket:
    """A socket that a client holds."""

    noun: ClassVar = "socket"

    def __init__(self, entry: _Entry, socket: Socket) -> None:
        self.entry = entry
        self.socket = socket
        self.waiters = Waiters()
        self.closed = False
        socket.notify = self.waiters.wake


class HeldCapture:
    """A capture that a client holds."""

    noun: ClassVar = "capture"

    def __init__(self, entry: _Entry, capture: Capture, *, interrupted: bool) -> None:
        self.entry = entry
        self.capture = capture
        self.interrupted = interrupted
        self.waiters = Waiters()
        self.closed = False
        capture.notify = self.waiters.wake


H = TypeVar("H", BoundSocket, HeldCapture)


class Holdings:
    """All sockets and captures, by badge."""

    def __init__(self, kept: KeptValue, udp: Udp, captures: Captures) -> None:
        """Restore what an earlier incarnation's clients hold."""
        self._kept = kept
        self._udp = udp
        self._captures = captures
        self._held: dict[int, BoundSocket | HeldCapture] = {}
        self._next_badge = FIRST_BADGE
        self.lost = ""
        """Why what an earlier incarnation's clients held is gone, if it is."""
        try:
            stored = kept.load()
            if stored is None:
                return
            table = _decode(stored)
        except (UnreadableError, msgspec.MsgspecError) as error:
            self.lost = str(error)
            return
        self._next_badge = table.next_badge
        for entry in table.entries:
            self._restore(entry)

    def _restore(self, entry: _Entry) -> None:
        if entry.port:
            self._hold_socket(entry, self._udp.bind(entry.port, broadcast=entry.broadcast))
        else:
            self._hold_capture(entry, interrupted=True)

    def _hold_socket(self, entry: _Entry, socket: Socket) -> BoundSocket:
        held = self._held[entry.badge] = BoundSocket(entry, socket)
        return held

    def _hold_capture(self, entry: _Entry, *, interrupted: bool) -> HeldCapture:
        capture = Capture(entry.snaplen)
        self._captures.add(capture)
        held = self._held[entry.badge] = HeldCapture(entry, capture, interrupted=interrupted)
        return held

    def __bool__(self) -> bool:
        """Whether clients hold anything."""
        return bool(self._held)

    def count(self) -> str:
        """Return how much clients hold, in words."""
        sockets = sum(isinstance(held, BoundSocket) for held in self._held.values())
        return f"{sockets} sockets and {len(self._held) - sockets} captures"

    def _store(self) -> None:
        entries = [held.entry for held in self._held.values()]
        self._kept.store(msgspec.msgpack.encode(_Table(self._next_badge, entries)))

    def _take_badge(self) -> int:
        self._next_badge += 1
        return self._next_badge - 1

    def applied(self, request: int, kind: type[H]) -> H | None:
        """Return what a request made that is delivered again, if it had got so far."""
        for held in self._held.values():
            if held.entry.request == request and isinstance(held, kind):
                return held
        return None

    def bind(self, request: int, port: int, *, broadcast: bool) -> BoundSocket:
        """Bind a socket for the client that made the request.

        Raises:
            Refused: EINVAL, EADDRINUSE, ENOBUFS.
        """
        try:
            socket = self._udp.bind(port, broadcast=broadcast)
        except UdpError as error:
            raise Refused(error.errno, error.detail) from None
        entry = _Entry(self._take_badge(), request, socket.port, broadcast, 0)
        held = self._hold_socket(entry, socket)
        self._store()
        return held

    def start_capture(self, request: int, snaplen: int) -> HeldCapture:
        """Begin a capture for the client that made the request.

        Raises:
            Refused: EINVAL, ENOBUFS.
        """
        if not 0 <= snaplen <= SNAPLEN_LIMIT:
            raise Refused(errno.EINVAL, f"snaplen is 0..{SNAPLEN_LIMIT}, not {snaplen}")
        if sum(isinstance(held, HeldCapture) for held in self._held.values()) >= CAPTURES_LIMIT:
            raise Refused(errno.ENOBUFS, f"{CAPTURES_LIMIT} captures are under way already")
        entry = _Entry(self._take_badge(), request, 0, False, snaplen or SNAPLEN_LIMIT)
        held = self._hold_capture(entry, interrupted=False)
        self._store()
        return held

    def get(self, badge: int, kind: type[H]) -> H:
        """Return what the right with this badge is.

        Raises:
            Refused: EBADF, it is nothing, or something else.
        """
        held = self._held.get(badge)
        if not isinstance(held, kind):
            raise Refused(errno.EBADF, f"this right is no {kind.noun}, or no longer one")
        return held

    def close(self, badge: int) -> None:
        """Give up what the right with this badge is, if anything; who waits for it is refused."""
        held = self._held.pop(badge, None)
        if held is None:
            return
        if isinstance(held, BoundSocket):
            self._udp.close(held.socket)
        else:
            self._captures.remove(held.capture)
        held.closed = True
        held.waiters.wake()
        self._store()
