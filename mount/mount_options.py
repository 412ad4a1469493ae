"""How a mount is to be made, and what is known of one that was."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .fuse_wait import Workers
from .mount_point import check_allow_other
from .settings import FrontEndName

if TYPE_CHECKING:
    from .native.streams import Attached

LINGER_S: Final = 50e-6
"""How long a worker looks for the next request before it parks."""
FRONT_ENDS: Final = ("pyfuse3", "native")


def fuse_options(*, others: bool) -> set[str]:
    """Return the options that libfuse and fusermount3 are given.

    Args:
        others: users other than this one may enter.
    """
    options = {"fsname=atoll", "subtype=atoll", "default_permissions"}
    return options | {"allow_other"} if others else options


def others_may_enter(wanted: bool | None) -> bool:
    """Return if users other than this one may enter; None: if this is root.

    Raises:
        MountError: the host's configuration forbids it.
    """
    others = os.geteuid() == 0 if wanted is None else wanted
    if others:
        check_allow_other()
    return others


@dataclasses.dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount.

    Args:
        allow_other: users other than this one may enter; None: if this is root.
        sole_writer: no other client changes files, so the host's kernel may collect writes.
        linger_s: see `fuse_wait`; 0: never.
        nonempty: mount over a directory with entries.
        stock_wait: leave pyfuse3's way of waiting as it is.
        front_end: who speaks with the host's kernel.
        streams: directories of streams in the root; only the native front end has them.
    """

    allow_other: bool | None = None
    sole_writer: bool = False
    linger_s: float = LINGER_S
    nonempty: bool = False
    stock_wait: bool = False
    front_end: FrontEndName = "pyfuse3"
    streams: tuple[Attached, ...] = ()

    @property
    def others(self) -> bool:
        """Whether other users may enter. MountError: the host's configuration forbids it."""
        return others_may_enter(self.allow_other)

    def fuse(self) -> set[str]:
        """Return the options that libfuse is given."""
        return fuse_options(others=self.others)


@dataclasses.dataclass(slots=True)
class Mount:
    """A mount that is being served.

    Attributes:
        path: the absolute mount point.
        workers: what its workers have done; for statistics.
        polled: requests are polled for first; False: pyfuse3's own wait is in place.
    """

    path: Path
    workers: Workers
    polled: bool = False
