"""What a task holds and may do, read from the host: evidence, not what anybody says of itself."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

import msgspec

from core.abi import RightKind
from core.userlib.capabilities import names_of

from .kernel import Kernel
from .tasks import KernelTask

_STATUS: Final = re.compile(r"^(\w+):\s*(.*)$", re.MULTILINE)
_SECCOMP: Final = {"0": "none", "1": "strict", "2": "filter"}
_LIMITS: Final = ("Max address space", "Max open files", "Max file size", "Max core file size")


class Audit(msgspec.Struct, frozen=True, array_like=True):
    """One server. What could not be read of its process is empty.

    Args:
        confined: whether the description has it confined.
        reported: whether the host reports its attempts to the kernel.
        descriptors: how many are open, by kind.
        rights: what it may send to, as `port: operations`.
        declared: what the description declares for it, in words.
        attempts: what it tried and may not, in all its incarnations, by kind.
    """

    name: str
    placement: str
    pid: int
    confined: bool
    reported: bool
    uid: str
    capabilities: list[str]
    no_new_privileges: bool
    seccomp: str
    namespaces: list[str]
    limits: dict[str, str]
    descriptors: dict[str, int]
    rights: list[str]
    declared: dict[str, str]
    attempts: dict[str, int]


def _kind(target: str) -> str:
    return re.sub(r"\d+", "", target.partition(":")[0]) if ":" in target else target


def _descriptors(pid: int) -> dict[str, int]:
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                kind = _kind(str(entry.readlink()))
                found[kind] = found.get(kind, 0) + 1
    return found


def _namespaces(pid: int) -> list[str]:
    """Return the namespaces that are not the kernel's own."""
    own = []
    for name in ("net", "ipc", "uts", "user", "mnt", "pid"):
        with contextlib.suppress(OSError):
            theirs = Path(f"/proc/{pid}/ns/{name}").readlink()
            if theirs != Path(f"/proc/{os.getpid()}/ns/{name}").readlink():
                own.append(name)
    return own


def _limits(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/limits").read_text()
        rows = [re.split(r"\s{2,}", line) for line in text.splitlines()]
        return {row[0]: row[2] for row in rows if row[0] in _LIMITS}
    return {}


def _rights(task: KernelTask) -> list[str]:
    found = set()
    for right in task.names.values():
        operations = right.port.interface.OPERATIONS
        allowed = [spec.name for spec in operations if right.mask >> spec.index & 1]
        if right.kind is RightKind.RECEIVE:
            found.add(f"receive {right.port.label}")
            continue
        words = "all" if len(allowed) == len(operations) else ", ".join(allowed) or "none"
        found.add(f"{right.kind.name.lower().replace('_', '-')} {right.port.label}: {words}")
    return sorted(found)


def audit(kernel: Kernel) -> list[Audit]:
    """Return the audit of every task that serves."""
    return [_audit(task) for task in kernel.tasks if task.program.server]


def _audit(task: KernelTask) -> Audit:
    engine = task.engine
    pid = engine.pid if engine is not None else 0
    status: dict[str, str] = {}
    with contextlib.suppress(OSError):
        if pid:
            status = dict(_STATUS.findall(Path(f"/proc/{pid}/status").read_text()))
    declared = getattr(engine, "declared", None)
    return Audit(
        task.name,
        task.program.placement.value,
        pid,
        declared is not None,
        getattr(engine, "reports", None) is not None,
        status.get("Uid", "").partition("\t")[0],
        names_of(int(status.get("CapPrm", "0"), 16)),
        status.get("NoNewPrivs") == "1",
        _SECCOMP.get(status.get("Seccomp", ""), ""),
        _namespaces(pid) if pid else [],
        _limits(pid) if pid else {},
        _descriptors(pid) if pid else {},
        _rights(task),
        {key: str(value) for key, value in msgspec.structs.asdict(declared).items() if value}
        if declared is not None
        else {},
        dict(task.attempts.kinds),
    )
