"""The one table of all requests: number, shape, reply, and whether it is answered at all.

A request is the common header, the operation's own structure, and a tail. The table says which;
`decoding` and `encoding` follow it, and a test holds it against the kernel's header.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from . import layouts, requests
from .layout import Layout
from .opcodes import Opcode


class Tail(enum.Enum):
    """What follows an operation's own structure."""

    NOTHING = enum.auto()
    NAME = enum.auto()
    """A name and NUL."""
    TWO_NAMES = enum.auto()
    """Two of them."""
    DATA = enum.auto()
    """As many octets as the structure's `size` (or `in_size`) says."""
    NAME_AND_DATA = enum.auto()
    """Both, in this order."""
    RECORDS = enum.auto()
    """As many pairs of 8 octets each as the structure's `count` says."""


class Answer(enum.Enum):
    """What the kernel waits for."""

    ALWAYS = enum.auto()
    NEVER = enum.auto()
    """A reply would be an error of the server's."""
    ONLY_EAGAIN = enum.auto()
    """INTERRUPT: nothing, or EAGAIN, "the request is not here yet, say it again"."""


class Reply(enum.Enum):
    """Replies that are no structure, or more than one."""

    NOTHING = enum.auto()
    OCTETS = enum.auto()
    """As many as there are, at most the request's `size`."""
    SIZE_OR_OCTETS = enum.auto()
    """`fuse_getxattr_out` if the request's `size` is 0."""
    ENTRY_AND_OPEN = enum.auto()
    """`fuse_entry_out` and `fuse_open_out`."""
    DIRENTS = enum.auto()
    DIRENTS_PLUS = enum.auto()
    IOCTL = enum.auto()
    """`fuse_ioctl_out`, and octets, or `fuse_ioctl_iovec`s when it is to be tried again."""


class Operation(msgspec.Struct, frozen=True):
    """One line of the table.

    Attributes:
        request: the class of the decoded request.
        layout: the operation's own structure.
        tail: what follows it.
        reply: what a good answer carries.
        extended: security contexts and groups may follow.
        answer: if there is one.
    """

    opcode: Opcode
    request: type[requests.Request]
    layout: Layout
    tail: Tail
    reply: Layout | Reply
    extended: bool = False
    answer: Answer = Answer.ALWAYS

    @property
    def name(self) -> str:
        """The opcode's name."""
        return self.opcode.name


_NONE: Final = layouts.NOTHING
_NEVER: Final = Answer.NEVER
_LINES: Final = (
    Operation(Opcode.LOOKUP, requests.Name, _NONE, Tail.NAME, layouts.ENTRY_OUT),
    Operation(
        Opcode.FORGET,
        requests.Forget,
        layouts.FORGET_IN,
        Tail.NOTHING,
        Reply.NOTHING,
        answer=_NEVER,
    ),
    Operation(Opcode.GETATTR, requests.Getattr, layouts.GETATTR_IN, Tail.NOTHING, layouts.ATTR_OUT),
    Operation(Opcode.SETATTR, requests.Setattr, layouts.SETATTR_IN, Tail.NOTHING, layouts.ATTR_OUT),
    Operation(Opcode.READLINK, requests.Request, _NONE, Tail.NOTHING, Reply.OCTETS),
    Operation(
        Opcode.SYMLINK, requests.Symlink, _NONE, Tail.TWO_NAMES, layouts.ENTRY_OUT, extended=True
    ),
    Operation(
        Opcode.MKNOD, requests.Mknod, layouts.MKNOD_IN, Tail.NAME, layouts.ENTRY_OUT, extended=True
    ),
    Operation(
        Opcode.MKDIR, requests.Mkdir, layouts.MKDIR_IN, Tail.NAME, layouts.ENTRY_OUT, extended=True
    ),
    Operation(Opcode.UNLINK, requests.Name, _NONE, Tail.NAME, Reply.NOTHING),
    Operation(Opcode.RMDIR, requests.Name, _NONE, Tail.NAME, Reply.NOTHING),
    Operation(Opcode.RENAME, requests.Rename, layouts.RENAME_IN, Tail.TWO_NAMES, Reply.NOTHING),
    Operation(Opcode.LINK, requests.Link, layouts.LINK_IN, Tail.NAME, layouts.ENTRY_OUT),
    Operation(Opcode.OPEN, requests.Open, layouts.OPEN_IN, Tail.NOTHING, layouts.OPEN_OUT),
    Operation(Opcode.READ, requests.Read, layouts.READ_IN, Tail.NOTHING, Reply.OCTETS),
    Operation(Opcode.WRITE, requests.Write, layouts.WRITE_IN, Tail.DATA, layouts.WRITE_OUT),
    Operation(Opcode.STATFS, requests.Request, _NONE, Tail.NOTHING, layouts.KSTATFS),
    Operation(Opcode.RELEASE, requests.Release, layouts.RELEASE_IN, Tail.NOTHING, Reply.NOTHING),
    Operation(Opcode.FSYNC, requests.Fsync, layouts.FSYNC_IN, Tail.NOTHING, Reply.NOTHING),
    Operation(
        Opcode.SETXATTR, requests.Setxattr, layouts.SETXATTR_IN, Tail.NAME_AND_DATA, Reply.NOTHING
    ),
    Operation(
        Opcode.GETXATTR, requests.Getxattr, layouts.GETXATTR_IN, Tail.NAME, Reply.SIZE_OR_OCTETS
    ),
    Operation(
        Opcode.LISTXATTR,
        requests.Listxattr,
        layouts.GETXATTR_IN,
        Tail.NOTHING,
        Reply.SIZE_OR_OCTETS,
    ),
    Operation(Opcode.REMOVEXATTR, requests.Name, _NONE, Tail.NAME, Reply.NOTHING),
    Operation(Opcode.FLUSH, requests.Flush, layouts.FLUSH_IN, Tail.NOTHING, Reply.NOTHING),
    Operation(Opcode.INIT, requests.Init, layouts.INIT_IN, Tail.NOTHING, layouts.INIT_OUT),
    Operation(Opcode.OPENDIR, requests.Open, layouts.OPEN_IN, Tail.NOTHING, layouts.OPEN_OUT),
    Operation(Opcode.READDIR, requests.Read, layouts.READ_IN, Tail.NOTHING, Reply.DIRENTS),
    Operation(Opcode.RELEASEDIR, requests.Release, layouts.RELEASE_IN, Tail.NOTHING, Reply.NOTHING),
    Operation(Opcode.FSYNCDIR, requests.Fsync, layouts.FSYNC_IN, Tail.NOTHING, Reply.NOTHING),
    Operation(Opcode.GETLK, requests.Lock, layouts.LK_IN, Tail.NOTHING, layouts.LK_OUT),
    Operation(Opcode.SETLK, requests.Lock, layouts.LK_IN, Tail.NOTHING, Reply.NOTHING),
    Operation(Opcode.SETLKW, requests.Lock, layouts.LK_IN, Tail.NOTHING, Reply.NOTHING),
    Operation(Opcode.ACCESS, requests.Access, layouts.ACCESS_IN, Tail.NOTHING, Reply.NOTHING),
    Operation(
        Opcode.CREATE,
        requests.Create,
        layouts.CREATE_IN,
        Tail.NAME,
        Reply.ENTRY_AND_OPEN,
        extended=True,
    ),
    Operation(
        Opcode.INTERRUPT,
        requests.Interrupt,
        layouts.INTERRUPT_IN,
        Tail.NOTHING,
        Reply.NOTHING,
        answer=Answer.ONLY_EAGAIN,
    ),
    Operation(Opcode.BMAP, requests.Bmap, layouts.BMAP_IN, Tail.NOTHING, layouts.BMAP_OUT),
    Operation(Opcode.DESTROY, requests.Request, _NONE, Tail.NOTHING, Reply.NOTHING),
    Operation(Opcode.IOCTL, requests.Ioctl, layouts.IOCTL_IN, Tail.DATA, Reply.IOCTL),
    Operation(Opcode.POLL, requests.Poll, layouts.POLL_IN, Tail.NOTHING, layouts.POLL_OUT),
    Operation(
        Opcode.NOTIFY_REPLY,
        requests.NotifyReply,
        layouts.NOTIFY_RETRIEVE_IN,
        Tail.DATA,
        Reply.NOTHING,
        answer=_NEVER,
    ),
    Operation(
        Opcode.BATCH_FORGET,
        requests.BatchForget,
        layouts.BATCH_FORGET_IN,
        Tail.RECORDS,
        Reply.NOTHING,
        answer=_NEVER,
    ),
    Operation(
        Opcode.FALLOCATE, requests.Fallocate, layouts.FALLOCATE_IN, Tail.NOTHING, Reply.NOTHING
    ),
    Operation(Opcode.READDIRPLUS, requests.Read, layouts.READ_IN, Tail.NOTHING, Reply.DIRENTS_PLUS),
    Operation(Opcode.RENAME2, requests.Rename2, layouts.RENAME2_IN, Tail.TWO_NAMES, Reply.NOTHING),
    Operation(Opcode.LSEEK, requests.Lseek, layouts.LSEEK_IN, Tail.NOTHING, layouts.LSEEK_OUT),
    Operation(
        Opcode.COPY_FILE_RANGE,
        requests.CopyFileRange,
        layouts.COPY_FILE_RANGE_IN,
        Tail.NOTHING,
        layouts.WRITE_OUT,
    ),
    Operation(
        Opcode.SETUPMAPPING,
        requests.Setupmapping,
        layouts.SETUPMAPPING_IN,
        Tail.NOTHING,
        Reply.NOTHING,
    ),
    Operation(
        Opcode.REMOVEMAPPING,
        requests.Removemapping,
        layouts.REMOVEMAPPING_IN,
        Tail.RECORDS,
        Reply.NOTHING,
    ),
    Operation(Opcode.SYNCFS, requests.Request, layouts.SYNCFS_IN, Tail.NOTHING, Reply.NOTHING),
    Operation(
        Opcode.TMPFILE,
        requests.Create,
        layouts.CREATE_IN,
        Tail.NAME,
        Reply.ENTRY_AND_OPEN,
        extended=True,
    ),
    Operation(Opcode.STATX, requests.Statx, layouts.STATX_IN, Tail.NOTHING, layouts.STATX_OUT),
    Operation(
        Opcode.COPY_FILE_RANGE_64,
        requests.CopyFileRange,
        layouts.COPY_FILE_RANGE_IN,
        Tail.NOTHING,
        layouts.COPY_FILE_RANGE_OUT,
    ),
    Operation(
        Opcode.CUSE_INIT,
        requests.CuseInit,
        layouts.CUSE_INIT_IN,
        Tail.NOTHING,
        layouts.CUSE_INIT_OUT,
    ),
)
OPERATIONS: Final = {line.opcode.value: line for line in _LINES}
"""By opcode. An opcode that is not here is answered with ENOSYS."""
UNANSWERED: Final = frozenset(
    opcode for opcode, line in OPERATIONS.items() if line.answer is not Answer.ALWAYS
)
"""Opcodes whose requests get no error either."""
