"""How one structure of the protocol lies in memory.

A layout is written as `member:code` words in the order of the header: `I` and `Q` are unsigned
numbers of 4 and 8 octets, `H` of 2, `i` and `q` signed ones, and a word in brackets is another
layout, whose octets stand there as they are. A member whose name begins with an underscore is
padding: zero when packed, and not looked at when unpacked.
"""

from __future__ import annotations

import struct
from typing import Final

_SIZES: Final = {"H": 2, "I": 4, "i": 4, "Q": 8, "q": 8}


class Layout:
    """One structure.

    Args:
        name: its name in the kernel's header.
        members: see the module head; `code*n` is an array.
        nested: the layouts that the members name.

    Attributes:
        offsets: where each member that is no padding begins, and its octets.
    """

    def __init__(self, name: str, members: str = "", **nested: Layout) -> None:
        self.name = name
        self.offsets: dict[str, tuple[int, int]] = {}
        codes: list[str] = []
        position = 0
        for word in members.split():
            member, _, code = word.partition(":")
            code, _, count = code.partition("*")
            size = nested[code].size if code in nested else _SIZES[code]
            size *= int(count or 1)
            if member.startswith("_"):
                codes.append(f"{size}x")
            else:
                codes.append(code if code in _SIZES and not count else f"{size}s")
                self.offsets[member] = (position, size)
            position += size
        self.codes = "".join(codes)
        self.struct = struct.Struct("=" + self.codes)
        self.size: int = self.struct.size
        self.pack = self.struct.pack
        self.unpack_from = self.struct.unpack_from

    @property
    def members(self) -> tuple[str, ...]:
        """The members that are no padding, in order."""
        return tuple(self.offsets)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.size} octets>"
