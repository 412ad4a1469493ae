"""Front ends that die at the worst instants: when a change is done, and nobody has been told."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from typing_extensions import override

from fs_server.interface import FileSystem
from mount.native.protocol import requests
from mount.native.protocol.opcodes import Opcode
from mount.native.server import FrontEndServer
from mount.settings import SYSTEM

LIFE_S = 0.2
"""How long an incarnation lives at least, so that the supervisor goes on mending it."""
_CHANGES = frozenset(
    Opcode[name].value
    for name in ("CREATE", "LINK", "MKDIR", "MKNOD", "RENAME2", "RMDIR", "SYMLINK", "UNLINK")
)
UNTOLD = "a change was done, and the host was not told"


class UnluckyFrontEnd(FrontEndServer):
    """Dies between a change and its answer."""

    @override
    async def start(self) -> None:
        await super().start()
        session: Any = self._session
        answer, since = session._answer, time.monotonic()

        def told(request: requests.Request, body: Any) -> None:
            if request.opcode in _CHANGES and time.monotonic() - since > LIFE_S:
                self.task.log(f"{UNTOLD}: {Opcode(request.opcode).name}")
                os._exit(9)
            answer(request, body)

        session._answer = told


class ForgetfulFrontEnd(UnluckyFrontEnd):
    """Makes every call anew: a `mkdir` that worked is made a second time, and fails."""

    @override
    async def start(self) -> None:
        await super().start()
        session: Any = self._session
        session._front_end._fs = self.task.connect(FileSystem, "fs")


def describe(front_end: type[FrontEndServer], directory: Path, placement: str = "process") -> Path:
    """Write the description of a system with this front end into a directory; return its path."""
    path = directory / "front-end.toml"
    table = (
        f'[mount]\nfront_end = "native"\nplacement = "{placement}"\n'
        f'class = "{front_end.__module__}:{front_end.__qualname__}"\n'
    )
    path.write_text(f"{SYSTEM.read_text()}\n{table}")
    return path
