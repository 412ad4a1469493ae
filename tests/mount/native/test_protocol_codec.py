"""Octets to requests and back, replies to octets and back, and what is no message at all."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mount.native.protocol import flags, layouts, notifications
from mount.native.protocol.decoding import Decoder
from mount.native.protocol.directory import Listing, parse_listing
from mount.native.protocol.encoding import encode_request
from mount.native.protocol.extensions import Extensions, parse_extensions
from mount.native.protocol.malformed import MalformedError, VersionError
from mount.native.protocol.negotiation import MINOR, Wishes, negotiate
from mount.native.protocol.opcodes import Notify, Opcode
from mount.native.protocol.operations import OPERATIONS, UNANSWERED, Operation
from mount.native.protocol.replies import (
    Attr,
    EntryOut,
    InitOut,
    Record,
    error_reply,
    good_reply,
    parse_reply,
    records,
)
from mount.native.protocol.requests import BatchForget, Init, Unknown, Write
from tests.support.protocol_messages import sample, spoil_many

lines = st.sampled_from(list(OPERATIONS.values()))
NAMES = st.binary(min_size=1, max_size=300)


def message(opcode: int, body: bytes = b"", unique: int = 6, extlen: int = 0) -> memoryview:
    """Return a request's octets, true in their length."""
    header = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, 1, 0, 0, 9, extlen, 0)
    return memoryview(header + body)


@given(lines, st.integers(0, 1 << 32), st.booleans())
def test_request_comes_back_as_it_was_said(line: Operation, seed: int, ext: bool) -> None:
    said = sample(line, random.Random(seed))
    if line.opcode is Opcode.SETXATTR and not ext:
        said.setxattr_flags = 0  # type: ignore[attr-defined]
    octets = encode_request(said, setxattr_ext=ext)
    heard = Decoder(setxattr_ext=ext).decode(memoryview(octets))
    assert heard == said
    assert type(heard) is line.request
    assert encode_request(heard, setxattr_ext=ext) == octets


@pytest.mark.slow
def test_spoilt_messages_are_malformed_and_nothing_else() -> None:
    """`python -m tests.support.protocol_messages 10000000` tries more."""
    good, bad = spoil_many(100_000, seed=random.SystemRandom().randrange(1 << 32))
    assert good > 1000
    assert bad > 1000


@given(st.binary(max_size=200))
def test_chance_octets_are_malformed_or_a_request(octets: bytes) -> None:
    for decoder in (Decoder(), Decoder(setxattr_ext=True)):
        try:
            heard = decoder.decode(memoryview(octets))
        except MalformedError:
            continue
        assert heard.opcode == int.from_bytes(octets[4:8], "little")


WRITE_IN = struct.pack("=QQIIQI4x", 1, 0, 4, 0, 0, 0)
MALFORMED: dict[str, memoryview] = {
    "nothing": memoryview(b""),
    "half a header": message(Opcode.GETATTR)[:39],
    "no structure": message(Opcode.GETATTR),
    "long structure": message(Opcode.GETATTR, bytes(24)),
    "no name": message(Opcode.LOOKUP),
    "empty name": message(Opcode.LOOKUP, b"\0"),
    "name without NUL": message(Opcode.LOOKUP, b"name"),
    "NUL inside a name": message(Opcode.LOOKUP, b"na\0me\0"),
    "one name of two": message(Opcode.RENAME, bytes(8) + b"one\0"),
    "three names": message(Opcode.RENAME, bytes(8) + b"a\0b\0c\0"),
    "second name without NUL": message(Opcode.RENAME2, bytes(16) + b"a\0b"),
    "less data than told": message(Opcode.WRITE, WRITE_IN + b"abc"),
    "more data than told": message(Opcode.WRITE, WRITE_IN + b"abcde"),
    "huge count": message(Opcode.BATCH_FORGET, struct.pack("=II", (1 << 32) - 1, 0)),
    "value without name": message(Opcode.SETXATTR, struct.pack("=II", 4, 0) + b"\0abcd"),
    "value of another size": message(Opcode.SETXATTR, struct.pack("=II", 4, 0) + b"n\0abc"),
    "no value": message(Opcode.SETXATTR, struct.pack("=II", 4, 0) + b"n"),
    "huge ioctl": message(Opcode.IOCTL, struct.pack("=QIIQII", 1, 0, 0, 0, (1 << 32) - 1, 0)),
    "extensions that are not there": message(Opcode.MKDIR, bytes(8) + b"d\0", extlen=9),
    "extension without end": message(
        Opcode.MKDIR, bytes(8) + b"d\0" + struct.pack("=II", 64, 32), extlen=1
    ),
    "extension of no size": message(
        Opcode.MKDIR, bytes(8) + b"d\0" + struct.pack("=II", 0, 32), extlen=1
    ),
    "groups that are not there": message(
        Opcode.MKDIR, bytes(8) + b"d\0" + struct.pack("=IIII", 16, 32, 1 << 30, 0), extlen=2
    ),
    "context without name": message(
        Opcode.MKDIR, bytes(8) + b"d\0" + struct.pack("=IIII", 16, 1, 0, 0), extlen=2
    ),
    "short INIT": message(Opcode.INIT, bytes(15)),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_request_is_told_under_its_number(what: str) -> None:
    octets = MALFORMED[what]
    with pytest.raises(MalformedError) as caught:
        Decoder().decode(octets)
    answerable = len(octets) >= 40 and caught.value.opcode not in UNANSWERED
    assert caught.value.unique == (6 if answerable else 0)


def test_wrong_length_is_malformed_in_both_directions() -> None:
    octets = message(Opcode.STATFS)
    for wrong in (octets[:-1], memoryview(bytes(octets) + b"\0")):
        with pytest.raises(MalformedError, match="octets"):
            Decoder().decode(wrong)


@pytest.mark.parametrize("opcode", [0, 7, 19, 33_000, 54, (1 << 32) - 1])
def test_unknown_opcode_is_a_request_that_can_be_refused(opcode: int) -> None:
    heard = Decoder().decode(message(opcode, b"whatever"))
    assert isinstance(heard, Unknown)
    assert (heard.opcode, heard.unique, bytes(heard.data)) == (opcode, 6, b"whatever")


def test_data_of_a_write_is_not_copied() -> None:
    buffer = bytearray(bytes(message(Opcode.WRITE, WRITE_IN + b"data")))
    heard = Decoder().decode(memoryview(buffer))
    assert isinstance(heard, Write)
    buffer[-4:] = b"DATA"
    assert bytes(heard.data) == b"DATA"


def test_requests_that_nobody_waits_for_are_known() -> None:
    assert {Opcode(opcode).name for opcode in UNANSWERED} == {
        "FORGET",
        "BATCH_FORGET",
        "INTERRUPT",
        "NOTIFY_REPLY",
    }
    body = struct.pack("=II", 2, 0) + struct.pack("=QQQQ", 5, 1, 6, 2)
    heard = Decoder().decode(message(Opcode.BATCH_FORGET, body))
    assert isinstance(heard, BatchForget)
    assert heard.records == [(5, 1), (6, 2)]


@given(
    st.lists(st.tuples(NAMES.filter(lambda name: b"\0" not in name), st.binary(max_size=80))),
    st.none() | st.lists(st.integers(0, (1 << 32) - 1)),
)
def test_extensions_come_back(
    contexts: list[tuple[bytes, bytes]], groups: list[int] | None
) -> None:
    said = Extensions(
        tuple(contexts[: flags.MAX_NR_SECCTX]), None if groups is None else (*groups,)
    )
    octets = said.pack()
    assert len(octets) % 8 == 0
    assert parse_extensions(memoryview(octets)) == said


def test_extension_of_an_unknown_type_is_skipped() -> None:
    octets = struct.pack("=IIQ", 16, 77, 1) + Extensions(groups=(4,)).pack()
    assert parse_extensions(memoryview(octets)) == Extensions(groups=(4,))


def values(record: type[Record]) -> st.SearchStrategy[Record]:
    """Return a strategy for a record."""
    members: list[st.SearchStrategy[Any]] = []
    for member, (_, size) in record.layout.offsets.items():
        signed = member in {"result", "backing_id", "tv_sec"}
        top = 1 << (8 * size - signed)
        number = st.integers(-top if signed else 0, top - 1)
        members.append(number if size <= 8 else st.binary(min_size=size, max_size=size))
    make: Any = record
    return st.tuples(*members).map(lambda row: make(*row))


@given(st.sampled_from(records()).flatmap(values), st.integers(0, (1 << 64) - 1))
def test_reply_comes_back_as_it_was_said(said: Record, unique: int) -> None:
    octets = good_reply(unique, said.pack())
    number, errno, body = parse_reply(memoryview(octets))
    assert (number, errno) == (unique, 0)
    assert type(said).unpack(body) == said
    with pytest.raises(MalformedError):
        type(said).unpack(bytes(body) + b"\0")


def test_error_reply_is_a_header_with_a_negative_number() -> None:
    assert error_reply(9, 38) == struct.pack("=IiQ", 16, -38, 9)
    assert parse_reply(memoryview(error_reply(9, 38)))[:2] == (9, 38)
    for wrong in (b"", bytes(16), error_reply(9, 38) + b"x"):
        with pytest.raises(MalformedError):
            parse_reply(memoryview(wrong))


@given(st.lists(st.tuples(NAMES, st.integers(1, 1 << 40))), st.booleans(), st.integers(0, 4000))
def test_listing_holds_what_fits_and_comes_back(
    entries: list[tuple[bytes, int]], plus: bool, room: int
) -> None:
    entry = EntryOut(5, 0, 1, 1, 0, 0, Attr(*range(15)).pack()).pack() if plus else b""
    listing = Listing(room)
    added = 0
    for cookie, (name, inode) in enumerate(entries):
        if not listing.add(name, inode, cookie, 0o100644, entry):
            break
        added += 1
    body = listing.pack()
    assert len(body) <= room
    assert len(body) % 8 == 0
    found = parse_listing(memoryview(body), plus=plus)
    assert found == [
        (entry, name, inode, cookie, 8) for cookie, (name, inode) in enumerate(entries[:added])
    ]
    if added < len(entries):
        size = len(entry) + 24 + len(entries[added][0])
        assert len(body) + size + (-size & 7) > room


def test_broken_listing_is_malformed() -> None:
    for wrong in (bytes(23), bytes(24), struct.pack("=QQII", 1, 1, 9, 0) + b"short"):
        with pytest.raises(MalformedError):
            parse_listing(memoryview(wrong), plus=False)


def test_notifications_say_their_code_length_and_structure() -> None:
    made = {
        Notify.POLL: notifications.wake_poll(7),
        Notify.INVAL_INODE: notifications.invalidate_inode(2, -1),
        Notify.INVAL_ENTRY: notifications.invalidate_entry(1, b"name", expire=True),
        Notify.STORE: notifications.store(2, 4096, b"data"),
        Notify.RETRIEVE: notifications.retrieve(3, 2, 0, 100),
        Notify.DELETE: notifications.delete_entry(1, 2, b"name"),
        Notify.RESEND: notifications.RESEND,
        Notify.INC_EPOCH: notifications.INCREASE_EPOCH,
        Notify.PRUNE: notifications.prune([2, 3]),
    }
    assert set(made) == set(Notify)
    for code, octets in made.items():
        assert struct.unpack_from("=IiQ", octets) == (len(octets), code, 0)
        assert len(octets) >= 16 + notifications.BODIES[code].size
    assert made[Notify.INVAL_ENTRY][16:] == struct.pack("=QII", 1, 4, 1) + b"name\0"
    assert made[Notify.INVAL_INODE][16:] == struct.pack("=Qqq", 2, -1, 0)
    assert made[Notify.DELETE][16:] == struct.pack("=QQII", 1, 2, 4, 0) + b"name\0"
    assert made[Notify.PRUNE][16:] == struct.pack("=IIQQQ", 2, 0, 0, 2, 3)


WISHES = Wishes(
    features=flags.Init.MAX_PAGES | flags.Init.HAS_RESEND | flags.Init.SETXATTR_EXT,
    max_write=1 << 20,
)
ALL_FLAGS = (1 << 32) - 1


def asked(major: int, minor: int, first: int = ALL_FLAGS, second: int = ALL_FLAGS) -> Init:
    """Return an INIT as a kernel of that version sends it."""
    return Init(26, 2, 0, 0, 0, 0, major, minor, 1 << 17, first, second)


def test_lower_minor_version_and_common_features_are_agreed_upon() -> None:
    for minor, spoken in ((45, 45), (60, MINOR), (38, 38)):
        agreed = negotiate(asked(7, minor), WISHES)
        _, _, body = parse_reply(memoryview(agreed.reply))
        said = InitOut.unpack(body)
        assert (said.major, said.minor, agreed.minor) == (7, spoken, spoken)
        assert agreed.features == WISHES.features | flags.Init.INIT_EXT
        assert said.flags | said.flags2 << 32 == agreed.features
        assert (said.max_pages, said.max_write, said.max_readahead) == (256, 1 << 20, 1 << 17)
        assert agreed.buffer_size >= said.max_write + 80


def test_flags_that_the_kernel_does_not_offer_are_not_agreed_upon() -> None:
    without = ALL_FLAGS & ~flags.Init.INIT_EXT.value
    agreed = negotiate(asked(7, 35, without), WISHES)
    assert agreed.features == flags.Init.MAX_PAGES | flags.Init.SETXATTR_EXT
    none = negotiate(asked(7, 31, 0, 0), WISHES)
    assert (none.features, none.max_write) == (flags.Init(0), 32 * 4096)
    said = InitOut.unpack(parse_reply(memoryview(none.reply))[2])
    assert (said.max_pages, said.flags, said.flags2) == (0, 0, 0)


def test_kernel_of_another_major_version_is_told_ours_or_refused() -> None:
    later = negotiate(asked(8, 0), WISHES)
    said = InitOut.unpack(parse_reply(memoryview(later.reply))[2])
    assert (later.again, said.major, said.flags) == (True, 7, 0)
    for major, minor in ((7, 30), (6, 99)):
        with pytest.raises(VersionError, match=r"at least 7\.31"):
            negotiate(asked(major, minor), WISHES)


def test_init_of_every_length_that_kernels_send_is_understood() -> None:
    short = Decoder().decode(message(Opcode.INIT, struct.pack("=IIII", 7, 31, 1, 2)))
    long = Decoder().decode(message(Opcode.INIT, struct.pack("=5I44x", 7, 36, 1, 2, 3)))
    longer = Decoder().decode(message(Opcode.INIT, struct.pack("=5I144x", 8, 0, 1, 2, 3)))
    assert [request.flags2 for request in (short, long, longer) if isinstance(request, Init)] == [
        0,
        3,
        3,
    ]
    assert layouts.INIT_IN.size == 64
