"""The name server: rights by name.

Who registers a right may pass it to strangers; who looks one up gets a copy, no more. The rights
are kept by the kernel on the name server's behalf, and whose they are is the server's state: both
survive its death.
"""

from __future__ import annotations

import errno
from typing import Final

import msgspec

from core.abi import Right
from core.errors import Refused
from core.userlib.interface import Interface, operation
from core.userlib.server import Server
from core.userlib.task import Task

ENTRY_LIMIT: Final = 512
NAME_LIMIT: Final = 200
_LABEL: Final = "name:"
"""What the labels of the rights that the kernel keeps begin with."""


class Names(Interface):
    """A directory of rights. The badge of a client's own right to it says whose an entry is."""

    @operation(idempotent=True)
    async def register(self, name: str, right: Right) -> None:
        """Enter a right. Refused: EEXIST when another client has the name, ENOSPC, EINVAL."""

    @operation(idempotent=True)
    async def lookup(self, name: str) -> Right:
        """Return a copy of the right. Refused: ENOENT."""

    @operation
    async def unregister(self, name: str) -> None:
        """Remove an entry of one's own. Refused: ENOENT, EPERM."""

    @operation(idempotent=True)
    async def entries(self) -> list[str]:
        """Return all names, sorted."""


class Entries(msgspec.Struct):
    """Whose each name is, by the badge of the client that registered it."""

    owners: dict[str, int] = {}


class NameServer(Server):
    """Who owns a name is the server's state; the right stands with the kernel, under the name.

    A right is kept before its entry is committed, and forgotten before the entry's end is. So a
    right without an entry belongs to a request that is about to come again, or to nobody; an entry
    without a right to one that comes again, or to a right that died. Anybody may have such a name.
    """

    interface = Names
    state: Entries

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._rights: dict[str, Right] = {}

    async def start(self) -> None:
        """Fetch what earlier incarnations kept."""
        for label, right in self.task.kept_rights().items():
            name = label.removeprefix(_LABEL)
            if name in self.state.owners:
                self._rights[name] = right
            else:
                self.task.forget(label)
                self.task.drop(right)

    def register(self, name: str, right: Right) -> None:
        """Enter a right; the same client may do so again."""
        if not name or len(name) > NAME_LIMIT or "\0" in name:
            raise Refused(errno.EINVAL, f"a name has 1 to {NAME_LIMIT} characters")
        badge, owners = self.request.badge, self.state.owners
        if name not in owners and len(owners) >= ENTRY_LIMIT:
            raise Refused(errno.ENOSPC, f"the name server has {ENTRY_LIMIT} entries")
        if name in self._rights and owners[name] != badge:
            raise Refused(errno.EEXIST, f"{name} is registered by another client")
        self.task.keep_right(_LABEL + name, right)
        old = self._rights.pop(name, None)
        if old is not None:
            self.task.drop(old)
        self._rights[name] = right
        owners[name] = badge

    def lookup(self, name: str) -> Right:
        """Return a copy."""
        right = self._rights.get(name)
        if right is None:
            raise Refused(errno.ENOENT, f"nothing is registered under {name!r}")
        return self.task.copy(right)

    def unregister(self, name: str) -> None:
        """Remove an entry."""
        owner = self.state.owners.get(name)
        if owner is None:
            raise Refused(errno.ENOENT, f"nothing is registered under {name!r}")
        if owner != self.request.badge:
            raise Refused(errno.EPERM, f"{name} is registered by another client")
        self._remove(name)

    def _remove(self, name: str) -> None:
        self.task.forget(_LABEL + name)
        right = self._rights.pop(name, None)  # an earlier incarnation may have got so far
        if right is not None:
            self.task.drop(right)
        del self.state.owners[name]

    def entries(self) -> list[str]:
        """Return all names."""
        return sorted(self._rights)

    def no_senders(self, badge: int) -> None:
        """A client is gone, and its entries with it."""
        for name in [name for name, owner in self.state.owners.items() if owner == badge]:
            self._remove(name)
