"""`python -m mount.chaos.echo SYSTEM`: ask for echoes over a system's link until told to end.

It is a process of its own because it enters the system's network namespace for good. It says a line
when it begins, ends when its standard input does, and then writes an `EchoReport`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Final

import msgspec

from core.errors import AtollError, Refused
from mount.network_entry import enter
from mount.obstacle import ObstacleError
from mount.run_directory import find_system

from .door import opened
from .probes import GAP_S, NOTED_S, EchoReport, Wait

LAST_ANSWER_S: Final = 2.0
"""For so long after the last question an answer may come."""
_REQUEST: Final = 8
_HEADER: Final = struct.Struct("!BBHHHd")
"""Type, code, checksum, identifier, sequence number; then when it was sent."""
_REPLY: Final = 0


def _checksum(octets: bytes) -> int:
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    total = (total & 0xFFFF) + (total >> 16)
    return int(~(total + (total >> 16)) & 0xFFFF)


class _Asker:
    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._identifier = os.getpid() & 0xFFFF
        self._missing: dict[int, float] = {}
        self.report = EchoReport()

    def ask(self) -> None:
        """Send one echo request."""
        number = self.report.sent & 0xFFFF
        now = time.monotonic()
        blank = _HEADER.pack(_REQUEST, 0, 0, self._identifier, number, now)
        octets = _HEADER.pack(_REQUEST, 0, _checksum(blank), self._identifier, number, now)
        if (older := self._missing.pop(number, None)) is not None:
            self.report.lost.append(older)  # 65,536 questions ago
        self._missing[number] = now
        self.report.sent += 1
        with contextlib.suppress(OSError):  # no room, or no way: then it counts as lost
            self._link.send(octets)

    def listen(self) -> None:
        """Take all answers that are there."""
        while True:
            try:
                octets = self._link.recv(2048)
            except BlockingIOError:
                return
            except OSError:
                continue  # the network reported an error
            now = time.monotonic()
            octets = octets[(octets[0] & 15) * 4 :]
            if len(octets) < _HEADER.size:
                continue
            kind, _, _, identifier, number, sent = _HEADER.unpack_from(octets)
            if kind != _REPLY or identifier != self._identifier:
                continue
            begin = self._missing.get(number)
            if begin is None or begin != sent:
                continue  # a second answer, as a network may give
            del self._missing[number]
            if len(octets) != _HEADER.size:
                self.report.wrong.append(f"ping: {len(octets)} octets for {_HEADER.size}")
            if now - begin >= NOTED_S:
                self.report.waits.append(Wait(begin, now))

    def run(self) -> None:
        """Ask until standard input ends, then give the last answers their time."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._link, select.POLLIN)
        due = time.monotonic()
        end = 0.0
        while not end or (self._missing and time.monotonic() < end):
            wait_ms = max(0.0, (due - time.monotonic()) * 1000)
            for number, _ in poll.poll(wait_ms):
                if number == 0:
                    poll.unregister(0)
                    end = time.monotonic() + LAST_ANSWER_S
            self.listen()
            if time.monotonic() >= due:
                due = time.monotonic() + GAP_S
                if not end:
                    self.ask()
        self.report.lost += sorted(self._missing.values())


def _linked(system: str) -> socket.socket:
    """Enter the network namespace and return a socket to the system's address.

    Raises:
        AtollError, ObstacleError, OSError: why that cannot be done here.
    """
    with opened(find_system(system).control_path) as door:
        address = door.ask(door.control.status()).address.partition("/")[0]
        try:
            namespace = door.namespace()
        except Refused:  # the link is in this very namespace
            namespace = -1
    if namespace >= 0:
        enter(namespace)
    link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    link.setblocking(False)
    link.connect((address, 0))
    return link


def main(system: str) -> None:
    """Ask, and report on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report = EchoReport()
    try:
        asker = _Asker(_linked(system))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        asker.run()
        report = asker.report
    except (AtollError, ObstacleError, OSError) as error:
        report.error = str(error)
        sys.stdout.write("not ready\n")
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
