"""The serve loops of a task in an address space of its own.

A server none of whose operations waits is served by a plain blocking loop: receive, handle, reply.
No scheduler stands between the packet and the handler, which is what makes it fast. All others are
served under
trio: one reader drains the line, plain handlers run in the reader, async ones as trio tasks that an
abort cancels.

A handler's exception that is no `AtollError` is reported to the kernel with the guilty request and
ends the incarnation.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import os
import resource
import select
import socket
import traceback
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import trio

from core.abi import FLAG_REDELIVERED, INLINE_LIMIT, NO_SLOT, Kind
from core.errors import (
    AbortedError,
    AtollError,
    BadMessageError,
    MessageTooLargeError,
    NoRightError,
    WrongRightError,
    to_wire,
)

from .confine import Confine, Settle, unconfined
from .interface import Descriptor, Operation, encode, octets
from .isolated import Birth, IsolatedTask, TaskRight
from .line import DO_NOT_WAIT, ClosedError, Line, Packet, Region, aligned, new_region
from .server import Fault, Forward, Server, cause_of, handlers_of, hooks_of, is_blocking
from .task import complete

_CALL: Final = int(Kind.CALL)
_FAULT_TEXT_LIMIT: Final = 16_000
_BALLAST: Final = 1 << 20
"""Octets of address space, which is what is limited, that are let go when an incarnation ends, so
that it can still say it had no memory."""
_DRAIN_LIMIT: Final = 64
"""Packets that the trio reader takes before it lets other trio tasks run."""


class Dispatcher:
    """Turns packets into calls of a server's handlers, and results into packets."""

    def __init__(self, task: IsolatedTask, server: Server) -> None:
        self._task = task
        self._line = task.line
        self.server = server
        self.specs = server.interface.OPERATIONS
        self._handlers = handlers_of(server)
        self._hooks = hooks_of(server)

    def arguments_of(self, packet: Packet, spec: Operation) -> tuple[Any, ...]:
        """Return what the handler is called with. The kernel has validated the fields already."""
        arguments = spec.decode_request(packet.fields)
        if not (spec.bulk or packet.rights or packet.descriptors):
            return arguments
        carried: list[Any] = []
        if spec.bulk:
            inline = packet.slot == NO_SLOT
            bulk: Any = packet.bulk
            if not inline:
                bulk = self._line.region.view(packet.slot, 0, packet.bulk_size)
            carried.append(bulk)
        carried += [TaskRight(name) for name in packet.rights]
        carried += [Descriptor(number) for number in packet.descriptors]
        return (*arguments, *carried)

    def prepare(self, packet: Packet) -> tuple[Operation, Any, tuple[Any, ...]]:
        """Return operation, handler and arguments, and set the server's `request`."""
        spec = self.specs[packet.operation]
        arguments = self.arguments_of(packet, spec)
        request = self.server.request
        request.id = packet.request
        request.port = packet.name
        request.badge = packet.badge
        request.redelivered = bool(packet.flags & FLAG_REDELIVERED)
        request.room = None
        if packet.room > INLINE_LIMIT:
            start = aligned(packet.bulk_size)
            request.room = self._line.region.view(packet.slot, start, packet.room)
        return spec, self._handlers[packet.operation], arguments

    def reply(self, packet: Packet, spec: Operation, result: Any) -> None:
        """Send a handler's result to the kernel."""
        if packet.kind != Kind.CALL:
            self._discard(spec, result)
            return
        if not spec.reply_carried:
            self._line.reply_simple(packet.request, encode(result))
            return
        plain, carried = spec.split_reply(result)
        bulk: Any = b""
        if spec.reply_bulk:
            bulk, carried = octets(carried[0]), carried[1:]
        slot, size = NO_SLOT, len(bulk)
        if size > INLINE_LIMIT:
            slot = self._place(packet, bulk, size)
            bulk = b""
        rights = tuple(right.name for right in carried[: spec.reply_rights])
        lent = carried[spec.reply_rights :]
        self._line.send(
            Kind.REPLY,
            request=packet.request,
            fields=encode(plain) if spec.reply_has_field else b"",
            bulk=bulk,
            bulk_size=size,
            slot=slot,
            rights=rights,
            descriptors=tuple(descriptor.fileno() for descriptor in lent),
        )

    def _discard(self, spec: Operation, result: Any) -> None:
        """Give up the rights in a result that nobody waits for; descriptors close by themselves."""
        if spec.reply_rights:
            rights = spec.split_reply(result)[1][int(spec.reply_bulk) :][: spec.reply_rights]
            for right in rights:
                with contextlib.suppress(NoRightError, WrongRightError):  # a granted one stays
                    self._task.drop(right)

    def _place(self, packet: Packet, bulk: Any, size: int) -> int:
        """Put the reply's bulk into the request's slot, unless the handler wrote it there."""
        if packet.slot == NO_SLOT or size > packet.room:
            raise MessageTooLargeError(f"{size} octets of reply for {packet.room} octets of room")
        place = self._line.region.view(packet.slot, aligned(packet.bulk_size), size)
        if not (isinstance(bulk, memoryview) and _same_place(bulk, place)):
            place[:] = bulk
        return packet.slot

    def refuse(self, packet: Packet, error: AtollError) -> None:
        """Send an error to the kernel, and give up the rights that the request carried."""
        for name in packet.rights:
            with contextlib.suppress(NoRightError):
                self._task.drop(TaskRight(name))
        if packet.kind == Kind.CALL:
            self._line.refuse_simple(packet.request, encode(to_wire(error)))

    def handle(self, packet: Packet) -> None:
        """Serve one request whose operation does not wait, or one notification."""
        if packet.kind == _CALL:
            spec = self.specs[packet.operation]
            if spec.simple:
                self._handle_simple(packet, spec)
                return
        try:
            if packet.kind == Kind.NOTIFY:
                self.server.request.port = packet.name
                self._hooks.notified(packet.request)
            elif packet.kind == Kind.NO_SENDERS:
                self._no_senders(packet)
            else:
                spec, handler, arguments = self.prepare(packet)
                self.reply(packet, spec, handler(*arguments))
        except Forward as forward:
            self._forward(packet, forward)
        except AtollError as error:
            self.refuse(packet, error)
        except ClosedError:
            raise
        except Exception as error:
            raise Fault(packet.request) from error

    def _handle_simple(self, packet: Packet, spec: Operation) -> None:
        """Serve a call that carries nothing beside its fields: most calls, so the quick way."""
        request = self.server.request
        request.id = number = packet.request
        request.port = packet.name
        request.badge = packet.badge
        request.redelivered = packet.flags & FLAG_REDELIVERED != 0
        try:
            fields = encode(self._handlers[packet.operation](*spec.decode_request(packet.fields)))
        except Forward as forward:
            self._forward(packet, forward)
            return
        except AtollError as error:
            self.refuse(packet, error)
            return
        except Exception as error:
            raise Fault(number) from error
        try:
            self._line.reply_simple(number, fields)
        except MessageTooLargeError as error:
            self.refuse(packet, error)

    def _no_senders(self, packet: Packet) -> None:
        """Deal with senders that vanished, and tell the kernel when that is done."""
        if self._task.abandoned(packet.name, packet.badge):
            self.server.request.port = packet.name
            self._hooks.no_senders(packet.badge)
            self._line.send(Kind.NO_SENDERS, name=packet.name, request=packet.badge)

    def _forward(self, packet: Packet, forward: Forward) -> None:
        """Pass a request on to another server."""
        name = getattr(forward.right, "name", 0)
        if packet.kind == Kind.CALL:
            self._line.send(
                Kind.FORWARD,
                operation=forward.spec.index,
                name=name,
                request=packet.request,
                fields=encode(forward.arguments),
            )
            return
        carried = self.arguments_of(packet, self.specs[packet.operation])[
            self.specs[packet.operation].fields :
        ]
        self._task.send(forward.right, forward.spec, (*forward.arguments, *carried))

    async def handle_waiting(self, packet: Packet, scope: trio.CancelScope) -> None:
        """Serve one request whose operation waits; the scope is cancelled by an abort."""
        try:
            with scope:
                spec, handler, arguments = self.prepare(packet)
                self.reply(packet, spec, await handler(*arguments))
            if scope.cancelled_caught:  # the kernel has to know that it may forget the request
                self.refuse(packet, AbortedError("withdrawn"))
        except Forward as forward:
            self._forward(packet, forward)
        except AtollError as error:
            self.refuse(packet, error)
        except ClosedError:
            raise
        except Exception as error:
            raise Fault(packet.request) from error


def _tell_ready(task: IsolatedTask, settle: Settle) -> None:
    """Give up what only `start` needed, and say that requests can come."""
    task.left.close()
    listener = settle()
    try:
        task.line.send(Kind.READY, descriptors=(listener,) if listener >= 0 else ())
    finally:
        if listener >= 0:  # who kept it would wait for its own answer at the next refused call
            os.close(listener)


def _serve_blocking(task: IsolatedTask, server: Server, settle: Settle) -> None:
    hooks = hooks_of(server)
    complete(hooks.start())
    _tell_ready(task, settle)
    dispatcher = Dispatcher(task, server)
    receive, handle, aside = task.line.receive_soon, dispatcher.handle, task.set_aside
    while True:
        packet = aside.popleft() if aside else receive()
        kind = packet.kind
        if kind == _CALL:
            handle(packet)
            continue
        if kind == Kind.STOP:
            hooks.stop()
            return
        if kind in (Kind.REPLY, Kind.ERROR):
            task.answered(packet)
        elif kind == Kind.PING:
            task.line.send(Kind.PONG)
        elif kind != Kind.ABORT:  # too late: a plain handler has replied when the abort is read
            handle(packet)


class _TrioLoop:
    """The serve loop of a server that waits."""

    def __init__(self, task: IsolatedTask, server: Server, settle: Settle) -> None:
        self._task = task
        self._hooks = hooks_of(server)
        self._settle = settle
        self._scopes: dict[int, trio.CancelScope] = {}
        self._dispatcher = Dispatcher(task, server)
        self._aside = trio.Event()
        self._stopping = False

    async def run(self) -> None:
        task = self._task
        task.blocking = False
        task.on_set_aside = self._wake_aside
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, nursery)
            nursery.start_soon(self._serve_aside, nursery)
            await self._hooks.start()
            _tell_ready(task, self._settle)
            nursery.start_soon(self._hooks.run)
        if self._stopping:
            self._hooks.stop()

    async def _read(self, nursery: trio.Nursery) -> None:
        line = self._task.line
        while True:
            for _ in range(_DRAIN_LIMIT):
                self._serve_set_aside(nursery)
                try:
                    packet = line.receive(DO_NOT_WAIT)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(line.socket)
                    continue
                self._take(packet, nursery)
            await trio.lowlevel.checkpoint()

    async def _serve_aside(self, nursery: trio.Nursery) -> None:
        while True:
            await self._aside.wait()
            self._aside = trio.Event()
            self._serve_set_aside(nursery)

    def _wake_aside(self) -> None:
        self._aside.set()

    def _serve_set_aside(self, nursery: trio.Nursery) -> None:
        """Serve what came while a kernel call waited, before anything that came later."""
        while self._task.set_aside:
            self._take(self._task.set_aside.popleft(), nursery)

    def _take(self, packet: Packet, nursery: trio.Nursery) -> None:
        kind = packet.kind
        if kind in (Kind.REPLY, Kind.ERROR):
            self._task.answered(packet)
        elif kind == Kind.ABORT:
            scope = self._scopes.get(packet.request)
            if scope is not None:
                scope.cancel()
        elif kind == Kind.PING:
            self._task.line.send(Kind.PONG)
        elif kind == Kind.STOP:
            self._stopping = True
            nursery.cancel_scope.cancel()
        elif kind in (Kind.CALL, Kind.SEND) and self._dispatcher.specs[packet.operation].waits:
            # The scope is there at once, because an abort may be the next packet.
            scope = self._scopes[packet.request] = trio.CancelScope()
            nursery.start_soon(self._serve_waiting, packet, scope)
        else:
            self._dispatcher.handle(packet)

    async def _serve_waiting(self, packet: Packet, scope: trio.CancelScope) -> None:
        try:
            await self._dispatcher.handle_waiting(packet, scope)
        finally:
            del self._scopes[packet.request]


def _same_place(view: memoryview, place: memoryview) -> bool:
    """Tell whether a handler's result is the very memory that the reply goes to."""
    if view.obj is not place.obj or view.readonly:
        return False
    address = ctypes.c_char.from_buffer
    return ctypes.addressof(address(view)) == ctypes.addressof(address(place))


def _load(program: str) -> type[Server]:
    module, _, name = program.partition(":")
    cls = getattr(importlib.import_module(module), name)
    if not (isinstance(cls, type) and issubclass(cls, Server)):
        raise BadMessageError(f"{program} is not a server class")
    return cls


def _guilty(error: BaseException) -> int:
    """Return the request that an exception is blamed on, looking into groups; 0 if none is."""
    if isinstance(error, Fault):
        return error.request
    if isinstance(error, BaseExceptionGroup):
        return max((_guilty(inner) for inner in error.exceptions), default=0)
    return 0


def _closed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_closed(inner) for inner in error.exceptions)
    return isinstance(error, ClosedError)


def run_task(
    connection: socket.socket,
    region: int,
    birth: Birth,
    kept: Sequence[int] = (),
    confine: Confine = unconfined,
) -> NoReturn:
    """Be a task: serve until the kernel says stop, goes away, or a fault ends the incarnation.

    Args:
        connection: the line; owned.
        region: descriptor of the transfer region; owned.
        birth: what the kernel says about the task.
        kept: the descriptors that come with it; owned.
        confine: gives up what not even `start` needs, before any code of the server runs.
    """
    line = Line(connection, Region(region))
    os.close(region)
    status = 0
    ballast = mmap.mmap(-1, _BALLAST)
    try:
        settle = confine()
        cls = _load(birth.program)
        task = IsolatedTask(line, birth, kept)
        task.interface = cls.interface
        server = cls(task)
        if is_blocking(cls):
            _serve_blocking(task, server, settle)
        else:
            trio.run(_TrioLoop(task, server, settle).run)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this address space
        status = 1
        if not _closed(error):
            del ballast
            _report(line, _guilty(error), _account(cause_of(error)))
    os._exit(status)


def rehearse() -> None:
    """Do what every task does at its start, to no effect.

    In a process that was forked this has the pages copied that a task writes to.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = new_region()
    region = Region(number)
    os.close(number)
    with ours, theirs:
        task = IsolatedTask(Line(ours, region), Birth("rehearsal", "", 0, 0, {}, {}))
        Dispatcher(task, Server(task))
        task.line.send(Kind.READY)
        trio.run(trio.lowlevel.checkpoint)
    region.close()
    for server in Server.__subclasses__():
        with contextlib.suppress(Exception):
            server.rehearse()


def _account(error: BaseException) -> str:
    """Return the trace of an exception; of want of memory too, when there is not much left."""
    try:
        text = "".join(traceback.format_exception(error))[-_FAULT_TEXT_LIMIT:]
    except MemoryError:
        text = "MemoryError"
    if isinstance(error, MemoryError):
        limits = (
            resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
        )
        least = min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=0)
        if least:
            words = f"under a limit of {least / 2**20:.0f} MiB"
            text = f"{text.rstrip()}{' ' if str(error) else ': '}{words}\n"
    return text


def _report(line: Line, request: int, text: str) -> None:
    """Tell the kernel why this incarnation ends; the kernel may be gone or stuck, so never wait."""
    if select.select([], [line.socket], [], 0.2)[1]:
        try:
            line.send(Kind.FAULT, request=request, fields=encode(text))
        except (ClosedError, OSError):
            os._exit(1)
