"""A stack under test, and the host beside it played by scapy: frames in, dissected frames out."""

from __future__ import annotations

import random
from typing import Any

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from net_server.stack.routes import Prefix
from net_server.stack.stack import Configuration, Stack
from net_server.wire import ipv4

OURS = "10.90.0.2"
THEIRS = "10.90.0.1"
OTHER = "10.90.0.77"
ELSEWHERE = "192.0.2.9"
OUR_LINK = "02:00:0a:5a:00:02"
THEIR_LINK = "02:00:0a:5a:00:01"
BROADCAST_LINK = "ff:ff:ff:ff:ff:ff"


def number(address: str) -> int:
    return ipv4.from_text(address)


def link(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


class Peer:
    """A stack with the address OURS, and what is needed to talk to it. Time stands still."""

    def __init__(self, *, known: bool = True, gateway: str | None = None, **options: Any) -> None:
        self.now = 1000.0
        configuration = Configuration(
            link=link(OUR_LINK),
            prefix=Prefix.from_text(f"{OURS}/24"),
            gateway=None if gateway is None else number(gateway),
            **options,
        )
        self.stack = Stack(configuration, random.Random(7).getrandbits)
        if known:
            self.send(Ether(src=THEIR_LINK, dst=OUR_LINK) / self.request())

    @staticmethod
    def request(source: str = THEIRS, sender_link: str = THEIR_LINK, target: str = OURS) -> ARP:
        return ARP(op=1, hwsrc=sender_link, psrc=source, hwdst="00:00:00:00:00:00", pdst=target)

    def send(self, frame: Packet | bytes, flags: int = 0, gso_size: int = 0) -> list[Packet]:
        """Give the stack a frame and return what it answers, dissected by scapy."""
        octets = bytearray(bytes(frame))
        self.stack.receive_frame(memoryview(octets), self.now, flags, gso_size)
        for index in range(len(octets)):  # the buffer belongs to the next frame now
            octets[index] = 0xEE
        return self.sent()

    def sent(self) -> list[Packet]:
        """Return, and forget, what the stack wants sent."""
        skip = 1 if self.stack.configuration.device_header else 0
        frames: list[Packet] = [
            Ether(b"".join(buffers[skip:])) for buffers in self.stack.egress.frames
        ]
        self.stack.egress.frames.clear()
        return frames

    def pass_time(self, seconds: float) -> list[Packet]:
        """Let time pass, handling timers whenever they are due, and return what was sent."""
        end = self.now + seconds
        frames: list[Packet] = []
        while (deadline := self.stack.next_deadline(self.now)) <= end:
            self.now = max(self.now, deadline)
            self.stack.handle_timers(self.now)
            frames += self.sent()
        self.now = end
        return frames

    def packet(self, source: str = THEIRS, destination: str = OURS, **fields: Any) -> Packet:
        """Return a frame to the stack that carries an IP header; divide it by what follows."""
        return Ether(src=THEIR_LINK, dst=OUR_LINK) / IP(src=source, dst=destination, **fields)

    def count(self, name: str) -> int:
        return self.stack.counters.statistics()[name]


def is_intact(frame: Packet) -> bool:
    """Return whether scapy, building the frame again, gets the very same octets."""
    again = frame.copy()
    for layer in (IP, ICMP, UDP):
        if layer in again:
            del again[layer].chksum
            if layer is not ICMP:
                del again[layer].len
    return bytes(again) == bytes(frame)
