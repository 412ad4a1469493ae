"""Typed requests to octets: what the kernel would send. For replaying and for tests."""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

from .layouts import IN_HEADER, SETXATTR_SHORT_IN
from .operations import OPERATIONS, Operation, Tail
from .requests import Request, Unknown

_HEADER_MEMBERS: Final = 6
_PAIR: Final = struct.Struct("=QQ")


def encode_request(request: Request, *, setxattr_ext: bool = False) -> bytes:
    """Return the message of a request.

    Raises:
        struct.error: a member is too large for its place.
    """
    members: list[Any] = list(msgspec.structs.astuple(request))
    header, members = members[:_HEADER_MEMBERS], members[_HEADER_MEMBERS:]
    extensions = b""
    if isinstance(request, Unknown):
        body = bytes(request.data)
    else:
        line = OPERATIONS[request.opcode]
        if line.extended:
            extensions = members.pop().pack()
        body = _body(line, members, setxattr_ext=setxattr_ext) + extensions
    length = IN_HEADER.size + len(body)
    opcode, *rest = header
    return IN_HEADER.pack(length, opcode, *rest, len(extensions) // 8) + body


def _body(line: Operation, members: list[Any], *, setxattr_ext: bool) -> bytes:
    layout = line.layout
    if line.tail is Tail.RECORDS:
        (records,) = members
        return layout.pack(len(records)) + b"".join(_PAIR.pack(*record) for record in records)
    count = len(layout.members)
    numbers, tail = members[:count], members[count:]
    if line.tail is Tail.NAME_AND_DATA and not setxattr_ext:
        layout, numbers = SETXATTR_SHORT_IN, numbers[:2]
    packed = layout.pack(*numbers)
    match line.tail:
        case Tail.NOTHING:
            return packed
        case Tail.NAME | Tail.TWO_NAMES:
            return packed + b"".join(bytes(name) + b"\0" for name in tail)
        case Tail.DATA:
            return packed + bytes(tail[0])
        case Tail.NAME_AND_DATA:
            return packed + bytes(tail[0]) + b"\0" + bytes(tail[1])
