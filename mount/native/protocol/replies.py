"""Typed replies to octets, and back.

A reply is `fuse_out_header` and a body, or an error number without one. Bodies are records; the
attributes inside an entry are packed octets, so that they can be kept packed for every inode and
be sent again as they are.

A reply is written by one write(2) or writev(2): half a reply is an error of the server's.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar, Final, Self

import msgspec

from . import layouts
from .layout import Layout
from .malformed import MalformedError

HEADER_SIZE: Final = layouts.OUT_HEADER.size
pack_header: Final = layouts.OUT_HEADER.pack
"""`(length of the whole reply, -errno, unique)` to octets."""
_unpack_header: Final = layouts.OUT_HEADER.unpack_from


def error_reply(unique: int, errno: int) -> bytes:
    """Return the reply "it cannot be done". `errno` 0: it is done, and there is nothing to say."""
    return pack_header(HEADER_SIZE, -errno, unique)


def good_reply(unique: int, body: bytes) -> bytes:
    """Return the reply with this body. For long bodies use `pack_header` and writev(2)."""
    return pack_header(HEADER_SIZE + len(body), 0, unique) + body


def parse_reply(message: memoryview) -> tuple[int, int, memoryview]:
    """Return `(unique, errno, body)` of a reply. MalformedError."""
    if len(message) < HEADER_SIZE:
        raise MalformedError("a reply is shorter than its header")
    length, error, unique = _unpack_header(message)
    if length != len(message):
        raise MalformedError(f"{length} octets are told, and {len(message)} are there")
    return unique, -error, message[HEADER_SIZE:]


class Record(msgspec.Struct, gc=False):
    """A structure whose members are this class's, in order."""

    layout: ClassVar[Layout]

    def pack(self) -> bytes:
        """Return the octets."""
        return self.layout.pack(*msgspec.structs.astuple(self))

    @classmethod
    def unpack(cls, octets: bytes | memoryview) -> Self:
        """Return the record in `octets`, all of which it is. MalformedError."""
        try:
            members: tuple[Any, ...] = cls.layout.struct.unpack(octets)
        except struct.error:
            raise MalformedError(f"{len(octets)} octets are no {cls.layout.name}") from None
        return cls(*members)


class Attr(Record, gc=False):
    """Attributes of an inode. Times before 1970 have 2**64 - n seconds."""

    layout = layouts.ATTR
    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int = 0


class EntryOut(Record, gc=False):
    """A name's inode. `nodeid` 0: there is none, and that may be cached. `attr` is packed."""

    layout = layouts.ENTRY_OUT
    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    entry_valid_nsec: int
    attr_valid_nsec: int
    attr: bytes


class AttrOut(Record, gc=False):
    """Attributes, and for how long they are good. `attr` is packed."""

    layout = layouts.ATTR_OUT
    attr_valid: int
    attr_valid_nsec: int
    attr: bytes


class SxTime(Record, gc=False):
    """A time of statx."""

    layout = layouts.SX_TIME
    tv_sec: int
    tv_nsec: int


class StatxRecord(Record, gc=False):
    """What statx(2) shows. Times are packed."""

    layout = layouts.STATX
    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime: bytes
    btime: bytes
    ctime: bytes
    mtime: bytes
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int


class StatxOut(Record, gc=False):
    """The reply to STATX. `stat` is packed."""

    layout = layouts.STATX_OUT
    attr_valid: int
    attr_valid_nsec: int
    flags: int
    stat: bytes


class OpenOut(Record, gc=False):
    """An open file; `open_flags` are `flags.Opened`."""

    layout = layouts.OPEN_OUT
    fh: int
    open_flags: int
    backing_id: int = 0


class WriteOut(Record, gc=False):
    """Octets written."""

    layout = layouts.WRITE_OUT
    size: int


class Kstatfs(Record, gc=False):
    """What statfs(2) shows."""

    layout = layouts.KSTATFS
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int


class GetxattrOut(Record, gc=False):
    """The size of a value, or of a list of names."""

    layout = layouts.GETXATTR_OUT
    size: int


class FileLock(Record, gc=False):
    """A lock; `end` is inclusive, `type` as in fcntl(2)."""

    layout = layouts.FILE_LOCK
    start: int
    end: int
    type: int
    pid: int


class LkOut(Record, gc=False):
    """The lock that is in the way. `lk` is packed."""

    layout = layouts.LK_OUT
    lk: bytes


class InitOut(Record, gc=False):
    """The reply to INIT; see `negotiation`."""

    layout = layouts.INIT_OUT
    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int
    flags2: int
    max_stack_depth: int
    request_timeout: int


class CuseInitOut(Record, gc=False):
    """The reply to CUSE_INIT."""

    layout = layouts.CUSE_INIT_OUT
    major: int
    minor: int
    flags: int
    max_read: int
    max_write: int
    dev_major: int
    dev_minor: int


class BmapOut(Record, gc=False):
    """A block of the device."""

    layout = layouts.BMAP_OUT
    block: int


class IoctlOut(Record, gc=False):
    """An ioctl's result; octets follow, or with IOCTL_RETRY `in_iovs` + `out_iovs` vectors."""

    layout = layouts.IOCTL_OUT
    result: int
    flags: int
    in_iovs: int
    out_iovs: int


class IoctlIovec(Record, gc=False):
    """Where in its caller's memory an ioctl reads or writes."""

    layout = layouts.IOCTL_IOVEC
    base: int
    len: int


class PollOut(Record, gc=False):
    """Events that are there."""

    layout = layouts.POLL_OUT
    revents: int


class LseekOut(Record, gc=False):
    """The offset found."""

    layout = layouts.LSEEK_OUT
    offset: int


class CopyFileRangeOut(Record, gc=False):
    """Octets copied, more than 32 bits of them."""

    layout = layouts.COPY_FILE_RANGE_OUT
    bytes_copied: int


def records() -> list[type[Record]]:
    """Return every kind of record."""
    return list(Record.__subclasses__())
