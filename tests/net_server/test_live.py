"""The servers under a real kernel, with the host at the other end of a real TAP device."""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from scapy.layers.inet import ICMP
from scapy.utils import rdpcap

from core.errors import Refused
from net_server import pcap
from net_server.capture import Record, records
from tests.net_server.support import (
    ATOLL,
    ATOLL_OCTETS,
    HOST,
    HOST_OCTETS,
    LiveSystem,
    run_live,
)

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

PLACEMENTS = ["process", "colocated"]
Run = Callable[..., None]


@pytest.fixture(params=[(p, o) for p in PLACEMENTS for o in (True, False)], ids=str)
def run(request: pytest.FixtureRequest) -> Run:
    """Return what boots a system in each placement, with offload and without."""
    placement, offload = request.param
    return lambda body: run_live(body, placement=placement, offload=offload)


async def ping(live: LiveSystem, *options: str) -> str:
    result = await live.run("ping", "-w", "9", *options, ATOLL)
    return result.stdout.decode() + result.stderr.decode()


def test_ping_of_any_size_is_answered(run: Run) -> None:
    async def body(live: LiveSystem) -> None:
        for size in ("0", "56", "1472", "1473", "8000", "65507"):
            said = await ping(live, "-c", "3", "-i", "0.01", "-s", size)
            assert " 3 received, 0% packet loss" in said, said
            assert "wrong data" not in said
        counts = await live.network.statistics()
        assert counts["icmpInEchos"] == counts["icmpOutEchoReps"] == 18
        assert counts["ipReasmOKs"] == 9

    run(body)


def test_host_answers_our_ping_of_any_size(run: Run) -> None:
    async def body(live: LiveSystem) -> None:
        for size in (0, 56, 1472, 1473, 8000, 65_507):
            data = bytes(index & 0xFF for index in range(size))
            echo = await live.network.ping(HOST_OCTETS, 5000, data)
            assert (echo.source, echo.size, echo.intact, echo.ttl) == (HOST_OCTETS, size, True, 64)
            assert echo.round_trip_ns > 0

    run(body)


def test_echo_server_answers_datagrams_of_any_size(run: Run) -> None:
    async def body(live: LiveSystem) -> None:
        with live.host_socket() as socket:
            for size in (0, 1, 1472, 1473, 4096, 5000, 30_000, 65_507):
                data = bytes(index * 7 & 0xFF for index in range(size))
                await socket.sendto(data, (ATOLL, 7))
                assert await socket.recvfrom(70_000) == (data, (ATOLL, 7))

    run(body)


def test_many_datagrams_in_one_frame_are_taken_apart(run: Run) -> None:
    udp_segment, level = 103, 17

    async def body(live: LiveSystem) -> None:
        port, right = await live.network.udp_bind(0, False)
        socket = live.connect(right)
        data = bytes(index * 5 & 0xFF for index in range(30 * 1400 + 77))
        with live.host_socket() as host:
            host.setsockopt(level, udp_segment, 1400)
            await host.sendto(data, (ATOLL, port))
        pieces = []
        for _ in range(31):
            _, octets = await socket.udp_receive(2048)
            pieces.append(bytes(octets))
        assert [len(piece) for piece in pieces] == [1400] * 30 + [77]
        assert b"".join(pieces) == data

    run(body)


def test_closed_port_is_refused_both_ways(run: Run) -> None:
    async def body(live: LiveSystem) -> None:
        with live.host_socket() as host:
            await host.connect((ATOLL, 9))
            await host.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                await host.recv(100)
        _, right = await live.network.udp_bind(0, False)
        socket = live.connect(right)
        await socket.udp_send(HOST_OCTETS, 9, b"anybody?")
        datagram, quoted = await socket.udp_receive(1000)
        assert (datagram.errno, datagram.source, datagram.port) == (
            errno.ECONNREFUSED,
            HOST_OCTETS,
            9,
        )
        assert b"anybody?".startswith(bytes(quoted)[:8])

    run(body)


def test_broadcasts_pass_both_ways(run: Run) -> None:
    async def body(live: LiveSystem) -> None:
        port, right = await live.network.udp_bind(0, True)
        socket = live.connect(right)
        with live.host_socket() as host:
            host.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_BROADCAST, 1)
            await host.bind(("", 4321))
            await host.sendto(b"to all", ("10.90.0.255", port))
            datagram, data = await socket.udp_receive(100)
            assert (datagram.destination, bytes(data)) == (bytes((10, 90, 0, 255)), b"to all")
            await socket.udp_send(bytes((10, 90, 0, 255)), 4321, b"back")
            assert await host.recvfrom(100) == (b"back", (ATOLL, port))

    run(body)


def test_silent_neighbor_is_an_error_not_a_silence() -> None:
    async def body(live: LiveSystem) -> None:
        with pytest.raises(Refused) as refused:
            await live.network.ping(bytes((10, 90, 0, 99)), 30_000, b"")
        assert refused.value.errno == errno.EHOSTUNREACH
        with pytest.raises(Refused) as refused:
            await live.network.ping(bytes((192, 0, 2, 1)), 30_000, b"")
        assert refused.value.errno == errno.ENETUNREACH

    run_live(body)


def test_server_says_what_it_knows(run: Run) -> None:
    async def body(live: LiveSystem) -> None:
        await live.network.ping(HOST_OCTETS, 5000, b"")
        (address,) = await live.network.addresses()
        assert (address.interface, address.address, address.prefix_bits) == (
            "atoll0",
            ATOLL_OCTETS,
            24,
        )
        (neighbor,) = await live.network.neighbors()
        assert (neighbor.address, neighbor.state) == (HOST_OCTETS, "reachable")
        (route,) = await live.network.routes()
        assert (route.network, route.gateway) == (bytes((10, 90, 0, 0)), None)
        port, right = await live.network.udp_bind(0, False)
        assert [s.port for s in await live.network.sockets()] == [7, port]
        await live.connect(right).udp_close()
        assert [s.port for s in await live.network.sockets()] == [7]
        shown = (await live.run("ip", "-o", "addr", "show", "dev", "atoll0")).stdout.decode()
        assert f"inet {HOST}/24" in shown
        assert "inet6" not in shown

    run(body)


def test_wrong_requests_are_refused(run: Run) -> None:
    async def body(live: LiveSystem) -> None:
        _, right = await live.network.udp_bind(0, False)
        socket = live.connect(right)
        for refusing, expected in (
            (socket.udp_send(b"abc", 9, b""), errno.EAFNOSUPPORT),
            (socket.udp_send(HOST_OCTETS, 0, b""), errno.EINVAL),
            (socket.udp_send(HOST_OCTETS, 9, bytes(65_508)), errno.EMSGSIZE),
            (socket.udp_send(bytes((10, 90, 0, 255)), 9, b""), errno.EACCES),
            (socket.udp_receive(0), errno.EINVAL),
            (live.network.udp_receive(100), errno.EBADF),
            (live.network.udp_send(HOST_OCTETS, 9, b""), errno.EBADF),
            (live.network.udp_bind(7, False), errno.EADDRINUSE),
            (live.network.udp_bind(65_536, False), errno.EINVAL),
            (live.network.capture_next(1000), errno.EBADF),
            (live.network.capture_start(-1), errno.EINVAL),
            (live.network.ping(HOST_OCTETS, 100, bytes(65_508)), errno.EMSGSIZE),
        ):
            with pytest.raises(Refused) as refused:
                await refusing
            assert refused.value.errno == expected

    run(body)


def test_waiting_receiver_is_refused_when_its_socket_is_closed(run: Run) -> None:
    async def body(live: LiveSystem) -> None:
        _, right = await live.network.udp_bind(0, False)
        socket = live.connect(right)

        async def wait(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()
            with pytest.raises(Refused):
                await socket.udp_receive(100)

        async with trio.open_nursery() as nursery:
            await nursery.start(wait)
            await socket.udp_close()

    run(body)


def test_withdrawn_receive_takes_no_datagram(run: Run) -> None:
    async def body(live: LiveSystem) -> None:
        port, right = await live.network.udp_bind(0, False)
        socket = live.connect(right)
        with trio.move_on_after(0.05):
            await socket.udp_receive(100)
        with live.host_socket() as host:
            await host.sendto(b"kept for the next", (ATOLL, port))
            _, data = await socket.udp_receive(100)
        assert bytes(data) == b"kept for the next"

    run(body)


def test_capture_is_read_by_scapy_and_tshark(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "live.pcapng"

    async def body(live: LiveSystem) -> None:
        capture = live.connect(await live.network.capture_start(0))
        await ping(live, "-c", "2", "-i", "0.01")
        with live.host_socket() as host:
            await host.sendto(b"echo this", (ATOLL, 7))
            await host.recv(100)
        found: list[Record] = []
        blocks = [pcap.header("atoll0", 65_549)]
        while sum(record.octets.endswith(b"echo this") for record in found) < 2:
            batch, octets = await capture.capture_next(65_536)
            assert (batch.dropped, batch.interrupted) == (0, False)
            found += records(octets)
        blocks += [pcap.packet(record) for record in found]
        path.write_bytes(b"".join([*blocks, pcap.statistics(found[-1].time_ns, 0)]))
        await capture.capture_stop()
        with pytest.raises(Refused):
            await capture.capture_next(65_536)

    run(body)
    packets = rdpcap(str(path))
    assert [packet[ICMP].type for packet in packets if ICMP in packet] == [8, 0, 8, 0]
    if shutil.which("tshark") is not None:
        options = ["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
        fields = ["-T", "fields", "-e", "udp.checksum.status", "-e", "ip.checksum.status"]
        shown = subprocess.run(
            ["tshark", "-n", "-r", path, *options, *fields, "-Y", "udp"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert [line.split() for line in shown.stdout.splitlines()] == [["1", "1"]] * 2


@pytest.mark.parametrize("victim", ["net", "tap", "echo"])
@pytest.mark.parametrize("offload", [True, False])
def test_killed_server_costs_time_but_no_socket(victim: str, offload: bool) -> None:
    async def body(live: LiveSystem) -> None:
        port, right = await live.network.udp_bind(0, False)
        socket = live.connect(right)
        with live.host_socket() as host:
            for turn in range(3):
                await live.kill(victim)
                assert {7, port} <= {each.port for each in await live.network.sockets()}
                await host.sendto(b"turn %d" % turn, (ATOLL, port))
                _, data = await socket.udp_receive(100)
                assert bytes(data) == b"turn %d" % turn
                await host.sendto(b"echo %d" % turn, (ATOLL, 7))
                assert await host.recv(100) == b"echo %d" % turn
                assert " 1 received" in await ping(live, "-c", "1")

    run_live(body, offload=offload)


def test_receiver_that_waits_gets_its_datagram_from_the_next_incarnation() -> None:
    async def body(live: LiveSystem) -> None:
        port, right = await live.network.udp_bind(0, False)
        socket = live.connect(right)
        received: list[bytes] = []

        async def receive(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()
            _, data = await socket.udp_receive(100)
            received.append(bytes(data))

        async with trio.open_nursery() as nursery:
            await nursery.start(receive)
            await live.network.sockets()
            await live.kill("net")
            with live.host_socket() as host:
                await host.sendto(b"after the death", (ATOLL, port))
        assert received == [b"after the death"]

    run_live(body)


def test_interrupted_capture_says_so_and_goes_on() -> None:
    async def body(live: LiveSystem) -> None:
        capture = live.connect(await live.network.capture_start(64))
        await live.kill("net")
        await ping(live, "-c", "1")
        batch, octets = await capture.capture_next(4096)
        assert batch.interrupted
        assert list(records(octets))
        await ping(live, "-c", "1")
        batch, _ = await capture.capture_next(4096)
        assert not batch.interrupted

    run_live(body)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_removed_device_is_made_again(placement: str) -> None:
    async def body(live: LiveSystem) -> None:
        assert " 1 received" in await ping(live, "-c", "1")
        await live.run("ip", "link", "delete", "atoll0")
        while True:
            shown = await live.run("ip", "-br", "link", "show", "atoll0")
            if b"UP" in shown.stdout or b"UNKNOWN" in shown.stdout:
                break
        assert " 1 received" in await ping(live, "-c", "1")
        assert any("was removed" in line for line in live.log)

    run_live(body, placement=placement)


def test_device_that_was_down_goes_on_when_it_is_up() -> None:
    async def body(live: LiveSystem) -> None:
        await live.run("ip", "link", "set", "atoll0", "down")
        with contextlib.suppress(Refused):
            await live.network.ping(HOST_OCTETS, 50, b"")
        await live.run("ip", "link", "set", "atoll0", "up")
        assert " 1 received" in await ping(live, "-c", "1")

    run_live(body)
