"""INIT: kernel and server agree on a version, on features and on sizes.

The lower of both minor versions is spoken. A feature counts if the kernel offers it and the server
wants it. A kernel of a higher major version is told ours and begins again with that.
"""

from __future__ import annotations

from typing import Final

import msgspec

from . import flags, requests
from .layouts import IN_HEADER, WRITE_IN
from .malformed import VersionError
from .replies import InitOut, good_reply

MAJOR: Final = 7
MINOR: Final = 45
MINOR_MIN: Final = 31
"""The oldest minor version that is spoken: Linux 5.4."""
PAGE: Final = 4096
DEFAULT_PAGES: Final = 32
"""Pages in one request if MAX_PAGES is not agreed upon."""
_LOW: Final = (1 << 32) - 1


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the server would like.

    Attributes:
        features: INIT_EXT is added where it is needed.
        max_write: octets in one WRITE and one READ; a whole number of pages.
        max_readahead: octets; the kernel's own limit counts too.
        max_background: requests that nobody waits for, under way at once.
        congestion_threshold: from how many on the kernel writes back less eagerly.
        time_gran: nanoseconds that the file system's clock discerns.
        max_stack_depth: with PASSTHROUGH: how deep file systems may lie upon one another.
        request_timeout: with REQUEST_TIMEOUT: seconds until an unanswered request ends the mount.
    """

    features: flags.Init
    max_write: int = 1 << 20
    max_readahead: int = 1 << 20
    max_background: int = 64
    congestion_threshold: int = 48
    time_gran: int = 1
    max_stack_depth: int = 0
    request_timeout: int = 0


class Agreement(msgspec.Struct, frozen=True):
    """What holds for a session.

    Attributes:
        minor: the version that is spoken.
        features: what both sides do.
        max_write: octets in one WRITE.
        buffer_size: octets that a read(2) of the device must have room for.
        reply: the octets to be written.
        again: the kernel's major version is higher: it will send another INIT.
    """

    minor: int
    features: flags.Init
    max_write: int
    buffer_size: int
    reply: bytes
    again: bool = False


def negotiate(asked: requests.Init, wishes: Wishes) -> Agreement:
    """Answer an INIT.

    Raises:
        VersionError: the kernel is too old; its request should be answered with EPROTO.
    """
    if asked.major > MAJOR:
        return _once_more(asked)
    if asked.major < MAJOR or asked.minor < MINOR_MIN:
        reason = f"the kernel speaks {asked.major}.{asked.minor}, at least 7.{MINOR_MIN} is needed"
        raise VersionError(reason, asked.opcode, asked.unique)
    offered = flags.Init(asked.flags)
    if offered & flags.Init.INIT_EXT:
        offered |= flags.Init(asked.flags2 << 32)
    features = offered & (wishes.features | flags.Init.INIT_EXT)
    pages = DEFAULT_PAGES
    if features & flags.Init.MAX_PAGES:
        pages = max(1, min(-(-wishes.max_write // PAGE), 0xFFFF))
    max_write = max(PAGE, min(wishes.max_write, pages * PAGE))
    minor = min(asked.minor, MINOR)
    reply = InitOut(
        major=MAJOR,
        minor=minor,
        max_readahead=min(asked.max_readahead, wishes.max_readahead),
        flags=features & _LOW,
        max_background=wishes.max_background,
        congestion_threshold=wishes.congestion_threshold,
        max_write=max_write,
        time_gran=wishes.time_gran,
        max_pages=pages if features & flags.Init.MAX_PAGES else 0,
        map_alignment=0,
        flags2=features >> 32,
        max_stack_depth=wishes.max_stack_depth if features & flags.Init.PASSTHROUGH else 0,
        request_timeout=wishes.request_timeout if features & flags.Init.REQUEST_TIMEOUT else 0,
    )
    packed = good_reply(asked.unique, reply.pack())
    return Agreement(minor, features, max_write, _buffer_size(max_write), packed)


def _buffer_size(max_write: int) -> int:
    """Return what the kernel asks of a reader: else its read(2) fails with EINVAL."""
    return max(flags.MIN_READ_BUFFER, IN_HEADER.size + WRITE_IN.size + max_write)


def _once_more(asked: requests.Init) -> Agreement:
    ours = InitOut(MAJOR, MINOR, *[0] * 11)
    packed = good_reply(asked.unique, ours.pack())
    return Agreement(MINOR, flags.Init(0), 0, flags.MIN_READ_BUFFER, packed, again=True)
