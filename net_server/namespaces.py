"""Network namespaces, entered by one short-lived thread at a time.

`setns` and `unshare` act on the calling thread alone, so a thread that enters a namespace and ends
there leaves the rest of the process where it was. Python 3.11 has neither; the C library has.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x4000_0000
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread of its own and return what it returns or raise what it raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            errors.append(error)

    thread = threading.Thread(target=run, name="network namespace")
    try:
        thread.start()
    except RuntimeError as error:  # a confined server starts none after its start
        raise OSError(errno.EPERM, "no thread can be started") from error
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def create() -> int:
    """Return a descriptor of a new network namespace; it exists as long as something refers to it.

    Raises:
        OSError: EPERM without the right to make one.
    """

    def unshare() -> int:
        _check(_LIBC.unshare(_CLONE_NEWNET))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(unshare)


def run_inside(namespace: int | None, function: Callable[[], T]) -> T:
    """Return what a function returns that runs inside a network namespace.

    Args:
        namespace: its descriptor; None: this process's own.

    Raises:
        OSError: the namespace cannot be entered, or whatever the function raises.
    """
    if namespace is None:
        return function()

    def enter() -> T:
        _check(_LIBC.setns(namespace, _CLONE_NEWNET))
        return function()

    return _in_thread(enter)
