"""What the host sees of an error: its number, if it is an answer of the file server, else EIO."""

from __future__ import annotations

import errno
import logging
from typing import Final

from core.errors import AtollError, Refused

log: Final = logging.getLogger(__name__)

ERRNO_LIMIT: Final = 1000
"""Error numbers from here on are no answer that the host would take."""


def error_number(operation: str, error: Exception) -> int:
    """Return what the host shall see of an error; whatever is no answer of the server is logged."""
    if isinstance(error, Refused) and 0 < error.errno < ERRNO_LIMIT:
        return error.errno
    if isinstance(error, AtollError):
        log.error("%s: %s: %s", operation, type(error).__name__, error)
    else:
        log.exception("%s: unexpected", operation, exc_info=error)
    return errno.EIO
