"""Errors of the file server, as the host sees them: nothing but FUSEError leaves a handler.

pyfuse3 ends the mount at any other exception. `guard_handlers` therefore wraps every handler of a
class, once, when the class is made. The hottest ones are marked `complete` instead: they catch for
themselves, which saves the guard's await hop.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from pyfuse3 import FUSEError

from .error_numbers import error_number

T = TypeVar("T")
Handler = TypeVar("Handler", bound=Callable[..., Any])


def complete(handler: Handler) -> Handler:
    """Mark a handler that turns every error into a FUSEError by itself."""
    handler.__complete__ = True  # type: ignore[attr-defined]
    return handler


def failure(operation: str, error: Exception) -> FUSEError:
    """Return what the host shall see of an error; see `error_number`."""
    return error if isinstance(error, FUSEError) else FUSEError(error_number(operation, error))


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
