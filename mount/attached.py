"""What is done to a mount while it serves: its limits raised, and its end in good order."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

import trio

from .mount_point import detach, mounted

FAREWELL_S: Final = 1.5
"""Seconds for the host's kernel to write back what it holds, when the mount ends."""
READ_AHEAD_KIB: Final = 1024
"""What the host's kernel reads ahead of a sequential reader: one request's worth."""
BACKGROUND_LIMIT: Final = 64
"""Requests without a waiting process that the host's kernel may have under way."""


def _write_setting(path: str, value: int) -> bool:
    try:
        Path(path).write_text(f"{value}\n", encoding="ascii")
    except OSError:
        return False
    return True


def tune(path: Path) -> None:
    """Raise limits of the mount that the protocol does not reach. Only root may; else they stay."""
    table = mounted(path)
    if table is None:
        return
    _write_setting(f"/sys/class/bdi/{table[0]}/read_ahead_kb", READ_AHEAD_KIB)
    minor = table[0].partition(":")[2]
    for name in ("max_background", "congestion_threshold"):
        _write_setting(f"/sys/fs/fuse/connections/{minor}/{name}", BACKGROUND_LIMIT)


def _write_back(path: Path) -> None:
    """Have the host's kernel write back what it holds for the mount. Blocks."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        ctypes.CDLL(None).syncfs(directory)
    finally:
        os.close(directory)


async def take_leave(path: Path, ended: trio.Event) -> None:
    """Have all written back and the mount detached, while it is still served.

    Args:
        ended: nothing is served any more.
    """
    for step in (_write_back, detach):
        if not ended.is_set():
            with trio.move_on_after(FAREWELL_S):
                await trio.to_thread.run_sync(step, path, abandon_on_cancel=True)
