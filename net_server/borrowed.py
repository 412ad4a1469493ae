"""The network server's end of a link: it borrows the descriptor, pumps frames, and may give it up.

Theory of operation. One task pumps: it drains the descriptor in a plain loop, in which ARP, ICMP
and UDP are handled without any scheduling step, and waits for readability only when the descriptor
was found empty. Another one keeps a call to the driver open that returns whenever something changes
about who holds the link (`_follow`), and makes what is here agree with it: it borrows the link when
this server has become its holder, and answers those who ask for it.

To yield is to handle what the host has sent so far, to close the descriptor, and only then to say
so: the answers are on the link by then. From there on the link is down: what the stack sends is
dropped, and clients that want to send are refused with ENETDOWN. Sockets stay bound.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from typing import Final

import trio

from core.errors import Refused, TaskError
from core.userlib.interface import Descriptor
from core.userlib.task import Task

from .device import DRAIN_LIMIT, Device, DeviceGoneError
from .holdings import Waiters
from .link import Link, LinkInfo, LinkState, PendingAsk

LAST_DRAINS: Final = 16
"""Turns of `Device.drain` before a link is given up: a host that never ceases to send cannot keep
it."""
_PAUSE_S: Final = 0.5
"""Before the driver is asked again for what it has refused."""


async def look(task: Task, link: Link, *, standby: bool) -> tuple[LinkInfo, Descriptor | None]:
    """Return what a link is, and its descriptor, if it is ours or nobody's.

    Args:
        standby: do not borrow one that is nobody's.
    """
    if standby and not (await link.watch(0)).mine:
        return await link.describe(), None
    try:
        return await link.lend()
    except Refused as refusal:
        if refusal.errno != errno.EBUSY:
            raise
        info = await link.describe()
        task.log(f"{info.name} is down here: {refusal.detail}")
        return info, None


class BorrowedLink:
    """A link that this server holds, or would hold.

    Attributes:
        device: descriptor and stack; it has no descriptor while the link is down.
    """

    def __init__(self, task: Task, link: Link, info: LinkInfo, device: Device) -> None:
        """Begin with a link that is down.

        Args:
            info: what the device was made for.
        """
        self.device = device
        self._task = task
        self._link = link
        self._info = info
        self._changed = Waiters()

    @property
    def name(self) -> str:
        """The host's name for the device."""
        return self._info.name

    def check_up(self) -> None:
        """Raise ENETDOWN while the link is down."""
        if not self.device.is_up:
            raise Refused(errno.ENETDOWN, f"{self.name} is not held by {self._task.name}")

    async def _borrow(self) -> None:
        info, descriptor = await self._link.lend()
        if info != self._info:
            raise TaskError(f"{self.name} is another device than before: {info}")
        self.take_up(descriptor)

    def take_up(self, descriptor: Descriptor) -> None:
        """Take the link up with its descriptor, which is its own from now on."""
        self.device.replace(descriptor.take())
        self.device.announce()
        self._changed.wake()

    async def take_over(self, timeout_ms: int) -> None:
        """Ask for the link, and return when it is up here. Refused: see `Link.take_over`."""
        await self._link.take_over(timeout_ms)
        while not self.device.is_up:  # `follow` learns of it too, and borrows it
            with trio.move_on_after(_PAUSE_S):
                await self._changed.wait()
                continue
            if not (await self._link.watch(0)).mine:
                raise Refused(errno.EBUSY, f"{self.name} has been taken over again")

    def close(self) -> None:
        """Close the descriptor."""
        self.device.release()

    async def pump(self, handled: Callable[[], None]) -> None:
        """Handle frames until cancelled; call `handled` after each turn."""
        device = self.device
        while True:
            try:
                count = device.drain(trio.current_time())
                handled()
                if not device.is_up:
                    await self._changed.wait()
                elif count < DRAIN_LIMIT:
                    await trio.lowlevel.wait_readable(device.descriptor)
                else:
                    await trio.lowlevel.checkpoint()
            except trio.ClosedResourceError:
                continue  # given up while we waited
            except DeviceGoneError as error:
                self._task.log(f"{self.name}: {error}; asking the driver for the device again")
                await self._borrow()

    async def follow(self, decide: Callable[[], str]) -> None:
        """Be told of everything about who holds the link, until cancelled.

        Args:
            decide: returns why the link is not given up, or "" if it is.
        """
        version = 0
        while True:
            state = await self._link.watch(version)
            version = state.version
            try:
                await self._agree(state, decide)
            except Refused as refusal:
                self._task.log(f"{self.name}: {refusal.detail}")
                version = 0
                await trio.sleep(_PAUSE_S)

    async def _agree(self, state: LinkState, decide: Callable[[], str]) -> None:
        if not state.mine:
            self.device.release()
            return
        if state.pending is not None:
            await self._answer(state.pending, decide())
        elif not self.device.is_up:
            await self._borrow()
            self._task.log(f"{self.name} is up here")

    async def _answer(self, ask: PendingAsk, reason: str) -> None:
        if reason:
            await self._link.answer(ask.number, False, reason)
            return
        with contextlib.suppress(DeviceGoneError):
            for _ in range(LAST_DRAINS):
                if self.device.drain(trio.current_time()) < DRAIN_LIMIT:
                    break
        self.device.release()
        if await self._link.answer(ask.number, True, ""):
            self._task.log(f"{self.name} was given up to the task with badge {ask.asker}")
        else:
            await self._borrow()
