"""A hostile task's own end of its line: any packet goes out, and every answer is counted."""

from __future__ import annotations

import collections
import itertools
import os
import select
import socket
from typing import Any, Final

import msgspec

from core.abi import HEADER, HEADER_SIZE, NAME, NO_SLOT, PACKET_LIMIT, SELF, Kind
from core.errors import from_wire
from core.userlib.interface import encode
from core.userlib.isolated import IsolatedTask
from core.userlib.kernel_calls import KernelCalls
from core.userlib.line import ANCILLARY_SIZE, descriptors_in

_decode_error: Final = msgspec.msgpack.Decoder(tuple[int, int, str]).decode
_FIRST_NUMBER: Final = 1 << 40
"""Of this wire's calls: far from those of the library."""
_PATIENCE_S: Final = 20.0
_TURN: Final = 32
"""Packets after which it reads what was answered."""


class Wire:
    """See the module head. It belongs to the task's only thread, for as long as a way out lasts.

    Attributes:
        errors: how often each error came.
        first: the first error, in words.
        names: of the rights that came with replies.
        requests: that the kernel delivered meanwhile: nobody answers them.
    """

    def __init__(self, task: IsolatedTask) -> None:
        self._socket = task.line.socket
        self._numbers = itertools.count(_FIRST_NUMBER).__next__
        self._answered = self._sent = 0
        self.errors: collections.Counter[str] = collections.Counter()
        self.first = ""
        self.names: list[int] = []
        self.requests: list[int] = []

    def send(
        self,
        kind: int,
        fields: bytes = b"",
        *,
        operation: int = 0,
        name: int = SELF,
        request: int = 0,
        rights: tuple[int, ...] = (),
        descriptors: tuple[int, ...] = (),
        bulk: int = 0,
        slot: int = NO_SLOT,
        room: int = 0,
    ) -> None:
        """Send a packet; take what comes while there is no room for it."""
        header = HEADER.pack(
            kind, 0, operation, name, request or self._numbers(), 0, len(fields), bulk, slot, room,
            0, len(rights), len(descriptors),
        )  # fmt: skip
        self.raw(b"".join([header, *(NAME.pack(right) for right in rights), fields]), descriptors)

    def raw(self, octets: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Send any octets. OSError: the line is closed."""
        self._sent += 1
        if self._sent % _TURN == 0:
            self.take()
        while True:
            try:
                socket.send_fds(self._socket, [octets], list(descriptors), socket.MSG_DONTWAIT)
            except BlockingIOError:
                select.select([self._socket], [self._socket], [], _PATIENCE_S)
                self.take()
            else:
                return

    def kernel(self, call: str, *arguments: Any, **carried: Any) -> None:
        """Send a kernel call."""
        operation = KernelCalls.named(call).index
        self.send(Kind.CALL, encode(arguments), operation=operation, **carried)

    def take(self) -> None:
        """Take everything that has come."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    PACKET_LIMIT * 2, ANCILLARY_SIZE, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            for number in descriptors_in(ancillary):
                os.close(number)
            if not data:
                raise ConnectionResetError("the kernel has closed the line")
            self._note(data)

    def _note(self, data: bytes) -> None:
        kind, _, _, _, number, _, size, _, _, _, _, rights, _ = HEADER.unpack_from(data)
        start = HEADER_SIZE + rights * NAME.size
        if kind == Kind.PING:
            self.send(Kind.PONG)
        elif kind in (Kind.CALL, Kind.SEND):
            self.requests.append(number)
        elif kind == Kind.ERROR:
            error = from_wire(*_decode_error(data[start : start + size]))
            text = f"{type(error).__name__}: {error.detail}"
            self.errors[type(error).__name__] += 1
            self.first = self.first or text
            self._answered = max(self._answered, number)
        elif kind == Kind.REPLY:
            self.names += [name for (name,) in NAME.iter_unpack(data[HEADER_SIZE:start])]
            self._answered = max(self._answered, number)

    def settle(self) -> str:
        """Wait until the kernel has answered everything; return the first error, "" if none."""
        last = self._numbers()
        self.send(Kind.CALL, encode((1,)), operation=KernelCalls.named("inspect").index,
                  request=last)  # fmt: skip
        while self._answered < last:
            assert select.select([self._socket], [], [], _PATIENCE_S)[0], "no answer"
            self.take()
        return self.first
