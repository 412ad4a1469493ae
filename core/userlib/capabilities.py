"""Capabilities of the host (capabilities(7)): names, and giving them up."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Final

from .system_calls import NUMBERS, words_of

NAMES: Final = words_of(
    """
    chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
    net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio
    sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config
    mknod lease audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm
    block_suspend audit_read perfmon bpf checkpoint_restore
    """
)
"""By number."""
_VERSION: Final = 0x2008_0522
_HEADER: Final = struct.Struct("=Ii")
_SETS: Final = struct.Struct("=6I")
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_libc: Final = ctypes.CDLL(None, use_errno=True)


def mask_of(names: Iterable[str]) -> int:
    """Return a set of capabilities as bits. Raises: ValueError: one is unknown."""
    return sum(1 << NAMES.index(name) for name in set(names))


def names_of(mask: int) -> list[str]:
    """Return the names of a set of capabilities."""
    return [NAMES[bit] if bit < len(NAMES) else f"{bit}" for bit in range(64) if mask >> bit & 1]


def _call(name: str, sets: ctypes.Array[ctypes.c_char]) -> None:
    header = ctypes.create_string_buffer(_HEADER.pack(_VERSION, 0))
    if _libc.syscall(ctypes.c_long(NUMBERS[name]), header, sets) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def keep_only(mask: int) -> None:
    """Give up all capabilities of this thread but those in `mask` that it has."""
    sets = ctypes.create_string_buffer(_SETS.size)
    _call("capget", sets)
    effective, permitted, _, effective_high, permitted_high, _ = _SETS.unpack_from(sets)
    has = permitted | permitted_high << 32
    if not has and not effective and not effective_high:
        return
    left = has & mask
    low, high = left & 0xFFFF_FFFF, left >> 32
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _call("capset", ctypes.create_string_buffer(_SETS.pack(low, low, 0, high, high, 0)))
