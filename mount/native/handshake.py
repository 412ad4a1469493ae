"""The first request of a mount: host and file system agree on a version, on features and sizes."""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

import trio

from .protocol import requests
from .protocol.decoding import Decoder
from .protocol.flags import MIN_READ_BUFFER, Init
from .protocol.malformed import MalformedError, VersionError
from .protocol.negotiation import Agreement, Wishes, negotiate
from .protocol.replies import error_reply

log: Final = logging.getLogger(__name__)

FEATURES: Final = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.EXPORT_SUPPORT
    | Init.BIG_WRITES
    | Init.AUTO_INVAL_DATA
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.HAS_EXPIRE_ONLY
    | Init.CREATE_SUPP_GROUP
    | Init.HAS_RESEND
    | Init.POSIX_LOCKS
    | Init.FLOCK_LOCKS
)


def wishes(*, writeback: bool = False) -> Wishes:
    """Return what is asked of the host.

    Args:
        writeback: the host's kernel collects writes.
    """
    return Wishes(features=FEATURES | Init.WRITEBACK_CACHE if writeback else FEATURES)


async def agree(descriptor: int, wanted: Wishes) -> Agreement | None:
    """Answer the host's INIT. Returns what holds from then on; None: the mount has ended.

    Args:
        descriptor: the session's /dev/fuse. It is made non-blocking.
    """
    os.set_blocking(descriptor, False)
    buffer = bytearray(MIN_READ_BUFFER)
    decode = Decoder().decode
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        try:
            size = os.readv(descriptor, (buffer,))
        except (BlockingIOError, InterruptedError, FileNotFoundError):
            continue
        except OSError:
            return None
        try:
            request = decode(memoryview(buffer)[:size])
            if not isinstance(request, requests.Init):
                os.write(descriptor, error_reply(request.unique, errno.EPROTO))
                continue
            agreed = negotiate(request, wanted)
        except (MalformedError, VersionError) as error:
            log.error("%s", error)  # noqa: TRY400 - the text says it all
            os.write(descriptor, error_reply(error.unique, errno.EPROTO))
            continue
        os.write(descriptor, agreed.reply)
        if not agreed.again:
            return agreed
