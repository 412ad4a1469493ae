"""A task's end of its line: packets out, packets in, and the task's half of the transfer region.

The line knows nothing of interfaces or servers. It packs and unpacks what `core.abi` draws.
Receiving reuses one buffer, so a `Packet` owns copies of what is small and views of the transfer
region for what is large.
"""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import select
import socket
import time
from typing import Final

from core.abi import (
    HEADER,
    HEADER_SIZE,
    INLINE_LIMIT,
    KERNEL_SLOTS,
    NAME,
    NO_SLOT,
    PACKET_LIMIT,
    REGION_SIZE,
    RIGHTS_LIMIT,
    SLOT_ALIGN,
    SLOT_SIZE,
    TASK_SLOTS,
    Kind,
)
from core.errors import LimitError, MessageTooLargeError

from .interface import Bulk
from .spin import Spin

_INT_SIZE: Final = array.array("i").itemsize
ANCILLARY_SIZE: Final = socket.CMSG_SPACE(RIGHTS_LIMIT * _INT_SIZE)
DESCRIPTORS_LIMIT: Final = RIGHTS_LIMIT
_FIELDS_LIMIT: Final = PACKET_LIMIT - HEADER_SIZE - NAME.size * RIGHTS_LIMIT
_MADV_REMOVE: Final = 9
"""madvise(2): free the pages of a shared mapping, and what they hold."""
_F_ADD_SEALS: Final = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 0x1, 0x2, 0x4
_UNDER_WAY_S: Final = 10.0
"""How long a send waits for descriptors of others to be received."""
_LOOK_AGAIN_S: Final = 0.002
_pack: Final = HEADER.pack
WAIT: Final = int(socket.MSG_CMSG_CLOEXEC)
DO_NOT_WAIT: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
# Plain ints all: on the hot path an enum's operators would cost more than the system call.
_CALL: Final = int(Kind.CALL)
_REPLY: Final = int(Kind.REPLY)
_ERROR: Final = int(Kind.ERROR)


class ClosedError(Exception):
    """The other end of the line is gone."""


def descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors that came with a packet; the caller owns them."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % _INT_SIZE])
            found += numbers
    return found


def aligned(size: int) -> int:
    """Return where the reply's bulk starts in a slot whose request bulk has `size` octets."""
    return (size + SLOT_ALIGN - 1) & ~(SLOT_ALIGN - 1)


class Slots:
    """The free slots of one half of a transfer region.

    Last in, first out: warm pages come first.
    """

    def __init__(self, first: int, count: int) -> None:
        self._free = list(range(first + count - 1, first - 1, -1))
        self._count = count
        self.most = 0
        """The highest number of slots in use since this was last set to 0."""

    def take(self) -> int:
        """Return a slot's number. LimitError when all are in use."""
        if not self._free:
            raise LimitError(f"all {self._count} slots of the transfer region are in use")
        slot = self._free.pop()
        self.most = max(self.most, self._count - len(self._free))
        return slot

    def give(self, slot: int) -> None:
        """Take a slot back; NO_SLOT is ignored."""
        if slot != NO_SLOT:
            self._free.append(slot)

    def __len__(self) -> int:
        return len(self._free)


class Region:
    """A mapped transfer region. The memory object stays the kernel's; `close` only unmaps."""

    def __init__(self, descriptor: int) -> None:
        self.memory = mmap.mmap(descriptor, REGION_SIZE)
        self._view = memoryview(self.memory)

    def view(self, slot: int, start: int, size: int) -> memoryview:
        """Return `size` octets of a slot, beginning at `start`.

        Bounds are the caller's to check.
        """
        begin = slot * SLOT_SIZE + start
        return self._view[begin : begin + size]

    def discard(self, first: int, end: int) -> None:
        """Give the pages of slots `first` to `end` back to the host; they read as zeros then."""
        self.memory.madvise(_MADV_REMOVE, first * SLOT_SIZE, (end - first) * SLOT_SIZE)

    def close(self) -> None:
        """Unmap, as soon as nobody holds a view any more."""
        try:
            self._view.release()
            self.memory.close()
        except BufferError:
            del self.memory  # somebody still holds a view; the mapping goes with it


class Packet:
    """One received packet, unpacked.

    `fields` and inline bulk are copies; region bulk is named by `slot`.
    """

    __slots__ = (
        "badge",
        "bulk",
        "bulk_size",
        "deadline_ms",
        "descriptors",
        "fields",
        "flags",
        "kind",
        "name",
        "operation",
        "request",
        "rights",
        "room",
        "slot",
    )

    kind: int
    flags: int
    operation: int
    name: int
    request: int
    badge: int
    bulk_size: int
    slot: int
    room: int
    deadline_ms: int
    fields: bytes
    bulk: bytes
    rights: tuple[int, ...]
    descriptors: list[int]

    def __init__(self, buffer: memoryview, size: int, descriptors: list[int]) -> None:
        """Unpack. ValueError when the sizes that the header names do not add up."""
        if size < HEADER_SIZE:
            raise ValueError("shorter than a header")
        (
            self.kind,
            self.flags,
            self.operation,
            self.name,
            self.request,
            self.badge,
            fields_size,
            self.bulk_size,
            self.slot,
            self.room,
            self.deadline_ms,
            rights,
            count,
        ) = HEADER.unpack_from(buffer)
        start = HEADER_SIZE
        if rights:
            if rights > RIGHTS_LIMIT or start + rights * NAME.size > size:
                raise ValueError("more rights than a message may carry")
            self.rights = tuple(
                NAME.unpack_from(buffer, start + i * NAME.size)[0] for i in range(rights)
            )
            start += rights * NAME.size
        else:
            self.rights = ()
        end = start + fields_size
        inline = self.bulk_size if self.slot == NO_SLOT else 0
        if end + inline != size or count != len(descriptors):
            raise ValueError("sizes in the header do not add up")
        self.fields = bytes(buffer[start:end])
        self.bulk = bytes(buffer[end:size]) if inline else b""
        self.descriptors = descriptors


class Line:
    """The task's end of the socket to the kernel, with the transfer region."""

    def __init__(self, connection: socket.socket, region: Region) -> None:
        self.socket = connection
        self.region = region
        self.slots = Slots(KERNEL_SLOTS, TASK_SLOTS)
        self._buffer = bytearray(PACKET_LIMIT + INLINE_LIMIT)
        self._view = memoryview(self._buffer)
        self._into = [self._buffer]
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        self._spin = Spin(lambda: poll.poll(0))

    def send(  # noqa: PLR0913 - one for each field of a header
        self,
        kind: Kind,
        *,
        operation: int = 0,
        flags: int = 0,
        name: int = 0,
        request: int = 0,
        badge: int = 0,
        fields: bytes = b"",
        bulk: Bulk = b"",
        bulk_size: int = 0,
        slot: int = NO_SLOT,
        room: int = 0,
        rights: tuple[int, ...] = (),
        descriptors: tuple[int, ...] = (),
        deadline_ms: int = 0,
    ) -> None:
        """Send one packet; waits while the kernel's end is full.

        Args:
            badge: of a resumable call: its tag.
            bulk: octets to send inside the packet.
            bulk_size: size of the bulk that lies in `slot`, when it is not inline.
            descriptors: lent; they stay open here.

        Raises:
            MessageTooLargeError: the fields do not fit a packet.
            ClosedError: the kernel is gone.
        """
        inline = len(bulk)
        header = HEADER.pack(
            kind,
            flags,
            operation,
            name,
            request,
            badge,
            len(fields),
            inline or bulk_size,
            slot,
            room,
            deadline_ms,
            len(rights),
            len(descriptors),
        )
        if len(fields) > _FIELDS_LIMIT:
            raise MessageTooLargeError(f"fields of {len(fields)} octets do not fit a packet")
        try:
            if descriptors or rights:
                parts = [header, b"".join(NAME.pack(right) for right in rights), fields, bulk]
                _send_lent(self.socket, parts, descriptors)
            elif inline:
                self.socket.sendmsg((header, fields, bulk))
            else:
                self.socket.send(header + fields)
        except (BrokenPipeError, ConnectionError):
            raise ClosedError from None

    def call_simple(self, name: int, operation: int, number: int, fields: bytes) -> None:
        """Send a call that is nothing but fields. Raises as `send` does."""
        header = _pack(_CALL, 0, operation, name, number, 0, len(fields), 0, NO_SLOT, 0, 0, 0, 0)
        self._send_simple(header, fields)

    def reply_simple(self, number: int, fields: bytes) -> None:
        """Send a reply that is nothing but fields. Raises as `send` does."""
        header = _pack(_REPLY, 0, 0, 0, number, 0, len(fields), 0, NO_SLOT, 0, 0, 0, 0)
        self._send_simple(header, fields)

    def refuse_simple(self, number: int, fields: bytes) -> None:
        """Send the error that a request is declined with. Raises as `send` does."""
        header = _pack(_ERROR, 0, 0, 0, number, 0, len(fields), 0, NO_SLOT, 0, 0, 0, 0)
        self._send_simple(header, fields)

    def _send_simple(self, header: bytes, fields: bytes) -> None:
        if len(fields) > _FIELDS_LIMIT:
            raise MessageTooLargeError(f"fields of {len(fields)} octets do not fit a packet")
        try:
            self.socket.send(header + fields)
        except ConnectionError:
            raise ClosedError from None

    def receive(self, flags: int = WAIT) -> Packet:
        """Return the next packet.

        Args:
            flags: WAIT, or DO_NOT_WAIT to get BlockingIOError when there is none.

        Raises:
            ClosedError: the kernel is gone.
        """
        try:
            size, ancillary, _, _ = self.socket.recvmsg_into(self._into, ANCILLARY_SIZE, flags)
        except ConnectionError:
            raise ClosedError from None
        if size == 0:
            raise ClosedError
        return Packet(self._view, size, descriptors_in(ancillary) if ancillary else [])

    def receive_soon(self) -> Packet:
        """Return the next packet, looking for it a moment before blocking. Raises as `receive`."""
        if self._spin.look():
            return self.receive()
        packet = self.receive()
        self._spin.woke()
        return packet

    def close(self) -> None:
        """Close the socket and unmap the region."""
        self.socket.close()
        self.region.close()


def _send_lent(connection: socket.socket, parts: list[Bulk], descriptors: tuple[int, ...]) -> None:
    """Send with descriptors; waits while too many are under way on the host.

    The host counts those that all processes of one user have sent and nobody has received yet, and
    refuses when they are more than the sender may have open (unix(7), ETOOMANYREFS). A confined
    task may have few open, and others send as many as they like; but they are soon received.
    """
    deadline = time.monotonic() + _UNDER_WAY_S
    while True:
        try:
            socket.send_fds(connection, parts, list(descriptors))
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_AGAIN_S)  # noqa: TID251 - packets have an order, so nothing may pass
        else:
            return


def new_region() -> int:
    """Return the descriptor of a new, empty memory object of a transfer region's size.

    It keeps this size: a task that could shrink it would end the kernel with SIGBUS.
    """
    number = os.memfd_create("atoll-transfer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(number, REGION_SIZE)
    fcntl.fcntl(number, _F_ADD_SEALS, _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW)
    return number
