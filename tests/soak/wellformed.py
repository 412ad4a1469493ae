"""Arguments of the right types and of every value: numbers at their edges, names of any shape."""

from __future__ import annotations

import random
import types
import typing
from typing import Any, Final

import msgspec

EDGES: Final = (
    0, 1, -1, 2, 3, 7, 16, 255, 511, 512, 4095, 4096, 65_535, 65_536, 1 << 20, (1 << 20) + 1,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 60) - 1, 1 << 60, (1 << 60) + 1,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 31), -(1 << 63), 0o100644, 0o040755, 0o120777,
)  # fmt: skip
_OCTETS: Final = (
    b"", b".", b"..", b"a", b"b", b"a/b", b"/", b"\0", b"\xff\xfe", b"x" * 255, b"x" * 256,
    b"x" * 4095, b"x" * 5000, b"user.a", b"trusted.a", b"\n", b"\x0a\x5a\x00\x01",
    b"\x0a\x5a\x00\x02",
    b"\xff\xff\xff\xff", b"\x7f\x00\x00\x01", bytes(4),
)  # fmt: skip
_TEXTS: Final = (
    "", "a", "b", "fs", "net", "x" * 200, "x" * 201, "x" * 5000, "\0", "a/b", "é", "\U0001f600",
    "\n", "a\n\nb", "nobody",
)  # fmt: skip


def value(wanted: Any, chance: random.Random) -> Any:
    """Return a value of a type that an interface may use."""
    if wanted is int:
        return chance.choice(EDGES) if chance.random() < 0.8 else chance.getrandbits(12)
    if wanted is bool:
        return chance.random() < 0.5
    if wanted is float:
        return chance.choice((0.0, -1.0, 1e300, float("inf"), float("nan")))
    if wanted is str:
        return chance.choice(_TEXTS)
    if wanted is bytes:
        return chance.choice(_OCTETS)
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        return [value(field.type, chance) for field in msgspec.structs.fields(wanted)]
    return _composed(wanted, chance)


def _composed(wanted: Any, chance: random.Random) -> Any:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return value(chance.choice(inner), chance)
    if origin is tuple and inner[-1:] != (...,):
        return [value(each, chance) for each in inner]
    if origin in (list, tuple):
        return [value(inner[0], chance) for _ in range(chance.choice((0, 0, 1, 2, 40)))]
    if origin is dict:
        return {value(inner[0], chance): value(inner[1], chance) for _ in range(2)}
    return None
