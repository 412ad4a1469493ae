"""Every way a kernel call can be refused, one class per decision a caller can make.

An error says who is to blame (`blame`) and whether the same call may succeed later without any
change (`retry`). Errors cross address spaces as `(code, errno, detail)`; `from_wire` makes the
same class again on the other side, so a client in another process catches what a client in the
kernel's own process would catch.
"""

from __future__ import annotations

import enum
import os
from typing import ClassVar, Final


class Blame(enum.Enum):
    """Whose mistake an error reports."""

    CALLER = "caller"
    """The task that made the call broke a rule."""
    SERVER = "server"
    """The task behind the port did not keep its word."""
    NOBODY = "nobody"
    """Limits, deadlines and deaths: everybody behaved."""


class AtollError(Exception):
    """Base of all errors that cross the line between a task and the kernel."""

    code: ClassVar[int] = 0
    blame: ClassVar[Blame] = Blame.NOBODY
    retry: ClassVar[bool] = False

    def __init__(self, detail: str = "", errno: int = 0) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errno = errno


class NoRightError(AtollError):
    """The caller's name space holds no right under this name, or the right was revoked."""

    code = 1
    blame = Blame.CALLER


class WrongRightError(AtollError):
    """The right is there but does not allow this: wrong kind, or the operation was masked out."""

    code = 2
    blame = Blame.CALLER


class BadMessageError(AtollError):
    """The message is malformed: header, sizes, operation number or a field's type is wrong."""

    code = 3
    blame = Blame.CALLER


class MessageTooLargeError(AtollError):
    """The message, or the reply asked for, exceeds a limit named in `core.abi`."""

    code = 4
    blame = Blame.CALLER


class QueueFullError(AtollError):
    """The port already holds as many messages as its limit allows; try again later."""

    code = 5
    retry = True


class DeadPortError(AtollError):
    """The port is gone for good: its receiver ended and no restart is due."""

    code = 6


class DeadlineError(AtollError):
    """The deadline passed before the reply came; the server was told to abort."""

    code = 7
    retry = True


class AbortedError(AtollError):
    """The caller withdrew the call."""

    code = 8
    blame = Blame.CALLER


class PoisonError(AtollError):
    """The request killed its server as often as the kernel allows, and was withdrawn."""

    code = 9
    blame = Blame.CALLER


class ServerFaultError(AtollError):
    """The server answered with something that its interface does not allow."""

    code = 10
    blame = Blame.SERVER


class LimitError(AtollError):
    """A table of the caller (rights, ports, timers, memory) is full."""

    code = 11
    blame = Blame.CALLER


class LostError(AtollError):
    """The server had to give something up and says so, once."""

    code = 12


_ERRNO_LIMIT: Final = 0x7FFF_FFFF
"""The largest host error number: beyond it not even strerror(3) is defined."""


class Refused(AtollError):  # noqa: N818 - an answer of the server, not a failure of the call
    """The server understood the request and declines it, for the reason given by `errno`.

    `errno` is a host error number (`errno.ENOENT`), because most clients are Unix programs.
    """

    code = 13

    def __init__(self, errno: int, detail: str = "") -> None:
        known = 0 <= errno <= _ERRNO_LIMIT
        super().__init__(detail or (os.strerror(errno) if known else f"error {errno}"), errno)


class TaskError(AtollError):
    """A task cannot be spawned, killed or restarted as asked; `detail` says why."""

    code = 14
    blame = Blame.CALLER


_BY_CODE: Final[dict[int, type[AtollError]]] = {
    cls.code: cls
    for cls in (
        NoRightError,
        WrongRightError,
        BadMessageError,
        MessageTooLargeError,
        QueueFullError,
        DeadPortError,
        DeadlineError,
        AbortedError,
        PoisonError,
        ServerFaultError,
        LimitError,
        LostError,
        TaskError,
    )
}


def to_wire(error: AtollError) -> tuple[int, int, str]:
    """Return the error as `(code, errno, detail)`, fit to be encoded whatever it was made with."""
    errno = error.errno if 0 <= error.errno <= _ERRNO_LIMIT else 0
    # A detail may quote a file's name, and such a name need not be Unicode.
    return (error.code, errno, error.detail.encode(errors="backslashreplace").decode())


def from_wire(code: int, errno: int, detail: str) -> AtollError:
    """Return the error that `to_wire` described; an unknown code blames the server."""
    if code == Refused.code:
        return Refused(errno, detail)
    return _BY_CODE.get(code, ServerFaultError)(detail, errno)
