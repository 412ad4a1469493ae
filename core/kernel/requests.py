"""Messages in flight: from the moment the kernel accepts one until its client has an answer.

A `Request` holds what its receiver needs twice over, decoded and encoded, each made when first
asked for: a message between two tasks in address spaces of their own is never encoded again, one
between two co-located tasks never at all. It keeps its bulk and its rights until it is answered, so
that it can be delivered again after its server's death.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import msgspec
import trio

from core.abi import FIELDS_LIMIT, NO_SLOT
from core.errors import AtollError, BadMessageError, MessageTooLargeError, ServerFaultError
from core.userlib.interface import Bulk, Descriptor, Operation, encode

from .descriptors import give_up

if TYPE_CHECKING:
    from .ports import KernelRight
    from .tasks import KernelTask
    from .timers import Timer


_UNENCODABLE: Final = (
    TypeError,
    OverflowError,
    ValueError,
    RecursionError,
    NotImplementedError,
    msgspec.MsgspecError,
)
"""What msgspec raises for a value that has no octets."""


class Reply:
    """A server's answer. Either of `plain` and `fields` may be missing.

    Rights and descriptors move.
    """

    bulk: Bulk = b""
    rights: tuple[KernelRight, ...] = ()
    descriptors: tuple[int, ...] = ()

    def __init__(self, plain: Any = None, fields: bytes | None = None) -> None:
        self.plain = plain
        self.fields = fields

    def encoded(self, spec: Operation) -> bytes:
        """Return the fields as octets. ServerFaultError when they cannot be encoded."""
        if self.fields is None:
            try:
                self.fields = encode(self.plain) if spec.reply_has_field else b""
            except _UNENCODABLE as error:
                raise ServerFaultError(f"reply to {spec}: {error}") from None
            if len(self.fields) > FIELDS_LIMIT:
                raise ServerFaultError(f"reply to {spec} has {len(self.fields)} octets of fields")
        return self.fields

    def discard(self) -> None:
        """Give up what the reply carries, because nobody waits for it any more."""
        for right in self.rights:
            right.release()
        for number in self.descriptors:
            give_up(number)


class ClientEnd(Protocol):
    """Where an answer goes."""

    def replied(self, request: Request, reply: Reply) -> None:
        """Take the reply; its bulk is valid only until this returns."""

    def refused(self, request: Request, error: AtollError) -> None:
        """Take the error."""


class Request:
    """A message in flight. `id` is unique in a boot and stays the same when it is delivered again.

    What most requests never change is an attribute of the class, which makes a request cheap.
    """

    id = 0
    bulk: Bulk = b""
    rights: tuple[KernelRight, ...] = ()
    descriptors: tuple[int, ...] = ()
    room = 0
    slot = NO_SLOT
    client_slot = NO_SLOT
    delivered = False
    redelivered = False
    abandoned = False
    suspect = False
    deaths = 0
    hops = 0
    on_end: Callable[[], None] | None = None
    timer: Timer | None = None
    weight: tuple[int, int] | None = None

    def __init__(
        self,
        number: int,
        spec: Operation,
        right: KernelRight,
        client: KernelTask | None,
        client_end: ClientEnd | None,
        arguments: tuple[Any, ...] | None = None,
        fields: bytes | None = None,
    ) -> None:
        """Make a request.

        Args:
            number: the client's own number for it.
            arguments: the plain parameters; missing ones are decoded from `fields` when needed.
            client_end: None for a message that wants no reply.
        """
        self.number = number
        self.spec = self.reply_spec = spec
        self.port = right.port
        self.badge = right.badge
        self.client = client
        self.client_end = client_end
        self._arguments = arguments
        self._fields = fields

    def weigh(self, octets: int, descriptors: int) -> None:
        """Have the client bear what this request holds, until it ends. LimitError."""
        if self.client is not None:
            self.client.burden.take_up(octets, descriptors)
            self.weight = (octets, descriptors)

    @property
    def wants_reply(self) -> bool:
        """Whether somebody waits for an answer."""
        return self.client_end is not None

    @property
    def plain(self) -> tuple[Any, ...]:
        """The plain parameters."""
        if self._arguments is None:
            self._arguments = self.spec.decode_request(self._fields or b"")
        return self._arguments

    @property
    def fields(self) -> bytes:
        """The plain parameters as octets. BadMessageError when they cannot be encoded."""
        if self._fields is None:
            try:
                fields = encode(self._arguments)
            except _UNENCODABLE as error:
                raise BadMessageError(f"{self.spec}: {error}") from None
            if len(fields) > FIELDS_LIMIT:
                raise MessageTooLargeError(f"{self.spec}: {len(fields)} octets of fields")
            self._fields = fields
        return self._fields

    def decode(self) -> None:
        """Decode the fields now. BadMessageError, the client's fault."""
        self._arguments = self.spec.decode_request(self._fields or b"")

    def retarget(self, spec: Operation, right: KernelRight, arguments: tuple[Any, ...]) -> None:
        """Aim at another port: the server behind the first one passes the request on."""
        self.spec = spec
        self.port = right.port
        self.badge = right.badge
        self._fields, self._arguments = None, arguments
        self.delivered = self.redelivered = self.suspect = False
        self.deaths = 0
        self.hops += 1

    def reply(self, reply: Reply) -> None:
        """Answer the client; once. What the request held is given up after the reply was copied."""
        try:
            if self.client_end is None or self.abandoned:
                reply.discard()
            else:
                self.client_end.replied(self, reply)
        finally:
            if not self.spec.simple or self.timer is not None or self.weight is not None:
                self.end()

    def refuse(self, error: AtollError) -> None:
        """Answer the client with an error; once."""
        self.end()
        if self.client_end is not None and not self.abandoned:
            self.client_end.refused(self, error)

    def end(self) -> None:
        """Give up what the request carried."""
        if self.timer is not None:
            self.timer.cancel()
        for right in self.rights:
            right.release()
        for number in self.descriptors:
            give_up(number)
        self.rights = self.descriptors = ()
        if self.weight is not None and self.client is not None:
            self.client.burden.put_down(*self.weight)
            self.weight = None
        if self.on_end is not None:
            self.on_end()
            self.on_end = None

    def __repr__(self) -> str:
        return f"<request {self.id} {self.spec} from {self.client}>"


class Waiter:
    """A trio task in the kernel's process that waits for an answer."""

    woken: ClassVar[int] = 0
    """Trio tasks made runnable so far; tells who waits outside trio that he should not."""
    done = False
    error: AtollError | None = None
    value: Any = None
    task: trio.lowlevel.Task | None = None

    def replied(self, request: Request, reply: Reply) -> None:  # noqa: D102
        spec = request.reply_spec
        if spec.simple_reply:
            self.value = reply.plain
            self._wake()
            return
        carried: list[Any] = []
        if spec.reply_bulk:
            bulk = reply.bulk
            carried.append(bytes(bulk) if isinstance(bulk, memoryview) else bulk)
        carried += reply.rights
        carried += [Descriptor(number) for number in reply.descriptors]
        try:
            for right in reply.rights:
                if request.client is not None:
                    request.client.hold(right)
        except AtollError as error:
            reply.descriptors = ()  # the objects in `carried` close them
            self.refused(request, error)
            reply.discard()
            return
        self.value = spec.join_reply(reply.plain, carried)
        self._wake()

    def refused(self, request: Request, error: AtollError) -> None:  # noqa: D102
        self.error = error
        self._wake()

    def _wake(self) -> None:
        self.done = True
        if self.task is not None:
            task, self.task = self.task, None
            Waiter.woken += 1
            trio.lowlevel.reschedule(task)

    async def wait(self, withdraw: Callable[[], None]) -> None:
        """Park until the answer is there; `withdraw` is called when the caller is cancelled."""
        self.task = trio.lowlevel.current_task()

        def abort(_: Any) -> trio.lowlevel.Abort:
            self.task = None
            withdraw()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def result(self) -> Any:
        """Return the reply's value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value
