"""Which client has which inode open how often, in memory that outlives the server.

Opens belong to clients that live on when the server dies, and end with the boot. So they are not in
the database (a transaction for every open would cost more than the open), but in a memory object
that the kernel keeps: a journal of fixed records, read back by the next incarnation.

    offset 0    boot id, u64       which boot this belongs to: another boot's opens are void
    offset 8    count, u64         records that are valid; written after the record itself
    offset 16   record, record ... request u64 | client u64 | inode u64 | count of opens i64

A record says how many opens the client has *after* it, so the newest record for a pair counts. When
the journal is full the live pairs are written to a new memory object, which takes the old one's
place at the kernel in one step.

The request's id makes each change happen once: `last_request` is that of the newest record, and a
request that is delivered again finds it there.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from typing import Final

_HEADER: Final = struct.Struct("<QQ")
_COUNT: Final = struct.Struct("<Q")
_COUNT_OFFSET: Final = 8
_RECORD: Final = struct.Struct("<QQQq")
_FIRST_CAPACITY: Final = 16_384

Keep = Callable[[int], None]
"""Has the kernel keep a memory object's descriptor in place of the one before; see `Task.keep`."""


class Opens:
    """The table.

    Args:
        boot_id: this boot's; 63 bits.
        keep: is told about every new memory object; it must not take the descriptor over.
        kept: descriptor of the memory object that an earlier incarnation left; owned. None: none.
    """

    def __init__(
        self,
        boot_id: int = 0,
        keep: Keep = lambda _descriptor: None,
        kept: int | None = None,
        capacity: int = _FIRST_CAPACITY,
    ) -> None:
        self.boot_id = boot_id
        self._keep = keep
        self._first_capacity = capacity
        self._clients: dict[int, dict[int, int]] = {}
        self._totals: dict[int, int] = {}
        self._newest = (0, 0)
        """Client and inode of the newest record."""
        self.last_request = 0
        if kept is None or not self._read(kept):
            self._start()

    def _read(self, descriptor: int) -> bool:
        """Take an earlier incarnation's journal over; False if it is not of this boot."""
        try:
            size = os.fstat(descriptor).st_size
            memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        boot_id, count = _HEADER.unpack_from(memory)
        if boot_id != self.boot_id:
            memory.close()
            return False
        for index in range(count):
            record = _RECORD.unpack_from(memory, _HEADER.size + index * _RECORD.size)
            self.last_request, client, inode, opens = record
            self._newest = client, inode
            self._set(client, inode, opens)
        self._memory = memory
        self._capacity = (size - _HEADER.size) // _RECORD.size
        self._used = count
        return True

    def _start(self) -> None:
        """Write the live pairs to a new memory object that has room for at least as many again."""
        live = [
            (client, inode, opens)
            for client, inodes in self._clients.items()
            for inode, opens in inodes.items()
        ]
        self._capacity = max(self._first_capacity, 2 * len(live) + 1)
        size = _HEADER.size + self._capacity * _RECORD.size
        descriptor = os.memfd_create("opens", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            memory = mmap.mmap(descriptor, size)
            for index, pair in enumerate(live):
                position = _HEADER.size + index * _RECORD.size
                _RECORD.pack_into(memory, position, self.last_request, *pair)
            _HEADER.pack_into(memory, 0, self.boot_id, len(live))
            self._keep(descriptor)
        finally:
            os.close(descriptor)
        self._memory = memory
        self._used = len(live)

    def _set(self, client: int, inode: int, opens: int) -> None:
        """Change the table in memory."""
        inodes = self._clients.setdefault(client, {})
        total = self._totals.get(inode, 0) + opens - inodes.get(inode, 0)
        if total:
            self._totals[inode] = total
        else:
            self._totals.pop(inode, None)
        if opens:
            inodes[inode] = opens
        else:
            inodes.pop(inode, None)
            if not inodes:
                del self._clients[client]

    def _note(self, request: int, client: int, inode: int, opens: int) -> None:
        if self._used == self._capacity:
            self._start()
        self._set(client, inode, opens)
        self._newest = client, inode
        self.last_request = request
        position = _HEADER.size + self._used * _RECORD.size
        _RECORD.pack_into(self._memory, position, request, client, inode, opens)
        self._used += 1
        _COUNT.pack_into(self._memory, _COUNT_OFFSET, self._used)

    def add(self, request: int, client: int, inode: int) -> None:
        """Count one more open, unless this very request was counted before."""
        if request and request == self.last_request:
            return
        self._note(request, client, inode, self.count(client, inode) + 1)

    def remove(self, request: int, client: int, inode: int) -> bool:
        """Count one open less, unless this very request was counted before.

        Returns False when the client has the inode not open.
        """
        if request and request == self.last_request:
            return True
        opens = self.count(client, inode)
        if not opens:
            return False
        self._note(request, client, inode, opens - 1)
        return True

    def retract(self, exists: Callable[[int], bool]) -> None:
        """Take the newest open back if its inode is not there.

        A file that is made without a name is counted open before it is committed, because it would
        be freed at once if a death came between. This is for a commit that did not come.
        """
        client, inode = self._newest
        if self.count(client, inode) and not exists(inode):
            self._note(0, client, inode, 0)

    def drop_client(self, client: int) -> list[int]:
        """Forget all opens of a client. Returns the inodes that nobody has open any more."""
        inodes = list(self._clients.get(client, ()))
        for inode in inodes:
            self._note(self.last_request, client, inode, 0)
        return [inode for inode in inodes if inode not in self._totals]

    def count(self, client: int, inode: int) -> int:
        """Return how often a client has an inode open."""
        return self._clients.get(client, {}).get(inode, 0)

    def is_open(self, inode: int) -> bool:
        """Return whether anybody has the inode open."""
        return inode in self._totals

    def total(self) -> int:
        """Return the number of opens of all clients."""
        return sum(self._totals.values())

    def close(self) -> None:
        """Unmap the memory object; the kernel still keeps it."""
        self._memory.close()
