"""Keeping a server's word for it: its state is committed with every reply, in kept memory.

A server that declares `state` gets a `Keeper`, which stands between the serve loop and the server's
methods, in either placement. The one rule that a server's author has to know:

    The state changes if and only if the handler returns.

Theory of operation. When a handler has returned, the state is encoded. If it differs from what was
committed last, state and reply are stored as one value (`kept_value`), and only then is the reply
sent. A handler that raises (it declined, passed the request on, failed, or was withdrawn) leaves
the state as it was. A redelivered request whose reply was stored gets that reply; any other one had
no effect, so its handler runs. A handler that changed nothing stores nothing: it may run again.

Which replies must be remembered. A reply is handed to the line, or to the caller, in the same step
that stored it: nothing else is served in between. What was handed to a line the kernel reads before
it declares the incarnation over, and only then does it deliver again. So at most one stored reply
can belong to a request that comes again: the newest. A few older ones are kept in addition, as far
as they are small, for the case that the kernel gave a line up with packets unread in it.

What has no reply. A message is delivered once, and notification bits too; news of vanished senders
come until they were dealt with, so `no_senders` has to bear being told twice. The state they leave
is committed when the method returns.

Handlers that wait interleave, and share one state. So such a handler changes it after its last
await, or it would be committed with somebody else's reply, and then be changed again by the
redelivered request. To change it and then wait is a fault, noticed at once. `run` has no request
that could come again: what it changed is committed whenever it waits.

Invariants:
1. Between two steps of the server, `server.state` encodes to `_committed`.
2. What is stored can be decoded as the declared type: it was, before it was stored.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import trio

from core.abi import FIELDS_LIMIT
from core.errors import AtollError, LostError, MessageTooLargeError

from .interface import Operation, encode, octets
from .kept_value import KeptValue, UnreadableError
from .task import RETURN, UPGRADE

if TYPE_CHECKING:
    from .server import Server

T = TypeVar("T")
LABEL: Final = "server state"
"""Under which the kernel keeps a server's state."""
REPLIES_KEPT: Final = 8
"""Replies that are stored: the newest, and older ones that are small."""
SMALL_REPLY: Final = 256


class StateError(Exception):
    """Changed code cannot take the state over that it finds."""


class Reply(msgspec.Struct, array_like=True, frozen=True):
    """The answer to a request, as it was sent."""

    request: int
    fields: bytes
    bulk: bytes


class Kept(msgspec.Struct, array_like=True, frozen=True):
    """What is stored: the state, encoded, and the newest replies, oldest first."""

    state: bytes
    replies: list[Reply]


_decode_kept: Final = msgspec.msgpack.Decoder(Kept).decode
_decode_any: Final = msgspec.msgpack.Decoder().decode


def state_type(cls: type) -> Any:
    """Return the type that a server class declares for `state`; None: it declares none.

    Raises:
        TypeError: such a state cannot be kept.
    """
    for owner in cls.__mro__:
        declared = inspect.get_annotations(owner).get("state")
        if declared is not None:
            break
    else:
        return None
    if declared in ("Any", Any):
        return None
    if isinstance(declared, str):
        try:
            declared = eval(declared, vars(sys.modules[owner.__module__]))  # noqa: S307 - our own
        except NameError as error:
            raise TypeError(f"{cls.__name__}.state: {error}; define it at module level") from None
    if not (isinstance(declared, type) and issubclass(declared, msgspec.Struct)):
        raise TypeError(f"{cls.__name__}.state is a msgspec.Struct, not {declared}")
    config = declared.__struct_config__
    if config.array_like or config.omit_defaults:
        raise TypeError(f"{cls.__name__}.state is stored with its fields' names, and all of them")
    try:
        declared()
    except TypeError as error:
        raise TypeError(f"{cls.__name__}.state: {error}; a server begins with defaults") from None
    return declared


@functools.cache
def decoder(declared: type[msgspec.Struct]) -> Callable[[bytes], Any]:
    """Return what decodes a declared state. Made once: before the fork, if the class is loaded."""
    return msgspec.msgpack.Decoder(declared).decode


def upgraded(old: Any, wanted: type[T]) -> T:
    """Return the state that `old`, which has plain types, stands for.

    Raises:
        LostError: it does not fit, or it holds what `wanted` has no field for.
    """
    try:
        state = msgspec.convert(old, wanted)
    except (msgspec.MsgspecError, TypeError, RecursionError) as error:
        raise LostError(f"the state of an older version does not fit: {error}") from None
    lacking = _lacking(_decode_any(encode(state)), old)
    if lacking:
        raise LostError(f"the state of an older version has {lacking}, which there is no more")
    return state


def _lacking(new: Any, old: Any) -> str:
    """Return the name of something in `old` that `new` lacks; "" if it has all."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            if key not in new:
                return str(key)
        pairs = [(key, new[key], value) for key, value in old.items()]
    elif isinstance(old, list) and isinstance(new, list):
        pairs = [("[]", *pair) for pair in zip(new, old, strict=False)]
    for key, new_part, old_part in pairs:
        inner = _lacking(new_part, old_part)
        if inner:
            return f"{key}.{inner}"
    return ""


class Keeper:
    """Stands for a server before its serve loop; see the module head.

    It has the methods of `Server` that a serve loop calls.
    """

    def __init__(self, server: Server, declared: type[msgspec.Struct]) -> None:
        self._server = server
        self._decode = decoder(declared)
        self._declared = declared
        self.value = KeptValue(server.task, LABEL)
        self._committed = b""
        self._replies: list[Reply] = []
        self._serving = False
        self.handlers = [self._handler(spec) for spec in server.interface.OPERATIONS]

    def load(self) -> Any:
        """Return the state that was committed last, or what a server begins with.

        What cannot be read or taken over is lost, and clients are told. Any other exception of the
        server's `upgrade` is a fault, after which everything is still there. To changed code that
        comes into a running system nothing is lost: it fails, and the code before it returns.
        """
        try:
            found = self.value.load()
            if found is None:
                return self._declared()
            kept = _decode_kept(found)
            self._replies = kept.replies
            state = self._read(kept.state)
            self._committed = kept.state
            return state
        except (LostError, UnreadableError, msgspec.MsgspecError) as error:
            if self._server.task.succession == UPGRADE:
                raise StateError(f"the changed code loses the state: {error}") from error
            self._replies = []
            self._server.lost(f"{self._server.task.name} lost its state: {error}")
            return self._declared()

    def _read(self, octets_of_state: bytes) -> Any:
        """Decode a state; one that has other fields than the declared type is upgraded."""
        old = _decode_any(octets_of_state)
        try:
            state = self._decode(octets_of_state)
        except msgspec.MsgspecError:
            return self._server.upgrade(old)
        new = _decode_any(encode(state))
        if _lacking(new, old) or _lacking(old, new):
            try:
                return self._server.upgrade(old)
            except LostError:
                if self._server.task.succession != RETURN:
                    raise
                self._server.task.log("what the newer code alone knew of the state is dropped")
        return state

    # -- commit and roll back ----------------------------------------------------------------------

    def commit(self) -> None:
        """Store the state if it has changed. LimitError: it is too large, and as it was before."""
        now = encode(self._server.state)
        if now != self._committed:
            self._store(now, self._replies)

    def _commit_with(self, spec: Operation, request: int, result: Any) -> None:
        """Store the state, if it has changed, and with it a handler's result."""
        now = encode(self._server.state)
        if now != self._committed:
            reply = _reply(spec, request, result)
            replies = self._replies if reply is None else self._and(reply)
            self._store(now, replies)

    def _store(self, now: bytes, replies: list[Reply]) -> None:
        try:
            self._decode(now)  # what could not be read back must not be stored: a fault, now
            self.value.store(encode(Kept(now, replies)))
        except AtollError:
            self.roll_back()
            raise
        self._committed = now
        self._replies = replies

    def _and(self, reply: Reply) -> list[Reply]:
        """Return the replies that are stored with a new one."""
        replies = self._replies[1 - REPLIES_KEPT :]
        if replies and len(replies[-1].fields) + len(replies[-1].bulk) > SMALL_REPLY:
            replies.pop()
        replies.append(reply)
        return replies

    def roll_back(self) -> None:
        """Make the state again what was committed."""
        if self._has_changed():
            server = self._server
            server.state = self._decode(self._committed) if self._committed else self._declared()

    def _has_changed(self) -> bool:
        try:
            return encode(self._server.state) != self._committed
        except Exception:  # noqa: BLE001 - whatever it is that has no octets, it is a change
            return True

    def _recorded(self, request: int) -> Reply | None:
        for reply in reversed(self._replies):
            if reply.request == request:
                return reply
        return None

    # -- requests ----------------------------------------------------------------------------------

    def _handler(self, spec: Operation) -> Callable[..., Any]:
        handler = getattr(self._server, spec.name)
        return self._waiting(spec, handler) if spec.waits else self._plain(spec, handler)

    def _plain(self, spec: Operation, handler: Callable[..., Any]) -> Callable[..., Any]:
        request = self._server.request

        def serve(*arguments: Any) -> Any:
            number = request.id
            if request.redelivered:
                reply = self._recorded(number)
                if reply is not None:
                    return _restored(spec, reply)
            with self:
                result = handler(*arguments)
                self._commit_with(spec, number, result)
            return result

        return serve

    def _waiting(self, spec: Operation, handler: Callable[..., Any]) -> Callable[..., Any]:
        request = self._server.request

        async def serve(*arguments: Any) -> Any:
            number = request.id
            if request.redelivered:
                reply = self._recorded(number)
                if reply is not None:
                    return _restored(spec, reply)
            try:
                result = await in_steps(handler(*arguments), lambda: self._unchanged(spec))
                self._commit_with(spec, number, result)
            except BaseException:
                self.roll_back()
                raise
            return result

        return serve

    def _unchanged(self, spec: Operation) -> None:
        """Note that a handler waits now."""
        if self._has_changed():
            self.roll_back()
            raise RuntimeError(f"{spec} changed the state and then waited; change it, then return")

    def __enter__(self) -> None:
        if self._serving:
            raise RuntimeError("a handler was called from inside of another one")
        self._serving = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._serving = False
        if kind is not None:
            self.roll_back()

    # -- what has no reply -------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the server, and commit what it begins with."""
        await self._server.start()
        self.commit()

    async def run(self) -> None:
        """Run beside the handlers; what was changed is committed at every wait."""
        await in_steps(self._server.run(), self.commit)
        self.commit()

    def stop(self) -> None:
        """End in good order."""
        self._server.stop()
        self.commit()

    def no_senders(self, badge: int) -> None:
        """See `Server.no_senders`."""
        with self:
            self._server.no_senders(badge)
            self.commit()

    def notified(self, bits: int) -> None:
        """See `Server.notified`."""
        with self:
            self._server.notified(bits)
            self.commit()


def _reply(spec: Operation, request: int, result: Any) -> Reply | None:
    """Return what to remember of a reply; None if it carries what cannot be remembered.

    Raises:
        MessageTooLargeError: it could not be sent.
    """
    if not spec.reply_carried:
        fields, bulk = encode(result), b""
    elif spec.reply_rights or spec.reply_descriptors:
        return None
    else:
        plain, carried = spec.split_reply(result)
        fields, bulk = encode(plain), bytes(octets(carried[0]))
    if len(fields) > FIELDS_LIMIT:
        raise MessageTooLargeError(f"reply to {spec} has {len(fields)} octets of fields")
    return Reply(request, fields, bulk)


def _restored(spec: Operation, reply: Reply) -> Any:
    """Return the result that a handler once returned."""
    plain = spec.decode_reply(reply.fields) if spec.reply_has_field else None
    return spec.join_reply(plain, [reply.bulk] if spec.reply_bulk else [])


async def in_steps(coroutine: Coroutine[Any, Any, T], after: Callable[[], None]) -> T:
    """Await a coroutine, and call `after` whenever it is about to wait.

    What `after` raises is raised here, and the coroutine is cancelled first.
    """
    failed: list[Exception] = []
    with trio.CancelScope() as scope:

        def step() -> None:
            try:
                after()
            except Exception as error:  # noqa: BLE001 - raised below, when trio has been told
                failed.append(error)
                scope.cancel()

        result = await _stepwise(coroutine, step)
        if not failed:
            return result
    raise failed[0]


@types.coroutine
def _stepwise(
    coroutine: Coroutine[Any, Any, T], step: Callable[[], None]
) -> Generator[Any, Any, T]:
    resume: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731
    while True:
        try:
            wanted = resume()
        except StopIteration as stop:
            return typing.cast("T", stop.value)
        step()
        try:
            sent = yield wanted
        except BaseException as error:  # noqa: BLE001 - the coroutine is who shall have it
            resume = _thrower(coroutine, error)
        else:
            resume = _sender(coroutine, sent)


def _sender(coroutine: Coroutine[Any, Any, Any], value: Any) -> Callable[[], Any]:
    return lambda: coroutine.send(value)


def _thrower(coroutine: Coroutine[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: coroutine.throw(error)


__all__ = ["Keeper", "in_steps", "state_type", "upgraded"]
