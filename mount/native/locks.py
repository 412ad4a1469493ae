"""Locks of the mount's processes: kept by the file server, waited for here.

The host's kernel sends every lock, of fcntl(2), of flock(2), and those of open file descriptions,
which it does not tell from a process's. It names an owner, a number that stands for a process's
table of descriptors or for an open file. What it does not say is that an open file description was
closed that had locks: the file server forgets with `close` what was locked through that open.

Waiting. The file server refuses a lock that is in the way of another, and this module keeps the
queue: one for each inode, in order of arrival. When something on the inode was given back, a round
begins: the first in the queue asks again, then the next, each when the one before it had its
answer. If more is given back meanwhile, another round begins, after the answer to who is asking.
Who comes new asks at once, so that the order is no promise. What was given back through this mount
is known here; for other clients there is `UNLOCKED` (`wake_all`).

Deadlocks. Of each waiting owner it is known who was in its way. An owner that would wait for one
who, over some others, waits for itself, is refused EDEADLK; as in the host's kernel, not for whole
locks. Owners of other clients are not followed.

Invariants:

1. Who waits is in the queue before it asks, so that nothing given back meanwhile is missed.
2. An answer of the file server is never thrown away: whoever is cancelled while it asks gets the
   lock, if it could be had.
3. At most one in a queue has the turn, and it is passed on, whatever becomes of who had it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

import trio

from core.errors import Refused
from core.userlib.interface import Bulk
from fs_server.interface import LOCK_NONE, LOCK_WRITE, FileSystem, Lock
from mount.file_operations import INODE_BITS

from .protocol import requests
from .protocol.flags import Flag
from .protocol.replies import FileLock, LkOut

_NOTHING: Final = b""
_WHOLE: Final = Flag.LK_FLOCK.value
_SERIAL_SHIFT: Final = INODE_BITS.bit_length()


class _Waiter:
    """A request that waits for a lock. `blocker`: the owner that was in its way."""

    __slots__ = ("blocker", "owner", "turn", "whole")

    def __init__(self, owner: int, *, whole: bool) -> None:
        self.owner = owner
        self.whole = whole
        self.blocker = -1
        self.turn = trio.Event()


class _Queue:
    """Who waits for a lock of one file.

    Attributes:
        rounds: how many have been asked for.
    """

    def __init__(self) -> None:
        self.waiters: list[_Waiter] = []
        self.rounds = 0
        self._holder: _Waiter | None = None
        self._again = False
        self._asking = False
        """Who has the turn makes use of it."""

    def wake(self) -> None:
        """Let everybody ask again, one after another."""
        self.rounds += 1
        for waiter in self.waiters:
            waiter.blocker = -1  # not known until it has asked again
        if self._holder is None or not self._asking:
            self._give_turn(0)
        else:
            self._again = True

    def begin(self, waiter: _Waiter) -> bool:
        """Return whether a waiter that was given the turn has it still, and is to ask."""
        waiter.turn = trio.Event()
        if self._holder is waiter:
            self._asking = True
        return self._holder is waiter

    def _give_turn(self, index: int) -> None:
        self._asking = False
        self._holder = self.waiters[index] if index < len(self.waiters) else None
        if self._holder is not None:
            self._holder.turn.set()

    def pass_on(self, waiter: _Waiter) -> None:
        """Give the turn to the next, if this one has made use of it."""
        if self._holder is waiter and self._asking:
            index = 0 if self._again else self.waiters.index(waiter) + 1
            self._again = False
            self._give_turn(index)

    def leave(self, waiter: _Waiter) -> None:
        """Wait no longer."""
        index = self.waiters.index(waiter)
        del self.waiters[index]
        if self._holder is waiter:
            self._give_turn(0 if self._again else index)
            self._again = False


def _lock(request: requests.Lock) -> Lock:
    """Return what is asked for, as the file server wants it."""
    wanted = FileLock.unpack(request.lk)
    return Lock(
        wanted.type,
        wanted.start,
        wanted.end,
        request.owner,
        request.fh >> _SERIAL_SHIFT,
        wanted.pid,
        bool(request.lk_flags & _WHOLE),
    )


class Locks:
    """The locks of one mount."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._queues: dict[int, _Queue] = {}
        self._owners: dict[int, dict[int, int]] = {}
        """By inode, the owners that may have range locks, and through which open they set one."""
        self.complete = True
        """Every lock of the mount was set by this object. If not, every close asks the server."""

    # -- requests

    async def get(self, request: requests.Lock) -> Bulk:
        """Return the lock that is in the way, or say that none is."""
        wanted = _lock(request)
        found = await self._fs.locked(request.fh & INODE_BITS, wanted)
        if found is None:
            found = Lock(LOCK_NONE, wanted.start, wanted.end)
        return LkOut(FileLock(found.start, found.end, found.kind, found.pid).pack()).pack()

    async def set(self, request: requests.Lock) -> Bulk:
        """Set a lock at once or not at all. Raises: Refused, EAGAIN for one."""
        if await self._ask(request, eager=False, first=True) is not None:
            raise Refused(errno.EAGAIN)
        return _NOTHING

    async def set_waiting(self, request: requests.Lock) -> Bulk:
        """Set a lock when it can be had. May be cancelled. Raises: Refused, EDEADLK for one."""
        inode = request.fh & INODE_BITS
        waiter = _Waiter(request.owner, whole=bool(request.lk_flags & _WHOLE))
        queue = self._queues.setdefault(inode, _Queue())
        queue.waiters.append(waiter)
        first = True
        try:
            while True:
                rounds = queue.rounds
                with trio.CancelScope(shield=True):
                    found = await self._ask(request, eager=True, first=first)
                if found is None:
                    return _NOTHING
                first = False
                if queue.rounds == rounds:
                    waiter.blocker = found.owner
                    if not waiter.whole and self._is_deadlock(waiter):
                        raise Refused(errno.EDEADLK)
                queue.pass_on(waiter)
                await waiter.turn.wait()
                while not queue.begin(waiter):
                    await waiter.turn.wait()
        finally:
            queue.leave(waiter)
            if not queue.waiters:
                del self._queues[inode]

    async def _ask(self, request: requests.Lock, *, eager: bool, first: bool) -> Lock | None:
        """Ask the file server; wake others if something may have been given back."""
        inode = request.fh & INODE_BITS
        lock = _lock(request)
        if not lock.whole and lock.kind != LOCK_NONE:
            self._owners.setdefault(inode, {})[lock.owner] = lock.opened
        found = await self._fs.lock(inode, lock, eager)
        lowered = found is None and lock.kind != LOCK_WRITE
        if lowered or (lock.whole and first):
            self.wake(inode)
        return found

    def may_hold(self, request: requests.Flush) -> bool:
        """Tell whether whoever closed a descriptor may have range locks on the file."""
        owners = self._owners.get(request.nodeid)
        return (owners is not None and request.lock_owner in owners) or not self.complete

    async def flush(self, request: requests.Flush) -> None:
        """Give back the range locks of an owner, which has closed a descriptor of the file."""
        inode, owner = request.nodeid, request.lock_owner
        await self._fs.unlock(inode, owner)
        self._forget(inode, lambda other, _: other == owner)
        self.wake(inode)

    async def close(self, request: requests.Release) -> None:
        """Give an open back, and what was locked through it."""
        inode, opened = request.fh & INODE_BITS, request.fh >> _SERIAL_SHIFT
        await self._fs.close(inode, opened)
        if inode in self._owners:
            self._forget(inode, lambda _, through: through == opened)
        self.wake(inode)

    def _forget(self, inode: int, gone: Callable[[int, int], bool]) -> None:
        owners = self._owners.pop(inode, {})
        left = {owner: opened for owner, opened in owners.items() if not gone(owner, opened)}
        if left:
            self._owners[inode] = left

    # -- who waits

    def wake(self, inode: int) -> None:
        """Let those who wait for a lock of a file ask again, one after another."""
        queue = self._queues.get(inode)
        if queue is not None:
            queue.wake()

    def wake_all(self) -> None:
        """Let everybody ask again: other clients may have given something back."""
        for inode in list(self._queues):
            self.wake(inode)

    def _is_deadlock(self, waiter: _Waiter) -> bool:
        """Tell whether the owner that is in the way waits, over any others, for this one."""
        waits: dict[int, set[int]] = {}
        for queue in self._queues.values():
            for other in queue.waiters:
                if not other.whole and other.blocker != -1:
                    waits.setdefault(other.owner, set()).add(other.blocker)
        seen: set[int] = set()
        reached = [waiter.blocker]
        while reached:
            owner = reached.pop()
            if owner == waiter.owner:
                return True
            if owner not in seen:
                seen.add(owner)
                reached.extend(waits.get(owner, ()))
        return False
