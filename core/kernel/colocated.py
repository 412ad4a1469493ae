"""Servers promoted into the kernel's process: the same classes, without the line.

A plain handler runs at once, on the turn of whoever delivers the request; an async one as a trio
task of the incarnation's nursery. Nothing is encoded and nothing is copied. What is given up is
isolation: the server shares the kernel's memory and its processor, which is why it cannot be
killed, only fail.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable
from typing import Any, cast

import trio

from core.abi import INLINE_LIMIT, RightKind
from core.errors import (
    AbortedError,
    AtollError,
    LimitError,
    MessageTooLargeError,
    QueueFullError,
    Refused,
    TaskError,
    WrongRightError,
)
from core.userlib.interface import Descriptor, Interface, Operation, octets
from core.userlib.kernel_calls import KernelCalls
from core.userlib.server import Forward, Server, cause_of, handlers_of, hooks_of
from core.userlib.task import Task, operations_mask

from .calls import drop, forget, keep_right, kept_labels, kill, lost, named_task, say
from .cargo import arguments_of, carry, give_back, give_objects
from .endings import Evidence, Order, ending_of
from .kernel import Kernel, check_forward, forward_failed
from .ports import Direct, KernelRight, Port, receive_right
from .requests import Reply, Request, Waiter
from .resumable import Step, check, enter, repeated, resumable, take_back
from .tasks import KernelTask, State


class ColocatedTask(Task):
    """A task as a promoted program sees it: the kernel, called directly."""

    def __init__(self, kernel: Kernel, task: KernelTask) -> None:
        self._kernel = kernel
        self.place = task
        self.name = task.name
        self.options = dict(task.program.options)
        self.boot_id = kernel.boot_id
        self.generation = task.id.generation
        self.rights = {name: task.names[number] for name, number in task.grants.items()}

    async def call(  # noqa: D102
        self,
        right: Any,
        spec: Operation,
        arguments: tuple[Any, ...],
        deadline_s: float | None = None,
    ) -> Any:
        right.check(spec.index)
        if not right.mask:
            right.hear()
        waiter = Waiter()
        request = Request(0, spec, right, self.place, waiter, arguments[: spec.fields])
        self._submit(right, request, arguments, deadline_s)
        if not waiter.done:
            engine = request.port.task.engine if request.port.task is not None else None
            if engine is not None and engine.lingers:
                engine.linger(waiter)
            if not waiter.done:
                await waiter.wait(lambda: self._kernel.abort(request))
        return waiter.result()

    async def call_resumable(  # noqa: D102
        self, right: Any, spec: Operation, arguments: tuple[Any, ...], place: int, tag: int
    ) -> Any:
        right.check(spec.index)
        if not right.mask:
            right.hear()
        task, waiter = self.place, Waiter()
        check(task, place, tag, right, spec)
        step = repeated(task, place, tag, right.port, spec)
        if step is None:
            step = Step(right.port, spec, waiter)
            request = Request(0, spec, right, task, step, arguments[: spec.fields])
            enter(self._kernel, task, place, tag, step)
            step.request = request
            try:
                self._submit(right, request, arguments, None)
            except AtollError:
                take_back(task, step)
                raise
        elif step.request is not None:
            step.asker = waiter
        engine = right.port.task.engine if right.port.task is not None else None
        if step.request is not None and engine is not None and engine.lingers:
            engine.linger(waiter)
        if step.request is not None:
            await waiter.wait(step.leave)
        if step.error is not None:
            raise step.error
        assert step.reply is not None
        return step.reply.plain

    def resumable(self) -> list[tuple[int, int]]:  # noqa: D102
        return resumable(self.place)

    def send(self, right: Any, spec: Operation, arguments: tuple[Any, ...]) -> None:  # noqa: D102
        right.check(spec.index)
        request = Request(0, spec, right, self.place, None, arguments[: spec.fields])
        with contextlib.suppress(QueueFullError):
            self._submit(right, request, arguments, None)

    def _submit(
        self,
        right: KernelRight,
        request: Request,
        arguments: tuple[Any, ...],
        deadline_s: float | None,
    ) -> None:
        """Hand a message to the kernel; one that is not taken costs the caller nothing."""
        try:
            if not request.spec.simple:
                carry(request, arguments)
            if deadline_s is not None:
                self._kernel.expire(request, deadline_s)
            self._kernel.submit(request)
        except AtollError:
            give_back(request)
            raise
        if right.kind is RightKind.SEND_ONCE:
            self.place.forget(right)
            right.release()

    def notify(self, right: Any, bits: int) -> None:  # noqa: D102
        self._kernel.notify(right, bits)

    def create_port(self, label: str) -> KernelRight:  # noqa: D102
        main = self.place.main_port
        assert main is not None
        port = self._kernel.create_port(self.place, f"{self.name}:{label[:64]}", main.interface)
        return self._held(receive_right(port))

    def mint(  # noqa: D102
        self, badge: int, operations: list[str] | None = None, port: Any = None
    ) -> KernelRight:
        receiver = self.place.names[1] if port is None else port
        mask = operations_mask(receiver.port.interface, operations)
        return self._held(receiver.derive(RightKind.SEND, mask, badge))

    def mint_once(self, badge: int) -> KernelRight:  # noqa: D102
        return self._held(self.place.names[1].derive(RightKind.SEND_ONCE, badge=badge))

    def _held(self, right: KernelRight) -> KernelRight:
        """Enter a new right into the name space, so that it ends with the incarnation."""
        try:
            self.place.hold(right)
        except LimitError:
            right.release()
            raise
        return right

    def attenuate(  # noqa: D102
        self, right: Any, operations: list[str], interface: type[Interface]
    ) -> KernelRight:
        return self._held(right.derive(RightKind.SEND, operations_mask(interface, operations)))

    def copy(self, right: Any) -> KernelRight:  # noqa: D102
        return self._held(right.derive())

    def drop(self, right: Any) -> None:  # noqa: D102
        name: int = right.name
        if self.place.names.get(name) is right:
            drop(self.place, name)
        else:
            right.release()

    def revoke(self, right: Any) -> None:  # noqa: D102
        right.revoke()

    def keep(self, label: str, descriptor: int) -> None:  # noqa: D102
        self.place.keep(label, os.dup(descriptor))

    def kept(self, label: str) -> int | None:  # noqa: D102
        number = self.place.kept.get(label)
        return None if number is None else os.dup(number)

    def lost(self, detail: str) -> None:  # noqa: D102
        lost(self._kernel, self.place, detail)

    def keep_right(self, label: str, right: Any) -> None:  # noqa: D102
        keep_right(self.place, label, right)

    def kept_rights(self) -> dict[str, Any]:  # noqa: D102
        kept = self.place.kept_rights
        return {label: self._held(kept[label].derive()) for label in kept_labels(self.place)}

    def forget(self, label: str) -> None:  # noqa: D102
        forget(self.place, label)

    def arm(self, delay_s: float, bits: int) -> int:  # noqa: D102
        return self._kernel.arm(self.place, delay_s, bits)

    def disarm(self, timer: int) -> None:  # noqa: D102
        self._kernel.disarm(self.place, timer)

    def log(self, text: str) -> None:  # noqa: D102
        say(self.place, text)

    def spawn(self, name: str) -> None:  # noqa: D102
        self._privileged("spawn")
        self._kernel.spawn(named_task(self._kernel, name))

    def kill(self, name: str, generation: int, reason: str) -> None:  # noqa: D102
        self._privileged("kill")
        kill(self._kernel, name, generation, reason)

    def retire(self, name: str, reason: str) -> None:  # noqa: D102
        self._privileged("retire")
        self._kernel.retire(named_task(self._kernel, name), reason)

    def halt(self, reason: str) -> None:  # noqa: D102
        self._privileged("halt")
        self._kernel.on_halt(reason)

    def _privileged(self, name: str) -> None:
        if not self.place.kernel_mask >> KernelCalls.named(name).index & 1:
            raise WrongRightError(f"task {self.name} may not call {name}")


class Colocated:
    """One promoted incarnation, as an `Engine`."""

    pid = 0
    lingers = False

    def __init__(self, kernel: Kernel, task: KernelTask, make: Callable[[Task], Server]) -> None:
        self._kernel = kernel
        self.task = task
        self._make = make
        self._nursery: trio.Nursery | None = None
        self._deferred = trio.Event()
        self._own_turn = False
        self._scopes: dict[int, trio.CancelScope] = {}
        self._handlers: list[Any] = []
        self._failed = ""
        self._guilty = 0
        self._operation = ""
        self._stopping = False
        self._end = trio.Event()

    async def run(self) -> None:
        """Live through one incarnation: start, serve, end. Never raises but for cancellation."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._start(nursery)
                await self._end.wait()
                nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - any exception of the server is its fault
            self._note(error, 0)
        finally:
            self._undirect()
            if self._stopping and not self._failed:
                self._stop_server()
            if not self._kernel_is_told:
                self._tell()

    def _stop_server(self) -> None:
        try:
            hooks_of(self.server).stop()
        except Exception as error:  # noqa: BLE001 - any exception of the server is its fault
            self._note(error, 0)

    _kernel_is_told = False

    async def _start(self, nursery: trio.Nursery) -> None:
        server = self.server = self._make(ColocatedTask(self._kernel, self.task))
        self._handlers = handlers_of(server)
        hooks = self._hooks = hooks_of(server)
        await hooks.start()
        nursery.start_soon(self._serve_deferred)
        self._direct()
        self._on_own_turn(lambda: self._kernel.ready(self.task))
        if type(server).run is not Server.run:
            nursery.start_soon(hooks.run)

    # What wants no reply (messages, notifications, vanished senders) may come from inside a handler
    # of this very server, or of one that it called. It is served on a turn of its own, so that a
    # plain handler always runs to its end before the next thing begins; and what arrives after it
    # is served after it, for which hand-off is closed meanwhile.

    def _defer(self) -> bool:
        """Have the port's queue served on a turn of this incarnation's own; return False."""
        self._undirect()
        self._deferred.set()
        return False

    async def _serve_deferred(self) -> None:
        while True:
            await self._deferred.wait()
            self._deferred = trio.Event()
            self._on_own_turn(lambda: self._kernel.flush(self.task))
            port = self.task.main_port
            if not (self._failed or self._stopping) and port is not None and not port.queue:
                self._direct()

    def _on_own_turn(self, action: Callable[[], None]) -> None:
        self._own_turn = True
        try:
            action()
        finally:
            self._own_turn = False

    def _direct(self) -> None:
        """Open the main port for hand-off."""
        port = self.task.main_port
        assert port is not None
        plain = [
            handler if _direct_is_enough(spec) else None
            for spec, handler in zip(port.interface.OPERATIONS, self._handlers, strict=True)
        ]
        port.direct = Direct(plain, self.server.request, self._kernel.next_id, self._fault_on_turn)

    def _undirect(self) -> None:
        if self.task.engine is self and self.task.main_port is not None:
            self.task.main_port.direct = None

    def _note(self, error: BaseException, guilty: int, operation: str = "") -> None:
        """Remember the first fault; it ends the incarnation."""
        if not self._failed:
            self._failed = "".join(traceback.format_exception(cause_of(error)))
            self._guilty, self._operation = guilty, operation
        self._undirect()
        self._end.set()

    def _tell(self) -> None:
        self._kernel_is_told = True
        where = f"in {self._operation}" if self._operation else "outside any request"
        if self.task.state is State.STARTING:
            where = "while starting"
        evidence = Evidence(self._failed, self._guilty, where, stopping=True)
        self._kernel.ended(self.task, self, ending_of(evidence, 0))

    async def _fault_on_turn(
        self,
        right: KernelRight,
        spec: Operation,
        arguments: tuple[Any, ...],
        request_id: int,
        error: Exception,
    ) -> Any:
        """A handler failed on the caller's own turn: end the incarnation, wait for the next one."""
        if isinstance(error, Forward):
            return await self._forward_on_turn(right, spec, arguments, error)
        self._note(error, request_id, repr(spec))
        self._tell()
        return await self._kernel.recover(self.task, right, spec, arguments, request_id, 1)

    async def _forward_on_turn(
        self,
        right: KernelRight,
        spec: Operation,
        arguments: tuple[Any, ...],
        forward: Forward,
    ) -> Any:
        """Pass on what was called on the caller's own turn: make the other call in its place."""
        request = Request(0, spec, right, None, None, ())
        carried = arguments[spec.fields :]
        try:
            if spec.bulk:
                request.bulk = octets(carried[0])
            check_forward(request, forward.spec)
            if not forward.spec.bulk:
                carried = ()
            whole = (*forward.arguments, *carried)
            return await self.server.task.call(forward.right, forward.spec, whole)
        except AtollError as error:
            if isinstance(error, Refused):
                raise
            raise forward_failed(request, error) from None

    def linger(self, waiter: Waiter) -> None:
        """Do not: what is not done at once waits for something (`Engine`)."""

    # -- Engine -----------------------------------------------------------------------------------

    def deliver(self, request: Request) -> bool:  # noqa: D102
        if self._failed or self._stopping:
            return False
        if request.client_end is None and not self._own_turn:
            return self._defer()
        spec = request.spec
        arguments = arguments_of(self.task, request)
        if spec.waits:
            assert self._nursery is not None
            scope = self._scopes[request.id] = trio.CancelScope()
            self._nursery.start_soon(self._serve_waiting, request, arguments, scope)
            return True
        try:
            self._prepare(request)
            self._reply(request, self._handlers[spec.index](*arguments))
        except Exception as error:  # noqa: BLE001 - any exception of the server is its fault
            self._not_served(request, arguments, error)
        return True

    def _not_served(self, request: Request, arguments: tuple[Any, ...], error: Exception) -> None:
        """A handler raised: it declined, it passed the request on, or it failed."""
        spec = request.spec
        if isinstance(error, Forward):
            self._forward(request, arguments, error)
        elif isinstance(error, AtollError):
            first = spec.fields + spec.bulk
            for given in arguments[first : first + spec.rights]:
                right: KernelRight = given
                if right in self.task.names.values():
                    self.server.task.drop(right)
            self._kernel.refused(request, error)
        else:
            self._note(error, request.id, repr(spec))

    def _forward(self, request: Request, arguments: tuple[Any, ...], forward: Forward) -> None:
        spec = request.spec
        try:
            if request.client_end is None:
                whole = (*forward.arguments, *arguments[spec.fields :])
                self.server.task.send(forward.right, forward.spec, whole)
            else:
                right = cast("KernelRight", forward.right)
                self._kernel.forward(request, right, forward.spec, forward.arguments)
        except AtollError as error:
            self._kernel.refused(request, forward_failed(request, error))

    def _prepare(self, request: Request) -> None:
        about = self.server.request
        about.id = request.id
        about.port = request.port.name
        about.badge = request.badge
        about.redelivered = request.redelivered
        about.room = None

    async def _serve_waiting(
        self, request: Request, arguments: tuple[Any, ...], scope: trio.CancelScope
    ) -> None:
        try:
            with scope:
                self._prepare(request)
                self._reply(request, await self._handlers[request.spec.index](*arguments))
                return
            self._kernel.refused(request, AbortedError("withdrawn"))
        except Exception as error:  # noqa: BLE001 - any exception of the server is its fault
            self._not_served(request, arguments, error)
        finally:
            del self._scopes[request.id]

    def _reply(self, request: Request, result: Any) -> None:
        spec = request.spec
        if not spec.reply_carried:
            self._kernel.replied(request, Reply(result))
            return
        plain, carried = spec.split_reply(result)
        reply = Reply(plain)
        if spec.reply_bulk:
            reply.bulk, carried = octets(carried[0]), carried[1:]
            if len(reply.bulk) > max(request.room, INLINE_LIMIT):
                raise MessageTooLargeError(f"reply to {spec} exceeds the room made for it")
        reply.rights = give_objects(self.task, carried[: spec.reply_rights])
        lent: list[Descriptor] = carried[spec.reply_rights :]
        reply.descriptors = tuple(descriptor.take() for descriptor in lent)
        self._kernel.replied(request, reply)

    def abort(self, request: Request) -> None:  # noqa: D102
        scope = self._scopes.get(request.id)
        if scope is not None:
            scope.cancel()

    def notify(self, port: Port, bits: int) -> bool:  # noqa: D102
        if self._failed or self._stopping:
            return False
        if not self._own_turn:
            return self._defer()
        self._guarded(self._hooks.notified, bits)
        return True

    def no_senders(self, port: Port, badge: int) -> bool:  # noqa: D102
        if self._failed or self._stopping:
            return False
        if not self._own_turn:
            return self._defer()
        self.server.request.port = port.name
        if self._guarded(self._hooks.no_senders, badge):
            port.told.pop(badge, None)
        return True

    def _guarded(self, handler: Callable[[int], None], value: int) -> bool:
        try:
            handler(value)
        except AtollError as error:
            say(self.task, error.detail)
        except Exception as error:  # noqa: BLE001 - any exception of the server is its fault
            self._note(error, 0)
            return False
        return True

    def stop(self) -> None:  # noqa: D102
        self._stopping = True
        self._end.set()

    def kill(self, order: Order) -> None:  # noqa: D102
        raise TaskError(
            f"{self.task.name} is promoted into the kernel's process and cannot be killed; "
            'place it in a process of its own (placement = "process") to kill it'
        )


def _direct_is_enough(spec: Operation) -> bool:
    """Tell whether a caller may run the handler: it does not wait, and no right changes hands."""
    moves = spec.rights or spec.descriptors or spec.reply_rights or spec.reply_descriptors
    return not (spec.waits or moves)
