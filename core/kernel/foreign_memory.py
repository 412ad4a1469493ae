"""Looking into a task's memory, where that can neither mislead nor stop the kernel.

Theory of operation. A text in another process' memory is worth nothing if it can change after it
was read, and reading it can take for ever if its page comes from a file whose server is slow, or is
the reader itself (a file of our own mount). So only *still* memory is looked at: the process has
one thread, which stands in a system call, and the page is private to it: anonymous, or of a file
that is mapped here too. Nobody else can write there then, and the page is at hand.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Final

_PATH_LIMIT: Final = 4096
_PAGE: Final = 4096
_ADDRESS_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _mappings(pid: int) -> list[list[str]]:
    """Return a process' mappings: range, rights, offset, device, inode, perhaps a path."""
    return [line.split(None, 5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]


@functools.cache
def _shared_code() -> frozenset[tuple[str, str]]:
    """Return device and inode of the files that this process has mapped: libraries, in the main."""
    return frozenset((words[3], words[4]) for words in _mappings(os.getpid()) if words[4] != "0")


def _still_until(pid: int, address: int) -> int:
    """Return the end of the still mapping that an address lies in; 0 if it lies in none."""
    for words in _mappings(pid):
        start, _, end = words[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            own = words[4] == "0" or (words[3], words[4]) in _shared_code()
            return int(end, 16) if own and words[1][3] == "p" else 0
    return 0


def still_octets(pid: int, address: int, size: int) -> bytes:
    """Return up to `size` octets from an address of another process.

    They are fewer where the mapping ends, and none if the memory is not still.
    """
    try:
        if len(os.listdir(f"/proc/{pid}/task")) != 1:  # noqa: PTH208 - only how many
            return b""
        size = min(size, _still_until(pid, address) - address)
    except OSError:
        return b""
    if size <= 0:
        return b""
    buffer = ctypes.create_string_buffer(size)
    octets = size.to_bytes(8, "little")
    ours = ctypes.addressof(buffer).to_bytes(8, "little") + octets
    theirs = (address & _ADDRESS_MASK).to_bytes(8, "little") + octets
    done = _libc.process_vm_readv(pid, ours, 1, theirs, 1, 0)
    return buffer.raw[: max(0, done)]


def still_text(pid: int, address: int) -> str | None:
    """Return the text at an address of another process; None if it is none, or not still."""
    found, end, _ = still_octets(pid, address, _PATH_LIMIT).partition(b"\0")
    return os.fsdecode(found) if end else None
