"""What may follow a request that makes something: security contexts, the caller's other groups.

Extensions are the last `total_extlen` times 8 octets of a request. Each begins with its size, all
of it counted, and its type; a type up to 31 is itself the count of security contexts.
"""

from __future__ import annotations

import sys
from typing import Final

import msgspec

from .flags import EXT_GROUPS, MAX_NR_SECCTX
from .layouts import EXT_HEADER, SECCTX, SUPP_GROUPS
from .malformed import MalformedError


def padding(size: int) -> int:
    """Return the octets from `size` to the next multiple of 8."""
    return -size & 7


class Extensions(msgspec.Struct, frozen=True, gc=False):
    """All extensions of one request.

    Attributes:
        contexts: security contexts as `(attribute name, value)`.
        groups: one of the caller's supplementary groups that the parent directory has (the kernel
            tells no others); None: the kernel did not say.
    """

    contexts: tuple[tuple[bytes, bytes], ...] = ()
    groups: tuple[int, ...] | None = None

    def pack(self) -> bytes:
        """Return the extensions' octets, a multiple of 8."""
        made = b""
        if self.contexts:
            entries = []
            for name, value in self.contexts:
                entry = SECCTX.pack(len(value)) + name + b"\0" + value
                entries.append(entry + bytes(padding(len(entry))))
            body = b"".join(entries)
            made += EXT_HEADER.pack(EXT_HEADER.size + len(body), len(self.contexts)) + body
        if self.groups is not None:
            body = SUPP_GROUPS.pack(len(self.groups))
            body += b"".join(group.to_bytes(4, sys.byteorder) for group in self.groups)
            body += bytes(padding(len(body)))
            made += EXT_HEADER.pack(EXT_HEADER.size + len(body), EXT_GROUPS) + body
        return made


NO_EXTENSIONS: Final = Extensions()


def parse_extensions(octets: memoryview) -> Extensions:
    """Return the extensions in `octets`; those of an unknown type are skipped. MalformedError."""
    contexts: tuple[tuple[bytes, bytes], ...] = ()
    groups: tuple[int, ...] | None = None
    position = 0
    while position < len(octets):
        if len(octets) - position < EXT_HEADER.size:
            raise MalformedError("an extension is shorter than its header")
        size, kind = EXT_HEADER.unpack_from(octets, position)
        if size < EXT_HEADER.size or size > len(octets) - position:
            raise MalformedError(f"an extension says that it has {size} octets")
        body = octets[position + EXT_HEADER.size : position + size]
        if kind <= MAX_NR_SECCTX:
            contexts += _parse_contexts(body, kind)
        elif kind == EXT_GROUPS:
            groups = _parse_groups(body)
        position += size + padding(size)
    return Extensions(contexts, groups)


def _parse_contexts(body: memoryview, count: int) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    position = 0
    for _ in range(count):
        if len(body) - position < SECCTX.size:
            raise MalformedError(f"not all of {count} security contexts are there")
        (size,) = SECCTX.unpack_from(body, position)
        name, nul, rest = bytes(body[position + SECCTX.size :]).partition(b"\0")
        if not name or not nul or size > len(rest):
            raise MalformedError("a security context has no whole name or value")
        found.append((name, rest[:size]))
        used = SECCTX.size + len(name) + 1 + size
        position += used + padding(used)
    return tuple(found)


def _parse_groups(body: memoryview) -> tuple[int, ...]:
    if len(body) < SUPP_GROUPS.size:
        raise MalformedError("an extension of groups has no count")
    (count,) = SUPP_GROUPS.unpack_from(body)
    end = SUPP_GROUPS.size + 4 * count
    if end > len(body):
        raise MalformedError(f"not all of {count} groups are there")
    octets = bytes(body[SUPP_GROUPS.size : end])
    return tuple(
        int.from_bytes(octets[at : at + 4], sys.byteorder) for at in range(0, 4 * count, 4)
    )
