"""A running system with a link of its own, in a network namespace that the driver makes.

Programs and sockets of the host's side are put into that namespace; nothing leaves it.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Awaitable, Callable

import trio

from core.kernel.tasks import State
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from net_server import namespaces
from net_server.link import Link
from net_server.network import Network

HOST = "10.90.0.1"
HOST_OCTETS = bytes((10, 90, 0, 1))
ATOLL = "10.90.0.2"
ATOLL_OCTETS = bytes((10, 90, 0, 2))

BODY_TIMEOUT_S = 10
"""After it, a test that would hang fails, and its system is stopped."""

DRIVER = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"
placement = "{placement}"

[server.tap]
class = "net_server.tap:TapServer"
placement = "{placement}"
options = {{ offload = {offload} }}
network = "own"
reads = ["/proc/self", "/proc/thread-self"]
writes = ["/dev/net/tun", "/proc/sys/net"]
capabilities = ["net_admin", "sys_admin"]
"""
"""What any system with a link begins with."""

_DESCRIPTION = (
    DRIVER
    + """
[server.net]
class = "net_server.server:NetServer"
placement = "{placement}"
grants = {{ link = "tap" }}

[server.echo]
class = "net_server.echo:EchoServer"
placement = "{placement}"
grants = {{ net = {{ server = "net", operations = ["udp_bind"] }} }}
"""
)


class LiveSystem:
    """A booted system, and the host's side of its link."""

    def __init__(self, system: System, namespace: int) -> None:
        self.system = system
        self.network: Network = system.connect(Network, "net")
        self.link: Link = system.connect(Link, "tap")
        self.log: list[str] = []
        self.namespace = namespace

    def connect(self, right: object) -> Network:
        """Return a stub for a socket or capture."""
        stub: Network = self.system.client().connect(Network, right)  # type: ignore[arg-type]
        return stub

    async def kill(self, server: str) -> None:
        """Kill a server's process, and wait until its next incarnation serves."""
        task = self.system.task(server)
        generation = task.id.generation
        self.system.kernel.kill(task)
        while task.id.generation == generation or task.state is not State.RUNNING:
            await self.system._changed.wait()

    def host_socket(self) -> trio.socket.SocketType:
        """Return a UDP socket on the host's side of the link."""
        made = namespaces.run_inside(
            self.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        )
        return trio.socket.from_stdlib_socket(made)

    async def run(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        """Run a program on the host's side of the link and return what it said."""
        entered = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.namespace}", *command]
        return await trio.run_process(
            entered, capture_stdout=True, capture_stderr=True, check=False
        )


def run_live(
    body: Callable[[LiveSystem], Awaitable[None]],
    *,
    placement: str = "process",
    offload: bool = True,
    description: str = _DESCRIPTION,
    timeout_s: float = BODY_TIMEOUT_S,
) -> None:
    """Boot a system with tap, net and echo, run `body` with it, and stop it."""
    text = description.format(placement=placement, offload=str(offload).lower())
    prepared = Prepared(parse_description(text, "test"))
    lines: list[str] = []

    async def main() -> None:
        async with booted(prepared, lines.append) as system:
            link: Link = system.connect(Link, "tap")
            namespace = await link.namespace()
            live = LiveSystem(system, namespace.fileno())
            live.log = lines
            with trio.fail_after(timeout_s):
                await body(live)

    try:
        trio.run(main)
    except BaseException as error:
        for line in lines:
            error.add_note(line)
        raise
