"""A program that joins a running system like any other, and keeps no rule from then on."""

from __future__ import annotations

import contextlib
import random
import socket
import types
from collections.abc import Callable
from typing import Any, Final

from core.abi import HEADER, HEADER_SIZE, NAME, NO_SLOT, SELF, Kind
from core.system.names import Names
from core.system.pipe import Pipes
from core.userlib.interface import Interface, Operation, encode
from core.userlib.isolated import IsolatedTask, TaskRight
from core.userlib.joined import join
from core.userlib.kernel_calls import KernelCalls, Supervision
from core.userlib.task import complete
from fs_server.disk import Disk
from fs_server.interface import FileSystem
from mount.control import Control
from net_server.link import Link
from net_server.network import Network
from tests.support.hostile import Hostile
from tests.support.live_system import LiveSystem

from .wellformed import value

GRANTED: Final[dict[str, type[Interface]]] = {
    "control": Control,
    "names": Names,
    "pipe": Pipes,
    "fs": FileSystem,
    "net": Network,
}
BY_CONTROL: Final[dict[str, type[Interface]]] = {
    "disk": Disk,
    "tap": Link,
    "echo": Interface,
    "supervisor": Supervision,
}
"""Servers whose ports no program is granted; the owner of the system gets them from `control`."""
_BY_RIGHT: Final[dict[type[Interface], tuple[str, ...]]] = {
    Control: ("kill", "restart", "reload", "shut_down", "port_of"),
    Disk: ("write", "discard"),
}
"""What harms a system by right, so that it proves nothing."""


class Intruder(Hostile):
    """`Hostile`, through the control socket of a system in other processes.

    Args:
        harmless: told inode numbers that belong to others; they are not aimed at, because a client
            of the file server may write to any file by right.
    """

    def __init__(
        self, system: LiveSystem, seed: int, harmless: Callable[[int], bool] = lambda inode: True
    ) -> None:
        self._left = contextlib.ExitStack()
        task: IsolatedTask = self._left.enter_context(join(system.run.control_path))
        control = task.connect(Control, "control")
        self._interfaces = {SELF: KernelCalls}
        for name, interface in GRANTED.items():
            right = task.rights[name]
            assert isinstance(right, TaskRight)
            self._interfaces[right.name] = interface
        for name, interface in BY_CONTROL.items():
            right = complete(control.port_of(name))
            assert isinstance(right, TaskRight)
            if interface.OPERATIONS:
                self._interfaces[right.name] = interface
        self.socket: socket.socket = task.line.socket
        self.socket.setblocking(False)
        self.name = task.name
        self.task = types.SimpleNamespace(grants={})  # type: ignore[assignment]
        self._random = random.Random(seed)
        self._harmless = harmless
        self.errors = 0
        self.answers = 0
        self.ended = False

    def act(self) -> None:
        """Send one packet: malformed ones, and ones of the right form with any arguments."""
        if self._random.random() < 0.5:
            self.attack()
        else:
            self.send(self._wellformed())

    def send(self, packet: bytes, descriptors: int = 0) -> None:
        """Send one packet, unless it is what an owner of the system may do by right."""
        if not self._is_by_right(packet):
            super().send(packet, descriptors)

    def _is_by_right(self, packet: bytes) -> bool:
        if len(packet) < HEADER_SIZE:
            return False
        operation, name = HEADER.unpack_from(packet)[2:4]
        interface = self._interfaces.get(name, Interface)
        harmful = _BY_RIGHT.get(interface, ())
        return any(interface.named(each).index == operation for each in harmful)

    def _wellformed(self) -> bytes:
        chance = self._random
        names = list(self._interfaces)
        name = chance.choice(names)
        spec = chance.choice(self._interfaces[name].OPERATIONS)
        values = self._arguments(spec)
        fields = encode(tuple(values))
        bulk = chance.randbytes(chance.choice((0, 1, 1000, 4096))) if spec.bulk else b""
        room = spec.room_of(tuple(values)) if spec.room else 0
        slot = chance.randrange(1024, 1088) if room > 4096 else NO_SLOT
        inline = len(bulk) if slot == NO_SLOT else 0
        rights = [chance.choice(names) for _ in range(spec.rights)]
        header = HEADER.pack(
            Kind.CALL, 0, spec.index, name, chance.randrange(1, 1 << 40), 0, len(fields), len(bulk),
            slot, room, chance.choice((0, 1, 20)), len(rights), 0,
        )  # fmt: skip
        return header + b"".join(map(NAME.pack, rights)) + fields + bulk[:inline]

    def _arguments(self, spec: Operation) -> list[Any]:
        while True:
            values = [value(wanted, self._random) for wanted in spec.field_types]
            numbers = [number for number in values if isinstance(number, int)]
            if spec.interface != "FileSystem" or all(map(self._harmless, numbers)):
                return values

    def close(self) -> None:
        """Leave."""
        self._left.close()
