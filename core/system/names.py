"""The name server: rights by name.

Who registers a right may pass it to strangers; who looks one up gets a copy, no more. The rights
are kept by the kernel on the name server's behalf, so that they survive its death.
"""

from __future__ import annotations

import errno
from typing import Final

from core.abi import Right
from core.errors import Refused
from core.userlib.interface import Interface, operation
from core.userlib.server import Server
from core.userlib.task import Task

ENTRY_LIMIT: Final = 512
NAME_LIMIT: Final = 200


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


class NameServer(Server):
    """Keeps `badge:name` as the label of each right."""

    interface = Names

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._rights: dict[str, Right] = {}
        self._owners: dict[str, int] = {}

    async def start(self) -> None:
        """Fetch what earlier incarnations kept."""
        for label, right in self.task.kept_rights().items():
            owner, _, name = label.partition(":")
            self._rights[name] = right
            self._owners[name] = int(owner)

    def register(self, name: str, right: Right) -> None:
        """Enter a right; the same client may do so again."""
        if not name or len(name) > NAME_LIMIT or "\0" in name:
            raise Refused(errno.EINVAL, f"a name has 1 to {NAME_LIMIT} characters")
        badge = self.request.badge
        old = self._rights.get(name)
        if old is None and len(self._rights) >= ENTRY_LIMIT:
            raise Refused(errno.ENOSPC, f"the name server has {ENTRY_LIMIT} entries")
        if old is not None and self._owners[name] != badge:
            raise Refused(errno.EEXIST, f"{name} is registered by another client")
        self.task.keep_right(f"{badge}:{name}", right)
        if old is not None:
            self.task.drop(old)
        self._rights[name] = right
        self._owners[name] = badge

    def lookup(self, name: str) -> Right:
        """Return a copy."""
        right = self._rights.get(name)
        if right is None:
            raise Refused(errno.ENOENT, f"nothing is registered under {name!r}")
        return self.task.copy(right)

    def unregister(self, name: str) -> None:
        """Remove an entry."""
        if name not in self._rights:
            raise Refused(errno.ENOENT, f"nothing is registered under {name!r}")
        if self._owners[name] != self.request.badge:
            raise Refused(errno.EPERM, f"{name} is registered by another client")
        self._remove(name)

    def _remove(self, name: str) -> None:
        self.task.forget(f"{self._owners.pop(name)}:{name}")
        self.task.drop(self._rights.pop(name))

    def entries(self) -> list[str]:
        """Return all names."""
        return sorted(self._rights)

    def no_senders(self, badge: int) -> None:
        """A client is gone, and its entries with it."""
        for name in [name for name, owner in self._owners.items() if owner == badge]:
            self._remove(name)
