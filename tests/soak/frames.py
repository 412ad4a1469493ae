"""`frames`: damaged and made-up frames, at the stack itself and at the TAP device of a system.

The stack gets them by the ten thousand in this process, with its limits looked at. The shipped
system gets them from the host's side of its link, with and without a virtio header before them,
and must go on answering: `ping` in both directions, and UDP echo, by the same incarnation.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from typing import Final

from scapy.layers.l2 import ARP, Ether

from core.errors import AtollError, Refused
from net_server.namespaces import run_inside
from net_server.network import Network
from net_server.stack import neighbors
from tests.net_server import test_hostile_frames as hostile
from tests.net_server.peer import BROADCAST_LINK, THEIR_LINK, Peer
from tests.support.live_system import LiveSystem

from .door import Door, opened, resident_kib
from .run import Run

_BURST: Final = 2000
_HOST: Final = "10.90.0.1"
_ATOLL: Final = "10.90.0.2"
_PATIENCE_S: Final = 20.0
_GROWTH_KIB: Final = 64 * 1024
_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_VNET: Final = struct.Struct("=BBHHHH")
_FROM_PEER: Final = "10.90.0.9"
"""In the frames for a live system, this stands for the host: nobody forges the host's own address
there, because answers to it would rightly go astray."""


def damaged(samples: list[bytes], chance: random.Random) -> bytearray:
    """Return a frame that has been changed here and there, cut, or lengthened."""
    frame = bytearray(chance.choice(samples))
    for _ in range(chance.randrange(5)):
        frame[chance.randrange(len(frame))] = chance.randrange(256)
    shape = chance.random()
    if shape < 0.1:
        del frame[chance.randrange(len(frame)) :]
    elif shape < 0.15:
        frame += chance.randbytes(chance.choice((1, 100, 1400)))
    elif shape < 0.2:
        frame[chance.randrange(len(frame)) :] = chance.randbytes(chance.randrange(200))
    if chance.random() < 0.7:
        hostile.mend(frame)
    return frame


def at_the_stack(run: Run, chance: random.Random) -> None:
    """One stack through a long flood, with time passing in leaps."""
    peer = hostile.prepared()
    frames = peer.stack.egress.frames
    for number in range(_BURST * 5):
        frame = damaged(hostile.SAMPLES, chance)
        gso = chance.choice((0, 0, 0, 1, 7, 1472, 65_535))
        peer.stack.receive_frame(memoryview(frame), peer.now, chance.randrange(4), gso)
        frames.clear()
        if number % 100 == 0:
            peer.pass_time(chance.choice((0.0, 0.1, 1.0, 70.0)))
            hostile.assert_bounded(peer)
    assert len(peer.send(Ether(src=THEIR_LINK, dst=BROADCAST_LINK) / Peer.request())) == 1
    run.count("frames at the stack", _BURST * 5)


class Link:
    """The host's side of a system's link, as a place to send any frame from."""

    def __init__(self, namespace: int, device: str) -> None:
        self._namespace = namespace
        self._device = device
        self.plain = self._open(vnet=False)
        self.with_header = self._open(vnet=True)
        self.link = self.plain.getsockname()[4]

    def _open(self, *, vnet: bool) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            if vnet:
                made.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            made.bind((self._device, 0))
            return made

        return run_inside(self._namespace, make)

    def udp(self) -> socket.socket:
        """Return a UDP socket of the host."""
        return run_inside(self._namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def send(self, frame: bytes, chance: random.Random) -> bool:
        """Send a frame; False when the host itself will not have it."""
        with contextlib.suppress(OSError):
            if chance.random() < 0.3:
                kind = chance.choice((0, 0, 1, 3, 4, 5))
                sizes = (chance.choice((0, 14, 34, 42, 1000)) for _ in range(4))
                self.with_header.send(_VNET.pack(chance.randrange(2), kind, *sizes) + frame)
            else:
                self.plain.send(frame)
            return True
        return False

    def introduce(self, atoll: bytes) -> None:
        """Tell the system the host's true link address, whatever it was told before."""
        request = ARP(op=1, hwsrc=self.link, psrc=_HOST, pdst=_ATOLL)
        self.plain.send(bytes(Ether(src=self.link, dst=atoll) / request))

    def close(self) -> None:
        """Close the sockets."""
        self.plain.close()
        self.with_header.close()


class Live:
    """A system, its link, and whether it still answers."""

    def __init__(self, run: Run, door: Door, link: Link) -> None:
        self._run = run
        self._door = door
        self._link = link
        self._net = door.connect(Network, "net")
        self._atoll = door.ask(self._net.addresses())[0].link
        self.samples = [self._readdress(frame) for frame in hostile.SAMPLES]
        self.before = door.servers()
        self.memory_kib = {
            name: resident_kib(task.pid) for name, task in self.before.items() if task.pid
        }

    def _readdress(self, frame: bytes) -> bytes:
        """Return a sample as if it came from another station of this link."""
        octets = bytearray(frame)
        octets[:6] = self._atoll if octets[0] != 0xFF else octets[:6]
        octets = octets.replace(bytes((10, 90, 0, 1)), socket.inet_aton(_FROM_PEER))
        hostile.mend(octets)
        return bytes(octets)

    def burst(self, chance: random.Random) -> None:
        """Send many frames, and see that the system answers as before."""
        sent = sum(
            self._link.send(bytes(damaged(self.samples, chance)), chance) for _ in range(_BURST)
        )
        self._run.count("frames at the device", sent)
        deadline = time.monotonic() + _PATIENCE_S
        while wrong := self._wrong():
            if time.monotonic() > deadline:
                self._run.lose(f"for {_PATIENCE_S:g} s after a burst: {wrong}")
                return
        self._run.count("bursts answered")
        self._look()

    def _wrong(self) -> str:
        """Return what does not work now; "" if all does."""
        self._link.introduce(self._atoll)
        try:
            echo = self._door.ask(self._net.ping(socket.inet_aton(_HOST), 1000, b"still there"))
        except Refused as refused:
            return f"ping of the host: {refused!r}"
        if not echo.intact:
            return "ping of the host: octets changed"
        with self._link.udp() as asking:
            asking.settimeout(1)
            asking.connect((_ATOLL, 7))
            try:
                asking.send(b"still there")
                answer = asking.recv(100)
            except OSError as error:
                return f"udp echo: {error}"
        return "" if answer == b"still there" else f"udp echo: {answer!r}"

    def _look(self) -> None:
        """Nothing ended, and nothing grows beyond its limits."""
        known = len(self._door.ask(self._net.neighbors()))
        self._run.check(known <= neighbors.ENTRIES_LIMIT, f"{known} neighbors")
        for name, task in self._door.servers().items():
            if task.generation != self.before[name].generation:
                words = self._door.ask(self._door.control.last_words(name))
                self._run.lose(f"{name} ended: {words[-1:]}")
                self.before[name] = task

    def growth(self) -> dict[str, int]:
        """Return by how many KiB each server's process grew, if it is the same one."""
        tasks = self._door.servers()
        return {
            name: resident_kib(tasks[name].pid) - size
            for name, size in self.memory_kib.items()
            if tasks[name].pid == self.before[name].pid
        }


def frames(run: Run) -> None:
    """Flood the stack and the device in turns; see the module head."""
    system = LiveSystem(f"frames{run.seed % 10_000}")
    try:
        system.up("--no-mount")
        with opened(system) as door:
            namespace = door.namespace()
            link = Link(namespace, door.ask(door.control.status()).interface)
            try:
                _flood(run, Live(run, door, link))
            finally:
                link.close()
                socket.close(namespace)
        done = system.atoll("down")
        run.check(done.returncode == 0, f"down: {done.stdout}{done.stderr}")
        run.check(not system.living(), f"down left {system.living()}")
    finally:
        system.close()


def _flood(run: Run, live: Live) -> None:
    chance = run.random("turns")
    run.begin_now()
    while not run.over():
        seed = chance.getrandbits(32)
        for name, turn in (("stack", lambda c: at_the_stack(run, c)), ("device", live.burst)):
            try:
                turn(random.Random(seed))
            except (AssertionError, AtollError, OSError, ValueError, LookupError) as error:
                run.lose(f"{name}, seed {seed}: {type(error).__name__}: {str(error)[:500]}")
    growth = live.growth()
    run.facts.append(", ".join(f"{name} grew by {kib} KiB" for name, kib in growth.items() if kib))
    for name, kib in growth.items():
        run.check(kib < _GROWTH_KIB, f"{name} grew by {kib} KiB")
