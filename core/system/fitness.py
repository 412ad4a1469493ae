"""Whether changed code fits the system that runs.

The kernel checks every message against the interface classes that it was started with, and so do
clients; neither can be changed while they run. So a new version of a server has to serve every
operation that is known, unchanged; it may serve more. The interfaces that it calls have to be those
that run, with no operation that the other server does not have yet. And it has to speak to the
kernel as the kernel does.

What cannot be seen in constants and signatures, such as a changed meaning of a number, is the
author's to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from core.kernel.fresh import Version
from core.userlib.forms import OperationForm, difference
from core.userlib.interface import Interface
from core.userlib.kernel_calls import KernelCalls


def key_of(interface: type[Interface]) -> str:
    """Return an interface's key in `Version.interfaces`."""
    return f"{interface.__module__}:{interface.__qualname__}"


def misfit(
    own: Version,
    new: Version,
    served: tuple[type[Interface], str],
    calls: Sequence[type[Interface]],
    others: Sequence[type[Interface]],
) -> str:
    """Say why a new version does not fit; "" if it does.

    Args:
        own: what the running kernel speaks.
        served: the interface of the server's port, and what the new version serves instead.
        calls: interfaces of the servers that it has rights to.
        others: interfaces that it may meet in other ways.
    """
    for name in own.line | new.line:
        before, after = own.line.get(name, "nothing"), new.line.get(name, "nothing")
        if before != after:
            return f"the kernel's own {name} was {before} and is {after}"
    port, instead = served
    reason = difference(_forms(own, key_of(port)), _forms(new, instead), may_grow=True)
    if reason:
        return f"{port.__name__}: {reason}"
    strict: list[type[Interface]] = [KernelCalls, *calls]
    for interface in [*strict, *others]:
        key = key_of(interface)
        if interface is port or key not in new.interfaces:
            continue
        known, now = _forms(own, key), _forms(new, key)
        reason = difference(known, now, may_grow=interface not in strict)
        if reason:
            return f"{interface.__name__}, which it calls: {reason}"
    return ""


def new_operations(own: Version, new: Version, served: tuple[type[Interface], str]) -> list[str]:
    """Return the operations that a new version serves and nobody can call yet."""
    known = len(_forms(own, key_of(served[0])))
    return [form.name for form in _forms(new, served[1])[known:]]


def _forms(version: Version, key: str) -> list[OperationForm]:
    forms: list[Any] = version.interfaces.get(key, [])
    return msgspec.convert(forms, list[OperationForm])
