"""The least that answers a ping under trio: what the network server's round trip is measured by.

    python -m tests.net_server.bare_responder DESCRIPTOR

`DESCRIPTOR` is a TAP device's, without device header. ARP requests and echo requests are answered
by swapping addresses; nothing is checked, counted, or looked up.
"""

from __future__ import annotations

import os
import sys

import trio

LINK = bytes((2, 0, 10, 90, 0, 2))


async def respond(descriptor: int) -> None:
    """Answer until cancelled."""
    os.set_blocking(descriptor, False)
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        while True:
            try:
                frame = bytearray(os.read(descriptor, 2048))
            except BlockingIOError:
                break
            kind = frame[12:14]
            if kind == b"\x08\x06" and frame[21] == 1:
                asker, address = frame[22:32], frame[38:42]
                frame[:12] = asker[:6] + LINK
                frame[21] = 2
                frame[22:42] = LINK + address + asker
            elif kind == b"\x08\x00" and frame[23] == 1 and frame[34] == 8:
                frame[:12] = frame[6:12] + frame[:6]
                frame[26:34] = frame[30:34] + frame[26:30]
                total = int.from_bytes(frame[36:38], "big") + 0x0800
                frame[34] = 0
                frame[36:38] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
            else:
                continue
            os.write(descriptor, frame)


if __name__ == "__main__":
    trio.run(respond, int(sys.argv[1]))
