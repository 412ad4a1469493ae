"""Where a task's last Python stack goes: into memory that the kernel holds, written by a signal.

A process that dies of a segmentation fault, or spins where no other code of its own will run, can
say nothing any more. The host's signals still reach it: handlers in C, which need neither the
interpreter's lock nor its memory, write the stack into a memory object of fixed size. It is the
kernel's, so it outlives the process; it is sealed against growing, so a hostile task fills nothing
but its own 32 KiB.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal
from typing import Final

DUMP_SIGNAL: Final = signal.SIGUSR2
"""A task that gets it writes down where it is, and goes on."""
STACK_SIZE: Final = 32 * 1024
_F_ADD_SEALS: Final = 1033
_SEALS: Final = 0x1 | 0x2 | 0x4
"""F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW (fcntl(2))."""
_EMPTY: Final = bytes(STACK_SIZE)


def write_stacks_to(descriptor: int) -> None:
    """Have fatal signals and `DUMP_SIGNAL` write this process' stack there; stays open."""
    faulthandler.enable(file=descriptor, all_threads=False)
    faulthandler.register(DUMP_SIGNAL, file=descriptor, all_threads=False)


class LastStack:
    """The kernel's end: the memory object of one task, used by its incarnations in turn.

    Attributes:
        descriptor: what a new incarnation is given; it writes from where the kernel has set it.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("atoll-stack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, STACK_SIZE)
        fcntl.fcntl(self.descriptor, _F_ADD_SEALS, _SEALS)

    def clear(self) -> None:
        """Forget what was written, and have the next be written from the start."""
        os.pwrite(self.descriptor, _EMPTY, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)  # an offset that both ends share

    def read(self) -> str:
        """Return what was written since `clear`: the innermost frame first, "" if nothing was."""
        octets = os.pread(self.descriptor, STACK_SIZE, 0)
        return octets.partition(b"\0")[0].decode(errors="replace").strip()

    def close(self) -> None:
        """Close the kernel's descriptor."""
        os.close(self.descriptor)
