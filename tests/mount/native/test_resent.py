"""What is left to the next front end: requests that are said again, and look-ups in memory."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st

from fs_server.interface import ROOT_INODE, Attributes, Change
from mount.fuse_invalidation import Invalidation
from mount.host import ThisProcess
from mount.native.front_end import NativeFrontEnd
from mount.native.lookups import RECORDS_MIN, Lookups
from mount.native.protocol.opcodes import Opcode
from mount.native.resent import RESENT, Resent
from mount.native.server import KeptBookmark
from tests.support.memory_file_system import MemoryFileSystem


def message(unique: int, opcode: Opcode = Opcode.MKDIR, body: bytes = b"") -> bytes:
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, unique, 1, 0, 0, 0, 0) + body


def test_work_goes_on_at_the_place_where_it_was_begun() -> None:
    resent = Resent([(3, 10), (5, 12)])
    assert resent.take(message(10 | RESENT))
    assert resent.take(message(12 | RESENT))
    assert resent.take(message(14 | RESENT))
    assert not resent.take(message(16))
    given = [bytes(resent.give(place) or b"") for place in (5, 3, 3, 7, 5)]
    assert given == [*(message(number | RESENT) for number in (12, 10, 14)), message(16), b""]


def test_new_request_is_not_taken_for_an_old_one_of_its_number() -> None:
    resent = Resent([(3, 16)])
    assert not resent.take(message(16))
    assert bytes(resent.give(1) or b"") == message(16)


def test_forgets_and_interrupts_between_what_is_said_again_do_not_end_it() -> None:
    resent = Resent()
    assert resent.take(message(0, Opcode.FORGET, bytes(8)))
    assert resent.take(message(11, Opcode.INTERRUPT, struct.pack("=Q", 10 | RESENT)))
    assert resent.take(message(10 | RESENT))
    assert resent.interrupted == {10 | RESENT}
    assert len(resent) == 2


class KeptMemory:
    """What the kernel keeps for a task."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def keep(self, label: str, descriptor: int) -> None:
        if label in self.found:
            os.close(self.found[label])
        self.found[label] = os.dup(descriptor)

    def kept(self, label: str) -> int | None:
        return os.dup(self.found[label]) if label in self.found else None

    def close(self) -> None:
        for number in self.found.values():
            os.close(number)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-3, 3)), max_size=60))
def test_journal_adds_up(changes: list[tuple[int, int]]) -> None:
    kept, counts = KeptMemory(), dict.fromkeys(range(1, 10), 0)
    lookups = Lookups(kept)
    for inode, change in changes:
        possible = max(change, -counts[inode])
        counts[inode] += possible
        lookups.note(inode, possible, 0o100644 if possible > 0 else 0)
    lookups.close()
    later = Lookups(kept)
    found = {inode: count for inode, count, _ in later.load()}
    assert found == {inode: count for inode, count in counts.items() if count}
    assert all(mode == 0o100644 for _, _, mode in later.load())
    later.close()
    kept.close()


def front_end(kept: KeptMemory) -> NativeFrontEnd:
    return NativeFrontEnd(MemoryFileSystem(), host=ThisProcess(-1), lookups=Lookups(kept))


def test_full_journal_is_written_anew_and_loses_nothing(tmp_path: Path) -> None:
    kept = KeptMemory()
    first = front_end(kept)
    shown = [Attributes(inode, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0) for inode in range(2, 2000)]
    for _ in range(RECORDS_MIN // len(shown) + 2):
        for attributes in shown:
            first._entry(attributes)
    for attributes in shown[1000:]:
        first.forget(attributes.inode, 1 << 20)
    wanted = first.lookups()
    assert len(wanted) == 1000
    assert front_end(kept).lookups() == wanted
    kept.close()


def test_next_incarnation_knows_what_to_have_dropped() -> None:
    kept = KeptMemory()
    first = front_end(kept)
    for inode in (7, 8, 9):
        first._entry(Attributes(inode, 0o40755, 2, 0, 0, 0, 0, 0, 0, 0, 0))
    first.forget(8, 1)
    second = front_end(kept)
    assert set(second.known_inodes()) - {ROOT_INODE} == {7, 9}
    second.forget(1234, 5)
    assert second.lookups() == {7: 1, 9: 1}
    kept.close()


def test_what_the_host_has_yet_to_be_told_is_kept() -> None:
    kept = KeptMemory()
    first = KeptBookmark(kept)  # type: ignore[arg-type]  # it only keeps
    assert first.read() == (-1, [])
    first.write(17, [4, 5])
    assert KeptBookmark(kept).read() == (17, [4, 5])  # type: ignore[arg-type]
    kept.close()


async def test_next_incarnation_tells_what_was_left_to_tell(autojump_clock: object) -> None:
    told: list[Change] = []

    class Listening(ThisProcess):
        async def tell(self, changes: list[Change]) -> None:
            told.extend(changes)

    kept = KeptMemory()
    host = Listening(-1)
    fs = MemoryFileSystem()
    before = NativeFrontEnd(fs, host=host)
    Invalidation(before, fs, None, host, KeptBookmark(kept))  # type: ignore[arg-type]
    before.stale(7)
    after = NativeFrontEnd(fs, host=host)
    invalidation = Invalidation(after, fs, None, host, KeptBookmark(kept))  # type: ignore[arg-type]
    with trio.move_on_after(1):
        await invalidation.run()
    assert told == [Change(7, data=True)]
    assert KeptBookmark(kept).read() == (-1, [])  # type: ignore[arg-type]
    kept.close()
