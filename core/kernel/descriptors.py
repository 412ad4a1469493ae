"""Closing what tasks have sent: host descriptors, which may belong to a file system that waits.

close(2) of a file has its file system write back what is dirty, and waits for that. A file of a
FUSE mount can so keep whoever closes it for as long as its server likes, and one of our own mount
for ever, because the kernel's process is what serves it. So a descriptor that stands for a file is
closed by a thread that does nothing else; sockets, pipes and memory objects, which nobody can hold
up, are closed at once. What a descriptor stands for is read from /proc, which asks no file system.
"""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Iterable
from typing import Final

THREADS_LIMIT: Final = 16
"""Closes under way at the same time. Further ones wait until one of them has ended."""
_AT_ONCE: Final = ("socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/", "net:")

_waiting: Final[collections.deque[int]] = collections.deque()
_lock: Final = threading.Lock()
_threads = 0


def give_up(number: int) -> None:
    """Close a descriptor that a task has sent; never waits."""
    try:
        kind = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115 - a name, not a path
    except OSError:
        kind = ""
    if kind.startswith(_AT_ONCE):
        os.close(number)
    else:
        _close_aside(number)


def give_up_all(numbers: Iterable[int]) -> None:
    """Close descriptors that a task has sent; never waits."""
    for number in numbers:
        give_up(number)


def _close_aside(number: int) -> None:
    global _threads  # noqa: PLW0603 - descriptors are the whole process' too
    with _lock:
        _waiting.append(number)
        if _threads >= THREADS_LIMIT:
            return
        _threads += 1
    threading.Thread(target=_close_waiting, name="close", daemon=True).start()


def _close_waiting() -> None:
    """Close what waits, then end."""
    global _threads  # noqa: PLW0603 - as above
    while True:
        with _lock:
            if not _waiting:
                _threads -= 1
                return
            number = _waiting.popleft()
        os.close(number)
