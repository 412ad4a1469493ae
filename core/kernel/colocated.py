"""Servers promoted into the kernel's process: the same classes, without the line.

A plain handler runs at once, on the turn of whoever delivers the request; an async one as a trio task of the
incarnation's nursery. Nothing is encoded and nothing is copied. What is given up is isolation: the server shares
the kernel's memory and its processor, which is why it cannot be killed, only fail.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import trio

from core.abi import RightKind
from core.errors import AtollError, BadMessageError, TaskError, WrongRightError
from core.userlib.interface import Descriptor, Interface, Operation
from core.userlib.kernel_calls import KernelCalls
from core.userlib.server import Server, handlers_of
from core.userlib.task import Task, operations_mask

from .calls import drop, forget, keep_right, named_task
from .kernel import Kernel, carry
from .ports import Direct, KernelRight, Port
from .requests import Reply, Request, Waiter
from .tasks import KernelTask


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

    async def call(self, right: Any, spec: Operation, arguments: tuple[Any, ...]) -> Any:  # noqa: D102
        right.check(spec.index)
        waiter = Waiter()
        request = Request(0, spec, right, self.place, waiter, arguments[: spec.fields])
        if not spec.simple:
            carry(request, spec, arguments)
        self._kernel.submit(request)
        if not waiter.done:
            engine = request.port.task.engine if request.port.task is not None else None
            if engine is not None and engine.lingers:
                engine.linger(waiter)
            if not waiter.done:
                await waiter.wait(lambda: self._kernel.abort(request))
        if right.kind is RightKind.SEND_ONCE:
            right.release()
        return waiter.result()

    def send(self, right: Any, spec: Operation, arguments: tuple[Any, ...]) -> None:  # noqa: D102
        right.check(spec.index)
        request = Request(0, spec, right, self.place, None, arguments[: spec.fields])
        carry(request, spec, arguments)
        self._kernel.submit(request)

    def notify(self, right: Any, bits: int) -> None:  # noqa: D102
        self._kernel.notify(right, bits)

    def mint(self, badge: int, operations: list[str] | None = None) -> KernelRight:  # noqa: D102
        port = self.place.main_port
        assert port is not None
        mask = operations_mask(port.interface, operations)
        return self.place.names[1].derive(RightKind.SEND, mask, badge)

    def attenuate(  # noqa: D102
        self, right: Any, operations: list[str], interface: type[Interface]
    ) -> KernelRight:
        result: KernelRight = right.derive(RightKind.SEND, operations_mask(interface, operations))
        return result

    def copy(self, right: Any) -> KernelRight:  # noqa: D102
        result: KernelRight = right.derive()
        return result

    def drop(self, right: Any) -> None:  # noqa: D102
        for name, held in self.place.names.items():
            if held is right:
                drop(self._kernel, self.place, name)
                return
        right.release()

    def revoke(self, right: Any) -> None:  # noqa: D102
        right.revoke()

    def keep(self, label: str, descriptor: int) -> None:  # noqa: D102
        self.place.keep(label, os.dup(descriptor))

    def kept(self, label: str) -> int | None:  # noqa: D102
        number = self.place.kept.get(label)
        return None if number is None else os.dup(number)

    def keep_right(self, label: str, right: Any) -> None:  # noqa: D102
        keep_right(self.place, label, right)

    def kept_rights(self) -> dict[str, Any]:  # noqa: D102
        return {label: right.derive() for label, right in self.place.kept_rights.items()}

    def forget(self, label: str) -> None:  # noqa: D102
        forget(self.place, label)

    def arm(self, delay_s: float, bits: int) -> int:  # noqa: D102
        return self._kernel.arm(self.place, delay_s, bits)

    def disarm(self, timer: int) -> None:  # noqa: D102
        self._kernel.disarm(self.place, timer)

    def log(self, text: str) -> None:  # noqa: D102
        self._kernel.log(f"{self.name}: {text}")

    def spawn(self, name: str) -> None:  # noqa: D102
        self._privileged("spawn")
        self._kernel.spawn(named_task(self._kernel, name))

    def retire(self, name: str) -> None:  # noqa: D102
        self._privileged("retire")
        self._kernel.retire(named_task(self._kernel, name), "the supervisor gave its task up")

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
        self._scopes: dict[int, trio.CancelScope] = {}
        self._handlers: list[Any] = []
        self._failed = ""
        self._guilty = 0
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
                self.server.stop()
            if not self._kernel_is_told:
                self._tell()

    _kernel_is_told = False

    async def _start(self, nursery: trio.Nursery) -> None:
        server = self.server = self._make(ColocatedTask(self._kernel, self.task))
        self._handlers = handlers_of(server)
        await server.start()
        self._direct()
        self._kernel.ready(self.task)
        if type(server).run is not Server.run:
            nursery.start_soon(server.run)

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

    def _note(self, error: BaseException, guilty: int) -> None:
        """Remember the first fault; it ends the incarnation."""
        if not self._failed:
            self._failed = "".join(traceback.format_exception(error))
            self._guilty = guilty
        self._undirect()
        self._end.set()

    def _tell(self) -> None:
        self._kernel_is_told = True
        reason = self._failed or "it ended"
        self._kernel.ended(self.task, self, reason, orderly=not self._failed, guilty=self._guilty)

    async def _fault_on_turn(
        self,
        right: KernelRight,
        spec: Operation,
        arguments: tuple[Any, ...],
        request_id: int,
        error: Exception,
    ) -> Any:
        """A handler failed on the caller's own turn: end the incarnation, wait for the next one."""
        self._note(error, request_id)
        self._tell()
        return await self._kernel.recover(self.task, right, spec, arguments, request_id, 1)

    def linger(self, waiter: Waiter) -> None:
        """Do not: what is not done at once waits for something (`Engine`)."""

    # -- Engine -----------------------------------------------------------------------------------

    def deliver(self, request: Request) -> bool:  # noqa: D102
        if self._failed:
            return False
        spec = request.spec
        if spec.waits:
            assert self._nursery is not None
            self._nursery.start_soon(self._serve_waiting, request)
            return True
        try:
            self._prepare(request)
            result = self._handlers[spec.index](*request.arguments())
        except AtollError as error:
            self._kernel.refused(request, error)
        except Exception as error:  # noqa: BLE001 - any exception of the server is its fault
            self._note(error, request.id)
        else:
            self._reply(request, result)
        return True

    def _prepare(self, request: Request) -> None:
        about = self.server.request
        about.id = request.id
        about.badge = request.badge
        about.redelivered = request.redelivered
        about.room = None

    async def _serve_waiting(self, request: Request) -> None:
        scope = self._scopes[request.id] = trio.CancelScope()
        try:
            with scope:
                self._prepare(request)
                result = await self._handlers[request.spec.index](*request.arguments())
                self._reply(request, result)
                return
            self._kernel.refused(request, TaskError("withdrawn"))
        except AtollError as error:
            self._kernel.refused(request, error)
        except Exception as error:  # noqa: BLE001 - any exception of the server is its fault
            self._note(error, request.id)
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
            reply.bulk, carried = carried[0], carried[1:]
            if len(reply.bulk) > max(request.room, 4096):
                raise BadMessageError(f"reply to {spec} exceeds the room made for it")
        reply.rights = tuple(carried[: spec.reply_rights])
        lent: list[Descriptor] = carried[spec.reply_rights :]
        reply.descriptors = tuple(os.dup(descriptor.fileno()) for descriptor in lent)
        for descriptor in lent:
            descriptor.close()
        self._kernel.replied(request, reply)

    def abort(self, request: Request) -> None:  # noqa: D102
        scope = self._scopes.get(request.id)
        if scope is not None:
            scope.cancel()

    def notify(self, port: Port, bits: int) -> bool:  # noqa: D102, ARG002
        self._guarded(self.server.notified, bits)
        return True

    def no_senders(self, port: Port, badge: int) -> bool:  # noqa: D102, ARG002
        self._guarded(self.server.no_senders, badge)
        return True

    def _guarded(self, handler: Callable[[int], None], value: int) -> None:
        try:
            handler(value)
        except Exception as error:  # noqa: BLE001 - any exception of the server is its fault
            self._note(error, 0)

    def stop(self) -> None:  # noqa: D102
        self._stopping = True
        self._end.set()

    def kill(self) -> None:  # noqa: D102
        raise TaskError(
            f"{self.task.name} is promoted into the kernel's process and cannot be killed; "
            'place it in a process of its own (placement = "process") to kill it'
        )


def _direct_is_enough(spec: Operation) -> bool:
    """Tell whether a caller may run the handler itself: it does not wait, and no right changes hands."""
    moves = spec.rights or spec.descriptors or spec.reply_rights or spec.reply_descriptors
    return not (spec.waits or moves)
