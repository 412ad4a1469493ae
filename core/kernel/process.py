"""What a process asks of the host for itself: a name, an end with its parent, namespaces."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_CLONE_NEWUSER: Final = 0x1000_0000
_CLONE_NEWNET: Final = 0x4000_0000
_CLONE_NEWIPC: Final = 0x0800_0000
_CLONE_NEWUTS: Final = 0x0400_0000
HOST_NETWORK: Final = "host"
"""The network of a task that begins in the host's own."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


def set_process_name(name: str) -> None:
    """Set what `ps` and `top` show as the process' name (15 octets at most)."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def die_with_parent() -> None:
    """Have this process killed when the one that forked it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def enter_user_namespace() -> None:
    """Enter a new user namespace in which this user is root (user_namespaces(7)).

    Without the right to make one nothing changes: who needs privileges will say so.
    """
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        return
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def leave_host_namespaces() -> int:
    """Enter a network without any link, and a host name and System V objects of nobody else.

    Every task is forked into them, at no cost to its start. It takes root: an ordinary user would
    need a user namespace, out of which nothing could be unmounted at the end.

    Returns:
        A descriptor of the network that was left; -1 if this process stays where it is.
    """
    if os.geteuid() != 0:
        return -1
    network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if _libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS) != 0:
        os.close(network)
        return -1
    return network


def enter_network(number: int) -> None:
    """Enter a network namespace; without the right to do so nothing changes."""
    _libc.setns(number, _CLONE_NEWNET)
