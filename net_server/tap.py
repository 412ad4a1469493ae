"""The link's driver: makes a TAP device, configures the host's side of it, keeps it, and lends it.

Theory of operation. A device belongs to the network namespace of the thread that opened it. So
the work is done in a short-lived thread that has entered the namespace first: `setns` changes one
thread only, and in either placement no other thread of this process notices. The namespace is, in
this order: the one that the kernel keeps for the task under `netns`; the one named by the option
`namespace`, a path; this process's own if the option is "host"; else a new one, made here and
kept.

The device lives as long as a descriptor of it, and the kernel keeps one, so the driver's death
harms nobody: the next incarnation finds the device, up and configured, as it was.

Offloads are a property of the device, so they are always set, also to none.
"""

from __future__ import annotations

import errno
import os
from typing import Annotated, ClassVar, Final

import msgspec

from core.errors import Refused, TaskError
from core.userlib.interface import Descriptor, Interface
from core.userlib.server import Server
from core.userlib.task import Task

from . import host_device, namespaces
from .host_device import HostDevice
from .link import Link, LinkInfo
from .stack.routes import Prefix, station_address
from .wire import ParseError

HOST: Final = "host"
"""The value of the option `namespace` that joins the host's own network."""
_DEVICE_LABEL: Final = "tap"
_NAMESPACE_LABEL: Final = "netns"


class Options(msgspec.Struct, frozen=True):
    """The options of the system description; others are left alone."""

    name: Annotated[str, msgspec.Meta(pattern="^[^/ ]{1,15}$")] = "atoll0"
    """The host's name for the device."""
    host_address: str = "10.90.0.1/24"
    host_link_address: str = ""
    """The host's Ethernet address on the link; empty: one made from `host_address`."""
    mtu: Annotated[int, msgspec.Meta(ge=576, le=65_521)] = 1500
    offload: bool = True
    """Whether frames may be large and their checksums unfinished, where the host can do that."""
    namespace: str = ""
    """Where the host's side is; see the module head."""


class TapServer(Server):
    """Serves `Link` for one TAP device.

    Options: see `Options`.
    """

    interface: ClassVar[type[Interface]] = Link

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        try:
            options = msgspec.convert(task.options, type=Options)
            prefix = Prefix.from_text(options.host_address)
            link = station_address(options.host_link_address, prefix)
        except (ParseError, msgspec.ValidationError) as error:
            raise TaskError(f"task {task.name}, options: {error}", errno.EINVAL) from None
        self._offload = options.offload
        self._wanted = HostDevice(options.name, options.mtu, prefix, link)
        # Descriptor objects, because they close themselves with this one, also after a fault
        self._device: Descriptor | None = None
        found = self._find_namespace(options.namespace)
        self._namespace = None if found is None else Descriptor(found)
        self._offloads = 0
        self._open()

    def _find_namespace(self, option: str) -> int | None:
        """Return a descriptor of the device's network namespace; None: this process's own."""
        kept = self.task.kept(_NAMESPACE_LABEL)
        if kept is not None:
            return kept
        if option == HOST:
            return None
        try:
            if not option:
                found = namespaces.create()
            else:
                found = os.open(option, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            where = f"{option}: " if option else "a new network namespace: "
            remedy = "run as root, or in a user namespace that owns its network"
            raise TaskError(f"{where}{error.strerror}; {remedy}", error.errno or 0) from None
        self.task.keep(_NAMESPACE_LABEL, found)
        return found

    def _open(self) -> None:
        """Take up the device that the kernel keeps, or make one."""
        kept = self.task.kept(_DEVICE_LABEL)
        if kept is not None:
            if host_device.is_alive(kept):
                self._take(kept)
                return
            os.close(kept)
        try:
            inside = None if self._namespace is None else self._namespace.fileno()
            made = namespaces.run_inside(inside, self._make)
        except OSError as error:
            raise TaskError(
                host_device.explain(error, self._wanted.name), error.errno or 0
            ) from None
        self.task.keep(_DEVICE_LABEL, made)
        self._take(made)

    def _make(self) -> int:
        if self._namespace is not None:
            host_device.bring_up_loopback()
        return host_device.open_device(self._wanted, header=self._offload)

    def _take(self, descriptor: int) -> None:
        self._device = Descriptor(descriptor)
        self._offloads = host_device.set_offloads(descriptor, wanted=self._offload)

    def lend(self) -> tuple[LinkInfo, Descriptor]:
        """Return the device, which is made again if it was removed."""
        if self._device is None or not host_device.is_alive(self._device.fileno()):
            self.task.log(f"{self._wanted.name} was removed; making it again")
            try:
                self._open()
            except TaskError as error:
                raise Refused(error.errno or errno.ENODEV, error.detail) from None
        assert self._device is not None
        number = self._device.fileno()
        info = LinkInfo(
            name=self._wanted.name,
            mtu=self._wanted.mtu,
            device_header=host_device.has_header(number),
            checksum_offload=bool(self._offloads & host_device.OFFLOAD_CHECKSUM),
            udp_segmentation=bool(self._offloads & host_device.OFFLOAD_UDP),
            host_address=str(self._wanted.prefix),
        )
        return info, Descriptor(os.dup(number))

    def namespace(self) -> Descriptor:
        """Return the namespace that the host's side is in."""
        if self._namespace is None:
            raise Refused(errno.ENOENT, f"{self._wanted.name} is in the host's own namespace")
        return Descriptor(os.dup(self._namespace.fileno()))
