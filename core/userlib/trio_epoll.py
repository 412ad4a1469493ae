"""Trio's own epoll set, for those who wait outside trio and must end when trio has work."""

from __future__ import annotations

from typing import Any

import trio


def trio_epoll() -> int:
    """Return the descriptor of the running trio's epoll set; -1 where this trio does not show it.

    It is readable while a descriptor that trio watches is ready, so it can stand in another set.
    """
    try:
        runner: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner  # noqa: SLF001 - no public way
        return int(runner.io_manager._epoll.fileno())  # noqa: SLF001
    except AttributeError:
        return -1
