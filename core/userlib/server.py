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

What must outlive the server is declared, and then kept; `keeping` says how:

    class CountingServer(Server):
        interface = Counting
        state: Counts            # a msgspec.Struct, whose fields have defaults

        def add(self, amount: int) -> int:
            self.state.total += amount
            return self.state.total

The state changes if and only if the handler returns, and a request that is delivered again gets the
reply that was stored with the change.

A handler raises `core.errors.Refused` (or another `AtollError`) to decline. Any other exception is
a *fault*: the incarnation ends, is started again, and the request is delivered again until the
kernel takes it for poison.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

from core.abi import Right

from .interface import Bulk, Interface, Operation
from .keeping import Keeper, decoder, state_type, upgraded
from .task import Task

Handler = TypeVar("Handler", bound=Callable[..., Any])


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


def runs_again(handler: Handler) -> Handler:
    """Mark a handler of a server with state that is fit to run again for the same request.

    A reply that carries rights or descriptors cannot be stored. So its handler runs again when the
    request is delivered again, upon the state that it has changed, and finds by `request.id` what
    it did. Needless for an idempotent operation.
    """
    handler.__runs_again__ = True  # type: ignore[attr-defined]  # a function takes any attribute
    return handler


class Server:
    """Base of all servers. See the module head for the form, `Task` for what a server may do.

    Attributes:
        state: what a subclass declares to be kept, as it was committed last. Always reach it
            through the server: it is another object after a handler has declined.
        keeper: commits it; None for a server without state.
    """

    interface: ClassVar[type[Interface]] = NoOperations
    state: Any
    _state_type: ClassVar[Any] = None

    def __init__(self, task: Task) -> None:
        self.task = task
        self.request = Request()
        self.keeper: Keeper | None = None
        if self._state_type is not None:
            self.keeper = Keeper(self, self._state_type)
            self.state = self.keeper.load()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._state_type = state_type(cls)
        if cls._state_type is not None:
            decoder(cls._state_type)
        for spec in cls.interface.OPERATIONS:
            _check_handler(cls, spec)

    @classmethod
    def rehearse(cls) -> None:
        """Do what a start does, to no effect; runs in a spare process that may become any server.

        The pages that it writes to are its own then, so that `start` takes less time. What it
        raises is ignored.
        """

    @classmethod
    def upgrade(cls, old: Any) -> Any:
        """Return the state that another version of this class has left, as this version's.

        Called when what is kept has other fields than `state` declares. This one takes what has the
        same name, and defaults for what is new. Override it where fields were renamed or given up.

        Args:
            old: the fields by name; values have plain types.

        Raises:
            LostError: it cannot be taken over; the server begins anew, and clients are told.
        """
        return upgraded(old, cls._state_type)

    def commit(self) -> None:
        """Commit the state now, after a trio task of the server's own has changed it.

        Needless in handlers and in `run`. LimitError: the state is too large, and as it was before.
        """
        if self.keeper is not None:
            self.keeper.commit()

    def lost(self, detail: str) -> None:
        """Say that something that clients rely on is gone.

        Each client's next request is answered with LostError instead of being served, once.
        """
        self.task.lost(detail)

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


class Hooks(Protocol):
    """What a serve loop calls beside the handlers."""

    async def start(self) -> None:
        """Prepare for the first request."""

    async def run(self) -> None:
        """Run beside the handlers."""

    def stop(self) -> None:
        """End in good order."""

    def no_senders(self, badge: int) -> None:
        """All rights with this badge are gone."""

    def notified(self, bits: int) -> None:
        """Notification bits were set."""


def hooks_of(server: Server) -> Hooks:
    """Return who is called in the server's stead: its keeper, if it has state."""
    return server if server.keeper is None else server.keeper


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
    stored = not (spec.reply_rights or spec.reply_descriptors)
    fit = stored or spec.idempotent or hasattr(handler, "__runs_again__")
    if cls._state_type is not None and not fit:
        raise TypeError(
            f"{cls.__name__}.{spec.name}: what its reply carries cannot be stored; declare {spec} "
            "idempotent, or mark the handler with @runs_again"
        )


def is_blocking(cls: type[Server]) -> bool:
    """Tell whether the server can be served without trio: nothing of it ever waits."""
    return cls.run is Server.run and not any(spec.waits for spec in cls.interface.OPERATIONS)


def handlers_of(server: Server) -> list[Any]:
    """Return the server's bound handlers by operation number, those that keep if it has state."""
    if server.keeper is not None:
        return server.keeper.handlers
    return [getattr(server, spec.name) for spec in server.interface.OPERATIONS]


__all__ = [
    "Bulk",
    "Forward",
    "NoOperations",
    "Request",
    "Server",
    "handlers_of",
    "hooks_of",
    "is_blocking",
    "runs_again",
]
