"""Streams of the pipe server: what is asked again after anybody's death is answered as before."""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable

import pytest
import trio

from core.errors import Refused
from core.system.pipe import Pipes
from core.system.pipe_memory import SMALL_PIPES, SMALL_RING
from core.userlib.streams import (
    BROKEN,
    ENDED,
    MET,
    READABLE,
    READING,
    STREAM_SHIFT,
    TAKE_LIMIT,
    WHOLE,
    WRITABLE,
    WRITING,
    Streams,
)
from tests.support.small_system import Small

BOTH = READING | WRITING


async def number_of(call: Awaitable[object]) -> int:
    """Return the error number that a call is refused with, 0 if it is not."""
    try:
        await call
    except Refused as refusal:
        return refusal.errno
    return 0


async def test_turns_are_answered_once_and_for_all(small: Small) -> None:
    streams: Streams = small.pipes
    opening = await streams.open(b"x", BOTH, 1, 2, 7)
    assert await streams.put(opening, 8, 0, b"abcdef") == 6
    assert bytes(await streams.take(opening, 9, 4)) == b"abcd"
    for dies in (False, True):
        if dies:
            await small.end("pipe")
        assert await streams.open(b"x", BOTH, 1, 2, 7) == opening
        assert await streams.put(opening, 8, 0, b"abcdef") == 6
        assert await streams.put(opening, 8, 0, b"abcdefgh") == 6
        assert bytes(await streams.take(opening, 9, 4)) == b"abcd"
    assert bytes(await streams.take(opening, 10, 4)) == b"ef"
    assert await number_of(streams.take(opening, 11, 4)) == errno.EAGAIN
    assert await streams.put(opening, 8, 6, b"gh") == 8
    assert bytes(await streams.take(opening, 11, 4)) == b"gh"
    assert bytes(await streams.take(opening, 9, 4)) == b"abcd"
    await streams.close(opening)
    await streams.close(opening)
    assert await streams.find(b"x") is None


async def test_random_flow_with_deaths_and_repetitions_is_exact(small: Small) -> None:
    """Every call is made again now and then, after the server's death or without one."""
    chance = random.Random(5)
    data = chance.randbytes(3 * SMALL_RING)
    streams: Streams = small.pipes
    writing = await streams.open(b"x", WRITING, 0, 0, 1)
    reading = await streams.open(b"x", READING, 0, 0, 2)
    turn, done, deaths = 2, 0, 0
    found = bytearray()
    while len(found) < len(data):
        turn += 1
        repeated = chance.choice((0, 0, 0, 1, 2))
        die = chance.random() < 0.2
        if chance.random() < 0.5 and done < len(data):
            part = data[done : done + chance.randrange(1, 100_000)]
            counts = [await _put(streams, writing, turn, part)]
            for _ in range(repeated):
                if die:
                    await small.end("pipe")
                    deaths += 1
                counts.append(await _put(streams, writing, turn, part[: counts[0] or 1]))
            if counts[0]:
                assert set(counts) == {counts[0]}
            done += max(counts)
        else:
            size = chance.randrange(1, TAKE_LIMIT + 1000)
            takes = [await _take(streams, reading, turn, size)]
            for _ in range(repeated if takes[0] else 0):
                if die:
                    await small.end("pipe")
                    deaths += 1
                takes.append(await _take(streams, reading, turn, size))
            assert len(set(takes)) == 1
            found += takes[0]
    assert found == data[: len(found)]
    assert deaths


async def _put(streams: Streams, opening: int, turn: int, data: bytes) -> int:
    try:
        return await streams.put(opening, turn, 0, data)
    except Refused as refusal:
        if refusal.errno != errno.EAGAIN:
            raise
        return 0


async def _take(streams: Streams, opening: int, turn: int, size: int) -> bytes:
    try:
        return bytes(await streams.take(opening, turn, size))
    except Refused as refusal:
        if refusal.errno != errno.EAGAIN:
            raise
        return b""


async def test_ready_says_what_can_be_done(small: Small) -> None:
    streams: Streams = small.pipes
    reading = await streams.open(b"x", READING, 0, 0, 1)
    assert await streams.ready(reading, 0) == 0
    writing = await streams.open(b"x", WRITING, 0, 0, 2)
    assert await streams.ready(reading, 5) == MET
    assert await streams.ready(writing, 6) == MET | WRITABLE
    assert await streams.put(writing, 3, 0, bytes(SMALL_RING)) == SMALL_RING
    assert await streams.ready(writing, 0) == MET
    assert await streams.ready(reading, 0) == MET | READABLE
    await small.end("pipe")
    assert sorted(await streams.openings()) == sorted([(reading, 5), (writing, 6)])
    await streams.close(writing)
    assert await streams.ready(reading, 0) == MET | READABLE
    turn = 4
    while await streams.take(reading, turn, TAKE_LIMIT):
        turn += 1
    assert await streams.ready(reading, 0) == MET | ENDED
    writing = await streams.open(b"x", WRITING, 0, 0, 90)
    assert await streams.ready(reading, 0) == MET
    await streams.close(reading)
    assert await streams.ready(writing, 0) == MET | WRITABLE | BROKEN
    assert await number_of(streams.put(writing, 91, 0, b"x")) == errno.EPIPE
    await streams.leave()
    assert await streams.openings() == []


async def test_small_writes_are_taken_whole_or_not_at_all(small: Small) -> None:
    streams: Streams = small.pipes
    both = await streams.open(b"x", BOTH, 0, 0, 1)
    assert await streams.put(both, 2, 0, bytes(SMALL_RING - 100)) == SMALL_RING - 100
    assert await number_of(streams.put(both, 3, 0, bytes(WHOLE))) == errno.EAGAIN
    assert await streams.put(both, 4, 0, bytes(WHOLE + 1)) == 100
    await streams.leave()


async def test_an_opening_belongs_to_its_client(small: Small) -> None:
    streams: Streams = small.pipes
    other: Streams = small.system.connect(Pipes, "pipe", "other")
    opening = await streams.open(b"x", BOTH, 0, 0, 1)
    for call in (
        other.ready(opening, 0),
        other.take(opening, 1, 1),
        other.put(opening, 1, 0, b"x"),
        other.close(opening),
    ):
        assert await number_of(call) == errno.EBADF
    await other.leave()
    assert await other.open(b"x", WRITING, 0, 0, 1) >> STREAM_SHIFT == opening >> STREAM_SHIFT
    assert len(await streams.openings()) == len(await other.openings()) == 1
    await other.leave()
    await streams.leave()


async def test_openings_end_with_their_client(small: Small) -> None:
    visitor: Pipes = small.system.connect(Pipes, "pipe", "visitor")
    await visitor.open(b"x", WRITING, 0, 0, 1)
    reading = await small.pipes.open(b"x", READING, 0, 0, 1)
    small.system.client("visitor").drop(visitor.right)  # type: ignore[attr-defined]
    while await small.pipes.ready(reading, 0) != MET | ENDED:  # told by the kernel, in its time
        await trio.lowlevel.checkpoint()
    await small.pipes.leave()


async def test_names_are_listed_altered_and_taken_away(small: Small) -> None:
    streams: Streams = small.pipes
    for number in range(300):
        await streams.open(f"{number:03}".encode(), BOTH, 5, 6, number)
    listed = [stream.name for stream in await streams.names(b"", 1000)]
    assert listed == [f"{number:03}".encode() for number in range(128)]
    assert [stream.name for stream in await streams.names(b"297", 5)] == [b"298", b"299"]
    shown = await streams.alter(b"007", 0o640, -1, 9)
    assert (shown.mode, shown.uid, shown.gid) == (0o640, 5, 9)
    await streams.unlink(b"007")
    assert await streams.find(b"007") is None
    assert await number_of(streams.unlink(b"007")) == errno.ENOENT
    assert await number_of(streams.alter(b"007", 0, 0, 0)) == errno.ENOENT
    await small.end("pipe")
    assert await streams.find(b"007") is None
    assert await streams.find(b"008") is not None
    await streams.leave()
    assert await streams.names(b"", 1000) == []


async def test_there_is_a_limit_to_streams(small: Small) -> None:
    streams: Streams = small.pipes
    for number in range(SMALL_PIPES):
        await streams.open(f"{number}".encode(), BOTH, 0, 0, number)
    assert await number_of(streams.open(b"more", BOTH, 0, 0, 1 << 40)) == errno.ENFILE
    await streams.leave()
    assert await streams.open(b"more", BOTH, 0, 0, 1 << 40)
    await streams.leave()


@pytest.mark.parametrize(
    ("name", "access", "uid", "turn", "number"),
    [
        (b"", BOTH, 0, 1, errno.EINVAL),
        (b"a/b", BOTH, 0, 1, errno.EINVAL),
        (b"..", BOTH, 0, 1, errno.EINVAL),
        (b"a" * 256, BOTH, 0, 1, errno.ENAMETOOLONG),
        (b"a", 0, 0, 1, errno.EINVAL),
        (b"a", 4, 0, 1, errno.EINVAL),
        (b"a", BOTH, -1, 1, errno.EINVAL),
        (b"a", BOTH, 1 << 32, 1, errno.EINVAL),
        (b"a", BOTH, 0, -1, errno.EINVAL),
    ],
)
async def test_nonsense_is_refused(
    small: Small, name: bytes, access: int, uid: int, turn: int, number: int
) -> None:
    assert await number_of(small.pipes.open(name, access, uid, 0, turn)) == number
    assert await small.pipes.openings() == []
