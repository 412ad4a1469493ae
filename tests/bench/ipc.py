"""What a message costs: calls through the kernel beside the bare mechanisms of the host.

Every row is measured several times in turn with the others, and its median is shown, so that a
noisy moment hits all rows alike. Compare rows of one run; the figures of two runs say little about
each other.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

import msgspec
import trio

from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from core.userlib.interface import Bulk, Interface, operation
from core.userlib.server import Server

ROUNDS: Final = 7
CALLS: Final = 2000
BULK_CALLS: Final = 60
MEBIBYTE: Final = 1 << 20


class Null(Interface):
    """The smallest interface that tells anything."""

    @operation(idempotent=True)
    async def null(self) -> None:
        """Do nothing."""

    @operation(idempotent=True)
    async def add(self, left: int, right: int) -> int:
        """Return the sum."""

    @operation(idempotent=True)
    async def take(self, data: Bulk) -> int:
        """Take octets, return their count."""

    @operation(idempotent=True, room="size")
    async def give(self, size: int) -> Bulk:
        """Return octets."""


class NullServer(Server):
    """Serves `Null`."""

    interface = Null

    def null(self) -> None:
        """Do nothing."""

    def add(self, left: int, right: int) -> int:
        """Add."""
        return left + right

    def take(self, data: Bulk) -> int:
        """Count."""
        return len(data)

    def give(self, size: int) -> Bulk:
        """Return the reply's own buffer, as a server does that reads a file into it."""
        return self.request.buffer(size)


class Sums(msgspec.Struct):
    """What `KeptServer` keeps."""

    total: int = 0


class KeptServer(NullServer):
    """The same with state: `null` leaves it as it was, `add` changes it."""

    state: Sums

    def add(self, left: int, right: int) -> int:
        """Add, also to the state."""
        self.state.total += left
        return left + right


class Measure(Interface):
    """Ask a client in an address space of its own to measure."""

    @operation
    async def null_us(self, calls: int) -> float:
        """Return the microseconds of one null call."""

    @operation
    async def bulk_us(self, calls: int) -> float:
        """Return the microseconds of one call with a mebibyte."""


class MeasureServer(Server):
    """The isolated client: a blocking task, so its calls wait in place."""

    interface = Measure
    payload: ClassVar[bytes] = bytes(MEBIBYTE)

    def null_us(self, calls: int) -> float:
        """Measure null calls."""
        null = self.task.connect(Null, "null")
        return self._measure(calls, null.null)

    def bulk_us(self, calls: int) -> float:
        """Measure calls with a mebibyte."""
        null = self.task.connect(Null, "null")
        return self._measure(calls, lambda: null.take(self.payload))

    def _measure(self, calls: int, call: Callable[[], Any]) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            try:
                call().send(None)
            except StopIteration:
                continue
        return (time.perf_counter() - began) / calls * 1e6


DESCRIPTION: Final = """
[server.promoted]
class = "tests.bench.ipc:NullServer"
placement = "colocated"

[server.isolated]
class = "tests.bench.ipc:NullServer"

[server.promoted-kept]
class = "tests.bench.ipc:KeptServer"
placement = "colocated"

[server.isolated-kept]
class = "tests.bench.ipc:KeptServer"

[server.client]
class = "tests.bench.ipc:MeasureServer"
grants = { null = "isolated" }
"""


async def _per_call_us(call: Callable[[], Awaitable[Any]], calls: int = CALLS) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        await call()
    return (time.perf_counter() - began) / calls * 1e6


class _Peers:
    """The bare mechanisms: each a child process that echoes."""

    def __init__(self) -> None:
        self._children: list[int] = []
        self.seqpacket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fork(lambda: _echo_socket(theirs))
        self.pipe, their_pipe = multiprocessing.Pipe()
        self._fork(lambda: _echo_pipe(their_pipe))
        theirs.close()
        their_pipe.close()

    def _fork(self, serve: Callable[[], None]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                serve()
            finally:
                os._exit(0)
        self._children.append(pid)

    def seqpacket_us(self) -> float:
        """Measure a round trip of eight octets over a SEQPACKET pair."""
        connection, message = self.seqpacket, b"12345678"
        began = time.perf_counter()
        for _ in range(CALLS):
            connection.send(message)
            connection.recv(64)
        return (time.perf_counter() - began) / CALLS * 1e6

    def pipe_us(self, payload: Any = b"12345678", calls: int = CALLS) -> float:
        """Measure a round trip over multiprocessing.Pipe, the answer being small."""
        connection = self.pipe
        began = time.perf_counter()
        for _ in range(calls):
            connection.send(payload)
            connection.recv()
        return (time.perf_counter() - began) / calls * 1e6

    def close(self) -> None:
        """End the children."""
        self.seqpacket.close()
        self.pipe.close()
        for pid in self._children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def _echo_socket(connection: socket.socket) -> None:
    while data := connection.recv(64):
        connection.send(data)


def _echo_pipe(connection: Any) -> None:
    while True:
        connection.recv()
        connection.send(None)


async def _channel_us() -> float:
    """Measure a round trip between two trio tasks over memory channels."""
    ask, asked = trio.open_memory_channel[Any](0)
    answer, answered = trio.open_memory_channel[Any](0)

    async def serve() -> None:
        async for value in asked:
            await answer.send(value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)

        async def call() -> None:
            await ask.send(1)
            await answered.receive()

        took = await _per_call_us(call, CALLS // 2)
        nursery.cancel_scope.cancel()
    return took


async def _rounds(system: System, peers: _Peers) -> dict[str, list[float]]:
    promoted = system.connect(Null, "promoted")
    isolated = system.connect(Null, "isolated")
    measure = system.connect(Measure, "client")
    promoted_kept = system.connect(Null, "promoted-kept")
    isolated_kept = system.connect(Null, "isolated-kept")
    payload = bytes(MEBIBYTE)
    rows: dict[str, Callable[[], Awaitable[float]]] = {
        "trio memory channel": _channel_us,
        "call, co-located": lambda: _per_call_us(promoted.null),
        "call with two ints, co-located": lambda: _per_call_us(lambda: promoted.add(1, 2)),
        "call, kernel to isolated": lambda: _per_call_us(isolated.null),
        "call with two ints, kernel to isolated": lambda: _per_call_us(lambda: isolated.add(1, 2)),
        "state kept, unchanged, co-located": lambda: _per_call_us(promoted_kept.null),
        "state kept, changed, co-located": lambda: _per_call_us(lambda: promoted_kept.add(1, 2)),
        "state kept, unchanged, kernel to isolated": lambda: _per_call_us(isolated_kept.null),
        "state kept, changed, kernel to isolated": lambda: _per_call_us(
            lambda: isolated_kept.add(1, 2)
        ),
        "call, isolated to isolated": lambda: measure.null_us(CALLS),
        "1 MiB, co-located": lambda: _per_call_us(lambda: promoted.take(payload), BULK_CALLS),
        "1 MiB, kernel to isolated": lambda: _per_call_us(
            lambda: isolated.take(payload), BULK_CALLS
        ),
        "1 MiB back, isolated to kernel": lambda: _per_call_us(
            lambda: isolated.give(MEBIBYTE), BULK_CALLS
        ),
        "1 MiB, isolated to isolated": lambda: measure.bulk_us(BULK_CALLS),
    }
    results: dict[str, list[float]] = {
        "bare SEQPACKET pair": [],
        "multiprocessing.Pipe": [],
        "1 MiB, multiprocessing.Pipe": [],
    }
    for _ in range(ROUNDS):
        results["bare SEQPACKET pair"].append(peers.seqpacket_us())
        results["multiprocessing.Pipe"].append(peers.pipe_us())
        results["1 MiB, multiprocessing.Pipe"].append(peers.pipe_us(payload, BULK_CALLS))
        for name, measured in rows.items():
            results.setdefault(name, []).append(await measured())
    return results


def run() -> dict[str, float]:
    """Measure all rows; return the median of each in microseconds."""
    peers = _Peers()
    prepared = Prepared(parse_description(DESCRIPTION, "bench"))

    async def main() -> dict[str, list[float]]:
        async with booted(prepared) as system:
            return await _rounds(system, peers)

    try:
        return {name: statistics.median(values) for name, values in trio.run(main).items()}
    finally:
        peers.close()


if __name__ == "__main__":
    for row, median in run().items():
        print(f"{row:40} {median:10.2f} us")
