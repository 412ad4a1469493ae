"""Filters for system calls (seccomp(2)): a small assembler, and how a filter is put in place.

Theory of operation. A filter is a program of classic BPF that the host's kernel runs before every
system call of a process; the answer for a number that is always allowed is remembered by Linux in a
bitmap, so most calls are not slowed down at all. Ours first makes sure of the processor mode, then
finds the number by halving a sorted list, then looks at arguments where a rule has some, and ends
in one of three ways: allow, refuse with an errno, or *report*: the caller is stopped and whoever
holds the listener decides. Only arguments that are plain numbers are ever compared; what a pointer
points to can change between the check and the use.

The assembler is ours because the one kept library, libseccomp, is a package of the host that no
Python installer brings, and because a list of numbers with a dozen argument rules is all we need.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from .system_calls import AUDIT_ARCHITECTURES, MACHINE, NUMBERS

ALLOW: Final = 0x7FFF_0000
REPORT: Final = 0x7FC0_0000
"""Refuse with ENOSYS as long as nobody listens."""
ERRNO: Final = 0x0005_0000

_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1
_FLAG_NEW_LISTENER: Final = 8
_FLAG_TSYNC_ESRCH: Final = 16
_FLAG_WAIT_KILLABLE: Final = 32
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_SECCOMP: Final = 21

_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER: Final = 0x25
_JUMP_ABOVE_OR_EQUAL: Final = 0x35
_AND: Final = 0x54
_RETURN: Final = 0x06
_ALWAYS: Final = 0x05
_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ARGUMENTS_AT: Final = 16
_INSTRUCTION: Final = struct.Struct("=HBBI")
_LONGEST_JUMP: Final = 255
_LEAF: Final = 4
"""Numbers that are compared one after the other."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Argument(NamedTuple):
    """A condition on one argument, whose upper half has to be 0: `value & mask` is in `values`."""

    place: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF
    wide: bool = False
    """Also look at the upper half; the host itself ignores it in ints."""


Conditions = tuple[Argument, ...]
"""All have to hold; none: always."""
Rules = Mapping[str, Conditions]
"""What is allowed, by name; names that this processor lacks are left out."""


class _Code:
    """Instructions, emitted back to front so that every jump goes to what is there already."""

    def __init__(self) -> None:
        self._reversed: list[tuple[int, int, int, int]] = []

    def emit(self, code: int, value: int = 0, true: int = 0, false: int = 0) -> int:
        """Put an instruction before all others; return its label. `true`, `false` are labels."""
        here = len(self._reversed)
        if code in (_JUMP_EQUAL, _JUMP_GREATER, _JUMP_ABOVE_OR_EQUAL):
            forward = (here - true - 1, here - false - 1)
            if max(forward) > _LONGEST_JUMP:
                near = [self._near(label) for label in (true, false)]
                here = len(self._reversed)
                forward = (here - near[0] - 1, here - near[1] - 1)
            self._reversed.append((code, *forward, value))
        else:
            self._reversed.append((code, 0, 0, value))
        return len(self._reversed) - 1

    def _near(self, label: int) -> int:
        """Return a label that can be reached with a short jump and leads to `label`."""
        if len(self._reversed) - label < _LONGEST_JUMP:
            return label
        distance = len(self._reversed) - label - 1
        self._reversed.append((_ALWAYS, 0, 0, distance))
        return len(self._reversed) - 1

    def octets(self) -> bytes:
        """Return the program."""
        return b"".join(_INSTRUCTION.pack(*parts) for parts in reversed(self._reversed))


def _emit_conditions(code: _Code, conditions: Conditions, allow: int, otherwise: int) -> int:
    """Emit the checks of one call's arguments; return the label of the first."""
    target = allow
    for argument in conditions:
        at = _ARGUMENTS_AT + 8 * argument.place
        following = otherwise
        for value in argument.values:
            following = code.emit(_JUMP_EQUAL, value, target, following)
        if argument.mask != 0xFFFF_FFFF:
            code.emit(_AND, argument.mask)
        target = code.emit(_LOAD, at)
        if argument.wide:
            code.emit(_JUMP_EQUAL, 0, target, otherwise)
            target = code.emit(_LOAD, at + 4)
    return target


def _emit_search(code: _Code, entries: list[tuple[int, int]], otherwise: int) -> int:
    """Emit the search for the loaded number; return its label. Entries: (number, label)."""
    if len(entries) <= _LEAF:
        following = otherwise
        for number, label in entries:
            following = code.emit(_JUMP_EQUAL, number, label, following)
        return following
    half = len(entries) // 2
    low = _emit_search(code, entries[:half], otherwise)
    high = _emit_search(code, entries[half:], otherwise)
    return code.emit(_JUMP_ABOVE_OR_EQUAL, entries[half][0], high, low)


def assemble(
    rules: Rules, otherwise: int, machine: str = MACHINE, numbers: Mapping[str, int] = NUMBERS
) -> bytes:
    """Return the filter that allows what the rules name and answers all else with `otherwise`.

    Args:
        otherwise: REPORT, or ERRNO with the number in the lower half.
    """
    code = _Code()
    denied = code.emit(_RETURN, otherwise)
    allowed = code.emit(_RETURN, ALLOW)
    known = sorted((numbers[name], name) for name in rules if name in numbers)
    labels = {
        name: _emit_conditions(code, rules[name], allowed, denied) if rules[name] else allowed
        for _, name in known
    }
    search = _emit_search(code, [(number, labels[name]) for number, name in known], denied)
    # A search that is a leaf or a branch was emitted last but for the load before it.
    assert search == len(code._reversed) - 1  # noqa: SLF001
    search = code.emit(_LOAD, _NUMBER_AT)
    code.emit(_JUMP_EQUAL, AUDIT_ARCHITECTURES[machine], search, denied)
    code.emit(_LOAD, _ARCHITECTURE_AT)
    return code.octets()


def run_filter(
    program: bytes, number: int, arguments: Iterable[int] = (), machine: str = MACHINE
) -> int:
    """Return what a filter answers, computed here: for tests, and to say what a task may do."""
    data = struct.pack("=iIQ6Q", number, AUDIT_ARCHITECTURES[machine], 0,
                       *[*arguments, 0, 0, 0, 0, 0, 0][:6])  # fmt: skip
    accumulator, at = 0, 0
    while True:
        code, true, false, value = _INSTRUCTION.unpack_from(program, at * _INSTRUCTION.size)
        at += 1
        if code == _RETURN:
            return int(value)
        if code == _LOAD:
            accumulator = int.from_bytes(data[value : value + 4], "little")
        elif code == _AND:
            accumulator &= value
        elif code == _ALWAYS:
            at += value
        elif code == _JUMP_EQUAL:
            at += true if accumulator == value else false
        else:
            at += true if accumulator >= value else false


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_new_privileges() -> None:
    """No program that this process ever runs gains anything by being run (no_new_privs)."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def install(program: bytes, *, listen: bool = False) -> int:
    """Put all threads under a filter for ever, once `forbid_new_privileges` was called.

    Args:
        listen: return the descriptor of a listener to which calls are reported, the caller's own.

    Returns:
        The listener; -1 without one.

    Raises:
        OSError: the host has no seccomp, or EBUSY: there is a listener already.
    """
    structure = _Program(len(program) // _INSTRUCTION.size, program)
    flags = _FLAG_TSYNC
    if listen:
        flags |= _FLAG_TSYNC_ESRCH | _FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE
    seccomp = NUMBERS.get("seccomp")
    if seccomp is None:
        raise OSError(errno.ENOSYS, f"no filters are known for the processor {MACHINE}")
    result = _libc.syscall(
        ctypes.c_long(seccomp), ctypes.c_long(_SET_MODE_FILTER), ctypes.c_long(flags),
        ctypes.byref(structure),
    )  # fmt: skip
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
    return int(result) if listen else -1


def is_there() -> bool:
    """Tell whether this host can filter, and whether the numbers of its processor are known."""
    numbers = bool(NUMBERS)
    return numbers and _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0
