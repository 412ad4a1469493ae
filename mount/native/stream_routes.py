"""Who handles a request: the front end's handlers for files, or those for streams.

`route_streams` puts a look at the node id before every handler. What a stream or its directory
cannot do is refused here, so that no handler for files ever sees such a node.
"""

from __future__ import annotations

import errno
import functools
import select
from collections.abc import Awaitable
from typing import Final

from core.errors import Refused
from core.userlib.interface import Bulk
from fs_server.interface import ROOT_INODE

from .front_end import Handler
from .protocol import requests
from .protocol.opcodes import Opcode
from .protocol.replies import PollOut
from .stream_nodes import STREAMS

_ALWAYS: Final = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
_REFUSALS: Final = {
    Opcode.GETXATTR: errno.EOPNOTSUPP,
    Opcode.SETXATTR: errno.EOPNOTSUPP,
    Opcode.REMOVEXATTR: errno.EOPNOTSUPP,
    Opcode.FALLOCATE: errno.ESPIPE,
    Opcode.LSEEK: errno.ESPIPE,
    Opcode.FSYNC: errno.EINVAL,
    Opcode.READLINK: errno.EINVAL,
    Opcode.RMDIR: errno.ENOTDIR,
    Opcode.COPY_FILE_RANGE: errno.EOPNOTSUPP,
    Opcode.COPY_FILE_RANGE_64: errno.EOPNOTSUPP,
    Opcode.IOCTL: errno.ENOTTY,
    Opcode.TMPFILE: errno.EOPNOTSUPP,
    Opcode.RENAME: errno.EXDEV,
    Opcode.RENAME2: errno.EXDEV,
    Opcode.LINK: errno.EXDEV,
}
"""What is answered to what a stream or its directory cannot do; EPERM to the rest."""
_SECOND: Final = {
    Opcode.RENAME: "newdir",
    Opcode.RENAME2: "newdir",
    Opcode.LINK: "oldnodeid",
    Opcode.COPY_FILE_RANGE: "nodeid_out",
    Opcode.COPY_FILE_RANGE_64: "nodeid_out",
}
"""Members that name another node."""
_ASIDE: Final = {Opcode.STATFS, Opcode.SYNCFS}
"""Handled by the front end, whatever the node."""


def route_streams(handlers: dict[int, Handler], streams: dict[int, Handler]) -> None:
    """Have nodes of streams handled by `streams`, by opcode, and all others as before."""
    for opcode in {*handlers, *streams} - {opcode.value for opcode in _ASIDE}:
        missing = _ready_always if opcode == Opcode.POLL else _not_done
        files = handlers.get(opcode, missing)
        refuse = functools.partial(_refuse, _REFUSALS.get(Opcode(opcode), errno.EPERM))
        handlers[opcode] = _routed(files, streams.get(opcode, refuse))
    for opcode, member in _SECOND.items():
        if opcode.value in handlers:
            handlers[opcode.value] = _routed_by(member, handlers[opcode.value])


def _routed(files: Handler, streams: Handler) -> Handler:
    def handle(request: requests.Request) -> Awaitable[Bulk]:
        return streams(request) if request.nodeid >= STREAMS else files(request)

    return handle


def _routed_by(member: str, others: Handler) -> Handler:
    """Return a handler that refuses what concerns a file and a stream at once."""

    def handle(request: requests.Request) -> Awaitable[Bulk]:
        if getattr(request, member) >= STREAMS:
            return _refuse(_REFUSALS[Opcode(request.opcode)], request)
        return others(request)

    return handle


def route_root(others: Handler, root: Handler) -> Handler:
    """Return a handler that has what concerns the root done by another one."""

    def handle(request: requests.Request) -> Awaitable[Bulk]:
        return root(request) if request.nodeid == ROOT_INODE else others(request)

    return handle


async def _refuse(number: int, _request: requests.Request) -> Bulk:
    raise Refused(number)


async def _not_done(_request: requests.Request) -> Bulk:
    raise Refused(errno.ENOSYS)


async def _ready_always(_request: requests.Request) -> Bulk:
    """Answer POLL for a file. ENOSYS would be taken for an answer for streams, too."""
    return PollOut(_ALWAYS).pack()
