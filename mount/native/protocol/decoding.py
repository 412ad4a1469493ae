"""Octets to typed requests.

For every line of the table one function is made, once: header and structure are unpacked by a
single `struct.Struct`, whose numbers are the request's members in order. Nothing is copied but
names; `data` is a slice of the message.

Invariant: whatever the octets, `Decoder.decode` returns a request or raises MalformedError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any, Final

from .extensions import NO_EXTENSIONS, parse_extensions
from .layouts import IN_HEADER, INIT_SHORT_IN, SETXATTR_SHORT_IN
from .malformed import MalformedError
from .opcodes import Opcode
from .operations import OPERATIONS, UNANSWERED, Operation, Tail
from .requests import Init, Request, Setxattr, Unknown

HEADER: Final = "=4xIQQIII4x"
"""`fuse_in_header` as the first members of every request."""
_HEADER: Final = struct.Struct(HEADER)
_HEADER_MEMBERS: Final = 6
_PEEK: Final = struct.Struct("=II").unpack_from
_EXTLEN: Final = struct.Struct("=36xH").unpack_from
_NO_NAME: Final = "a name is empty, has no NUL, or has one inside"
_PAIR: Final = struct.Struct("=QQ")

Decode = Callable[[memoryview], Request]


def _fixed(line: Operation) -> Decode:
    make: Any = line.request
    unpack = struct.Struct(HEADER + line.layout.codes).unpack

    def decode(message: memoryview) -> Request:
        made: Request = make(*unpack(message))
        return made

    return decode


def _one_name(octets: memoryview) -> bytes:
    name = bytes(octets)
    end = len(name) - 1
    if end < 1 or name.find(0) != end:
        raise MalformedError(_NO_NAME)
    return name[:end]


def _two_names(octets: memoryview) -> tuple[bytes, bytes]:
    names = bytes(octets).split(b"\0")
    if len(names) != 3 or not names[0] or not names[1] or names[2]:
        raise MalformedError("these are not two names, each with its NUL")
    return names[0], names[1]


def _named(line: Operation) -> Decode:
    make: Any = line.request
    body = struct.Struct(HEADER + line.layout.codes)
    unpack, size = body.unpack_from, body.size

    def decode(message: memoryview) -> Request:
        numbers = unpack(message)
        name = message[size:].tobytes()  # `_one_name`, in place: LOOKUP is the most frequent
        end = len(name) - 1
        if end < 1 or name.find(0) != end:
            raise MalformedError(_NO_NAME)
        made: Request = make(*numbers, name[:end])
        return made

    return decode


def _two_named(line: Operation) -> Decode:
    make: Any = line.request
    body = struct.Struct(HEADER + line.layout.codes)
    unpack, size = body.unpack_from, body.size

    def decode(message: memoryview) -> Request:
        numbers = unpack(message)
        made: Request = make(*numbers, *_two_names(message[size:]))
        return made

    return decode


def _extended(line: Operation) -> Decode:
    make: Any = line.request
    body = struct.Struct(HEADER + line.layout.codes)
    unpack, size = body.unpack_from, body.size
    two = line.tail is Tail.TWO_NAMES

    def decode(message: memoryview) -> Request:
        numbers = unpack(message)
        (extlen,) = _EXTLEN(message)
        end = len(message)
        extensions = NO_EXTENSIONS
        if extlen:
            end -= 8 * extlen
            if end < size:
                raise MalformedError(f"{extlen} words of extensions are not there")
            extensions = parse_extensions(message[end:])
        tail = message[size:end]
        names: Iterable[bytes] = _two_names(tail) if two else (_one_name(tail),)
        made: Request = make(*numbers, *names, extensions)
        return made

    return decode


def _with_data(line: Operation) -> Decode:
    make: Any = line.request
    body = struct.Struct(HEADER + line.layout.codes)
    unpack, size = body.unpack_from, body.size
    members = line.layout.members
    at = _HEADER_MEMBERS + members.index("in_size" if "in_size" in members else "size")

    def decode(message: memoryview) -> Request:
        numbers = unpack(message)
        data = message[size:]
        if len(data) != numbers[at]:
            raise MalformedError(f"{numbers[at]} octets are told, and {len(data)} are there")
        made: Request = make(*numbers, data)
        return made

    return decode


def _with_records(line: Operation) -> Decode:
    make: Any = line.request
    body = struct.Struct(HEADER + line.layout.codes)
    unpack, size = body.unpack_from, body.size

    def decode(message: memoryview) -> Request:
        *header, count = unpack(message)
        tail = message[size:]
        if len(tail) != count * _PAIR.size:
            raise MalformedError(f"{count} records are told, in {len(tail)} octets")
        made: Request = make(*header, list(_PAIR.iter_unpack(tail)))
        return made

    return decode


def _setxattr(codes: str, missing: tuple[int, ...]) -> Decode:
    body = struct.Struct(HEADER + codes)

    def decode(message: memoryview) -> Request:
        numbers = body.unpack_from(message)
        name, nul, value = bytes(message[body.size :]).partition(b"\0")
        size = numbers[_HEADER_MEMBERS]
        if not name or not nul or len(value) != size:
            raise MalformedError("an attribute has no name, or its value another size")
        make: Any = Setxattr
        made: Request = make(*numbers, *missing, name, memoryview(value))
        return made

    return decode


def _init() -> Decode:
    long = struct.Struct(HEADER + OPERATIONS[Opcode.INIT].layout.codes)
    short = struct.Struct(HEADER + INIT_SHORT_IN.codes)

    make: Any = Init

    def decode(message: memoryview) -> Request:
        brief = len(message) < long.size
        numbers = (*short.unpack_from(message), 0) if brief else long.unpack_from(message)
        made: Request = make(*numbers)
        return made

    return decode


_MAKERS: Final[dict[Tail, Callable[[Operation], Decode]]] = {
    Tail.NOTHING: _fixed,
    Tail.NAME: _named,
    Tail.TWO_NAMES: _two_named,
    Tail.DATA: _with_data,
    Tail.RECORDS: _with_records,
}


def _unknown(message: memoryview) -> Request:
    make: Any = Unknown
    made: Request = make(*_HEADER.unpack_from(message), message[_HEADER.size :])
    return made


def _decoders(*, setxattr_ext: bool) -> dict[int, Decode]:
    made: dict[int, Decode] = {}
    for opcode, line in OPERATIONS.items():
        if line.tail is not Tail.NAME_AND_DATA:
            made[opcode] = (_extended if line.extended else _MAKERS[line.tail])(line)
    layout = OPERATIONS[Opcode.SETXATTR].layout if setxattr_ext else SETXATTR_SHORT_IN
    made[Opcode.SETXATTR.value] = _setxattr(layout.codes, () if setxattr_ext else (0,))
    made[Opcode.INIT.value] = _init()
    return made


class Decoder:
    """Decodes the requests of one session.

    Args:
        setxattr_ext: SETXATTR_EXT was agreed upon, so a SETXATTR has the longer form.
    """

    def __init__(self, *, setxattr_ext: bool = False) -> None:
        self._decoders = _decoders(setxattr_ext=setxattr_ext)

    def decode(self, message: memoryview) -> Request:
        """Return the request in `message`, all of which it is. Raises MalformedError only.

        The message's octets must stay as they are while the request's `data` is in use.
        """
        opcode = 0
        try:
            length, opcode = _PEEK(message)
            if length == len(message):
                return self._decoders.get(opcode, _unknown)(message)
            reason = f"{length} octets are told, and {len(message)} are there"
        except struct.error:
            reason = f"{len(message)} octets are not the size of such a request"
        except MalformedError as error:
            reason = error.reason
        raise MalformedError(reason, opcode, _answerable(message, opcode))


def _answerable(message: memoryview, opcode: int) -> int:
    """Return the number under which an error can be told; 0: under none."""
    if len(message) < IN_HEADER.size or opcode in UNANSWERED:
        return 0
    unique: int = _HEADER.unpack_from(message)[1]
    return unique
