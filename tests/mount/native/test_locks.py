"""Who waits for a lock: the queue, under every order of events, without a mount."""

from __future__ import annotations

import errno
import random
from typing import Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from core.errors import Refused
from fs_server.interface import LOCK_END, LOCK_NONE, LOCK_READ, LOCK_WRITE, FileSystem, Lock
from fs_server.locking import Locking
from mount.native.locks import Locks
from mount.native.protocol import requests
from mount.native.protocol.flags import Flag
from mount.native.protocol.opcodes import Opcode
from mount.native.protocol.replies import FileLock, LkOut

INODE: Final = 5


class LockingFileSystem(FileSystem, stub=True):
    """The locks of one file, whose answers take their time."""

    def __init__(self, chance: random.Random | None = None, badge: int = 1) -> None:
        self.locking = Locking()
        self.badge = badge
        self._chance = chance
        self.asked = 0

    async def _dawdle(self) -> None:
        for _ in range(self._chance.randrange(4) if self._chance else 0):
            await trio.lowlevel.checkpoint()

    async def lock(self, inode: int, lock: Lock, eager: bool) -> Lock | None:
        self.asked += 1
        await self._dawdle()
        found = self.locking.lock(self.badge, inode, lock, eager=eager)
        await self._dawdle()
        return found

    async def locked(self, inode: int, lock: Lock) -> Lock | None:
        return self.locking.locked(self.badge, inode, lock)

    async def unlock(self, inode: int, owner: int) -> None:
        await self._dawdle()
        self.locking.drop_owner(self.badge, inode, owner)
        await self._dawdle()

    async def close(self, inode: int, opened: int) -> None:
        self.locking.drop_opened(self.badge, inode, opened)


def request(
    kind: int, owner: int, span: tuple[int, int] = (0, LOCK_END), *, whole: bool = False
) -> requests.Lock:
    """Return a request; each owner has an open of its own."""
    flags = Flag.LK_FLOCK.value if whole else 0
    packed = FileLock(*span, kind, 100 + owner).pack()
    return requests.Lock(
        Opcode.SETLKW.value, 1, INODE, 0, 0, 9, INODE | owner << 40, owner, packed, flags
    )


def closing(owner: int) -> requests.Flush:
    return requests.Flush(Opcode.FLUSH.value, 1, INODE, 0, 0, 9, INODE, owner)


@pytest.mark.parametrize("whole", [False, True])
async def test_waiters_get_a_lock_in_order_of_arrival(whole: bool) -> None:
    fs = LockingFileSystem()
    locks = Locks(fs)
    await locks.set(request(LOCK_WRITE, 0, whole=whole))
    got: list[int] = []

    async def wait(owner: int) -> None:
        await locks.set_waiting(request(LOCK_WRITE, owner, whole=whole))
        got.append(owner)

    async with trio.open_nursery() as nursery:
        for owner in range(1, 5):
            nursery.start_soon(wait, owner)
            await wait_all_tasks_blocked()
        for owner in range(5):
            await locks.set(request(LOCK_NONE, owner, whole=whole))
            await wait_all_tasks_blocked()
            assert got == list(range(1, min(owner + 2, 5)))


async def test_readers_get_a_lock_together() -> None:
    fs = LockingFileSystem()
    locks = Locks(fs)
    await locks.set(request(LOCK_WRITE, 0))
    async with trio.open_nursery() as nursery:
        for owner in range(1, 5):
            nursery.start_soon(locks.set_waiting, request(LOCK_READ, owner))
        await wait_all_tasks_blocked()
        await locks.set(request(LOCK_READ, 0))
    assert fs.locking.table.count == 5


@pytest.mark.parametrize("seed", range(40))
async def test_nobody_is_left_waiting_and_no_two_have_what_excludes(seed: int) -> None:
    """Owners lock, hold, give back and are cancelled; in the end each has had its locks."""
    chance = random.Random(seed)
    fs = LockingFileSystem(chance)
    locks = Locks(fs)
    held: dict[int, tuple[int, int, int]] = {}

    def excludes(one: tuple[int, int, int], two: tuple[int, int, int]) -> bool:
        return one[1] <= two[2] and two[1] <= one[2] and LOCK_WRITE in {one[0], two[0]}

    async def work(owner: int) -> None:
        for _ in range(6):
            start = chance.randrange(4)
            wanted = (chance.choice((LOCK_READ, LOCK_WRITE)), start, start + chance.randrange(3))
            with trio.CancelScope() as scope:
                if chance.random() < 0.3:
                    scope.deadline = trio.current_time() + chance.random() / 1000
                await locks.set_waiting(request(wanted[0], owner, wanted[1:]))
                assert not [other for other in held.values() if excludes(wanted, other)]
                held[owner] = wanted
                await trio.lowlevel.checkpoint()
            held.pop(owner, None)
            if chance.random() < 0.5:
                await locks.set(request(LOCK_NONE, owner, (0, 9)))
            else:
                await locks.flush(closing(owner))
        await locks.flush(closing(owner))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for owner in range(6):
                nursery.start_soon(work, owner)
    assert fs.locking.table.count == 0
    assert not locks._queues
    assert not locks.may_hold(closing(3))


async def test_cancelled_waiter_passes_its_turn_on() -> None:
    locks = Locks(LockingFileSystem())
    await locks.set(request(LOCK_WRITE, 0))
    first = trio.CancelScope()

    async def wait_in_vain() -> None:
        with first:
            await locks.set_waiting(request(LOCK_WRITE, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_in_vain)
        await wait_all_tasks_blocked()
        nursery.start_soon(locks.set_waiting, request(LOCK_WRITE, 2))
        await wait_all_tasks_blocked()
        locks.wake(INODE)
        first.cancel()
        await locks.set(request(LOCK_NONE, 0))
        await wait_all_tasks_blocked()
        await locks.set(request(LOCK_NONE, 1))  # it may have got it before it was cancelled
    found = LkOut.unpack(await locks.get(request(LOCK_READ, 9)))  # type: ignore[arg-type]
    assert FileLock.unpack(found.lk).pid == 102


async def test_circles_are_found_over_others_and_end_with_a_refusal() -> None:
    locks = Locks(LockingFileSystem())
    for owner in range(4):
        await locks.set(request(LOCK_WRITE, owner, (owner, owner)))
    async with trio.open_nursery() as nursery:
        for owner in range(3):
            nursery.start_soon(locks.set_waiting, request(LOCK_WRITE, owner, (owner + 1,) * 2))
            await wait_all_tasks_blocked()
        with pytest.raises(Refused) as refused:
            await locks.set_waiting(request(LOCK_WRITE, 3, (0, 0)))
        assert refused.value.errno == errno.EDEADLK
        for owner in (3, 2, 1):
            await locks.set(request(LOCK_NONE, owner, (0, 9)))
            await wait_all_tasks_blocked()


async def test_circle_of_whole_locks_is_none_of_ours() -> None:
    """As with the host's own: who waits for itself by way of two files has to be ended."""
    fs = LockingFileSystem()
    locks = Locks(fs)
    await locks.set(request(LOCK_READ, 1, whole=True))
    await locks.set(request(LOCK_READ, 2, whole=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(locks.set_waiting, request(LOCK_WRITE, 1, whole=True))
        await wait_all_tasks_blocked()
        await locks.set(request(LOCK_NONE, 2, whole=True))


async def test_other_clients_locks_are_waited_for_until_they_say_so() -> None:
    fs = LockingFileSystem()
    locks = Locks(fs)
    other = Lock(LOCK_WRITE, owner=1)
    assert fs.locking.lock(7, INODE, other, eager=False) is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(locks.set_waiting, request(LOCK_WRITE, 1))
        await wait_all_tasks_blocked()
        asked = fs.asked
        fs.locking.drop_client(7)
        await wait_all_tasks_blocked()
        assert fs.asked == asked
        locks.wake_all()


async def test_close_costs_a_call_only_to_who_has_locked() -> None:
    locks = Locks(LockingFileSystem())
    assert not locks.may_hold(closing(1))
    await locks.set(request(LOCK_WRITE, 1, whole=True))
    assert not locks.may_hold(closing(1))
    await locks.set(request(LOCK_READ, 1))
    assert locks.may_hold(closing(1))
    assert not locks.may_hold(closing(2))
    await locks.flush(closing(1))
    assert not locks.may_hold(closing(1))
    locks.complete = False
    assert locks.may_hold(closing(1))


async def test_what_was_locked_through_an_open_goes_with_it() -> None:
    """Of an open file description's locks, the host's kernel says no more than that."""
    fs = LockingFileSystem()
    locks = Locks(fs)
    await locks.set(request(LOCK_WRITE, 3))
    done = requests.Release(Opcode.RELEASE.value, 1, INODE, 0, 0, 9, INODE | 3 << 40, 0, 0, 77)
    await locks.close(done)
    assert fs.locking.table.count == 0
    assert not locks.may_hold(closing(3))
