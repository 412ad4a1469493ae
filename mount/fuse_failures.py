"""Errors of the file server, as the host sees them: nothing but FUSEError leaves a handler.

pyfuse3 ends the mount at any other exception. `guard_handlers` therefore wraps every handler of a
class, once, when the class is made. The hottest ones are marked `complete` instead: they catch for
themselves, which saves the guard's await hop.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from pyfuse3 import FUSEError

from core.errors import AtollError, Refused

log: Final = logging.getLogger(__name__)

ERRNO_LIMIT: Final = 1000
"""Error numbers from here on are no answer that the host would take."""

T = TypeVar("T")
Handler = TypeVar("Handler", bound=Callable[..., Any])


def complete(handler: Handler) -> Handler:
    """Mark a handler that turns every error into a FUSEError by itself."""
    handler.__complete__ = True  # type: ignore[attr-defined]
    return handler


def failure(operation: str, error: Exception) -> FUSEError:
    """Return what the host shall see of an error; whatever is no answer of the server is logged."""
    if isinstance(error, Refused) and 0 < error.errno < ERRNO_LIMIT:
        return FUSEError(error.errno)
    if isinstance(error, FUSEError):
        return error
    if isinstance(error, AtollError):
        log.error("%s: %s: %s", operation, type(error).__name__, error)
    else:
        log.exception("%s: unexpected", operation, exc_info=error)
    return FUSEError(errno.EIO)


def _guarded(
    handler: Callable[..., Coroutine[Any, Any, T]],
) -> Callable[..., Coroutine[Any, Any, T]]:
    @functools.wraps(handler)
    async def guard(*arguments: Any) -> T:
        try:
            return await handler(*arguments)
        except Exception as error:  # noqa: BLE001 - any other error would end the mount
            raise failure(handler.__name__, error) from None

    return guard


def guard_handlers(cls: type[T]) -> type[T]:
    """Guard every handler of the class that is not marked as complete."""
    for name, value in list(vars(cls).items()):
        public = inspect.iscoroutinefunction(value) and not name.startswith("_")
        if public and not hasattr(value, "__complete__"):
            setattr(cls, name, _guarded(value))
    return cls
