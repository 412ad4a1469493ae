"""pyfuse3's workers wait as `fuse_wait` says, instead of their own way.

The names replaced in pyfuse3 are private, so `patched` looks first if they are what this module
knows, and leaves the stock loop in place otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import types
from collections.abc import Iterator
from typing import Final

import pyfuse3
import trio

from .fuse_wait import Workers

log: Final = logging.getLogger(__name__)

_LOOP: Final = "_session_loop"
_LOOP_PARAMETERS: Final = ["nursery", "min_tasks", "max_tasks"]
_WAIT: Final = "_wait_fuse_readable"


def _is_known(module: types.ModuleType) -> bool:
    """Return if pyfuse3 has the two functions, with the parameters that this module expects."""
    loop, wait = getattr(module, _LOOP, None), getattr(module, _WAIT, None)
    if loop is None or wait is None:
        return False
    try:
        taken = list(inspect.signature(loop).parameters)
        return taken == _LOOP_PARAMETERS and not inspect.signature(wait).parameters
    except (TypeError, ValueError):
        return False


@contextlib.contextmanager
def patched(workers: Workers, module: types.ModuleType = pyfuse3) -> Iterator[bool]:
    """Let pyfuse3's workers wait by `workers` inside the block. Yields if that is so."""
    if not _is_known(module):
        log.warning("pyfuse3 %s is not the one known: its own wait stays", pyfuse3.__version__)
        workers.restore()
        yield False
        return
    stock_loop, stock_wait = getattr(module, _LOOP), getattr(module, _WAIT)

    async def loop(nursery: trio.Nursery, min_tasks: int, max_tasks: int) -> None:
        while True:
            try:
                await workers.drive(stock_loop(nursery, min_tasks, max_tasks))
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
            else:
                return

    setattr(module, _LOOP, loop)
    setattr(module, _WAIT, workers.wait_readable)
    try:
        yield True
    finally:
        setattr(module, _LOOP, stock_loop)
        setattr(module, _WAIT, stock_wait)
