"""Interfaces: typed operations declared once, from which both ends of a port are derived.

An interface is a class whose methods carry `@operation`. Their bodies are empty: the signature is
the definition. From it follow

* the operation's number (its place in the class), its codec and the validation of both
  directions (msgspec, strict: no value is coerced);
* the client stub: `connect(Interface, right)` returns an instance of the interface whose methods
  make the call, so a type checker sees exactly the declared signatures;
* the check, when a server class is defined, that it serves every operation.

What a parameter or a result may be:

* any type that msgspec can carry as MessagePack: int, str, bytes, bool, float, None, lists, tuples,
  dicts, `msgspec.Struct`s and unions of them; these are the *fields* of the message;
* `Bulk`: octets that travel beside the message and never through a serializer;
* `Right`: a right that moves (or is copied) with the message;
* `Descriptor`: a host file descriptor that is lent.

Carried parameters stand last, in the order fields, bulk (at most one), rights, descriptors. A
result is a single value, or a tuple `(fields, carried...)` in the same order.
"""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, ParamSpec, TypeVar, overload

import msgspec

from core.abi import BULK_LIMIT, Right
from core.errors import BadMessageError, ServerFaultError

P = ParamSpec("P")
R = TypeVar("R")

Bulk: typing.TypeAlias = bytes | bytearray | memoryview
"""Octets carried beside a message. A handler's `Bulk` is valid until it has replied."""


def octets(bulk: Bulk) -> Bulk:
    """Return the same memory as plain octets: its `len` is its size.

    Raises:
        BadMessageError: it is not contiguous, or no memory at all.
    """
    if type(bulk) is bytes:
        return bulk
    try:
        return memoryview(bulk).cast("B")
    except TypeError as error:
        raise BadMessageError(f"this cannot be sent as bulk: {error}") from None


class Descriptor:
    """A host file descriptor carried by a message; the receiver owns it and closes it.

    Args:
        number: an open descriptor. The object takes it over.
    """

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """Return the descriptor's number; it stays owned by this object."""
        return self._number

    def take(self) -> int:
        """Return the descriptor's number and give up ownership: the caller closes it."""
        number, self._number = self._number, -1
        return number

    def close(self) -> None:
        """Close the descriptor, once."""
        if self._number >= 0:
            os.close(self.take())

    def __del__(self) -> None:
        self.close()


_CARRIED: Final = ("bulk", "right", "descriptor")


def _kind_of(annotation: Any) -> str:
    """Return 'bulk', 'right', 'descriptor' or 'field' for an annotation."""
    if annotation == Bulk:
        return "bulk"
    if annotation is Right:
        return "right"
    if annotation is Descriptor:
        return "descriptor"
    return "field"


_encoder: Final = msgspec.msgpack.Encoder()
encode: Final = _encoder.encode
NOTHING: Final = encode(())
"""The fields of a request without parameters."""


class Operation:
    """What is known of one operation of an interface. Immutable after the class is made.

    Attributes:
        index: its number on the wire, unique within the interface.
        waits: the handler may wait for something, so it runs as a task of its own in the server.
        idempotent: a client may repeat the call without harm.
        fields: number of plain parameters; the carried ones follow them.
        bulk: the parameters end with octets beside the message.
        rights, descriptors: how many of each the request carries.
        simple_reply: the reply carries nothing beside its fields.
        simple: neither the request nor the reply carries anything beside its fields.
        room: name of the parameter that bounds the reply's bulk, in bytes; None: no reply bulk
            beyond `core.abi.INLINE_LIMIT`.
    """

    def __init__(
        self, function: Callable[..., Any], *, waits: bool, idempotent: bool, room: str | None
    ) -> None:
        self.name = function.__name__
        self.function = function
        self.waits = waits
        self.idempotent = idempotent
        self.room = room
        self.index = -1
        self.interface = ""

    def bind(self, owner: type, index: int) -> None:
        """Derive codec and checks from the signature, once the interface's class exists."""
        self.interface = owner.__name__
        self.index = index
        hints = typing.get_type_hints(self.function, include_extras=True)
        self.signature = inspect.signature(self.function)
        self.parameters = list(self.signature.parameters.values())[1:]
        if any(parameter.name.startswith("_") for parameter in self.parameters):
            raise TypeError(f"{self}: a parameter's name does not begin with an underscore")
        kinds = [_kind_of(hints[parameter.name]) for parameter in self.parameters]
        order = [("field", *_CARRIED).index(kind) for kind in kinds]
        if order != sorted(order) or kinds.count("bulk") > 1:
            raise TypeError(f"{self}: parameters must be ordered fields, bulk, rights, descriptors")
        self.fields = kinds.count("field")
        self.bulk = "bulk" in kinds
        self.rights = kinds.count("right")
        self.descriptors = kinds.count("descriptor")
        self.field_types = [hints[p.name] for p in self.parameters[: self.fields]]
        # tuple[()] is the empty tuple: an operation without plain parameters
        self._request = msgspec.msgpack.Decoder(tuple[tuple(self.field_types)])  # type: ignore[misc]
        self._bind_reply(hints["return"])
        self.simple_reply = not self.reply_carried
        self.simple = self.fields == len(self.parameters) and not self.reply_carried
        if self.room is not None:
            self.room_index = [p.name for p in self.parameters].index(self.room)

    def _bind_reply(self, result: Any) -> None:
        parts = list(typing.get_args(result)) if typing.get_origin(result) is tuple else [result]
        kinds = [_kind_of(part) for part in parts]
        if all(kind == "field" for kind in kinds):
            parts, kinds = [result], ["field"]
        self.reply_has_field = kinds[0] == "field"
        self.reply_type: Any = parts[0] if self.reply_has_field else type(None)
        self.reply_carried = kinds[1:] if self.reply_has_field else kinds
        if "field" in self.reply_carried or self.reply_carried.count("bulk") > 1:
            raise TypeError(f"{self}: a result is (fields, bulk, rights..., descriptors...)")
        self.reply_bulk = "bulk" in self.reply_carried
        self.reply_rights = self.reply_carried.count("right")
        self.reply_descriptors = self.reply_carried.count("descriptor")
        self.reply_single = not self.reply_has_field and len(self.reply_carried) == 1
        self._reply = msgspec.msgpack.Decoder(self.reply_type)

    def __repr__(self) -> str:
        return f"{self.interface}.{self.name}"

    def decode_request(self, fields: Bulk) -> tuple[Any, ...]:
        """Return the plain parameters, validated.

        Raises:
            BadMessageError: the octets are not what the signature asks for; the sender's fault.
        """
        try:
            return self._request.decode(fields)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadMessageError(f"{self}: {error}") from None

    def decode_reply(self, fields: Bulk) -> Any:
        """Return the reply's plain value, validated.

        Raises:
            ServerFaultError: the server broke its own interface.
        """
        try:
            return self._reply.decode(fields)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ServerFaultError(f"reply to {self}: {error}") from None

    def split_reply(self, value: Any) -> tuple[Any, list[Any]]:
        """Return a handler's result as `(plain value, carried values)`."""
        if not self.reply_carried:
            return value, []
        if self.reply_single:
            return None, [value]
        parts = list(value)
        if self.reply_has_field:
            return parts[0], parts[1:]
        return None, parts

    def join_reply(self, plain: Any, carried: list[Any]) -> Any:
        """Return what the client sees: the inverse of `split_reply`."""
        if not self.reply_carried:
            return plain
        if self.reply_single:
            return carried[0]
        return (plain, *carried) if self.reply_has_field else tuple(carried)

    def room_of(self, arguments: tuple[Any, ...]) -> int:
        """Return how many octets of reply bulk the caller makes room for, whatever it asks for."""
        wanted = arguments[self.room_index] if self.room is not None else 0
        return max(0, min(wanted, BULK_LIMIT)) if isinstance(wanted, int) else 0


_AsyncFunction = TypeVar("_AsyncFunction", bound=Callable[..., Awaitable[Any]])


@overload
def operation(function: _AsyncFunction, /) -> _AsyncFunction: ...
@overload
def operation(
    *, waits: bool = False, idempotent: bool = False, room: str | None = None
) -> Callable[[_AsyncFunction], _AsyncFunction]: ...
def operation(
    function: Any = None,
    /,
    *,
    waits: bool = False,
    idempotent: bool = False,
    room: str | None = None,
) -> Any:
    """Declare a method of an `Interface` as an operation.

    Args:
        function: the method, when used without arguments.
        waits: the server's handler is `async` and may take long.
        idempotent: repeating the request changes nothing.
        room: the name of the int parameter that bounds the size of the reply's bulk.
    """

    def mark(target: Any) -> Any:
        target.__operation__ = Operation(target, waits=waits, idempotent=idempotent, room=room)
        return target

    return mark if function is None else mark(function)


class Interface:
    """Base of all interfaces. Subclass it, mark methods with `@operation`, leave bodies empty."""

    OPERATIONS: ClassVar[tuple[Operation, ...]] = ()
    """All operations by number; those of a base interface come first."""

    def __init_subclass__(cls, *, stub: bool = False) -> None:
        super().__init_subclass__()
        if stub:
            return
        found = list(cls.OPERATIONS)
        for value in list(vars(cls).values()):
            spec = getattr(value, "__operation__", None)
            if isinstance(value, types.FunctionType) and isinstance(spec, Operation):
                spec.bind(cls, len(found))
                found.append(spec)
        cls.OPERATIONS = tuple(found)

    @classmethod
    def named(cls, name: str) -> Operation:
        """Return the operation called `name`; KeyError if there is none."""
        for spec in cls.OPERATIONS:
            if spec.name == name:
                return spec
        raise KeyError(f"{cls.__name__} has no operation {name}")
