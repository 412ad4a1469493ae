"""A spare address space: forked in advance, so that a restart need not wait for the fork.

After a fork, whatever a process writes to is copied first, page by page, and a Python program
writes to nearly all that it looks at. A spare has been forked while nothing else was to be done,
and has rehearsed what every task does at its start, so those copies are made. It holds nothing, and
waits for one order: to become a task. Who takes it makes another one when there is time.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final

from core.userlib.line import ANCILLARY_SIZE, descriptors_in

from .process import die_with_parent, set_process_name

ORDER_LIMIT: Final = 200_000
"""Octets of an order. One SEQPACKET message takes about so many."""


class Spare:
    """The zygote's account of its spare.

    Attributes:
        pid: its process; a child of the zygote that has to reap it.
    """

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._socket = connection

    def become(self, order: bytes, descriptors: list[int]) -> bool:
        """Hand over the order that makes it a task; False if the spare is gone. Call it once."""
        with self._socket:
            try:
                socket.send_fds(self._socket, [order], descriptors, socket.MSG_DONTWAIT)
            except OSError:
                return False
        return True


def fork_spare(
    detach: Callable[[], None],
    run: Callable[[bytes, list[int]], None],
    rehearse: Callable[[], None] | None,
) -> Spare | None:
    """Fork a spare; None if the host has no room for another process.

    Args:
        detach: called in the new process: give up what was the zygote's.
        rehearse: called there next; None if the order comes at once, so that there is no time.
        run: called there with the order and its descriptors, which it owns. It does not return.
    """
    parent = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            return None
        if pid:
            return Spare(pid, ours)
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        ours.close()
        detach()
        set_process_name("atoll-spare")
        if rehearse is not None:
            rehearse()
        order, ancillary, _, _ = theirs.recvmsg(
            ORDER_LIMIT, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
        )
    if order:  # otherwise the zygote is gone
        run(order, descriptors_in(ancillary))
    os._exit(0)
