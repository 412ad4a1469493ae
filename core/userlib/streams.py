"""Streams: names under which octets pass from those who write to those who read.

Any server may offer them: it serves an interface that extends `Streams`, and a front end shows the
names as files that can be opened, read, written and polled. What a name stands for is the server's
matter; the pipe server's are first-in-first-out queues on which two programs meet.

No operation waits. One that cannot be done yet is refused with EAGAIN, and whoever asked keeps what
is waiting, and asks again when the stream has moved: after its own operations it knows that by
itself, and of what other clients did it is told (`watch`, `changes`). So thousands may wait, and
none of them is in flight at the server's port.

Nothing is lost or doubled when either side dies. An opening is a number that belongs to the client
(its badge) and outlives both incarnations; it ends with `close`, or when the last right with that
badge is gone. `open`, `take` and `put` carry a *turn*, a number that the client chooses for what it
wants done, and asks again with after its own death: it gets the same opening, the same octets, or
how many have been taken already.
"""

from __future__ import annotations

from typing import Final

import msgspec

from core.abi import Right

from .interface import Bulk, Interface, operation

READING: Final = 1
WRITING: Final = 2

READABLE: Final = 1
"""`ready`: `take` returns octets at once."""
WRITABLE: Final = 2
"""`ready`: `put` takes `WHOLE` octets at once."""
ENDED: Final = 4
"""`ready`: all who wrote have closed, and nothing is left."""
BROKEN: Final = 8
"""`ready`: all who read have closed."""
MET: Final = 16
"""`ready`: somebody has opened the other end since this opening was made, or had it open then."""

WHOLE: Final = 4096
"""Octets that `put` takes all or not at all, and never between those of others (PIPE_BUF)."""
TAKE_LIMIT: Final = 128 * 1024
"""Octets that one `take` returns at most."""
STREAM_SHIFT: Final = 24
"""An opening's number, shifted to the right by this many bits, is its stream's."""
NAME_LIMIT: Final = 255
"""Octets in a name."""
NAMES_LIMIT: Final = 128
"""Names in one answer of `names`."""


class Stream(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a stream. `made_ns` is in nanoseconds since 1970."""

    number: int
    name: bytes
    mode: int
    uid: int
    gid: int
    made_ns: int


class Streams(Interface):
    """The operations. Refused, by all that name an opening: EBADF, if it is not the client's."""

    @operation(idempotent=True)
    async def names(self, after: bytes, limit: int) -> list[Stream]:
        """Return streams in the order of their names, from the first behind `after` on."""

    @operation(idempotent=True)
    async def find(self, name: bytes) -> Stream | None:
        """Return the stream of that name; None: there is none, but it can be opened."""

    @operation(idempotent=True)
    async def alter(self, name: bytes, mode: int, uid: int, gid: int) -> Stream:
        """Change permissions and owner; -1 leaves one alone. Refused: ENOENT."""

    @operation
    async def unlink(self, name: bytes) -> None:
        """Take the name away; who has the stream open goes on. Refused: ENOENT."""

    @operation(idempotent=True)
    async def open(self, name: bytes, access: int, uid: int, gid: int, turn: int) -> int:
        """Return a new opening of the stream, which is made if there is none.

        Args:
            name: one that is empty finds the turn's opening, or is refused.
            access: READING, WRITING, or both.
            uid, gid: whose it will be if it is made.

        Refused: ENFILE, there are too many streams or openings; EINVAL, ENAMETOOLONG.
        """

    @operation(idempotent=True)
    async def close(self, opening: int) -> None:
        """Give an opening up. One that is not there any more was given up before."""

    @operation(idempotent=True)
    async def leave(self) -> None:
        """Give up all openings of this client."""

    @operation(idempotent=True)
    async def openings(self) -> list[tuple[int, int]]:
        """Return `(opening, key)` of what this client has open; `key` is what `ready` was given."""

    @operation(idempotent=True)
    async def ready(self, opening: int, key: int) -> int:
        """Return what can be done now.

        Args:
            key: remembered with the opening, for the client's next incarnation; 0: none.
        """

    @operation(idempotent=True, room="size")
    async def take(self, opening: int, turn: int, size: int) -> Bulk:
        """Return up to `size` octets; none at the end. Refused: EAGAIN, nothing is there."""

    @operation(idempotent=True)
    async def put(self, opening: int, turn: int, done: int, data: Bulk) -> int:
        """Take octets and return how many of this turn's have been taken in all.

        Args:
            done: how many of this turn's octets come before `data`.

        Refused: EAGAIN, there is no room; EPIPE, nobody reads any more.
        """

    @operation(idempotent=True)
    async def watch(self, bits: int, changed: Right) -> None:
        """Set `bits` at a port when others have moved a stream that this client has open.

        The server goes on with that after its restart. Refused: EMFILE.
        """

    @operation(idempotent=True)
    async def changes(self) -> list[int] | None:
        """Return which streams others have moved since the last time. None: any of them."""
