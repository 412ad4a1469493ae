"""What crosses the line between a task and the kernel: ids, rights, packets and limits.

A task in an address space of its own talks to the kernel over one SOCK_SEQPACKET socket, its
*line*. One packet is one message:

    +--------+----------------------+---------------------+--------------+
    | header | names of rights, u32 | fields, MessagePack | bulk, octets |
    +--------+----------------------+---------------------+--------------+

Host descriptors travel with the packet as SCM_RIGHTS. Bulk above `INLINE_LIMIT` does not travel in
the packet at all: it lies in a slot of the task's *transfer region*, a memory object that the
kernel and the task both map, and the header names the slot. Whoever makes a call chooses the slot,
so each side allocates only from its own part: the kernel in the lower one for calls into the task,
the task in the upper one for its own calls. The kernel has a slot for every request that may be in
flight: otherwise requests that wait for a later one would keep that one out. In a slot the
request's bulk comes first, the reply's bulk follows at the next multiple of `SLOT_ALIGN`.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple, NewType

PortName = NewType("PortName", int)
"""A task's own small number for one of its rights."""

SELF: Final = PortName(0)
"""Every task's name for its right to the kernel itself."""

PACKET_LIMIT: Final = 64 * 1024
"""Octets in one packet, header included. Larger fields are refused."""
INLINE_LIMIT: Final = 4 * 1024
"""Octets of bulk that travel inside the packet; more go through the transfer region."""
BULK_LIMIT: Final = 1024 * 1024
"""Octets of bulk in one message, and of request and reply bulk together in one call."""
SLOT_SIZE: Final = BULK_LIMIT + 8192
SLOT_ALIGN: Final = 4096
NO_SLOT: Final = 0xFFFF_FFFF

RIGHTS_LIMIT: Final = 16
"""Rights, and likewise descriptors, in one message."""
QUEUE_LIMIT: Final = 1024
"""Messages that wait at, or are being served behind, one port."""
CLIENT_LIMIT: Final = QUEUE_LIMIT // 4
"""Messages of one client among them: one that floods a port leaves room for the others."""
KERNEL_SLOTS: Final = QUEUE_LIMIT
"""Slots in the kernel's part of a transfer region, which comes first."""
TASK_SLOTS: Final = 64
"""Slots in the task's part: its calls with large bulk that may be under way."""
REGION_SIZE: Final = (KERNEL_SLOTS + TASK_SLOTS) * SLOT_SIZE
"""Octets of a transfer region, in address space; a page is used when something was in it."""
WARM_SLOTS: Final = 16
"""Slots whose pages the kernel keeps when its part is idle; it gives back those of the others."""
NAMES_LIMIT: Final = 16_384
"""Rights in one task's name space."""
CALLS_LIMIT: Final = 4096
"""Calls that one task may have under way, and likewise its messages without reply that wait."""
WAITING_LIMIT: Final = 16 * 1024 * 1024
"""Octets of one task's messages that the kernel may hold, in memory of its own."""
LENT_LIMIT: Final = 256
"""Descriptors that one task's messages may hold in the kernel's process."""
TIMERS_LIMIT: Final = 1024
"""Timers that one task may have armed."""
PORTS_LIMIT: Final = 4096
"""Ports that one task may hold the receive right of."""
KEPT_DESCRIPTORS_LIMIT: Final = 128
"""Descriptors that the kernel keeps for one task: its process has some thousands for all."""
KEPT_RIGHTS_LIMIT: Final = 1024
"""Rights that the kernel keeps for one task."""
MEMORY_LIMIT: Final = 512 * 1024 * 1024
"""Octets of a memory object that the kernel makes for a task."""
MEMORY_OBJECTS_LIMIT: Final = 64
"""Memory objects that a task may have open when it makes one."""
POISON_LIMIT: Final = 3
"""Deaths of its server after which a request is withdrawn as poison."""
RESUMABLE_PLACES: Final = 32
"""Places of one task for calls that outlive it: so many of them may be unanswered at once."""
RESUMABLE_STEPS: Final = 8
"""Calls that a task may make at one place under one tag."""

HOPS_LIMIT: Final = 16
"""Times that a request may be forwarded."""


class TaskId(NamedTuple):
    """A task's place in the kernel's table, and how many tasks have had that place before it."""

    index: int  # type: ignore[assignment]  # a tuple's method of that name is not missed here
    generation: int

    def __str__(self) -> str:
        return f"{self.index}.{self.generation}"


class RightKind(enum.IntEnum):
    """What a right lets its holder do with the port."""

    SEND = 1
    """Send any number of messages."""
    RECEIVE = 2
    """Take messages from the port. Exactly one exists for each port."""
    SEND_ONCE = 3
    """Send one message; the right is used up by it."""


ALL_OPERATIONS: Final = (1 << 64) - 1
"""The mask of a right that allows every operation of its interface; bit n is operation n."""


class Right:
    """A right as its holder sees it: an opaque value to pass on, attenuate or drop.

    The kernel's own class carries the port; a task in its own address space has just the name.
    """

    __slots__ = ()


class Kind(enum.IntEnum):
    """What a packet is. Direction is given in brackets: t = task to kernel, k = kernel to task."""

    CALL = 1
    """[t] a request that wants a reply; [k] the same, delivered to the receiver."""
    SEND = 2
    """[t, k] a message without a reply."""
    REPLY = 3
    """[t] the server's reply; [k] the same, delivered to the caller."""
    ERROR = 4
    """[t] the server refuses; [k] the call failed. Fields are `(code, errno, detail)`."""
    ABORT = 5
    """[t] the caller withdraws a call; [k] the server may stop working on it."""
    FORWARD = 6
    """[t] the server passes a request on; the reply will go straight to the caller."""
    NOTIFY = 7
    """[t] set bits at a port; [k] the bits set since the last one. `request` holds the bits."""
    NO_SENDERS = 8
    """[k] no right with this badge is left in any hands but the receiver's; [t] the same, when
    that has been dealt with: `request` holds the badge. Until then it is told again after a death.
    """
    READY = 9
    """[t] the task has started and serves; fields are empty."""
    FAULT = 10
    """[t] the task ends because of an exception; fields are the trace.

    `request` is the guilty request or 0.
    """
    STOP = 11
    """[k] end in good order."""
    PING = 12
    """[k] give a sign of life: asked of a task that has been silent."""
    PONG = 13
    """[t] the sign; any other packet is one as well."""


FLAG_REDELIVERED: Final = 1
"""The request was delivered before, to an incarnation that died; it may have taken effect."""
FLAG_ONCE: Final = 2
"""SEND: drop silently when the queue is full."""
FLAG_RESUMABLE: Final = 4
"""[t] CALL: it outlives its client; the badge is its tag, the bits above `PLACE_SHIFT` its place.

See `core.kernel.resumable`.
"""
PLACE_SHIFT: Final = 3

HEADER: Final = struct.Struct("<BBHIQQIIIIIHH")
"""kind, flags, operation, port name, request, badge, fields size, bulk size, slot, room, deadline
in milliseconds (0: none), number of rights, number of descriptors."""
HEADER_SIZE: Final = HEADER.size
NAME: Final = struct.Struct("<I")
FIELDS_LIMIT: Final = PACKET_LIMIT - HEADER_SIZE - RIGHTS_LIMIT * NAME.size
"""Octets of encoded fields in one message."""
