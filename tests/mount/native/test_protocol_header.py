"""The codec's numbers and structures against the header of the host's kernel.

What the installed header does not have yet stands in tables here, with the version that brought it
(a later edition of 7.38 counts as 39), as the kernel's documentation and history have it.
"""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Final

import msgspec
import pytest

from mount.native.protocol import flags, layouts, notifications
from mount.native.protocol.layouts import LAYOUTS
from mount.native.protocol.negotiation import MAJOR, MINOR
from mount.native.protocol.opcodes import Notify, Opcode
from mount.native.protocol.operations import OPERATIONS, Operation, Reply, Tail
from mount.native.protocol.replies import Record, records
from mount.native.protocol.requests import Request, Unknown

HEADER: Final = Path("/usr/include/linux/fuse.h")
SIZES: Final = {"uint16_t": 2, "uint32_t": 4, "int32_t": 4, "uint64_t": 8, "int64_t": 8, "char": 1}
IDLE: Final = re.compile(r"_*(padding|unused|dummy|spare|reserved)\d*")
NEWER_NUMBERS: Final = {
    "FUSE_CREATE_SUPP_GROUP": (39, 1 << 34),
    "FUSE_DIRECT_IO_ALLOW_MMAP": (39, 1 << 36),
    "FUSE_STATX": (39, 52),
    "FUSE_PASSTHROUGH": (40, 1 << 37),
    "FUSE_NO_EXPORT_SUPPORT": (40, 1 << 38),
    "FUSE_HAS_RESEND": (40, 1 << 39),
    "FUSE_NOTIFY_RESEND": (40, 7),
    "FOPEN_PASSTHROUGH": (40, 1 << 7),
    "FUSE_ALLOW_IDMAP": (41, 1 << 40),
    "FUSE_OVER_IO_URING": (42, 1 << 41),
    "FUSE_REQUEST_TIMEOUT": (43, 1 << 42),
    "FUSE_NOTIFY_INC_EPOCH": (44, 8),
    "FUSE_NOTIFY_PRUNE": (45, 9),
    "FUSE_COPY_FILE_RANGE_64": (45, 53),
}
NEWER_STRUCTURES: Final = {
    "fuse_supp_groups": (39, 4),
    "fuse_sx_time": (39, 16),
    "fuse_statx": (39, 256),
    "fuse_statx_in": (39, 24),
    "fuse_statx_out": (39, 288),
    "fuse_copy_file_range_out": (45, 8),
    "fuse_notify_prune_out": (45, 16),
}
NEWER_MEMBERS: Final = {
    ("fuse_open_out", "backing_id"): (40, 12, 4),
    ("fuse_init_out", "max_stack_depth"): (40, 36, 4),
    ("fuse_init_out", "request_timeout"): (43, 40, 2),
}
NOT_SPOKEN: Final = {"fuse_statfs_out", "fuse_backing_map"}
"""One is nothing but a `fuse_kstatfs`, the other an argument of ioctl(2)."""
ENUMS: Final[list[tuple[str, type[enum.IntEnum | enum.IntFlag]]]] = [
    ("FUSE_", flags.Init),
    ("FUSE_", flags.Flag),
    ("FOPEN_", flags.Opened),
    ("FATTR_", flags.Fattr),
    ("FUSE_", Opcode),
    ("FUSE_NOTIFY_", Notify),
]


class Header:
    """What a header says."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        self.numbers: dict[str, int] = {}
        for name, one, shift in re.findall(
            r"#define\s+(\w+)\s+\((1)\w*\s*<<\s*(\d+)\w*\)", text, flags=re.IGNORECASE
        ):
            self.numbers[name] = int(one) << int(shift)
        plain = re.findall(r"#define\s+(\w+)\s+(\d+)\s*$", text, flags=re.MULTILINE)
        plain += re.findall(r"^\s+(\w+)\s*=\s*(\d+),", text, flags=re.MULTILINE)
        self.numbers |= {name: int(value) for name, value in plain}
        self.minor = self.numbers["FUSE_KERNEL_MINOR_VERSION"]
        self.structures: dict[str, dict[str, tuple[int, int]]] = {}
        self.sizes: dict[str, int] = {}
        for name, body in re.findall(
            r"^struct (\w+) \{(.*?)^\};", text, flags=re.MULTILINE | re.DOTALL
        ):
            self._add(name, body)

    def _add(self, name: str, body: str) -> None:
        members: dict[str, tuple[int, int]] = {}
        position = 0
        found = re.findall(r"(?:struct\s+)?(\w+)\s+(\w+)\s*(\[\w*\])?;", body)
        for kind, member, array in found:
            if kind not in SIZES and kind not in self.sizes:
                return  # made of structures that are not the protocol's (io_uring)
            size = SIZES.get(kind) or self.sizes[kind]
            assert position % min(size, 8) == 0, f"{name}.{member}: the compiler would pad"
            count = 0 if array == "[]" else int(array.strip("[]") if array else 1)
            members[member] = (position, size * count)
            position += size * count
        self.structures[name] = members
        self.sizes[name] = position


@pytest.fixture(scope="module")
def header() -> Header:
    if not HEADER.exists():
        pytest.skip(f"{HEADER} is not there: it comes with linux-libc-dev")
    return Header(HEADER.read_text(encoding="utf-8"))


def test_header_was_understood(header: Header) -> None:
    assert header.numbers["FUSE_KERNEL_VERSION"] == MAJOR
    assert header.sizes["fuse_in_header"] == 40
    assert header.structures["fuse_write_in"]["lock_owner"] == (24, 8)
    assert len(header.sizes) > 60
    assert len(header.numbers) > 120


def test_every_number_of_ours_is_the_headers(header: Header) -> None:
    for prefix, numbers in ENUMS:
        for name, value in numbers.__members__.items():
            full = name if name.startswith("CUSE_") else prefix + name
            version, newer = NEWER_NUMBERS.get(full, (0, None))
            if version > header.minor and full not in header.numbers:
                assert value == newer, full
            else:
                assert value == header.numbers[full], full


def test_every_number_of_the_header_is_ours(header: Header) -> None:
    ours = {prefix + name for prefix, numbers in ENUMS for name in numbers.__members__}
    missing = [
        name
        for name in header.numbers
        if re.match(r"FUSE_|FOPEN_|FATTR_", name)
        and not re.search(r"_VERSION|_SIZE|_BSWAP_|_MAX|DEV_IOC|MIN_READ|ROOT_ID", name)
        and name not in ours | {"FUSE_EXT_GROUPS", "FUSE_UNIQUE_RESEND", "FUSE_INVALID_UIDGID"}
    ]
    assert not missing or header.minor > MINOR
    assert header.numbers["FUSE_MAX_NR_SECCTX"] == flags.MAX_NR_SECCTX
    assert header.numbers["FUSE_IOCTL_MAX_IOV"] == flags.IOCTL_MAX_IOV
    assert header.numbers["FUSE_MIN_READ_BUFFER"] == flags.MIN_READ_BUFFER
    assert header.numbers["FUSE_ROOT_ID"] == flags.ROOT_ID


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_the_headers(header: Header, name: str) -> None:
    ours = LAYOUTS[name]
    if name not in header.structures:
        version, size = NEWER_STRUCTURES[name]
        assert (version > header.minor, ours.size) == (True, size)
        return
    theirs = header.structures[name]
    assert ours.size == header.sizes[name]
    for member, place in ours.offsets.items():
        if member in theirs:
            assert place == theirs[member], member
        else:
            version, *newer = NEWER_MEMBERS[name, member]
            assert (version > header.minor, list(place)) == (True, newer), member
    left_out = [
        member
        for member, (_, size) in theirs.items()
        if member not in ours.offsets and size and not IDLE.fullmatch(member)
    ]
    assert not left_out


def test_no_structure_of_the_header_is_left_out(header: Header) -> None:
    spoken = {name for name in header.structures if "uring" not in name} - NOT_SPOKEN
    assert spoken <= set(LAYOUTS) or header.minor > MINOR
    assert header.structures["fuse_statfs_out"] == {"st": (0, layouts.KSTATFS.size)}


def test_newer_than_the_header_is_laid_out_as_the_kernels_history_says() -> None:
    for name, (_, size) in NEWER_STRUCTURES.items():
        assert LAYOUTS[name].size == size
    for (name, member), (_, *place) in NEWER_MEMBERS.items():
        assert list(LAYOUTS[name].offsets[member]) == place
    assert layouts.STATX.offsets["ino"] == (32, 8)
    assert layouts.STATX.offsets["mtime"] == (112, 16)
    assert layouts.STATX.offsets["dev_minor"] == (140, 4)


def test_every_opcode_has_a_line_in_the_table() -> None:
    assert set(OPERATIONS) == {opcode.value for opcode in Opcode}
    assert set(notifications.BODIES) == set(Notify)


@pytest.mark.parametrize("line", OPERATIONS.values(), ids=lambda line: line.name)
def test_members_of_a_request_are_its_structures(line: Operation) -> None:
    tails = {
        Tail.NOTHING: [],
        Tail.NAME: ["name"],
        Tail.TWO_NAMES: ["name", "target" if line.opcode is Opcode.SYMLINK else "new_name"],
        Tail.DATA: ["data"],
        Tail.NAME_AND_DATA: ["name", "data"],
        Tail.RECORDS: ["records"],
    }
    rename = {"new_uid": "uid", "new_gid": "gid", "target": "unique"}
    members = [name for name in line.layout.members if line.tail is not Tail.RECORDS]
    tail = tails[line.tail] + (["extensions"] if line.extended else [])
    fields = line.request.__struct_fields__[6:]
    numbers = [rename.get(field, field) for field in fields[: len(members)]]
    assert (numbers, list(fields[len(members) :])) == (members, tail)


def test_every_reply_structure_has_a_record() -> None:
    replies = {line.reply for line in OPERATIONS.values() if not isinstance(line.reply, Reply)}
    assert replies <= {record.layout for record in records()}


@pytest.mark.parametrize("record", records(), ids=lambda record: record.__name__)
def test_members_of_a_record_are_its_structures(record: type[Record]) -> None:
    assert record.__struct_fields__ == record.layout.members


def test_every_class_of_request_is_used() -> None:
    made = {line.request for line in OPERATIONS.values()}
    assert set(Request.__subclasses__()) | {Request} == made | {Unknown}
    assert issubclass(Request, msgspec.Struct)
