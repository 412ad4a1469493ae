"""The files of a volume as they were, or may be after a power cut, at any write.

A `Recording` observes a volume. Replayed on the files as they were before, its events give the
files as they are after any of them: what a server that dies there leaves, since the host keeps what
was written. A power cut leaves less. What a file was before its last sync is there; of all that was
done to it since, each thing is there or is not, or is there in part: the first sectors of a write,
or any of its sectors. The order of events does not bind a disk, so any subset may be there.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from fs_server.layout import BLOCK_SIZE, DATA_NAME, METADATA_NAME

FILES: Final = (DATA_NAME, METADATA_NAME, f"{METADATA_NAME}-wal")
SECTOR: Final = 512
_LUCK: Final = (0.0, 0.2, 0.5, 0.9, 1.0)
_TORN: Final = 0.25
"""How many of the writes that a power cut leaves are left in part."""

Event = tuple[Any, ...]
"""Kind ("write", "truncate", "punch", "sync", "remove"), file, and the kind's arguments."""


class Recording:
    """An observer that remembers everything in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def note(self, event: Event) -> None:
        """Remember; a subclass may remember more."""
        self.events.append(event)

    def write(self, file: str, offset: int, data: bytes) -> bool:
        self.note(("write", file, offset, data))
        return True

    def truncate(self, file: str, size: int) -> None:
        self.note(("truncate", file, size))

    def punch(self, file: str, offset: int, size: int) -> None:
        self.note(("punch", file, offset, size))

    def sync(self, file: str) -> bool:
        self.note(("sync", file))
        return True

    def remove(self, file: str) -> None:
        self.note(("remove", file))


class Image:
    """The contents of one file; blocks that were never written, or punched, are not stored."""

    def __init__(self, size: int = 0, blocks: dict[int, bytes] | None = None) -> None:
        self.size = size
        self.blocks = dict(blocks or {})

    def copy(self) -> Image:
        """Return the same contents, to be changed apart from these."""
        return Image(self.size, self.blocks)

    def write(self, offset: int, data: bytes) -> None:
        """Put octets at `offset`."""
        self.size = max(self.size, offset + len(data))
        at = 0
        while at < len(data):
            block, inside = divmod(offset + at, BLOCK_SIZE)
            part = data[at : at + BLOCK_SIZE - inside]
            if len(part) < BLOCK_SIZE:
                old = self.blocks.get(block, bytes(BLOCK_SIZE))
                self.blocks[block] = old[:inside] + part + old[inside + len(part) :]
            else:
                self.blocks[block] = part
            at += len(part)

    def punch(self, offset: int, size: int) -> None:
        """Make a hole; whole blocks are given up, parts of blocks are zeroed."""
        first, end = -(-offset // BLOCK_SIZE), (offset + size) // BLOCK_SIZE
        if first >= end:
            self.write(offset, bytes(size))
            return
        self.write(offset, bytes(first * BLOCK_SIZE - offset))
        self.write(end * BLOCK_SIZE, bytes(offset + size - end * BLOCK_SIZE))
        for block in range(first, end):
            self.blocks.pop(block, None)

    def truncate(self, size: int) -> None:
        """Cut the file, or make it longer by a hole."""
        end = -(-size // BLOCK_SIZE)
        for block in [block for block in self.blocks if block >= end]:
            del self.blocks[block]
        if size < self.size and size % BLOCK_SIZE and end - 1 in self.blocks:
            kept = self.blocks[end - 1][: size % BLOCK_SIZE]
            self.blocks[end - 1] = kept.ljust(BLOCK_SIZE, b"\0")
        self.size = size

    def apply(self, event: Event) -> None:
        """Do to the image what was done to the file."""
        kind, _, *arguments = event
        if kind == "remove":
            self.truncate(0)
        elif kind != "sync":
            getattr(self, kind)(*arguments)

    def apply_torn(self, event: Event, chance: random.Random) -> None:
        """Do a part of a write, and anything else wholly."""
        if event[0] != "write":
            self.apply(event)
            return
        _, _, offset, data = event
        cuts = _sector_cuts(offset, len(data))
        if chance.random() < 0.5:
            end = chance.choice(cuts)
            self.write(offset, data[:end])
            return
        for start, end in itertools.pairwise(cuts):
            if chance.random() < 0.5:
                self.write(offset + start, data[start:end])


def _sector_cuts(offset: int, size: int) -> list[int]:
    """Return where a write can be cut: at the disk's sectors, and at its own ends."""
    first = -offset % SECTOR
    return [0, *range(first or SECTOR, size, SECTOR), size]


Images = dict[str, Image]


def load(directory: Path) -> Images:
    """Return the files of a volume, with their holes."""
    return {file: _load(directory / file) for file in FILES if (directory / file).exists()}


def _load(path: Path) -> Image:
    image = Image(path.stat().st_size)
    with path.open("rb") as file:
        position = 0
        while position < image.size:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position -= position % BLOCK_SIZE
            block = os.pread(file.fileno(), BLOCK_SIZE, position)
            image.blocks[position // BLOCK_SIZE] = block.ljust(BLOCK_SIZE, b"\0")
            position += BLOCK_SIZE
    return image


def store(directory: Path, images: Images) -> None:
    """Make the files of a volume; those that are there are replaced."""
    directory.mkdir(exist_ok=True)
    for file in FILES:
        path = directory / file
        image = images.get(file, Image())
        path.unlink(missing_ok=True)
        if not image.size and file not in {DATA_NAME, METADATA_NAME}:
            continue
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for first, blocks in _runs(image.blocks):
                os.pwritev(descriptor, blocks, first * BLOCK_SIZE)
            os.ftruncate(descriptor, image.size)
        finally:
            os.close(descriptor)


def _runs(blocks: dict[int, bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield blocks that lie one after another, and the number of the first."""
    run: list[bytes] = []
    start = 0
    for number in sorted(blocks):
        if run and (number != start + len(run) or len(run) == 512):
            yield start, run
            run = []
        if not run:
            start = number
        run.append(blocks[number])
    if run:
        yield start, run


def copied(images: Images) -> Images:
    """Return the same images, to be changed apart from these."""
    return {file: image.copy() for file, image in images.items()}


def apply(images: Images, event: Event) -> None:
    """Do to the images what was done to the files."""
    images.setdefault(event[1], Image()).apply(event)


class Disk:
    """What of a volume is durable, and what is only written.

    `obeys` says whether a sync does anything; without it, this is a disk that lies.
    """

    def __init__(self, images: Images, *, obeys: bool = True) -> None:
        self.durable = copied(images)
        self.pending: list[Event] = []
        self._obeys = obeys

    def apply(self, event: Event) -> None:
        """Take note of an event."""
        kind, file = event[:2]
        if kind != "sync":
            self.pending.append(event)
        elif self._obeys:
            for done in [done for done in self.pending if done[1] == file]:
                apply(self.durable, done)
            self.pending = [other for other in self.pending if other[1] != file]

    def left(self, kept: Sequence[bool], chance: random.Random | None = None) -> Images:
        """Return what is there when only some of the pending events are.

        Args:
            kept: for each pending event, whether it is there.
            chance: tears some of those that are.
        """
        images = copied(self.durable)
        for event, there in zip(self.pending, kept, strict=True):
            if not there:
                continue
            image = images.setdefault(event[1], Image())
            if chance is not None and chance.random() < _TORN:
                image.apply_torn(event, chance)
            else:
                image.apply(event)
        return images

    def after_power_cut(self, chance: random.Random) -> Images:
        """Return what one power cut may leave."""
        luck = chance.choice(_LUCK)
        return self.left([chance.random() < luck for _ in self.pending], chance)

    def power_cuts(self, chance: random.Random, limit: int) -> Iterator[Images]:
        """Yield what power cuts may leave: all that is possible if it is little, else a choice.

        Every subset is yielded where there are no more than `limit`; one torn variant follows. Else
        nothing of what is pending, all of it, and subsets with torn writes, `limit` together.
        """
        count = len(self.pending)
        if 1 << min(count, 30) <= limit:
            for bits in range(1 << count):
                yield self.left([bool(bits >> n & 1) for n in range(count)])
            if count:
                yield self.left([True] * count, chance)
            return
        yield self.left([False] * count)
        yield self.left([True] * count)
        for _ in range(limit - 2):
            yield self.after_power_cut(chance)


def after_power_cut(before: Images, events: list[Event], chance: random.Random) -> Images:
    """Return what a disk may hold when the power fails after these events."""
    disk = Disk(before)
    for event in events:
        disk.apply(event)
    return disk.after_power_cut(chance)
