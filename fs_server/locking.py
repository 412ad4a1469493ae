"""Locks that outlive the server, and who hopes for them.

Locks belong to clients that live on when the server dies, and end with the boot: so they are, like
opens, in a memory object that the kernel keeps, a journal of fixed records that the next
incarnation reads back. It is made with the first lock.

    offset 0    boot id, u64       which boot this belongs to: another boot's locks are void
    offset 8    count, u64         records that are valid; written after the record itself
    offset 16   record, record ... what u8 | kind u8 | whole u16 | pid u32 |
                                   client, inode, owner, start, end, opened u64

When the journal is full, what is held is written to a new memory object, which takes the old one's
place at the kernel in one step. Every change may be done twice: a request that is delivered again
sets what is set, or gives back what is gone. So no answers are recorded.

Nobody waits here. A client that was refused and is `eager` is told when something on that file is
given back by another client, and asks again. After a restart the server does not know who hoped,
and tells everybody.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable
from typing import Final

from core.errors import Refused

from .interface import LOCK_NONE, Lock
from .locks import LockTable, check_lock, lock_of

_HEADER: Final = struct.Struct("<QQ")
_COUNT: Final = struct.Struct("<Q")
_COUNT_OFFSET: Final = 8
_RECORD: Final = struct.Struct("<BBHIQQQQQQ")
_FIRST_CAPACITY: Final = 4096

_PUT: Final = 0
_DROP_OWNER: Final = 1
_DROP_OPENED: Final = 2
_DROP_FILE: Final = 3
_DROP_CLIENT: Final = 4

_NOBODY: Final = Lock(LOCK_NONE)

Keep = Callable[[int], None]
"""Has the kernel keep a memory object's descriptor in place of the one before; see `Task.keep`."""


class Locking:
    """All locks of a volume.

    Args:
        boot_id: this boot's; 63 bits.
        keep: is told about every new memory object; it must not take the descriptor over.
        kept: descriptor of the memory object that an earlier incarnation left; owned. None: none.
        tell: tells a client that it may be worthwhile to ask again.
    """

    def __init__(
        self,
        boot_id: int = 0,
        keep: Keep = lambda _descriptor: None,
        kept: int | None = None,
        tell: Callable[[int], None] = lambda _client: None,
        capacity: int = _FIRST_CAPACITY,
    ) -> None:
        self._boot_id = boot_id
        self._keep = keep
        self._tell = tell
        self._first_capacity = capacity
        self._memory: mmap.mmap | None = None
        self._capacity = self._used = 0
        self._hopeful: dict[int, set[int]] = {}
        """Clients that were refused, by inode."""
        self.table = LockTable()
        if kept is not None:
            self._read(kept)

    # -- the journal ------------------------------------------------------------------------------

    def _read(self, descriptor: int) -> None:
        """Take an earlier incarnation's journal over, if it is of this boot."""
        try:
            size = os.fstat(descriptor).st_size
            memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        boot_id, count = _HEADER.unpack_from(memory)
        if boot_id != self._boot_id:
            memory.close()
            return
        for index in range(count):
            self._apply(_RECORD.unpack_from(memory, _HEADER.size + index * _RECORD.size))
        self._memory = memory
        self._capacity = (size - _HEADER.size) // _RECORD.size
        self._used = count

    def _apply(self, record: tuple[int, ...]) -> None:
        """Do to the table what a record says."""
        what, kind, whole, pid, client, inode, owner, start, end, opened = record
        table = self.table
        if what == _PUT:
            table.put(client, inode, Lock(kind, start, end, owner, opened, pid, bool(whole)))
        elif what == _DROP_OWNER:
            table.drop_owner(client, inode, owner)
        elif what == _DROP_OPENED:
            table.drop_opened(client, inode, opened)
        elif what == _DROP_FILE:
            table.drop_file(client, inode)
        else:
            table.drop_client(client)

    def _make_room(self) -> None:
        """See that one more record fits. Raises: Refused ENOLCK, the host has no memory."""
        if self._used < self._capacity:
            return
        records = [_record(_PUT, *held) for held in self.table.all()]
        capacity = max(self._first_capacity, 2 * len(records) + 1)
        size = _HEADER.size + capacity * _RECORD.size
        descriptor = os.memfd_create("locks", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(descriptor, 0, size)  # a page that lacks later would be SIGBUS
            memory = mmap.mmap(descriptor, size)
            octets = b"".join(records)
            memory[_HEADER.size : _HEADER.size + len(octets)] = octets
            _HEADER.pack_into(memory, 0, self._boot_id, len(records))
            self._keep(descriptor)
        except OSError as error:
            raise Refused(errno.ENOLCK, f"no memory for locks: {error.strerror}") from None
        finally:
            os.close(descriptor)
        self.close()
        self._memory, self._capacity, self._used = memory, capacity, len(records)

    def _note(self, what: int, client: int, inode: int, lock: Lock = _NOBODY) -> None:
        """Write a record, for which there is room."""
        assert self._memory is not None
        start = _HEADER.size + self._used * _RECORD.size
        self._memory[start : start + _RECORD.size] = _record(what, client, inode, lock)
        self._used += 1
        _COUNT.pack_into(self._memory, _COUNT_OFFSET, self._used)

    def close(self) -> None:
        """Unmap the memory object; the kernel still keeps it."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    # -- locks ------------------------------------------------------------------------------------

    def lock(self, client: int, inode: int, lock: Lock, *, eager: bool) -> Lock | None:
        """See `FileSystem.lock`."""
        check_lock(lock)
        if lock.whole and self.table.kind(client, inode, lock) not in {LOCK_NONE, lock.kind}:
            # the host's own locks do the same: else two that want more would wait for ever
            self._put(client, inode, Lock(LOCK_NONE, owner=lock.owner, whole=True))
        found = self.locked(client, inode, lock)
        if found is None:
            self._put(client, inode, lock)
        elif eager:
            self._hopeful.setdefault(inode, set()).add(client)
        return found

    def _put(self, client: int, inode: int, lock: Lock) -> None:
        self._make_room()
        given = self.table.put(client, inode, lock)
        self._note(_PUT, client, inode, lock)
        if given:
            self._given(client, inode)

    def locked(self, client: int, inode: int, lock: Lock) -> Lock | None:
        """See `FileSystem.locked`."""
        check_lock(lock)
        found = self.table.obstacle(client, inode, lock)
        if found is None:
            return None
        (holder, number), piece = found
        return lock_of(number if holder == client else -1, piece, whole=lock.whole)

    def drop_owner(self, client: int, inode: int, owner: int) -> None:
        """Give an owner's range locks on a file back. Raises: Refused ENOLCK, they stay."""
        if self.table.count:
            self._make_room()
            if self.table.drop_owner(client, inode, owner):
                self._note(_DROP_OWNER, client, inode, Lock(LOCK_NONE, owner=owner))
                self._given(client, inode)

    def drop_opened(self, client: int, inode: int, opened: int) -> None:
        """Give what was locked through one open back. Raises: Refused ENOLCK, it stays."""
        if self.table.count:
            self._make_room()
            if self.table.drop_opened(client, inode, opened):
                self._note(_DROP_OPENED, client, inode, Lock(LOCK_NONE, opened=opened))
                self._given(client, inode)

    def drop_file(self, client: int, inode: int) -> None:
        """Give a client's locks on a file that it has closed back. Raises: Refused ENOLCK."""
        hopeful = self._hopeful.get(inode)
        if hopeful is not None:
            hopeful.discard(client)
            if not hopeful:
                del self._hopeful[inode]
        if self.table.count:
            self._make_room()
            if self.table.drop_file(client, inode):
                self._note(_DROP_FILE, client, inode)
                self._given(client, inode)

    def drop_client(self, client: int) -> None:
        """Give all locks of a client that has ended back. Raises: Refused ENOLCK."""
        for inode in [inode for inode, clients in self._hopeful.items() if client in clients]:
            self.drop_file(client, inode)
        if self.table.count:
            self._make_room()
            inodes = self.table.drop_client(client)
            if inodes:
                self._note(_DROP_CLIENT, client, 0)
            for inode in inodes:
                self._given(client, inode)

    def _given(self, client: int, inode: int) -> None:
        """Tell other clients that something on a file was given back."""
        for other in self._hopeful.pop(inode, ()):
            if other != client:
                self._tell(other)


def _record(what: int, client: int, inode: int, lock: Lock) -> bytes:
    numbers = (client, inode, lock.owner, lock.start, lock.end, lock.opened)
    return _RECORD.pack(what, lock.kind, lock.whole, lock.pid, *numbers)
