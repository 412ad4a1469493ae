"""Making a volume."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path
from typing import Final

import apsw

from .interface import ROOT_INODE
from .layout import (
    BLOCK_SHIFT,
    BLOCK_SIZE,
    DATA_NAME,
    FIRST_SEQUENCE,
    FORMAT,
    MAX_BLOCKS,
    METADATA_NAME,
    MIN_BLOCKS,
    VolumeError,
)
from .store import initialize
from .volume import host_clock

DEFAULT_SIZE: Final = 64 << 30
"""Octets of a volume when nobody says how many: sparse, so it costs what is written."""


def make_volume(
    directory: Path,
    size: int = DEFAULT_SIZE,
    *,
    owner: tuple[int, int] = (0, 0),
    mode: int = 0o755,
    now: int | None = None,
) -> None:
    """Make an empty volume of `size` octets in `directory`, which is made if it is not there.

    Args:
        directory: on the host.
        size: octets for the contents of files, rounded down to blocks.
        owner: user and group of the root directory.
        mode: permission bits of the root directory.
        now: nanoseconds since 1970; None: the host's time.

    Raises:
        VolumeError: there is a volume already (EEXIST), the size is impossible, or the host
        refuses.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        make_data(directory, size)
        make_metadata(directory, size, owner=owner, mode=mode, now=now)
    except OSError as error:
        raise VolumeError(f"{directory}: {error.strerror}", error.errno or errno.EIO) from None


def blocks_of(size: int) -> int:
    """Return how many blocks `size` octets are. Raises: VolumeError when no volume can be so."""
    blocks = size >> BLOCK_SHIFT
    if not MIN_BLOCKS <= blocks <= MAX_BLOCKS:
        raise VolumeError(
            f"a volume has {MIN_BLOCKS * BLOCK_SIZE} to {MAX_BLOCKS * BLOCK_SIZE} octets,"
            f" not {size}",
            errno.EINVAL,
        )
    return blocks


def make_data(directory: Path, size: int) -> None:
    """Make an empty, sparse data file.

    Raises:
        VolumeError: there is one already, or the size is impossible.
        OSError: the host refuses.
    """
    blocks = blocks_of(size)
    try:
        descriptor = os.open(directory / DATA_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise VolumeError(f"{directory} has a data file already", errno.EEXIST) from None
    try:
        os.ftruncate(descriptor, blocks << BLOCK_SHIFT)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_metadata(
    directory: Path,
    size: int,
    *,
    owner: tuple[int, int] = (0, 0),
    mode: int = 0o755,
    now: int | None = None,
) -> None:
    """Make the metadata of an empty volume whose data file has `size` octets.

    The database gets its name when it is complete, so a volume is there entirely or not at all.

    Raises:
        VolumeError: there are some already, or the size is impossible.
        OSError: the host refuses.
    """
    path = directory / METADATA_NAME
    if path.exists():
        raise VolumeError(f"{directory} holds a volume already", errno.EEXIST)
    now = host_clock() if now is None else now
    settings = {
        "format": FORMAT,
        "uuid": str(uuid.uuid4()),
        "blocks": blocks_of(size),
        "next_inode": ROOT_INODE + 1,
        "syncs": 0,
    }
    root = (
        *(ROOT_INODE, stat.S_IFDIR | mode & 0o7777, 2, *owner, 0, 0, 0),
        *(now, now, now, ROOT_INODE, FIRST_SEQUENCE, None, now),
    )
    unfinished = directory / f"{METADATA_NAME}.new"
    for suffix in ("", "-wal"):
        Path(f"{unfinished}{suffix}").unlink(missing_ok=True)
    try:
        initialize(unfinished, settings, root)
    except apsw.Error as error:
        raise VolumeError(f"{unfinished}: {error}") from None
    unfinished.rename(path)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
