"""The flag words of the protocol, named as in the header (without FUSE_) up to version 7.45."""

from __future__ import annotations

import enum
from typing import Final

ROOT_ID: Final = 1
"""The node id of the root."""
MIN_READ_BUFFER: Final = 8192
UNIQUE_RESEND: Final = 1 << 63
"""In a request's `unique`: it may have been sent before (RESEND). It is answered as it stands."""
INT_REQ_BIT: Final = 1
"""In the `unique` of an INTERRUPT: that of the request which it concerns is without this bit."""


class Init(enum.IntFlag):
    """What kernel and server agree upon by INIT. Bits from 32 on travel in `flags2`."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    INIT_RESERVED = 1 << 31
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34  # 7.38
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36  # 7.39
    PASSTHROUGH = 1 << 37  # 7.40
    NO_EXPORT_SUPPORT = 1 << 38  # 7.40
    HAS_RESEND = 1 << 39  # 7.40
    ALLOW_IDMAP = 1 << 40  # 7.41
    OVER_IO_URING = 1 << 41  # 7.42
    REQUEST_TIMEOUT = 1 << 42  # 7.43


class Opened(enum.IntFlag):
    """How a file was opened: `open_flags` of the replies to OPEN, OPENDIR and CREATE (FOPEN_)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7  # 7.40


class Fattr(enum.IntFlag):
    """Which members of a SETATTR count (`valid`, FATTR_)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


class Flag(enum.IntEnum):
    """The flags of single requests and replies: each belongs to the word that its name begins."""

    RELEASE_FLUSH = 1 << 0
    RELEASE_FLOCK_UNLOCK = 1 << 1
    GETATTR_FH = 1 << 0
    LK_FLOCK = 1 << 0
    WRITE_CACHE = 1 << 0
    WRITE_LOCKOWNER = 1 << 1
    WRITE_KILL_SUIDGID = 1 << 2
    READ_LOCKOWNER = 1 << 1
    IOCTL_COMPAT = 1 << 0
    IOCTL_UNRESTRICTED = 1 << 1
    IOCTL_RETRY = 1 << 2
    IOCTL_32BIT = 1 << 3
    IOCTL_DIR = 1 << 4
    IOCTL_COMPAT_X32 = 1 << 5
    POLL_SCHEDULE_NOTIFY = 1 << 0
    FSYNC_FDATASYNC = 1 << 0
    ATTR_SUBMOUNT = 1 << 0
    ATTR_DAX = 1 << 1
    OPEN_KILL_SUIDGID = 1 << 0
    SETXATTR_ACL_KILL_SGID = 1 << 0
    EXPIRE_ONLY = 1 << 0
    SETUPMAPPING_FLAG_WRITE = 1 << 0
    SETUPMAPPING_FLAG_READ = 1 << 1


MAX_NR_SECCTX: Final = 31
"""Extension types up to this one are a count of security contexts."""
EXT_GROUPS: Final = 32
"""The extension type of the caller's supplementary groups (7.38)."""
IOCTL_MAX_IOV: Final = 256
