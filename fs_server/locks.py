"""Locks on files: who holds which kind on which octets. A pure table, without clock and memory.

There are two sorts, which do not heed each other. A *range* lock (fcntl) covers octets `start` to
`end`, both included. A *whole* lock (flock) covers the file. A lock belongs to an owner, a number
that its client chose. An owner's own locks are never in its way: a new one takes the place of what
it covers, so ranges are split and change their kind piece by piece.

Invariants: the pieces of one owner are sorted and disjoint, and two that adjoin differ in kind,
process or the open they were made through; what two owners hold of one octet is for reading;
`count` is the number of pieces, which `LOCKS_LIMIT` and `CLIENT_LOCKS_LIMIT` bound.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from core.errors import Refused

from .interface import LOCK_END, LOCK_NONE, LOCK_READ, LOCK_WRITE, Lock

LOCKS_LIMIT: Final = 65_536
"""Pieces of all clients."""
CLIENT_LOCKS_LIMIT: Final = 16_384
"""Pieces of one client."""
_NUMBER_LIMIT: Final = 1 << 64
_PID_LIMIT: Final = 1 << 32


class Piece(NamedTuple):
    """Some octets that an owner has locked."""

    start: int
    end: int
    kind: int
    opened: int
    pid: int

    def alike(self, other: Piece) -> bool:
        """Whether both could be one piece if they adjoined."""
        return self[2:] == other[2:]


Owner = tuple[int, int]
"""A client's badge, and the number that the client chose."""
_Sort = tuple[int, bool]
"""An inode, and whether it is about whole locks."""


def check_lock(lock: Lock) -> None:
    """Refuse what is no lock. Raises: Refused EINVAL."""
    if (
        lock.kind not in {LOCK_READ, LOCK_WRITE, LOCK_NONE}
        or not 0 <= lock.start <= lock.end <= LOCK_END
        or not 0 <= lock.owner < _NUMBER_LIMIT
        or not 0 <= lock.opened < _NUMBER_LIMIT
        or not 0 <= lock.pid < _PID_LIMIT
        or (lock.whole and (lock.start or lock.end != LOCK_END))
    ):
        raise Refused(errno.EINVAL, f"no such lock: {lock}")


def _covered(pieces: list[Piece], lock: Lock) -> list[Piece]:
    """Return the pieces that a lock replaces by, with what is left of those that it cuts."""
    kept: list[Piece] = []
    for piece in pieces:
        if piece.end < lock.start or piece.start > lock.end:
            kept.append(piece)
            continue
        if piece.start < lock.start:
            kept.append(piece._replace(end=lock.start - 1))
        if piece.end > lock.end:
            kept.append(piece._replace(start=lock.end + 1))
    if lock.kind != LOCK_NONE:
        kept.append(Piece(lock.start, lock.end, lock.kind, lock.opened, lock.pid))
    return _joined(sorted(kept))


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Return sorted pieces with those made one that can be."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].end + 1 == piece.start and joined[-1].alike(piece):
            joined[-1] = joined[-1]._replace(end=piece.end)
        else:
            joined.append(piece)
    return joined


def _first_against(pieces: list[Piece], lock: Lock) -> Piece | None:
    """Return the first of an owner's pieces that keeps another owner from a lock."""
    found = None
    index = bisect_right(pieces, lock.end, key=lambda piece: piece.start) - 1
    while index >= 0 and pieces[index].end >= lock.start:
        if LOCK_WRITE in {pieces[index].kind, lock.kind}:
            found = pieces[index]
        index -= 1
    return found


class LockTable:
    """The table. Locks that are passed in have been checked (`check_lock`)."""

    def __init__(self) -> None:
        self._held: dict[_Sort, dict[Owner, list[Piece]]] = {}
        self._counts: dict[int, int] = {}
        self.count = 0

    def obstacle(self, client: int, inode: int, lock: Lock) -> tuple[Owner, Piece] | None:
        """Return the first piece of another owner's that is in the way of a lock, if one is."""
        if lock.kind == LOCK_NONE:
            return None
        found: tuple[Owner, Piece] | None = None
        for owner, pieces in self._held.get((inode, lock.whole), {}).items():
            if owner != (client, lock.owner):
                piece = _first_against(pieces, lock)
                if piece is not None and (found is None or piece.start < found[1].start):
                    found = owner, piece
        return found

    def kind(self, client: int, inode: int, lock: Lock) -> int:
        """Return the kind of the whole lock that the owner of `lock` holds, or LOCK_NONE."""
        pieces = self._held.get((inode, True), {}).get((client, lock.owner))
        return pieces[0].kind if pieces else LOCK_NONE

    def put(self, client: int, inode: int, lock: Lock) -> bool:
        """Set a lock that nothing is in the way of, or with LOCK_NONE give it back.

        Returns whether others may have more afterwards than before.

        Raises:
            Refused: ENOLCK, too many pieces.
        """
        owners = self._held.get((inode, lock.whole), {})
        before = owners.get((client, lock.owner), [])
        after = _covered(before, lock)
        added = len(after) - len(before)
        if added > 0 and (
            self.count + added > LOCKS_LIMIT
            or self._counts.get(client, 0) + added > CLIENT_LOCKS_LIMIT
        ):
            raise Refused(errno.ENOLCK, "too many locks")
        self._store((inode, lock.whole), (client, lock.owner), after)
        return lock.kind != LOCK_WRITE and bool(before)

    def _store(self, sort: _Sort, owner: Owner, pieces: list[Piece]) -> None:
        owners = self._held.setdefault(sort, {})
        client = owner[0]
        added = len(pieces) - len(owners.get(owner, ()))
        self.count += added
        self._counts[client] = self._counts.get(client, 0) + added
        if not self._counts[client]:
            del self._counts[client]
        if pieces:
            owners[owner] = pieces
            return
        owners.pop(owner, None)
        if not owners:
            del self._held[sort]

    def drop_owner(self, client: int, inode: int, number: int) -> bool:
        """Give all range locks of an owner back. Returns whether there were any."""
        return self._drop((inode, False), (client, number))

    def _drop(self, sort: _Sort, owner: Owner) -> bool:
        if owner not in self._held.get(sort, {}):
            return False
        self._store(sort, owner, [])
        return True

    def drop_opened(self, client: int, inode: int, opened: int) -> bool:
        """Give all locks back that were made through one open. Returns whether there were any."""
        dropped = False
        for sort, owner, pieces in self._of(client, inode):
            left = [piece for piece in pieces if piece.opened != opened]
            if len(left) != len(pieces):
                self._store(sort, owner, left)
                dropped = True
        return dropped

    def drop_file(self, client: int, inode: int) -> bool:
        """Give all locks of a client on one file back. Returns whether there were any."""
        found = self._of(client, inode)
        for sort, owner, _ in found:
            self._drop(sort, owner)
        return bool(found)

    def _of(self, client: int, inode: int) -> list[tuple[_Sort, Owner, list[Piece]]]:
        return [
            (sort, owner, pieces)
            for sort in ((inode, False), (inode, True))
            for owner, pieces in self._held.get(sort, {}).items()
            if owner[0] == client
        ]

    def drop_client(self, client: int) -> list[int]:
        """Give all locks of a client back. Returns the inodes on which there were some."""
        if client not in self._counts:
            return []
        inodes = sorted({inode for inode, _ in self._held})
        return [inode for inode in inodes if self.drop_file(client, inode)]

    def holds(self, client: int, inode: int) -> bool:
        """Return whether a client has a lock on a file."""
        return client in self._counts and bool(self._of(client, inode))

    def all(self) -> Iterator[tuple[int, int, Lock]]:
        """Yield every piece, as client, inode and the lock that would set it."""
        for (inode, whole), owners in self._held.items():
            for (client, number), pieces in owners.items():
                for piece in pieces:
                    yield client, inode, lock_of(number, piece, whole=whole)


def lock_of(number: int, piece: Piece, *, whole: bool) -> Lock:
    """Return a piece as clients see it."""
    return Lock(piece.kind, piece.start, piece.end, number, piece.opened, piece.pid, whole)
