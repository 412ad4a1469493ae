"""Messages of the /dev/fuse protocol, valid by chance and spoilt by chance.

    python -m tests.support.protocol_messages COUNT [SEED]

spoils COUNT messages, and says so if any makes the decoder fail in another way than it may.
"""

from __future__ import annotations

import random
import struct
import sys
from typing import Any, Final

from mount.native.protocol.decoding import Decoder
from mount.native.protocol.encoding import encode_request
from mount.native.protocol.extensions import Extensions
from mount.native.protocol.malformed import MalformedError
from mount.native.protocol.operations import OPERATIONS, Operation, Tail
from mount.native.protocol.requests import Request

HEADER: Final = 40


def sample(line: Operation, chance: random.Random) -> Request:
    """Return a well-formed request of one operation."""

    def number(size: int) -> int:
        return chance.choice((0, 1, chance.getrandbits(8 * size), (1 << 8 * size) - 1))

    def octets(most: int) -> bytes:
        return chance.randbytes(chance.randrange(most))

    def name() -> bytes:
        return chance.randbytes(chance.randrange(1, 40)).replace(b"\0", b"/")

    members: list[Any] = [line.opcode.value, *map(number, (8, 8, 4, 4, 4))]
    if line.tail is not Tail.RECORDS:
        for member in line.layout.members:
            size = line.layout.offsets[member][1]
            members.append(number(size) if size <= 8 else chance.randbytes(size))
    match line.tail:
        case Tail.NAME:
            members.append(name())
        case Tail.TWO_NAMES:
            members += [name(), name()]
        case Tail.DATA | Tail.NAME_AND_DATA:
            data = octets(100)
            wanted = "in_size" if "in_size" in line.layout.members else "size"
            members[6 + line.layout.members.index(wanted)] = len(data)
            members += [name(), data] if line.tail is Tail.NAME_AND_DATA else [data]
        case Tail.RECORDS:
            members.append([(number(8), number(8)) for _ in range(chance.randrange(5))])
        case Tail.NOTHING:
            pass
    if line.extended:
        contexts = tuple((name(), octets(30)) for _ in range(chance.randrange(3)))
        groups = tuple(number(4) for _ in range(chance.randrange(4)))
        members.append(Extensions(contexts, chance.choice((None, groups))))
    make: Any = line.request
    made: Request = make(*members)
    return made


def spoil(message: bytes, chance: random.Random) -> bytes:
    """Return the message with some damage; often with a length that agrees with it again."""
    spoilt = bytearray(message)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(spoilt) + 1)
        match chance.randrange(6):
            case 0:
                del spoilt[at:]
            case 1:
                spoilt += chance.randbytes(chance.randrange(24))
            case 2:
                spoilt[at : at + 1] = chance.randbytes(1)
            case 3:
                spoilt[at : at + 4] = struct.pack(
                    "=I", chance.choice((0, 1, 1 << 31, (1 << 32) - 1))
                )
            case 4 if len(spoilt) >= HEADER:
                struct.pack_into("=H", spoilt, 36, chance.randrange(8))
            case _:
                spoilt[4:8] = struct.pack("=I", chance.choice((*OPERATIONS, 54, 7, 1 << 31)))
    if chance.random() < 0.8 and len(spoilt) >= 4:
        struct.pack_into("=I", spoilt, 0, len(spoilt))
    return bytes(spoilt)


def spoil_many(count: int, seed: int) -> tuple[int, int]:
    """Decode spoilt messages. Returns how many were requests all the same, and how many not."""
    chance = random.Random(seed)
    stock = [
        encode_request(sample(line, chance), setxattr_ext=bool(turn & 1))
        for line in OPERATIONS.values()
        for turn in range(4)
    ]
    decoders = [Decoder().decode, Decoder(setxattr_ext=True).decode]
    good = bad = 0
    for turn in range(count):
        message = spoil(stock[turn % len(stock)], chance)
        try:
            decoders[turn & 1](memoryview(message))
        except MalformedError as error:
            bad += bool(error.reason)
        except Exception:
            print(f"seed {seed}, message {turn}: {message!r}")
            raise
        else:
            good += 1
    return good, bad


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    good, bad = spoil_many(int(sys.argv[1]), seed)
    print(f"{good} requests, {bad} malformed")
