"""Frames on their way out, as lists of buffers that the owner of the link writes with one writev.

The buffers of a frame may alias what its sender was given: write them (or copy them) before that
is reused. The queue is bounded; it is emptied after every frame and every request, so only a
burst that one event sets off has to fit.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from net_server.wire import Octets

from .counters import Counters

FRAMES_LIMIT: Final = 4096

Buffers: TypeAlias = tuple[Octets, ...]
"""One frame; the device's own header comes first where there is one."""


class Egress:
    """The queue of frames to be sent. `frames` is emptied by the owner of the link."""

    __slots__ = ("_counters", "_device_header", "frames")

    def __init__(self, counters: Counters, *, device_header: bool) -> None:
        self._counters = counters
        self._device_header = device_header
        self.frames: list[Buffers] = []

    def send(self, device: bytes, head: bytes, body: Octets) -> None:
        """Queue one frame.

        Args:
            device: the header for the TAP device; left out where the device takes none.
            head: from the Ethernet header on.
        """
        counters = self._counters
        if len(self.frames) >= FRAMES_LIMIT:
            counters.if_out_discards += 1
            return
        counters.if_out_pkts += 1
        counters.if_out_octets += len(head) + len(body)
        self.frames.append((device, head, body) if self._device_header else (head, body))
