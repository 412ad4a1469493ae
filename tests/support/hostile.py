"""A client that keeps no rule: raw packets on a joined line, random but seeded."""

from __future__ import annotations

import contextlib
import os
import random
import socket

from core.abi import HEADER, HEADER_SIZE, NAME, NO_SLOT, PACKET_LIMIT, SELF, Kind
from core.system.boot import System
from core.userlib.interface import Interface, encode
from core.userlib.kernel_calls import KernelCalls

_WORDS = (0, 1, 2, 3, 7, 15, 16, 64, 255, 1024, 4096, 4097, 65_535, 2**20, 2**31 - 1, 2**31)
_WIDE = (*_WORDS, 2**32 - 1)
_VALUES: tuple[object, ...] = (
    0, 1, -1, 2**63, -(2**63), 2**64 - 1, 1.5, float("nan"), "", "x", "\0", "é" * 300, b"", b"\xff",
    None, True, [], [[]], {}, {"x": 1}, ["a"] * 50, "names", "probe", "x" * 5000,
)  # fmt: skip


class Hostile:
    """A joined program, seen from its own end of the line.

    Args:
        system: what it joined.
        seed: what it does follows from this.
        interfaces: what serves behind the names it was granted, to aim better.
    """

    def __init__(self, system: System, seed: int, interfaces: dict[str, type[Interface]]) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.task = system.join(ours, 0)
        self.socket.setblocking(False)
        self._random = random.Random(seed)
        self._interfaces = {
            number: interfaces[name] for name, number in self.task.grants.items()
        } | {SELF: KernelCalls}
        self.errors = 0
        self.answers = 0
        self.read()

    def read(self) -> None:
        """Read whatever was answered."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                data, ancillary, _, _ = self.socket.recvmsg(PACKET_LIMIT * 2, 1024)
                if not data:
                    return
                for _, _, numbers in ancillary:
                    for start in range(0, len(numbers), 4):
                        os.close(int.from_bytes(numbers[start : start + 4], "little"))
                if len(data) >= HEADER_SIZE and data[0] == Kind.ERROR:
                    self.errors += 1
                else:
                    self.answers += 1

    def send(self, packet: bytes, descriptors: int = 0) -> None:
        """Send one packet; the answers are read when there is no room."""
        with contextlib.suppress(BlockingIOError, ConnectionError, OSError):
            if descriptors:
                socket.send_fds(self.socket, [packet], [0] * descriptors)
            else:
                self.socket.send(packet)

    def attack(self) -> None:
        """Send one packet of some kind."""
        choose = self._random
        kind = choose.choice((self._noise, self._header, self._call, self._call, self._mutated))
        descriptors = choose.choice((0, 0, 0, 0, 1, 2, 17))
        self.send(kind(), descriptors)

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.choice((1, 10, HEADER_SIZE, 100, 5000)))

    def _header(self) -> bytes:
        choose = self._random
        fields, bulk = (
            choose.randbytes(choose.randrange(40)),
            choose.randbytes(choose.randrange(40)),
        )
        rights = choose.choice((0, 0, 0, 1, 2, 16, 17))
        return (
            HEADER.pack(
                choose.choice((*Kind, 0, 12, 255)),
                choose.randrange(256),
                choose.choice((0, 1, 2, 5, 30, 65_535)),
                choose.choice(_WIDE),
                choose.choice((*_WIDE, 2**63, 2**64 - 1)),
                choose.choice((*_WIDE, 2**63, 2**64 - 1)),
                choose.choice((len(fields), len(fields), choose.choice(_WIDE))),
                choose.choice((len(bulk), len(bulk), choose.choice(_WIDE))),
                choose.choice((NO_SLOT, NO_SLOT, choose.choice(_WIDE))),
                choose.choice((0, 0, choose.choice(_WIDE))),
                choose.choice((0, 0, 1, choose.choice(_WIDE))),
                rights,
                choose.choice((0, 0, 0, 1, 17)),
            )
            + b"".join(NAME.pack(choose.choice(_WIDE)) for _ in range(min(rights, 16)))
            + fields
            + bulk
        )

    def _call(self) -> bytes:
        """Return a call that is right but for its arguments, or wholly."""
        choose = self._random
        name = choose.choice(list(self._interfaces))
        spec = choose.choice(self._interfaces[name].OPERATIONS)
        values = [choose.choice(_VALUES) for _ in spec.field_types]
        for place, wanted in enumerate(spec.field_types):
            if choose.random() < 0.7:
                fitting = [value for value in _VALUES if type(value) is wanted]
                values[place] = choose.choice(fitting) if fitting else values[place]
        fields = encode(tuple(values))
        bulk = choose.randbytes(choose.choice((0, 1, 4096))) if spec.bulk else b""
        room = choose.choice((0, spec.room_of(tuple(values)))) if spec.room else 0
        slot = choose.choice((NO_SLOT, 1024, 1024 + 63, 0, 5000)) if room > 4096 else NO_SLOT
        rights = [choose.choice((1, *self._interfaces, 99)) for _ in range(spec.rights)]
        header = HEADER.pack(
            choose.choice((Kind.CALL, Kind.CALL, Kind.CALL, Kind.SEND)),
            0,
            spec.index,
            name,
            choose.randrange(1, 2**40),
            0,
            len(fields),
            len(bulk),
            slot,
            room,
            choose.choice((0, 0, 5)),
            len(rights),
            0,
        )
        return header + b"".join(NAME.pack(right) for right in rights) + fields + bulk

    def _mutated(self) -> bytes:
        packet = bytearray(self._call())
        for _ in range(self._random.randrange(1, 4)):
            packet[self._random.randrange(len(packet))] = self._random.randrange(256)
        return bytes(packet[: self._random.choice((len(packet), len(packet), len(packet) // 2))])

    def close(self) -> None:
        """Leave."""
        self.socket.close()
