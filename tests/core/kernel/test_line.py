"""The kernel's end of a line, with a test at the other end in place of a process."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator

import pytest

from core.abi import CLIENT_LIMIT, INLINE_LIMIT, NO_SLOT, Kind
from core.errors import AtollError, ServerFaultError
from core.kernel.kernel import Kernel
from core.kernel.line import KernelLine
from core.kernel.requests import Reply, Request
from core.kernel.rim import Rim
from core.kernel.tasks import Placement, Program
from core.userlib.interface import encode
from core.userlib.line import Line, Region, new_region
from tests.support.servers import Probe


class Client:
    """Where answers go."""

    def __init__(self) -> None:
        self.answers: list[object] = []

    def replied(self, request: Request, reply: Reply) -> None:
        """Note it."""
        self.answers.append(reply.plain if reply.plain is not None else bytes(reply.bulk))

    def refused(self, request: Request, error: AtollError) -> None:
        """Note it."""
        self.answers.append(error)


class Bench:
    """A kernel with one task, whose process is this test."""

    def __init__(self) -> None:
        self.rim = Rim()
        self.log: list[str] = []
        self.kernel = self.rim.kernel = Kernel(1, self.log.append, self.rim.timers)
        self.task = self.kernel.add_task(Program("probe", "", Placement.PROCESS), Probe)
        self.client = Client()
        self.lines: list[KernelLine] = []
        self.kernel.start_incarnation = lambda task: self.start()
        self.start()
        self.kernel.ready(self.task)

    def start(self) -> None:
        """Begin an incarnation."""
        from core.kernel.tasks import State

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptor = new_region()
        region = Region(descriptor)
        self.line = KernelLine(self.kernel, self.task, ours, region, self.rim, lambda pid: None)
        self.lines.append(self.line)
        self.server = Line(theirs, Region(descriptor))
        os.close(descriptor)
        self.task.engine = self.line
        self.task.state = State.STARTING

    def call(self, name: str, *arguments: object, bulk: bytes = b"", room: int = 0) -> Request:
        """Submit a request."""
        right = self.task.names[1].derive(badge=5)
        request = Request(0, Probe.named(name), right, None, self.client, arguments)
        request.bulk, request.room = bulk, room
        self.kernel.submit(request)
        return request

    def drain(self) -> None:
        """Take everything the server sent."""
        while self.line.readable():
            pass

    def close(self) -> None:
        """Close what is open."""
        self.rim.close()
        self.server.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A kernel with one line."""
    made = Bench()
    yield made
    made.close()
    assert not [line for line in made.log if "tried what it may not" not in line]


def test_replies_sent_before_a_death_are_taken_though_requests_were_unread(bench: Bench) -> None:
    requests = [bench.call("echo", number, "") for number in range(5)]
    for number in range(2):
        assert bench.server.receive().request == requests[number].id
        bench.server.send(Kind.REPLY, request=requests[number].id, fields=encode((number, "done")))
    bench.server.close()  # with three requests unread, which makes Linux say ECONNRESET first
    bench.drain()
    bench.line.exited(3)
    assert bench.client.answers == [(0, "done"), (1, "done")]
    port = bench.task.main_port
    assert port is not None
    assert list(port.queue) == requests[2:]
    assert all(request.redelivered for request in requests[2:])


def test_a_request_waits_while_the_socket_is_full_and_follows_in_order(bench: Bench) -> None:
    requests = [bench.call("echo", number, "x" * 8000) for number in range(CLIENT_LIMIT)]
    port = bench.task.main_port
    assert port is not None
    assert len(port.queue) > 100
    seen: list[int] = []
    while len(seen) < CLIENT_LIMIT:
        seen.append(bench.server.receive().request)
        bench.line.writable()
    assert seen == [request.id for request in requests]
    assert not port.queue


@pytest.mark.parametrize("size", [INLINE_LIMIT + 1, 60_000])
def test_a_reply_larger_than_its_room_is_the_servers_fault(bench: Bench, size: int) -> None:
    request = bench.call("fill", 100, 1, room=100)
    bench.server.send(Kind.REPLY, request=request.id, bulk=b"x" * size)
    bench.drain()
    (answer,) = bench.client.answers
    assert isinstance(answer, ServerFaultError)


@pytest.mark.parametrize(("slot", "size"), [(1, 10), (0, 8193), (5000, 10), (NO_SLOT - 1, 10)])
def test_a_reply_outside_its_slot_is_the_servers_fault(bench: Bench, slot: int, size: int) -> None:
    request = bench.call("fill", 8192, 1, room=8192)
    assert request.slot == 0
    bench.server.send(Kind.REPLY, request=request.id, bulk_size=size, slot=slot)
    bench.drain()
    (answer,) = bench.client.answers
    assert isinstance(answer, ServerFaultError)
    assert len(bench.line.slots) == 1024


@pytest.mark.parametrize("name", ["seen", "mint", "lend", "two", "echo"])
@pytest.mark.parametrize("fields", [b"", b"\xc1", encode("x"), encode((1, 2)), encode([[[]]])])
def test_a_reply_of_the_wrong_shape_answers_the_client(
    bench: Bench, name: str, fields: bytes
) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "mint": (1, []), "lend": ("x",), "echo": (1, "x"),
    }  # fmt: skip
    request = bench.call(name, *arguments.get(name, ()))
    bench.server.send(Kind.REPLY, request=request.id, fields=fields, rights=(99,))
    bench.drain()
    (answer,) = bench.client.answers
    assert isinstance(answer, ServerFaultError)
    assert not bench.line.closed


@pytest.mark.parametrize("errno", [0, 1, 2**31, 2**63, 2**64 - 1, -1, -(2**63)])
def test_an_error_with_any_number_answers_the_client(bench: Bench, errno: int) -> None:
    request = bench.call("echo", 1, "x")
    bench.server.send(Kind.ERROR, request=request.id, fields=encode((13, errno, "")))
    bench.drain()
    (answer,) = bench.client.answers
    assert isinstance(answer, AtollError)


def test_an_answer_is_taken_once(bench: Bench) -> None:
    request = bench.call("echo", 1, "x")
    for _ in range(3):
        bench.server.send(Kind.REPLY, request=request.id, fields=encode((1, "x")))
    bench.drain()
    assert bench.client.answers == [(1, "x")]
    # what the server is told about the other two has no number of a call of its own
    bench.server.receive()
    assert [bench.server.receive().request for _ in range(2)] == [0, 0]


def test_a_retired_task_has_nothing_to_say_any_more(bench: Bench) -> None:
    bench.kernel.retire(bench.task, "enough")
    before = len(os.listdir("/proc/self/fd"))
    reading, writing = os.pipe()
    from core.userlib.kernel_calls import KernelCalls

    keep = KernelCalls.named("keep").index
    bench.server.send(
        Kind.CALL, operation=keep, request=1, fields=encode(("x",)), descriptors=(reading,)
    )
    bench.drain()
    assert bench.task.kept == {}
    os.close(reading)
    os.close(writing)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_notification_is_kept_while_the_socket_is_full(bench: Bench) -> None:
    while not bench.task.main_port or not bench.task.main_port.queue:
        bench.call("echo", 1, "x" * 2000)
    right = bench.task.names[1].derive(badge=6)
    bench.kernel.notify(right, 1)
    bench.kernel.notify(right, 2)
    assert bench.task.main_port.bits == 3
    while bench.task.main_port.bits:
        bench.server.receive()
        bench.line.writable()
    told = 0
    while not told:  # the test ends by its timeout if nothing is ever told
        packet = bench.server.receive()
        told = packet.request if packet.kind == Kind.NOTIFY else 0
    assert told == 3
    assert bench.rim.timers.next_deadline() == math.inf
