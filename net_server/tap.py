"""The link's driver: makes a TAP device, configures the host's side of it, keeps it, and lends it.

Theory of operation. A device belongs to the network namespace of the thread that opened it. So
the work is done in a short-lived thread that has entered the namespace first: `setns` changes one
thread only, and in either placement no other thread of this process notices. The namespace is, in
this order: the one that the kernel keeps for the task under `netns`; the one named by the option
`namespace`, a path; this process's own if the option is "host"; else a new one, made here and
kept.

The device lives as long as a descriptor of it, and the kernel keeps one, so the driver's death
harms nobody: the next incarnation finds the device, up and configured, as it was. If somebody
removes the device, a confined driver ends by a fault: making one takes rights that it has during
its start alone.

Changing hands. Who holds the link is decided by `consent`, and stored before it is told. Before the
next holder is lent the device, its descriptor is renewed (`attachment`), so that the former one has
none, and the host says so. Nothing here waits for a holder: one that hangs, lies or floods costs
those who ask their time-outs.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from typing import Annotated, ClassVar, Final

import msgspec
import trio

from core.errors import Refused, TaskError
from core.userlib.interface import Descriptor, Interface
from core.userlib.kept_value import KeptValue
from core.userlib.server import Server
from core.userlib.task import Task

from . import host_device, namespaces
from .attachment import SPARES, Attachment
from .consent import Consent, Ended
from .holdings import Waiters
from .host_device import HostDevice
from .link import EndedAsk, Link, LinkInfo, LinkState, PendingAsk
from .stack.routes import Prefix, station_address
from .wire import ParseError

HOST: Final = "host"
"""The value of the option `namespace` that joins the host's own network."""
LET_GO_S: Final = 1.0
"""How long the host may say that a device is in use: what a dying process had is closed late."""
_LOOK_AGAIN_S: Final = 0.005
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


class WornError(Exception):
    """Something has to be made or opened, the rights for which end with the start: start again."""


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
        self._snapshot = KeptValue(task, "consent")
        self._consent = Consent(self._snapshot.load())
        self._stored = self._consent.state.version
        self._watchers = Waiters()
        self._ends: dict[int, Ended | None] = {}
        """How the asks ended that somebody waits for, by number."""
        self._work = trio.Event()
        found = self._find_namespace(options.namespace)
        self._namespace = None if found is None else Descriptor(found)
        self._attachment = Attachment(task, self._wanted, self._namespace, offload=self._offload)
        self._began_with_spares = self._attachment.spares > 0  # else another start helps nothing
        self._made_at_start = False
        self._failures = 0
        self._failure = Refused(errno.EIO)
        self._take_up()

    @classmethod
    def rehearse(cls) -> None:
        """Read options."""
        options = msgspec.convert({}, type=Options)
        station_address("", Prefix.from_text(options.host_address))

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

    # -- the device --------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Take up the device that the kernel keeps, or make one."""
        state, attachment = self._consent.state, self._attachment
        if state.heir and attachment.find_kept(state.epoch + 1):
            self._complete()  # the renewal had been done but for saying so
            return
        if attachment.find_kept(state.epoch):
            return
        if state.heir:
            self._make_for_heir()
            return
        if state.used:
            return  # what is missing is attached for who comes: the old one may be in use
        try:
            attachment.attach(state.epoch)
        except OSError as error:
            reason = host_device.explain(error, self._wanted.name)
            raise TaskError(reason, error.errno or 0) from None

    def _make_for_heir(self) -> None:
        """Make a device that is gone, while a device can be made."""
        self._made_at_start = True
        with contextlib.suppress(OSError):  # `run` tries again, and says why not
            self._attachment.attach(self._consent.state.epoch + 1)
            self._complete()

    async def _renew(self) -> None:
        """Let go of the device and attach a fresh file, once nobody has the old one."""
        epoch = self._consent.state.epoch
        try:
            self._attachment.reserve()
        except OSError as error:
            if error.errno == errno.EPERM and self._began_with_spares:
                reason = "the files for changes of hands are used up; starting again to open some"
                raise WornError(reason) from error
            self._give_up(error)
            return
        self._attachment.let_go(epoch)
        give_up_at = time.monotonic() + LET_GO_S
        while True:
            try:
                self._attachment.attach(epoch + 1)
            except OSError as error:
                if error.errno == errno.EPERM and not self._made_at_start:
                    reason = f"{self._wanted.name} was removed; starting again to make it"
                    raise WornError(reason) from error
                if error.errno != errno.EBUSY or time.monotonic() >= give_up_at:
                    self._give_up(error)
                    return
            else:
                self._complete()
                return
            await trio.sleep(_LOOK_AGAIN_S)

    def _complete(self) -> None:
        self._consent.renewed()
        self._changed()

    def _give_up(self, error: OSError) -> None:
        name, number = self._wanted.name, error.errno or errno.EIO
        reason = host_device.explain(error, name)
        if number == errno.EBUSY:
            reason = f"{name} was not let go: a descriptor of it is still open somewhere"
        elif not self._attachment.spares:
            reason = f"the {SPARES} files for changes of hands are used up, and: {reason}"
        self.task.log(reason)
        self._failures += 1
        self._failure = Refused(number, reason)
        self._consent.not_renewed(number, reason)
        self._changed()

    # -- changes of the state ----------------------------------------------------------------------

    def _changed(self) -> None:
        """Store what has changed, if anything, and tell whoever waits for it."""
        version = self._consent.state.version
        if version == self._stored:
            return
        self._snapshot.store(self._consent.encode())
        self._stored = version
        last = self._consent.state.last
        if last is not None and last.number in self._ends:
            self._ends[last.number] = last
        self._watchers.wake()
        self._work.set()

    async def run(self) -> None:
        """Renew the link for heirs, and end asks whose time is over, until cancelled."""
        while True:
            self._work = trio.Event()
            if self._consent.state.heir:
                await self._renew()
                continue
            with trio.move_on_after(max(0.0, self._consent.deadline - time.monotonic())):
                await self._work.wait()
            self._consent.expire(time.monotonic())
            self._changed()

    def no_senders(self, badge: int) -> None:
        """A client's task was given up: it neither holds nor wants the link any more."""
        self._consent.gone(badge)
        self._changed()

    # -- operations --------------------------------------------------------------------------------

    async def lend(self) -> tuple[LinkInfo, Descriptor]:
        """Return the device, which is made again if it was removed, to its holder."""
        badge, failures = self.request.badge, self._failures
        while self._failures == failures:
            if self._claim(badge):
                if self._attachment.is_here:
                    return self.describe(), self._attachment.duplicate()
                self.task.log(f"{self._wanted.name} was removed; making it again")
                self._consent.renew()
                self._changed()
            await self._watchers.wait()
        raise self._failure

    def _claim(self, badge: int) -> bool:
        ready = self._consent.claim(badge)
        self._changed()
        return ready

    async def take_over(self, timeout_ms: int) -> None:
        """Ask the holder, and wait for how that ends."""
        request, now = self.request, time.monotonic()
        number = self._consent.ask(request.badge, request.id, now, timeout_ms / 1000)
        if not number:
            return
        self._ends[number] = self._consent.result(number)
        self._changed()
        try:
            await self._wait_for_end(number)
        finally:
            del self._ends[number]
            self._consent.withdraw(number)  # whoever asks does not wait any more
            self._changed()

    async def _wait_for_end(self, number: int) -> None:
        while True:
            ended = self._ends[number]
            if ended is not None:
                ended.check()
                return
            await self._watchers.wait()

    async def watch(self, version: int) -> LinkState:
        """Wait for another state."""
        badge = self.request.badge
        while self._consent.state.version == version:
            await self._watchers.wait()
        state, pending, last = self._consent.state, None, None
        if state.ask is not None and self._consent.deadline < math.inf:
            remaining_s = max(0.0, state.ask.deadline - time.monotonic())
            pending = PendingAsk(state.ask.number, state.ask.asker, remaining_s)
        if state.last is not None:
            ended = state.last
            last = EndedAsk(ended.asker, ended.holder, ended.outcome.value, ended.reason)
        name, mine = self._wanted.name, state.holder == badge
        return LinkState(state.version, name, state.holder, mine, pending, last)

    async def answer(self, number: int, yields: bool, reason: str) -> bool:
        """Take the holder's answer, and wait for what comes of a yes."""
        badge, now = self.request.badge, time.monotonic()
        counts = self._consent.answer(badge, number, yields, reason, now)
        self._changed()
        while counts and self._consent.result(number) is None and self._consent.state.heir:
            await self._watchers.wait()
        return counts and yields == (self._consent.state.holder != badge)

    def describe(self) -> LinkInfo:
        """Return what the link is like."""
        return LinkInfo(
            name=self._wanted.name,
            mtu=self._wanted.mtu,
            device_header=self._offload,
            checksum_offload=bool(self._attachment.offloads & host_device.OFFLOAD_CHECKSUM),
            udp_segmentation=bool(self._attachment.offloads & host_device.OFFLOAD_UDP),
            host_address=str(self._wanted.prefix),
        )

    def namespace(self) -> Descriptor:
        """Return the namespace that the host's side is in."""
        if self._namespace is None:
            raise Refused(errno.ENOENT, f"{self._wanted.name} is in the host's own namespace")
        return Descriptor(os.dup(self._namespace.fileno()))
