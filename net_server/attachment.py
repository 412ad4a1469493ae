"""The driver's hold of a TAP device: the descriptor that it lends, and how that is renewed.

A descriptor that was lent cannot be called back, and a holder's word that it has closed it is no
proof. The host has one: a device with a single queue refuses a second attachment with EBUSY while
any duplicate of the first is open in any process. So to renew is to make the device outlive its
descriptors, to close the driver's and the kernel's duplicates (`let_go`), and to attach a fresh
file (`attach`). If that succeeds, nobody has the old one. (With several queues a driver can detach
the one it lent, but whoever has it attaches it again with one call, and any other process of the
namespace may attach a queue of its own: that would be weaker.)

What is attached is kept by the kernel under a label with the number of the renewal, its *epoch*, so
that the next incarnation sees how far a renewal had come.

Fresh files, the *spares*, are opened at the start, while the namespace can be entered and the
device file can be opened: a driver that is confined from then on can do neither, and the next
incarnation of an ordinary user's, in a user namespace of its own, cannot even at its start. So the
kernel keeps them too. One that is found to be attached was in use when the driver died: it is
closed, and what it was meant for is done again with another one.

Offloads are a property of the device, so they are always set, also to none.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from core.userlib.interface import Descriptor
from core.userlib.task import Task

from . import host_device, namespaces
from .host_device import HostDevice

SPARES: Final = 8
"""Files opened at the start, where that is possible; each renewal uses one up."""
_LABEL: Final = "tap"


def _label(epoch: int) -> str:
    return f"{_LABEL}-{epoch}" if epoch else _LABEL


def _spare_label(number: int) -> str:
    return f"spare-{number}"


class Attachment:
    """A TAP device in a namespace, with the descriptor that is attached to it, if there is one.

    Attributes:
        offloads: what the device does, as last seen.
    """

    def __init__(
        self, task: Task, wanted: HostDevice, namespace: Descriptor | None, *, offload: bool
    ) -> None:
        """Get what renewals will need; nothing is attached.

        Args:
            namespace: where the device is; None: in this process's own.
        """
        self._task = task
        self._wanted = wanted
        self._namespace = namespace
        self._offload = offload
        # Descriptor objects, because they close themselves with this one, also after a fault
        self._device: Descriptor | None = None
        self._spares: dict[int, Descriptor] = {}
        self.offloads = 0
        self._find_spares()
        if len(self._spares) < SPARES:
            with contextlib.suppress(OSError):  # what is kept can be lent without
                for number, spare in namespaces.run_inside(self._inside(), self._open_spares):
                    task.keep(_spare_label(number), spare.fileno())
                    self._spares[number] = spare

    def _inside(self) -> int | None:
        return None if self._namespace is None else self._namespace.fileno()

    def _find_spares(self) -> None:
        """Take up the spares that the kernel keeps."""
        for number in range(SPARES):
            kept = self._task.kept(_spare_label(number))
            if kept is None:
                continue
            spare = Descriptor(kept)
            if host_device.is_alive(kept):
                self._task.forget(_spare_label(number))
            else:
                self._spares[number] = spare

    def _open_spares(self) -> list[tuple[int, Descriptor]]:
        """Open those that are missing. Runs in another thread, which makes no kernel calls."""
        if self._namespace is not None:
            host_device.bring_up_loopback()
        missing = [number for number in range(SPARES) if number not in self._spares]
        return [(number, Descriptor(host_device.open_file())) for number in missing]

    def reserve(self) -> None:
        """See to it that a renewal will find a fresh file. OSError: there is none."""
        if not self._spares:
            self._spares[0] = Descriptor(
                namespaces.run_inside(self._inside(), host_device.open_file)
            )

    @property
    def spares(self) -> int:
        """How many renewals are possible without opening anything."""
        return len(self._spares)

    @property
    def is_here(self) -> bool:
        """Whether a descriptor is attached, and its device exists."""
        return self._device is not None and host_device.is_alive(self._device.fileno())

    def duplicate(self) -> Descriptor:
        """Return a duplicate of the attached descriptor."""
        assert self._device is not None
        return Descriptor(os.dup(self._device.fileno()))

    def find_kept(self, epoch: int) -> bool:
        """Take up what the kernel keeps from this epoch; return False if it keeps nothing."""
        kept = self._task.kept(_label(epoch))
        if kept is None:
            return False
        found = Descriptor(kept)
        if not host_device.is_alive(kept):
            return False
        self._take(found)
        return True

    def _take(self, device: Descriptor) -> None:
        self._device = device
        host_device.set_persistent(device.fileno(), persistent=False)
        self.offloads = host_device.set_offloads(device.fileno(), wanted=self._offload)

    def attach(self, epoch: int) -> None:
        """Attach a fresh file to the device, which is made if it is not there.

        Raises:
            OSError: EBUSY, somebody has a descriptor that is attached to it.
        """
        self.reserve()
        number, file = next(iter(self._spares.items()))
        found = host_device.attach(file.fileno(), self._wanted.name, header=self._offload)
        del self._spares[number]
        self._task.forget(_spare_label(number))
        if not found:
            namespaces.run_inside(self._inside(), lambda: host_device.configure(self._wanted))
        self._task.keep(_label(epoch), file.fileno())
        self._take(file)

    def let_go(self, epoch: int) -> None:
        """Close every descriptor that the driver and the kernel have of the device."""
        device, self._device = self._device, None
        if device is not None:
            if host_device.is_alive(device.fileno()):
                host_device.set_persistent(device.fileno(), persistent=True)
            device.close()
        self._task.forget(_label(epoch))
