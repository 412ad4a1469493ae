"""The mount as a server: it holds /dev/fuse and lends it to the front end, and speaks to the host.

It is promoted into the kernel's process, for the mount lives as long as that: the front end, which
handles what any process of the host asks, may be killed, stopped or upgraded in an address space of
its own. The mount point then just answers a moment later. The device and what was agreed with the
host at INIT are kept by the kernel, so not even this server's restart ends the mount.

Beside the device a front end needs three things of the host that a confined process cannot do, and
should not: to look at the processes that wait for it, and to tell the host's kernel what it is to
forget, for which it may have to wait (`mount.host`).

A host before Linux 6.9 cannot be asked to say again what the front end that died had not answered.
There the second `lend` is refused, and the mount ends with the front end that had the first one.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import msgspec
import trio

from core.errors import Refused
from core.userlib.interface import Descriptor, Interface, operation
from core.userlib.server import Server
from core.userlib.task import Task
from fs_server.interface import Change
from mount.attached import tune
from mount.host import ThisProcess, drop_entries, groups_of
from mount.mount_options import others_may_enter
from mount.mount_point import MountError, check_device, detach, prepare

from .device import open_device
from .handshake import agree, wishes
from .protocol.flags import Init
from .protocol.negotiation import Wishes
from .signals import is_ending

_DEVICE: Final = "device"
_TERMS: Final = "terms"
_LENT: Final = "lent"


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """What was agreed with the host, and what it is able to do.

    Attributes:
        features: as `Init`.
        buffer_size: octets that a read(2) of the device must have room for.
        forgets: it can be told to look up every entry again.
    """

    features: int
    buffer_size: int
    forgets: bool = True

    @property
    def resends(self) -> bool:
        """Whether the host says again what was not answered."""
        return bool(self.features & Init.HAS_RESEND)


class Attachment(Interface):
    """A mount, for its front end. The last four are what `mount.host.Host` says."""

    @operation(idempotent=True)
    async def lend(self) -> tuple[Terms, Descriptor]:
        """Return /dev/fuse. Refused: ENOTSUP: a front end had it, and the host cannot resend."""

    @operation(idempotent=True)
    async def groups(self, pid: int) -> list[int]:
        """Return a process's supplementary groups; none if it is gone."""

    @operation(idempotent=True)
    async def is_ending(self, pid: int) -> bool:
        """Return if a signal is pending that ends the process, or if there is none such process."""

    @operation(idempotent=True, waits=True)
    async def tell(self, changes: list[Change]) -> None:
        """Have the host's kernel forget what the changes concern."""

    @operation(idempotent=True, waits=True)
    async def drop_entries(self) -> bool:
        """Have it look up every entry again. Returns if it knows how to."""


class AttachmentServer(Server):
    """Makes the mount. Options: `path`, the mount point; `allow_other`, null: if this is root."""

    interface = Attachment

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._path = Path(task.options["path"])
        self._descriptor = -1
        self._terms = Terms(0, 0)

    async def start(self) -> None:
        """Mount, unless an earlier incarnation did."""
        kept, terms = self.task.kept(_DEVICE), self.task.kept(_TERMS)
        if kept is None or terms is None:
            await self._mount()
        else:
            self._descriptor = kept
            with os.fdopen(terms, "rb") as file:
                file.seek(0)
                self._terms = msgspec.msgpack.decode(file.read(), type=Terms)
        self._host = ThisProcess(self._descriptor)

    def wishes(self) -> Wishes:
        """Return what is asked of the host."""
        return wishes()

    async def _mount(self) -> None:
        check_device()
        others = others_may_enter(self.task.options.get("allow_other"))
        self._path = await trio.to_thread.run_sync(prepare, self._path)
        self._descriptor = await trio.to_thread.run_sync(
            lambda: open_device(self._path, others=others)
        )
        agreed = await agree(self._descriptor, self.wishes())
        if agreed is None:
            raise MountError(self._path, "the mount ended at once", "look at the host's log")
        await trio.to_thread.run_sync(tune, self._path)
        forgets = drop_entries(self._descriptor)
        self._terms = Terms(agreed.features.value, agreed.buffer_size, forgets)
        if not self._terms.resends:
            self.task.log(
                "this host cannot say again what was not answered (Linux 6.9 can): "
                "the front end cannot be restarted, its death ends the mount"
            )
        self._keep(_TERMS, msgspec.msgpack.encode(self._terms))
        self.task.keep(_DEVICE, self._descriptor)

    def _keep(self, label: str, value: bytes) -> None:
        number = os.memfd_create(label, os.MFD_CLOEXEC)
        os.write(number, value)
        self.task.keep(label, number)
        os.close(number)

    def stop(self) -> None:
        """Let go of the device. The mount stays as long as the kernel keeps it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def lend(self) -> tuple[Terms, Descriptor]:
        """See `Attachment`."""
        lent = self.task.kept(_LENT)
        if lent is None:
            self._keep(_LENT, b"")
        else:
            os.close(lent)
            if not self._terms.resends:
                self._give_up()
                raise Refused(errno.ENOTSUP, "the host cannot say again what was not answered")
        return self._terms, Descriptor(os.dup(self._descriptor))

    def _give_up(self) -> None:
        """End the mount: what waits for it fails, and nothing is left hanging."""
        if self._descriptor < 0:
            return
        self.task.log(f"{self._path} ends with its front end")
        detach(self._path)
        self.task.forget(_DEVICE)
        os.close(self._descriptor)
        self._descriptor = -1

    async def tell(self, changes: list[Change]) -> None:
        """See `Attachment`."""
        await self._host.tell(changes)

    async def drop_entries(self) -> bool:
        """See `Attachment`."""
        return await self._host.drop_entries()

    def groups(self, pid: int) -> list[int]:
        """See `Attachment`."""
        return groups_of(pid)

    def is_ending(self, pid: int) -> bool:
        """See `Attachment`."""
        return is_ending(pid)
