"""Servers: a class with a method for each operation of its interface.

    class Greeting(Interface):
        @operation
        async def greet(self, name: str) -> str:
            \"\"\"Return a greeting.\"\"\"

    class GreetingServer(Server):
        interface = Greeting

        def greet(self, name: str) -> str:
            return f"hello {name}"

That is a whole server. It is restarted when it dies, its clients wait meanwhile, and requests that
were in flight are delivered again with the id they had. A method whose operation waits is `async`;
all others are plain functions and run to their end before the next request is taken, so a plain
handler needs no locks and at most one request is ever applied but unanswered.

A handler raises `core.errors.Refused` (or another `AtollError`) to decline. Any other exception is
a *fault*: the incarnation ends, is started again, and the request is delivered again until the
kernel takes it for poison.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from core.abi import Right

from .interface import Bulk, Interface, Operation
from .task import Task


class NoOperations(Interface):
    """The interface of a task that serves nothing, such as a program that is only a client."""


class Fault(Exception):  # noqa: N818 - the field's word for a broken rule
    """An exception that ends the incarnation; `request` is the guilty one, 0 if none is."""

    def __init__(self, request: int) -> None:
        super().__init__(request)
        self.request = request


def cause_of(error: BaseException) -> BaseException:
    """Return what an exception is about, without the groups and faults that only pass it on."""
    while True:
        inner = error.__cause__ if isinstance(error, Fault) else None
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            inner = error.exceptions[0]
        if inner is None:
            return error
        error = inner


class Request:
    """What a handler may know of the request it is serving.

    One object per server is reused: it is valid in plain handlers, and in async handlers until the
    first await.

    Attributes:
        id: unique within this boot; the same when the request is delivered again.
        port: which of the task's ports: 1 is its own, others were made with `create_port`.
        badge: which client: the badge of the right that the request came through.
        redelivered: an incarnation that died had this request; it may have taken effect.
    """

    __slots__ = ("badge", "id", "port", "redelivered", "room")

    def __init__(self) -> None:
        self.id = 0
        self.port = 1
        self.badge = 0
        self.redelivered = False
        self.room: memoryview | None = None

    def buffer(self, size: int) -> memoryview:
        """Return `size` writable octets for the reply's bulk, in place where the placement allows.

        Return a slice of it from the handler; nothing is copied then.
        """
        room = self.room
        if room is not None and len(room) >= size:
            return room[:size]
        return memoryview(bytearray(size))


class Forward(Exception):  # noqa: N818 - not an error: an answer of the server
    """Raised by a handler: another server shall answer this request, straight to the client.

        raise Forward(self.task.rights["disk"], Disk.read, offset, size)

    What the request carries beside its fields (bulk, rights, descriptors) goes along, so the other
    operation has to take it; it has to reply what the client expects. The handler's own server is
    rid of the request: it may even end before the answer is there.

    Args:
        right: a send right to the other server's port.
        method: the operation, as declared: a method of the interface.
        arguments: its plain parameters.
    """

    def __init__(self, right: Right, method: Any, *arguments: Any) -> None:
        super().__init__(right, method, *arguments)
        self.right = right
        self.spec: Operation = method.__operation__
        self.arguments = arguments


class Server:
    """Base of all servers. See the module head for the form, `Task` for what a server may do."""

    interface: ClassVar[type[Interface]] = NoOperations

    def __init__(self, task: Task) -> None:
        self.task = task
        self.request = Request()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for spec in cls.interface.OPERATIONS:
            _check_handler(cls, spec)

    @classmethod
    def rehearse(cls) -> None:
        """Do what a start does, to no effect; runs in a spare process that may become any server.

        The pages that it writes to are its own then, so that `start` takes less time. What it
        raises is ignored.
        """

    async def start(self) -> None:
        """Prepare for the first request; other servers may be called. Runs in every incarnation."""

    async def run(self) -> None:
        """Run beside the handlers until cancelled.

        A server that defines it is served under trio.
        """

    def stop(self) -> None:
        """End in good order. Not called when the task is killed."""

    def no_senders(self, badge: int) -> None:
        """All rights with this badge are gone: give up what was held for that client."""

    def notified(self, bits: int) -> None:
        """Notification bits were set at the port since the last time."""


def _check_handler(cls: type[Server], spec: Operation) -> None:
    handler = getattr(cls, spec.name, None)
    if handler is None:
        raise TypeError(f"{cls.__name__} serves {spec.interface} but has no method {spec.name}")
    given = list(inspect.signature(handler).parameters)[1:]
    wanted = [parameter.name for parameter in spec.parameters]
    if given != wanted:
        raise TypeError(f"{cls.__name__}.{spec.name} takes {given}, {spec} declares {wanted}")
    if inspect.iscoroutinefunction(handler) != spec.waits:
        form = "async" if spec.waits else "a plain function"
        raise TypeError(
            f"{cls.__name__}.{spec.name} must be {form}: {spec} says waits={spec.waits}"
        )


def is_blocking(cls: type[Server]) -> bool:
    """Tell whether the server can be served without trio: nothing of it ever waits."""
    return cls.run is Server.run and not any(spec.waits for spec in cls.interface.OPERATIONS)


def handlers_of(server: Server) -> list[Any]:
    """Return the server's bound handlers by operation number."""
    return [getattr(server, spec.name) for spec in server.interface.OPERATIONS]


__all__ = ["Bulk", "Forward", "NoOperations", "Request", "Server", "handlers_of", "is_blocking"]
