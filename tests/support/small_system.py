"""A small system of the servers in `servers`, in either placement, for tests of the kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import trio

from core.kernel.colocated import ColocatedTask
from core.kernel.ports import Port
from core.kernel.tasks import State
from core.system.boot import Prepared, System, booted
from core.system.description import parse_description
from core.system.names import Names
from core.system.pipe import Pipes

from .servers import Journal, Mortal, Probe, Relay, Slow

_TEXT = """
[server.names]
class = "core.system.names:NameServer"
placement = "{placement}"

[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"
placement = "{placement}"

[server.pipe]
class = "core.system.pipe:PipeServer"
placement = "{placement}"

[server.probe]
class = "tests.support.servers:ProbeServer"
placement = "{placement}"
options = {{ journal = "{journal}" }}
writes = ["{directory}"]
{probe}

[server.slow]
class = "tests.support.servers:SlowServer"
placement = "{placement}"
options = {{ journal = "{journal}" }}
writes = ["{directory}"]

[server.relay]
class = "tests.support.servers:RelayServer"
placement = "{placement}"
grants = {{ probe = "probe", slow = "slow", self = "relay" }}

[server.mortal]
class = "tests.support.servers:MortalServer"
placement = "{placement}"
restart = "{restart}"
intensity = {intensity}

[joined]
grants = {{ probe = "probe", slow = "slow", names = "names", pipe = "pipe" }}
"""


def prepare(
    placement: str,
    journal: Path,
    restart: str = "permanent",
    intensity: int = 50,
    probe: str = "",
) -> Prepared:
    """Fork the zygote of a small system. Call it outside trio.

    Args:
        placement: of all servers.
        journal: the file in which servers note what they do.
        restart: policy of the server `mortal`.
        intensity: likewise.
        probe: further keys of the server `probe`.
    """
    text = _TEXT.format(
        placement=placement,
        journal=journal,
        directory=journal.parent,
        restart=restart,
        intensity=intensity,
        probe=probe,
    )
    return Prepared(parse_description(text, "small"))


@contextlib.asynccontextmanager
async def running(prepared: Prepared, placement: str, journal: Path) -> AsyncIterator[Small]:
    """Boot a small system. A mistake of the kernel's own fails the test in the end."""
    log: list[str] = []
    async with booted(prepared, log.append) as system:
        yield Small(system, placement, journal, log)
    assert not [line for line in log if line.startswith("kernel: a packet")], log


class Small:
    """A booted small system, with stubs for its servers."""

    def __init__(self, system: System, placement: str, journal: Path, log: list[str]) -> None:
        self.system = system
        self.kernel = system.kernel
        self.placement = placement
        self.journal = Journal(str(journal))
        self.log = log
        self.user: ColocatedTask = system.client("user")
        self.probe: Probe = system.connect(Probe, "probe", "user")
        self.slow: Slow = system.connect(Slow, "slow", "user")
        self.relay: Relay = system.connect(Relay, "relay", "user")
        self.mortal: Mortal = system.connect(Mortal, "mortal", "user")
        self.names: Names = system.connect(Names, "names", "user")
        self.pipes: Pipes = system.connect(Pipes, "pipe", "user")

    @property
    def isolated(self) -> bool:
        """Whether servers have processes of their own."""
        return self.placement == "process"

    def on(self, interface: type[Any], right: Any) -> Any:
        """Return a stub for a right of the user's."""
        return self.user.connect(interface, right)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something has come about in another task."""
        with trio.fail_after(10):
            while not condition():  # noqa: ASYNC110 - another process brings it about
                await trio.sleep(0.001)

    async def journaled(self, line: str, times: int = 1) -> None:
        """Wait until the journal has a line."""
        await self.until(lambda: self.journal.count(line) >= times)

    async def end(self, server: str) -> None:
        """End a server's incarnation: kill -9, or a fault where that is impossible."""
        task = self.system.task(server)
        generation = task.id.generation
        if self.isolated:
            os.kill(self.pid(server), 9)
        else:
            task.engine._note(RuntimeError("ended by a test"), 0)  # type: ignore[union-attr]
        await self.until(lambda: task.id.generation > generation and task.state is State.RUNNING)

    def pid(self, server: str) -> int:
        """Return the pid of a server's process."""
        engine = self.system.task(server).engine
        assert engine is not None
        assert engine.pid or not self.isolated  # a signal to 0 would end the tests themselves
        return engine.pid

    def generation(self, server: str) -> int:
        """Return how many incarnations a server had before this one."""
        return self.system.task(server).id.generation

    def port(self, server: str) -> Port:
        """Return a server's own port."""
        port = self.system.task(server).main_port
        assert port is not None
        return port

    def senders(self, server: str) -> dict[int, int]:
        """Return how many send rights there are by badge."""
        port = self.system.task(server).main_port
        assert port is not None
        return dict(port.senders)
