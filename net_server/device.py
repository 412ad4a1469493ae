"""Frames between a TAP device's descriptor and a `Stack`: the hot loop, without a scheduling step.

The descriptor does not block. One buffer receives every frame, so a frame's consequences are
written before the next is read. What the device refuses to take is dropped and counted, as a wire
would.
"""

from __future__ import annotations

import errno
import os
from typing import Final

import trio

from .capture import INBOUND, OUTBOUND, Captures
from .stack.stack import Stack
from .wire import vnet

DRAIN_LIMIT: Final = 64
"""Frames handled before others get their turn."""
_NONE: Final = -1
_BUFFER_SIZE: Final = 70_000
"""More than the largest frame: 64 KiB of packet, Ethernet and virtio headers."""


class DeviceGoneError(Exception):
    """The device behind the descriptor does not exist any more."""


class Device:
    """The descriptor of a TAP device, owned, with the stack it feeds; at first it has none.

    Without a descriptor the link is down: there is nothing to read, and what is sent is dropped.
    """

    def __init__(self, stack: Stack, captures: Captures) -> None:
        self.descriptor = _NONE
        self._stack = stack
        self._captures = captures
        self._buffer = bytearray(_BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._offset = vnet.SIZE if stack.configuration.device_header else 0

    @property
    def is_up(self) -> bool:
        """Whether there is a descriptor."""
        return self.descriptor != _NONE

    def release(self) -> None:
        """Close the descriptor, if there is one; who waits for it gets ClosedResourceError."""
        if self.is_up:
            descriptor, self.descriptor = self.descriptor, _NONE
            trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)

    def replace(self, descriptor: int) -> None:
        """Go on with another descriptor, owned, of a device of the same kind."""
        os.set_blocking(descriptor, False)
        self.release()
        self.descriptor = descriptor

    def announce(self) -> None:
        """Tell the link that we are on it."""
        self._stack.neighbors.announce()
        self.flush(trio.current_time())

    def drain(self, now: float) -> int:
        """Read and handle frames until there are none, or `DRAIN_LIMIT`; return how many.

        A link that is down has none.

        Raises:
            DeviceGoneError: the device was removed.
        """
        buffer, view, offset = self._buffer, self._view, self._offset
        stack, captures = self._stack, self._captures
        receive_frame, frames = stack.receive_frame, stack.egress.frames
        descriptor = self.descriptor
        if descriptor == _NONE:
            return 0
        for count in range(DRAIN_LIMIT):
            try:
                size = os.readv(descriptor, (buffer,))
            except BlockingIOError:
                return count
            except OSError as error:
                self._fail(error)
                return count
            flags = gso_size = 0
            if offset:
                flags = buffer[0]
                if buffer[1]:
                    gso_size = vnet.parse(view).gso_size
            frame = view[offset:size]
            if captures:
                captures.record(INBOUND, now, view[:offset], frame)
            receive_frame(frame, now, flags, gso_size)
            if frames:
                self.flush(now)
        return DRAIN_LIMIT

    def flush(self, now: float) -> None:
        """Write the frames that the stack wants sent."""
        frames = self._stack.egress.frames
        captures = self._captures
        if self.descriptor == _NONE:
            self._stack.counters.if_out_discards += len(frames)
            frames.clear()
        for buffers in frames:
            if captures:
                captures.record_buffers(OUTBOUND, now, buffers, header=self._offset > 0)
            try:
                os.writev(self.descriptor, buffers)
            except BlockingIOError:
                self._stack.counters.if_out_discards += 1
            except OSError:
                self._stack.counters.if_out_errors += 1
        frames.clear()

    def _fail(self, error: OSError) -> None:
        """Tell a device that is down, which will be up again, from one that is gone."""
        self._stack.counters.if_in_errors += 1
        if error.errno in {errno.EBADFD, errno.ENODEV, errno.EBADF}:
            raise DeviceGoneError(os.strerror(error.errno)) from error
