"""Entering a system's network namespace: this process, for good, and what it starts then."""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import Final

from .obstacle import ObstacleError

_CLONE_NEWUSER: Final = 0x1000_0000
_CLONE_NEWNET: Final = 0x4000_0000
_NS_GET_USERNS: Final = 0xB701


def enter(namespace: int) -> None:
    """Enter a network namespace, and before it the user namespace that owns it if that is another.

    Raises:
        ObstacleError: the host does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
        if os.fstat(owner).st_ino != os.stat("/proc/self/ns/user").st_ino:  # noqa: PTH116
            _set(libc, owner, _CLONE_NEWUSER)
        os.close(owner)
    except PermissionError:
        pass  # the owner is an ancestor's: nothing that could be entered
    try:
        _set(libc, namespace, _CLONE_NEWNET)
    except OSError as error:
        remedy = "run it as the user who started the system, or as root"
        raise ObstacleError("the network namespace", error.strerror or "", remedy) from None


def _set(libc: ctypes.CDLL, namespace: int, kind: int) -> None:
    if libc.setns(namespace, kind) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
