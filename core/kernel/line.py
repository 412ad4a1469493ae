"""The kernel's end of a line: packets of an isolated task, checked and turned into requests.

Nothing that comes out of a line is believed: sizes, slots, names, operation and fields are checked
before anything else is touched, and a message that fails a check is answered with a typed error
that costs only its sender. Nothing that goes into a line waits: an incarnation whose socket is full
gets its requests later, a client that does not read its answers is ended.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from core.abi import (
    CALLS_LIMIT,
    FLAG_REDELIVERED,
    FLAG_RESUMABLE,
    HEADER,
    HEADER_SIZE,
    INLINE_LIMIT,
    KERNEL_SLOTS,
    NAME,
    NAMES_LIMIT,
    NO_SLOT,
    PACKET_LIMIT,
    SELF,
    WARM_SLOTS,
    Kind,
    RightKind,
)  # fmt: skip
from core.errors import (
    AtollError,
    BadMessageError,
    LimitError,
    MessageTooLargeError,
    ServerFaultError,
    to_wire,
)
from core.userlib.confine import Confinement
from core.userlib.interface import Bulk, encode
from core.userlib.line import ANCILLARY_SIZE, Packet, Region, Slots, aligned, descriptors_in

from .burden import SMALL
from .calls import serve_kernel_call
from .cargo import check_bulk, enter, keep_copies, leave, load, read_error, read_reply, unload
from .descriptors import give_up_all
from .endings import Ending, Evidence, Order, ending_of
from .faults import note_fault
from .kernel import Kernel, forward_failed
from .outbox import SEND_FLAGS, Outbox, short_header
from .ports import Port
from .reports import Reports, listen, stop_listening
from .requests import Reply, Request, Waiter
from .resumable import take_resumable
from .tasks import KernelTask, Placement, State

if TYPE_CHECKING:
    from core.userlib.last_stack import LastStack

    from .rim import Rim

_PATIENCE_LIMIT: Final = 4
"""Lingering in vain this often in a row stops it, until a reply has come quickly again."""
_ORPHANED: Final = Ending("ended with the zygote that it was forked from", outside=True)
_LAST_PACKETS: Final = 8192  # packets that are read of a process that has ended
_RECEIVE_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)

_pack: Final = HEADER.pack
_unpack: Final = HEADER.unpack_from
_CALL: Final = int(Kind.CALL)
_SEND: Final = int(Kind.SEND)
_REPLY: Final = int(Kind.REPLY)
_ERROR: Final = int(Kind.ERROR)
_decode_text: Final = msgspec.msgpack.Decoder(str).decode


class KernelLine:
    """One incarnation in a process of its own: both an engine (`Engine`) and a client's end."""

    lingers = True

    def __init__(
        self,
        kernel: Kernel,
        task: KernelTask,
        connection: socket.socket,
        region: Region,
        rim: Rim,
        end_process: Callable[[int], None],
    ) -> None:
        """Take over the kernel's end of a connection.

        Args:
            region: the transfer region; the caller may use it again, but for a joined program's.
            end_process: kills the process with the given pid.
        """
        connection.setblocking(False)
        self.kernel = kernel
        self.task = task
        self.pid = 0
        self.last_stack: LastStack | None = None
        self.dump_stack: Callable[[int], None] = lambda pid: None
        self.socket = connection
        self.region = region
        self.slots = Slots(0, KERNEL_SLOTS)
        self.their_slots: set[int] = set()
        self._rim = rim
        self._end_process = end_process
        self._outbox = Outbox(connection, lambda: rim.watch_writable(connection))
        self._buffer = bytearray(PACKET_LIMIT + INLINE_LIMIT)
        self._view = memoryview(self._buffer)
        self._into = [self._buffer]
        self._patience = _PATIENCE_LIMIT
        self.evidence = Evidence()
        self._orphaned = False
        self.heard = True
        self._asked = 0
        self.declared: Confinement | None = None  # what the task confines itself to; set by boot
        self.reports: Reports | None = None
        self.closed = False
        rim.add(self)

    # -- what comes from the task ------------------------------------------------------------------

    def readable(self) -> bool:
        """Take one packet; False when none is there.

        The rim calls it when the socket is readable.
        """
        try:
            size, ancillary, _, _ = self.socket.recvmsg_into(
                self._into, ANCILLARY_SIZE, _RECEIVE_FLAGS
            )
        except BlockingIOError:
            return False
        except ConnectionResetError:
            # The process died with packets of ours unread. Linux tells that once, before what the
            # process itself had sent; its last replies are still to be read.
            return True
        except OSError:
            size, ancillary = 0, []
        if size == 0:
            give_up_all(descriptors_in(ancillary))
            self.close()
            return False
        self.heard = True
        if self.task.engine is not self:
            give_up_all(descriptors_in(ancillary))  # it was retired: it has no say any more
            return True
        try:
            if ancillary or size < HEADER_SIZE or not self._take_simple(size):
                self._take_any(size, descriptors_in(ancillary) if ancillary else [])
        except Exception:  # noqa: BLE001 - a mistake of ours must not cost the others their kernel
            self.kernel.log(
                f"kernel: a packet of {self.task.name} failed\n{traceback.format_exc()}"
            )
            self.close("the kernel failed at one of its packets")
        return True

    def _take_any(self, size: int, descriptors: list[int]) -> None:
        try:
            packet = Packet(self._view, size, descriptors)
        except ValueError as error:
            give_up_all(descriptors)
            self.task.attempts.refused(BadMessageError(str(error)))
            self._answer_error(0, BadMessageError(f"packet of {size} octets: {error}"))
            return
        self._take(packet)

    def _take_simple(self, size: int) -> bool:
        """Take a packet that is nothing but fields: a call of a simple operation, or its reply.

        These are most packets, and this is the way they go quickly. Returns False, with nothing
        changed, for everything else and for everything that is wrong: `_take` looks closer.
        """
        kind, flags, index, name, number, _, fields_size, bulk, _, room, deadline, rights, lent = (
            _unpack(self._buffer)
        )
        if flags or bulk or room or deadline or rights or lent or HEADER_SIZE + fields_size != size:
            return False
        if kind == _REPLY:
            return self._take_simple_reply(number, size)
        if kind == _ERROR:
            return self._take_simple_error(number, size)
        if kind != _CALL:
            return False
        task = self.task
        right = task.names.get(name)
        if right is None or not right.mask >> index & 1 or index >= right.port.operations:
            return False
        spec = right.port.interface.OPERATIONS[index]
        calls = task.calls
        if not spec.simple or number in calls or len(calls) >= CALLS_LIMIT or size > SMALL:
            return False
        fields = bytes(self._view[HEADER_SIZE:size])
        request = Request(number, spec, right, task, self, None, fields)
        try:
            request.decode()
            calls[number] = request
            self.kernel.submit(request)
        except AtollError as error:
            calls.pop(number, None)
            self.task.attempts.refused(error)
            self._answer_error(number, error)
        return True

    def _take_simple_reply(self, number: int, size: int) -> bool:
        port = self.task.main_port
        request = port.in_flight.get(number) if port is not None else None
        if request is None or not request.reply_spec.simple_reply:
            return False
        fields = bytes(self._view[HEADER_SIZE:size])
        try:
            plain = request.reply_spec.decode_reply(fields)
        except ServerFaultError:
            return False
        self.kernel.replied(request, Reply(plain, fields))
        return True

    def _take_simple_error(self, number: int, size: int) -> bool:
        port = self.task.main_port
        request = port.in_flight.get(number) if port is not None else None
        if request is None:
            return False
        self.kernel.refused(request, read_error(self._view[HEADER_SIZE:size]))
        return True

    def _take(self, packet: Packet) -> None:
        kind = packet.kind
        try:
            if kind == Kind.CALL or kind == Kind.SEND:
                self._request(packet)
            elif kind == Kind.REPLY:
                self._reply(packet)
            elif kind == Kind.ERROR:
                request = self.kernel.in_flight_at(self.task, packet.request)
                self.kernel.refused(request, read_error(packet.fields))
            else:
                self._rare(packet)
        except AtollError as error:
            # Only a call's number is one of the task's own; an error about anything else goes by 0.
            calls = kind in (Kind.CALL, Kind.SEND)
            self.task.attempts.refused(error, asked_kernel=packet.name == SELF)
            self._answer_error(packet.request if calls else 0, error)
        except OSError as error:
            limit = LimitError(f"the host refuses: {error.strerror}")
            self._answer_error(packet.request, limit)
        finally:
            give_up_all(packet.descriptors)

    def _rare(self, packet: Packet) -> None:
        kind, task = packet.kind, self.task
        if kind == Kind.ABORT:
            request = task.calls.get(packet.request)
            if request is not None:
                self.kernel.abort(request)
        elif kind == Kind.FORWARD:
            self._forward(packet)
        elif kind == Kind.NOTIFY:
            self.kernel.notify(task.right(packet.name), packet.request)
        elif kind == Kind.NO_SENDERS:
            right = task.right(packet.name)
            if right.kind is RightKind.RECEIVE:
                right.port.told.pop(packet.request, None)
        elif kind == Kind.READY:
            if task.state is not State.STARTING:
                raise BadMessageError("a task is ready once")
            listen(self, packet.descriptors, self._rim)
            self.kernel.ready(task)
        elif kind == Kind.FAULT:
            note_fault(task, self.evidence, packet)
        elif kind != Kind.PONG:
            raise BadMessageError(f"a task does not send packets of kind {kind}")
        elif self._asked > 0:
            self._asked -= 1
        else:
            task.attempts.add("PONG", "a sign of life that was not asked for: ignored")

    def _request(self, packet: Packet) -> None:
        task = self.task
        if packet.name == SELF:
            serve_kernel_call(self, packet)
            return
        if packet.flags & FLAG_RESUMABLE:
            take_resumable(self, packet)
            return
        right = task.right(packet.name)
        spec = right.check(packet.operation)
        arguments = spec.decode_request(packet.fields)
        wants_reply = packet.kind == Kind.CALL
        if wants_reply and not right.mask:
            right.hear()
        client_end = self if wants_reply else None
        number, fields = packet.request, packet.fields
        request = Request(number, spec, right, task, client_end, arguments, fields)
        if packet.slot != NO_SLOT or packet.bulk or packet.room:
            check_bulk(packet, request, self.region, self.their_slots)
        if len(packet.rights) != spec.rights or len(packet.descriptors) != spec.descriptors:
            raise BadMessageError(
                f"{spec} carries {spec.rights} rights, {spec.descriptors} descriptors"
            )
        if wants_reply:
            self.enter_call(packet, request)
        try:
            request.weigh(len(fields) + len(packet.bulk), len(packet.descriptors))
            if packet.rights:
                request.rights = load(task, packet.rights)
            request.descriptors, packet.descriptors = tuple(packet.descriptors), []
            if packet.deadline_ms and wants_reply:
                self.kernel.expire(request, packet.deadline_ms / 1000)
            self.kernel.submit(request)
        except AtollError:
            if wants_reply:
                self.leave_call(request)
            unload(task, packet.rights, request.rights)
            request.rights = ()
            request.end()
            raise
        if right.kind is RightKind.SEND_ONCE:
            task.names.pop(packet.name, None)
            right.release()

    def enter_call(self, packet: Packet, request: Request) -> None:
        """Note a call that its client waits for."""
        calls = self.task.calls
        if packet.request in calls:
            raise BadMessageError(f"a call numbered {packet.request} is under way already")
        if len(calls) >= CALLS_LIMIT:
            raise LimitError(f"task {self.task.name} has {CALLS_LIMIT} calls under way")
        calls[packet.request] = request
        if packet.slot != NO_SLOT:
            self.their_slots.add(packet.slot)

    def leave_call(self, request: Request) -> int:
        """Forget a call that is answered; return the slot that its client chose."""
        self.task.calls.pop(request.number, None)
        slot = request.client_slot
        self.their_slots.discard(slot)
        return slot

    def _reply(self, packet: Packet) -> None:
        request = self.kernel.in_flight_at(self.task, packet.request)
        try:
            reply = read_reply(self.task, self.region, packet, request)
        except ServerFaultError as error:
            self.kernel.refused(request, error)
            raise
        self.kernel.replied(request, reply)

    def _forward(self, packet: Packet) -> None:
        request = self.kernel.in_flight_at(self.task, packet.request)
        try:
            right = self.task.right(packet.name)
            spec = right.check(packet.operation)
            arguments = spec.decode_request(packet.fields)
            if packet.rights or packet.descriptors or packet.bulk_size:
                raise BadMessageError("a forwarded request carries what it came with")
            self.kernel.forward(request, right, spec, arguments)
        except AtollError as error:
            self.kernel.refused(request, forward_failed(request, error))

    # -- what goes to the task ---------------------------------------------------------------------

    def deliver(self, request: Request) -> bool:  # noqa: D102 - see Engine
        if self._outbox:
            return False
        if request.spec.simple:
            return self._deliver_simple(request)
        fields, size, room = request.fields, len(request.bulk), request.room
        bulk: Bulk = request.bulk
        large = size > INLINE_LIMIT or room > INLINE_LIMIT
        if large and not len(self.slots):
            return False
        entered = enter(self.task, request) if request.spec.rights else []
        if large:
            slot = request.slot = self.slots.take()
            request.on_end = lambda: self._give(slot)
            self.region.view(slot, 0, size)[:] = bulk
            bulk = b""
        kind = Kind.CALL if request.wants_reply else Kind.SEND
        flags = FLAG_REDELIVERED if request.redelivered else 0
        header = HEADER.pack(
            kind, flags, request.spec.index, request.port.name, request.id, request.badge,
            len(fields), size, request.slot, room, 0, len(entered), len(request.descriptors),
        )  # fmt: skip
        names = [NAME.pack(right.name) for right in entered]
        if self._outbox.send([header, *names, fields, bulk], request.descriptors):
            if entered:
                keep_copies(self.task, request)
            return True
        leave(self.task, request, entered)
        if request.on_end is not None:
            request.on_end()
            request.on_end = None
            request.slot = NO_SLOT
        return False

    def _give(self, slot: int) -> None:
        """Take a slot back; give pages back to the host when a rush is over."""
        self.slots.give(slot)
        most = self.slots.most
        if most > WARM_SLOTS and len(self.slots) == KERNEL_SLOTS:
            self.region.discard(WARM_SLOTS, most)
            self.slots.most = 0

    def _deliver_simple(self, request: Request) -> bool:
        fields = request.fields
        kind = _CALL if request.client_end is not None else _SEND
        flags = FLAG_REDELIVERED if request.redelivered else 0
        header = _pack(
            kind, flags, request.spec.index, request.port.name, request.id, request.badge,
            len(fields), 0, NO_SLOT, 0, 0, 0, 0,
        )  # fmt: skip
        try:
            self.socket.send(header + fields, SEND_FLAGS)
        except BlockingIOError:
            self._rim.watch_writable(self.socket)
            return False
        except OSError:
            return False  # the process is gone; the rim finds the end after what is left to read
        return True

    def abort(self, request: Request) -> None:  # noqa: D102 - see Engine
        self._send_or_keep([short_header(Kind.ABORT, request.id)])

    def notify(self, port: Port, bits: int) -> bool:  # noqa: D102 - see Engine
        return not self._outbox and self._outbox.send(
            [short_header(Kind.NOTIFY, bits, name=port.name)]
        )

    def no_senders(self, port: Port, badge: int) -> bool:  # noqa: D102 - see Engine
        return not self._outbox and self._outbox.send(
            [short_header(Kind.NO_SENDERS, 0, badge=badge, name=port.name)]
        )

    def stop(self) -> None:  # noqa: D102 - see Engine
        self.evidence.stopping = True
        self._send_or_keep([short_header(Kind.STOP, 0)])

    def kill(self, order: Order) -> None:  # noqa: D102 - see Engine
        self.evidence.order = self.evidence.order or order
        if self.pid and self.task.program.placement is Placement.PROCESS:
            self._end_process(self.pid)
        else:
            self.close(order.reason)

    def ping(self) -> bool:
        """Ask for a sign of life; False when the task has not read what it was sent before."""
        asked = not self._outbox and self._outbox.send([short_header(Kind.PING, 0)])
        self._asked += asked
        return asked

    def replied(self, request: Request, reply: Reply) -> None:
        """Send a reply to the client that is this task (`ClientEnd`)."""
        try:
            fields = reply.encoded(request.reply_spec)
            if request.reply_spec.simple and request.client_slot == NO_SLOT and not self._outbox:
                self.task.calls.pop(request.number, None)
                self._send_simple_reply(request.number, fields)
            else:
                self._send_reply(request, reply, fields)
        except AtollError as error:
            reply.discard()
            self.refused(request, error)

    def _send_simple_reply(self, number: int, fields: bytes) -> None:
        header = _pack(_REPLY, 0, 0, 0, number, 0, len(fields), 0, NO_SLOT, 0, 0, 0, 0)
        try:
            self.socket.send(header + fields, SEND_FLAGS)
        except OSError:
            self._send_or_keep([header, fields])

    def _send_reply(self, request: Request, reply: Reply, fields: bytes) -> None:
        """Send a reply that carries something. AtollError: nothing was sent."""
        bulk, size, slot = reply.bulk, len(reply.bulk), NO_SLOT
        if size > INLINE_LIMIT:
            slot = request.client_slot
            if slot == NO_SLOT:
                raise MessageTooLargeError("no room for the reply")
            self.region.view(slot, aligned(len(request.bulk)), size)[:] = bulk
            bulk = b""
        if len(self.task.names) + len(reply.rights) > NAMES_LIMIT:
            raise LimitError(f"task {self.task.name} holds {NAMES_LIMIT} rights")
        names = [self.task.hold(right) for right in reply.rights]
        self.leave_call(request)
        header = HEADER.pack(
            Kind.REPLY, 0, 0, 0, request.number, 0, len(fields), size, slot, 0, 0,
            len(names), len(reply.descriptors),
        )  # fmt: skip
        parts = [header, *(NAME.pack(name) for name in names), fields, bytes(bulk)]
        self._send_or_keep(parts, reply.descriptors)
        give_up_all(reply.descriptors)

    def refused(self, request: Request, error: AtollError) -> None:
        """Send an error to the client that is this task (`ClientEnd`)."""
        self.leave_call(request)
        self._answer_error(request.number, error)

    def _answer_error(self, number: int, error: AtollError) -> None:
        code, errno, detail = to_wire(error)
        self.answer(number, encode((code, errno, detail[:2000])), Kind.ERROR)

    def answer(
        self,
        number: int,
        fields: bytes,
        kind: Kind = Kind.REPLY,
        names: tuple[int, ...] = (),
        descriptors: tuple[int, ...] = (),
    ) -> None:
        """Answer the task's call `number` from the kernel itself; descriptors stay the caller's."""
        header = short_header(
            kind, number, len(fields), rights=len(names), descriptors=len(descriptors)
        )
        parts = [header, *(NAME.pack(name) for name in names), fields]
        self._send_or_keep(parts, descriptors)

    def _send_or_keep(self, parts: Sequence[Bulk], descriptors: tuple[int, ...] = ()) -> None:
        """Send a packet now or as soon as the task reads; end a task that does not."""
        if not self.closed and not self._outbox.send_or_keep(parts, descriptors):
            self.close(f"it left {len(self._outbox)} packets unread")

    def writable(self) -> None:
        """Send what has been waiting. The rim calls it when the socket has room again."""
        if self._outbox.flush():
            self.kernel.flush(self.task)

    # -- hand-off ----------------------------------------------------------------------------------

    def linger(self, waiter: Waiter) -> None:
        """Wait a moment at the line itself for an answer, with no scheduler in between.

        Blocking here gives the processor to the server at once, and the answer is read on the same
        turn. A server that was slow several times in a row is not waited for again until it was
        quick.
        """
        if self._patience <= 0 and not self._rim.sometimes():
            return
        if self._rim.linger(waiter):
            self._patience = _PATIENCE_LIMIT
        else:
            self._patience -= 1

    # -- the end -----------------------------------------------------------------------------------

    def close(self, reason: str = "") -> None:
        """Close the line, once. What becomes of the process is told by `exited`.

        Args:
            reason: why the kernel closes it; empty when the task's end did.
        """
        if self.closed:
            return
        self.closed = True
        self._rim.remove(self)
        self.socket.close()
        self._outbox.close()
        stop_listening(self)
        self.evidence.closed = self.evidence.closed or reason
        if self.task.program.placement is Placement.JOINED:
            self.kernel.ended(self.task, self, Ending(reason or "the program left"))
            self.region.close()  # no later incarnation uses it; a server's stays mapped
            return
        self.kernel.ending(self.task, self)
        if self._orphaned:
            self.kernel.ended(self.task, self, _ORPHANED)
        elif self.pid:
            self._end_process(self.pid)

    def exited(self, status: int, *, out_of_memory: bool = False) -> None:
        """The process is gone: read what it still said, and tell the kernel how it ended.

        Args:
            status: as os.waitstatus_to_exitcode gives it.
            out_of_memory: the host has killed processes for want of memory lately.
        """
        for _ in range(_LAST_PACKETS):  # who inherited the line may go on sending
            if self.closed or not self.readable():
                break
        self.close()
        if self.last_stack is not None:
            self.evidence.stack = self.last_stack.read()
        ending = ending_of(self.evidence, status, out_of_memory=out_of_memory)
        self.kernel.ended(self.task, self, ending)

    def orphaned(self) -> None:
        """Its zygote is gone, which ends the process too; nobody will tell of that."""
        self._orphaned = True
        if self.closed:
            self.kernel.ended(self.task, self, _ORPHANED)

    def never_lived(self, reason: str) -> None:
        """There will be no process."""
        self.close(reason)
        self.kernel.ended(self.task, self, Ending(reason))
