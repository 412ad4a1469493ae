"""Joining a running system from outside: a program of the host becomes a task.

with join(path) as task:                       # plain code: every call waits in place
    names = complete(task.connect(Names, "names").entries())

async with joined(path) as task:               # under trio: a call can be cancelled
    data = await task.connect(Pipes, right).read(65536)
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import msgspec
import trio

from core.errors import TaskError

from .isolated import Birth, IsolatedTask
from .line import ANCILLARY_SIZE, DO_NOT_WAIT, ClosedError, Line, Region, descriptors_in

_BIRTH_LIMIT: Final = 65_536
JOIN_TIMEOUT_S: Final = 10.0
_decode_birth: Final = msgspec.msgpack.Decoder(Birth).decode


def _connect(path: Path) -> IsolatedTask:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(JOIN_TIMEOUT_S)
        connection.connect(str(path))
        data, ancillary, _, _ = connection.recvmsg(
            _BIRTH_LIMIT, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
        )
        connection.settimeout(None)
    except OSError as error:
        connection.close()
        raise TaskError(f"no system answers at {path}: {error.strerror or error}") from None
    descriptors = descriptors_in(ancillary)
    if not (data and descriptors):
        connection.close()
        raise TaskError("the system does not let this program join")
    task = IsolatedTask(Line(connection, Region(descriptors[0])), _decode_birth(data))
    os.close(descriptors[0])
    return task


@contextlib.contextmanager
def join(path: Path) -> Iterator[IsolatedTask]:
    """Join the system whose control socket is at `path`, for plain code.

    Raises:
        TaskError: nobody answers there, or the system refuses.
    """
    task = _connect(path)
    try:
        yield task
    finally:
        task.line.close()


@contextlib.asynccontextmanager
async def joined(path: Path) -> AsyncIterator[IsolatedTask]:
    """Join a system, for code that runs under trio. TaskError as in `join`."""
    task = await trio.to_thread.run_sync(_connect, path)
    task.blocking = False
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, task)
            try:
                yield task
            except Exception as error:  # noqa: BLE001 - raised again below, not in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        task.line.close()


async def _read(task: IsolatedTask) -> None:
    """Hand answers to the calls that wait for them; when the system ends, so do they."""
    while True:
        try:
            packet = task.line.receive(DO_NOT_WAIT)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(task.line.socket)
        except ClosedError:
            task.system_ended()
            return
        else:
            task.answered(packet)
