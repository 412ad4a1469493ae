"""Giving up files for ever (landlock(7)): rule sets, and putting a thread under one.

A rule set names what it *handles* and then makes exceptions: these rights, below these directories.
A thread that restricts itself by several keeps what all of them allow. Descriptors that are open
already are not touched. What the host's version does not know is not handled; `version` says what
it knows.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final

from .system_calls import NUMBERS

_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIRECTORY: Final = 1 << 3
_TRUNCATE: Final = 1 << 14
_IOCTL: Final = 1 << 15
_RIGHTS_BY_VERSION: Final = (0, 13, 14, 15, 15, 16)
"""How many rights to files each version knows; later ones know as many as the last."""
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
"""Rights that can be given to something that is no directory."""
_READ: Final = _READ_FILE | _READ_DIRECTORY
_TCP_SINCE: Final = 4
_TCP: Final = 0x3
_SCOPES_SINCE: Final = 6
_SCOPES: Final = 0x3
"""No abstract Unix socket and no signal that reaches out of the own set of processes."""
_CREATE_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_RULE_SET: Final = struct.Struct("=QQQ")
_PATH_RULE: Final = struct.Struct("=Qi")

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    number = NUMBERS.get(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"{name}: not known for this processor")
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return int(result)


@functools.cache
def version() -> int:
    """Return the version of the host's landlock; 0: it has none."""
    try:
        none = ctypes.c_void_p(None)
        return _call("landlock_create_ruleset", none, ctypes.c_size_t(0),
                     ctypes.c_uint(_CREATE_VERSION))  # fmt: skip
    except OSError:
        return 0


def rule_set(reads: Iterable[str], writes: Iterable[str] = ()) -> int:
    """Return the descriptor of a rule set that leaves nothing but what is said here.

    Args:
        reads: directories below which files may be read, and single files; missing ones are left
            out.
        writes: the same, with everything but running programs.

    Raises:
        OSError: the host has no landlock.
    """
    found = version()
    handled = (1 << _RIGHTS_BY_VERSION[min(found, len(_RIGHTS_BY_VERSION) - 1)]) - 1
    attributes = _RULE_SET.pack(
        handled,
        _TCP if found >= _TCP_SINCE else 0,
        _SCOPES if found >= _SCOPES_SINCE else 0,
    )
    size = 8 if found < _TCP_SINCE else 16 if found < _SCOPES_SINCE else 24
    number = _call("landlock_create_ruleset", attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    try:
        for paths, rights in ((reads, _READ), (writes, handled & ~_EXECUTE)):
            for path in paths:
                _allow(number, path, rights & handled)
    except BaseException:
        os.close(number)
        raise
    return number


def _allow(number: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = _PATH_RULE.pack(rights, place)
        _call("landlock_add_rule", ctypes.c_int(number), ctypes.c_int(_RULE_PATH_BENEATH),
              rule, ctypes.c_uint(0))  # fmt: skip
    finally:
        os.close(place)


def restrict(number: int) -> None:
    """Put this thread, and what it starts, under a rule set; the descriptor stays the caller's.

    Raises:
        OSError: EPERM: `forbid_new_privileges` was not called.
    """
    _call("landlock_restrict_self", ctypes.c_int(number), ctypes.c_uint(0))
