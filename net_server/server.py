"""The TCP/IP server: a `Stack` between a TAP device's descriptor and the clients' requests.

Theory of operation. One trio task pumps frames (`borrowed`). Handlers that do not wait run between
two turns of the pump, so the stack needs no locks; what they send is written before they return. A
handler that waits is woken only when there is something for it. A second task sleeps until the
stack's next deadline, a third one waits for news of who holds the link.

What survives a death: the device (the kernel keeps it for the driver), sockets and captures
(`holdings`). Neighbors are learnt again. Datagrams that waited are lost, as UDP may lose them.
"""

from __future__ import annotations

import errno
import math
import secrets
import time
from typing import ClassVar, Final, Literal

import msgspec
import trio

from core.abi import Right
from core.errors import Refused, TaskError
from core.userlib.interface import Bulk, Interface
from core.userlib.kept_value import KeptValue
from core.userlib.server import Server
from core.userlib.task import Task

from .borrowed import BorrowedLink, look
from .capture import Captures
from .device import Device
from .echoes import Echoes
from .holdings import BoundSocket, HeldCapture, Holdings
from .link import Link
from .network import (
    Address,
    CaptureBatch,
    Datagram,
    Echo,
    NeighborInfo,
    Network,
    RouteInfo,
    SocketInfo,
)
from .stack.routes import Prefix, station_address
from .stack.stack import Configuration, Stack
from .stack.udp import UdpError
from .wire import ParseError
from .wire.ipv4 import from_text

SOCKET_OPERATIONS: Final = ["udp_send", "udp_receive", "udp_close"]
CAPTURE_OPERATIONS: Final = ["capture_next", "capture_stop"]
RECEIVE_LIMIT: Final = 1 << 20


class Options(msgspec.Struct, frozen=True):
    """The options of the system description; others are left alone."""

    address: str = "10.90.0.2/24"
    """The server's own address, and how many bits of it name the link's network."""
    gateway: str = ""
    """Who takes packets for other networks; empty: there is no way to them."""
    link_address: str = ""
    """The server's Ethernet address; empty: one made from `address`."""
    yields: Literal["idle", "always", "never"] = "idle"
    """Whether the link is given up to another server that asks for it; "idle": only while no client
    has a socket or a capture."""
    standby: bool = False
    """Leave the link alone, also a free one, until told to take it over."""


class NetServer(Server):
    """Serves `Network` over the link granted as `link`.

    Options: see `Options`.
    """

    interface: ClassVar[type[Interface]] = Network

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        try:
            options = msgspec.convert(task.options, type=Options)
            self._prefix = Prefix.from_text(options.address)
            self._gateway = from_text(options.gateway) if options.gateway else None
            self._link_address = station_address(options.link_address, self._prefix)
            self._options = options
        except (ParseError, msgspec.ValidationError) as error:
            raise TaskError(f"task {task.name}, options: {error}", errno.EINVAL) from None
        self._armed = math.inf
        self._rearmed = trio.Event()

    @classmethod
    def rehearse(cls) -> None:
        """Build a stack that no frame will reach."""
        prefix = Prefix.from_text(msgspec.convert({}, type=Options).address)
        configuration = Configuration(station_address("", prefix), prefix)
        Stack(configuration, secrets.randbits).neighbors.announce()
        Captures(0)

    async def start(self) -> None:
        """Borrow the link, and take up what an earlier incarnation left."""
        link = self.task.connect(Link, "link")
        info, descriptor = await look(self.task, link, standby=self._options.standby)
        configuration = Configuration(
            link=self._link_address,
            prefix=self._prefix,
            gateway=self._gateway,
            mtu=info.mtu,
            device_header=info.device_header,
            checksum_offload=info.checksum_offload,
        )
        self.stack = Stack(configuration, secrets.randbits)
        epoch_ns = time.time_ns() - int(trio.current_time() * 1e9)
        captures = Captures(epoch_ns)
        self._device = Device(self.stack, captures)
        self._echoes = Echoes(self.stack.icmp, secrets.randbits)
        self._holdings = Holdings(KeptValue(self.task, "holdings"), self.stack.udp, captures)
        if self._holdings.lost:
            self.lost(f"sockets and captures: {self._holdings.lost}")
        self._link = BorrowedLink(self.task, link, info, self._device)
        if descriptor is not None:
            self._link.take_up(descriptor)
        self._rearm()

    async def run(self) -> None:
        """Pump frames and keep time until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_time)
                nursery.start_soon(self._link.follow, self._reason_to_keep)
                await self._link.pump(self._rearm)
        finally:
            self._link.close()

    def _reason_to_keep(self) -> str:
        """Return why another server does not get the link; "" if it does."""
        if self._options.yields == "never":
            return f"{self.task.name} never gives up the link"
        if self._options.yields == "idle" and self._holdings:
            return f"{self.task.name} is in use: its clients have {self._holdings.count()}"
        return ""

    async def _keep_time(self) -> None:
        while True:
            with trio.move_on_at(self._armed):
                await self._rearmed.wait()
            self._rearmed = trio.Event()
            now = trio.current_time()
            if now >= self._armed:
                self.stack.handle_timers(now)
                self._device.flush(now)
                self._armed = self.stack.next_deadline(now)

    def _rearm(self) -> None:
        """Have `_keep_time` wake earlier, if the stack has come to need it."""
        deadline = self.stack.next_deadline(trio.current_time())
        if deadline < self._armed:
            self._armed = deadline
            self._rearmed.set()

    def _flush(self) -> None:
        """Send what a request gave rise to."""
        now = trio.current_time()
        self.stack.settle(now)
        self._device.flush(now)
        self._rearm()

    def no_senders(self, badge: int) -> None:
        """Close the socket or capture whose last right is gone."""
        self._holdings.close(badge)

    def udp_bind(self, port: int, broadcast: bool) -> tuple[int, Right]:
        """Bind a socket, or find it again that a redelivered request has bound."""
        request = self.request
        held = self._holdings.applied(request.id, BoundSocket) if request.redelivered else None
        if held is None:
            held = self._holdings.bind(request.id, port, broadcast=broadcast)
        return held.socket.port, self.task.mint(held.entry.badge, SOCKET_OPERATIONS)

    def udp_send(self, address: bytes, port: int, data: Bulk) -> None:
        """Send a datagram; a redelivered request may send it twice, as UDP allows."""
        held = self._holdings.get(self.request.badge, BoundSocket)
        destination = _address(address)
        self._link.check_up()
        try:
            self.stack.udp.send(held.socket, destination, port, data, trio.current_time())
        except UdpError as error:
            raise Refused(error.errno, error.detail) from None
        self._flush()

    async def udp_receive(self, size: int) -> tuple[Datagram, Bulk]:
        """Wait until the socket has something, and take it."""
        _check_size(size)
        held = self._holdings.get(self.request.badge, BoundSocket)
        queue = held.socket.queue
        while not queue:
            await held.waiters.wait()
            if held.closed:
                raise Refused(errno.EBADF, "the socket was closed")
        # no checkpoint from here on: what is taken is answered
        datagram = held.socket.take()
        source, destination = _octets(datagram.source), _octets(datagram.destination)
        found = Datagram(source, datagram.port, destination, datagram.errno, len(queue))
        return found, datagram.payload[:size]

    def udp_close(self) -> None:
        """Close the socket."""
        self._holdings.get(self.request.badge, BoundSocket)
        self._holdings.close(self.request.badge)

    async def ping(self, address: bytes, timeout_ms: int, data: Bulk) -> Echo:
        """Send an echo and wait for its answer."""
        destination = _address(address)
        self._link.check_up()
        payload = bytes(data)
        started = trio.current_time()
        with self._echoes.open() as echo:
            self._echoes.send(echo, destination, payload, started)
            self._flush()
            with trio.move_on_after(max(timeout_ms, 0) / 1000):
                await echo.answered.wait()
        reply = echo.reply
        if reply is None:
            raise Refused(errno.ETIMEDOUT, f"no answer within {timeout_ms} ms")
        if reply.errno:
            raise Refused(reply.errno)
        elapsed_ns = int((echo.answered_at - started) * 1e9)
        intact = reply.payload == payload
        return Echo(_octets(reply.source), elapsed_ns, reply.ttl, len(reply.payload), intact)

    def capture_start(self, snaplen: int) -> Right:
        """Begin a capture, or find it again that a redelivered request has begun."""
        request = self.request
        held = self._holdings.applied(request.id, HeldCapture) if request.redelivered else None
        if held is None:
            held = self._holdings.start_capture(request.id, snaplen)
        return self.task.mint(held.entry.badge, CAPTURE_OPERATIONS)

    async def capture_next(self, size: int) -> tuple[CaptureBatch, Bulk]:
        """Wait until the capture has something, and take what fits."""
        _check_size(size)
        held = self._holdings.get(self.request.badge, HeldCapture)
        while not held.capture:
            await held.waiters.wait()
            if held.closed:
                raise Refused(errno.EBADF, "the capture was stopped")
        # no checkpoint from here on: what is taken is answered
        interrupted, held.interrupted = held.interrupted, False
        return CaptureBatch(held.capture.dropped, interrupted), held.capture.take(size)

    def capture_stop(self) -> None:
        """End the capture."""
        self._holdings.get(self.request.badge, HeldCapture)
        self._holdings.close(self.request.badge)

    async def link_take(self, timeout_ms: int) -> None:
        """Ask for the link, and wait until it is up here."""
        await self._link.take_over(timeout_ms)

    def addresses(self) -> list[Address]:
        """Return the one address there is."""
        address, bits = _octets(self._prefix.address), self._prefix.bits
        mtu = self.stack.configuration.mtu
        return [Address(self._link.name, self._link_address, address, bits, mtu)]

    def neighbors(self) -> list[NeighborInfo]:
        """Return the neighbor table."""
        now = trio.current_time()
        return [
            NeighborInfo(_octets(n.address), n.link, n.state.value, n.age(now))
            for n in self.stack.neighbors
        ]

    def routes(self) -> list[RouteInfo]:
        """Return the routing table."""
        return [
            RouteInfo(
                _octets(route.prefix.network),
                route.prefix.bits,
                None if route.gateway is None else _octets(route.gateway),
            )
            for route in self.stack.ip.routes
        ]

    def sockets(self) -> list[SocketInfo]:
        """Return the bound sockets by port."""
        return [
            SocketInfo("udp", port, len(socket.queue), socket.dropped)
            for port, socket in sorted(self.stack.udp.sockets.items())
        ]

    def statistics(self) -> dict[str, int]:
        """Return the counters under their MIB names."""
        return self.stack.counters.statistics()


def _check_size(size: int) -> None:
    if not 64 <= size <= RECEIVE_LIMIT:
        raise Refused(errno.EINVAL, f"size is 64..{RECEIVE_LIMIT}, not {size}")


def _address(octets: bytes) -> int:
    if len(octets) != 4:
        raise Refused(errno.EAFNOSUPPORT, f"an IPv4 address has 4 octets, not {len(octets)}")
    return int.from_bytes(octets, "big")


def _octets(address: int) -> bytes:
    return address.to_bytes(4, "big")
