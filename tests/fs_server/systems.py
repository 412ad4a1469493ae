"""A booted system of disk and file server for tests, in either placement."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from core.system.boot import Prepared, System, booted
from core.system.description import parse_description

PLACEMENTS: Final = ("process", "colocated")
_TIMEOUT_S: Final = 40
_DESCRIPTION: Final = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.disk]
class = "fs_server.disk:DiskServer"
placement = "{placement}"
options = {{ state = "{state}", size = {size} }}
writes = ["{{state}}"]
file_mib = 0

[server.fs]
class = "fs_server.server:FileServer"
placement = "{placement}"
grants = {{ disk = "disk" }}
options = {{ state = "{state}" }}
writes = ["{{state}}"]
file_mib = 0
"""


def run_system(
    state: Path,
    placement: str,
    scenario: Callable[[System], Awaitable[None]],
    size: int = 64 << 20,
) -> list[str]:
    """Boot the system, run the scenario against it, and stop it. Returns the kernel's log."""
    text = _DESCRIPTION.format(placement=placement, state=state, size=size)
    prepared = Prepared(parse_description(text, "test"))
    log: list[str] = []

    async def main() -> None:
        with trio.fail_after(_TIMEOUT_S):
            async with booted(prepared, log.append) as system:
                await scenario(system)

    trio.run(main)
    return log
