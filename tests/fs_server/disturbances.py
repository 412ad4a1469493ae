"""Observers that end, fail or record what a volume writes, and what a power cut leaves of it."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any, Final

from fs_server.layout import DATA_NAME, METADATA_NAME

FILES: Final = (DATA_NAME, METADATA_NAME, f"{METADATA_NAME}-wal")
_SECTOR: Final = 512


class Counting:
    """Counts what reaches the host, and does something about the `limit`-th of it."""

    def __init__(self, limit: int = -1) -> None:
        self.limit = limit
        self.count = 0

    def _step(self) -> None:
        self.count += 1
        if self.count == self.limit:
            self.act()

    def act(self) -> None:
        """What happens at the limit: nothing here."""

    def write(self, file: str, offset: int, data: bytes) -> bool:
        self._step()
        return True

    def truncate(self, file: str, size: int) -> None:
        self._step()

    def punch(self, file: str, offset: int, size: int) -> None:
        self._step()

    def sync(self, file: str) -> bool:
        self._step()
        return True

    def remove(self, file: str) -> None:
        self._step()


class Killing(Counting):
    """Kills this process before the `limit`-th write."""

    def act(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Failing(Counting):
    """Lets the `limit`-th operation fail as the host would."""

    def __init__(self, limit: int, number: int) -> None:
        super().__init__(limit)
        self._number = number
        self.failed = False

    def act(self) -> None:
        self.failed = True
        raise OSError(self._number, "on purpose")


class Recording:
    """Remembers everything in order, as (kind, file, arguments...)."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def write(self, file: str, offset: int, data: bytes) -> bool:
        self.events.append(("write", file, offset, data))
        return True

    def truncate(self, file: str, size: int) -> None:
        self.events.append(("truncate", file, size))

    def punch(self, file: str, offset: int, size: int) -> None:
        self.events.append(("write", file, offset, bytes(size)))

    def sync(self, file: str) -> bool:
        self.events.append(("sync", file))
        return True

    def remove(self, file: str) -> None:
        self.events.append(("remove", file))


def after_power_cut(
    before: dict[str, bytes], events: list[tuple[Any, ...]], rng: random.Random
) -> dict[str, bytes]:
    """Return what a disk may hold when the power fails after these events.

    What was written before the last sync of its file is there; of all later writes each is there,
    or not, or only its first sectors.
    """
    images = {file: bytearray(octets) for file, octets in before.items()}
    synced = {event[1]: index for index, event in enumerate(events) if event[0] == "sync"}
    luck = rng.choice([0.0, 0.2, 0.5, 0.9, 1.0])
    for index, event in enumerate(events):
        kind, file, *arguments = event
        image = images.setdefault(file, bytearray())
        durable = index < synced.get(file, -1)
        if kind == "sync" or not (durable or rng.random() < luck):
            continue
        if kind == "truncate":
            del image[arguments[0] :]
        elif kind == "remove":
            image.clear()
        else:
            offset, octets = arguments
            if not durable and rng.random() < 0.2:
                octets = octets[: rng.randrange(0, len(octets) + 1, _SECTOR)]
            image.extend(bytes(max(0, offset + len(octets) - len(image))))
            image[offset : offset + len(octets)] = octets
    return {file: bytes(image) for file, image in images.items()}


def load(directory: Path) -> dict[str, bytes]:
    """Return the files of a volume."""
    paths = [directory / file for file in FILES]
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def store(directory: Path, images: dict[str, bytes]) -> None:
    """Make the files of a volume."""
    directory.mkdir()
    for file, octets in images.items():
        if octets or file in {DATA_NAME, METADATA_NAME}:
            (directory / file).write_bytes(octets)
