"""Requests, typed: one class for each shape of message, with the header's members.

A request is a record of numbers and octet strings, checked for form and not for sense: names are
not empty and hold no NUL, counts agree with what is there, but an offset may be anything that its
member can hold. Names are octet strings; no encoding is assumed.

`data` is a slice of the buffer that the request was read into, and is gone when the buffer is used
again: whoever keeps a request copies it.
"""

from __future__ import annotations

import msgspec

from .extensions import NO_EXTENSIONS, Extensions


class Request(msgspec.Struct, gc=False):
    """What every request says, and all that some say (STATFS, READLINK, DESTROY).

    Attributes:
        opcode: what is asked for; see `Opcode`.
        unique: the request's number; the reply carries it.
        nodeid: the inode that it is about; of a name, the directory.
        uid, gid, pid: the process behind it, as the mount's owner sees it; pid 0: not visible.
    """

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int


class Unknown(Request, gc=False):
    """A request of an opcode that is not in the table: it is answered with ENOSYS."""

    data: memoryview


class Name(Request, gc=False):
    """LOOKUP, UNLINK, RMDIR, REMOVEXATTR."""

    name: bytes


class Forget(Request, gc=False):
    """FORGET."""

    nlookup: int


class BatchForget(Request, gc=False):
    """BATCH_FORGET: `(nodeid, nlookup)` of each."""

    records: list[tuple[int, int]]


class Getattr(Request, gc=False):
    """GETATTR."""

    getattr_flags: int
    fh: int


class Setattr(Request, gc=False):
    """SETATTR; `valid` says which members count. Times are unsigned: before 1970 is 2**64 - n."""

    valid: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    new_uid: int
    new_gid: int


class Symlink(Request, gc=False):
    """SYMLINK."""

    name: bytes
    target: bytes
    extensions: Extensions = NO_EXTENSIONS


class Mknod(Request, gc=False):
    """MKNOD."""

    mode: int
    rdev: int
    umask: int
    name: bytes
    extensions: Extensions = NO_EXTENSIONS


class Mkdir(Request, gc=False):
    """MKDIR."""

    mode: int
    umask: int
    name: bytes
    extensions: Extensions = NO_EXTENSIONS


class Rename(Request, gc=False):
    """RENAME."""

    newdir: int
    name: bytes
    new_name: bytes


class Rename2(Request, gc=False):
    """RENAME2; `flags` as in renameat2(2)."""

    newdir: int
    flags: int
    name: bytes
    new_name: bytes


class Link(Request, gc=False):
    """LINK."""

    oldnodeid: int
    name: bytes


class Open(Request, gc=False):
    """OPEN, OPENDIR; `flags` as in open(2)."""

    flags: int
    open_flags: int


class Create(Request, gc=False):
    """CREATE, TMPFILE (whose name says nothing)."""

    flags: int
    mode: int
    umask: int
    open_flags: int
    name: bytes
    extensions: Extensions = NO_EXTENSIONS


class Read(Request, gc=False):
    """READ, READDIR, READDIRPLUS: of a directory, `offset` is the cookie to go on from."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int


class Write(Request, gc=False):
    """WRITE."""

    fh: int
    offset: int
    size: int
    write_flags: int
    lock_owner: int
    flags: int
    data: memoryview


class Release(Request, gc=False):
    """RELEASE, RELEASEDIR."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class Flush(Request, gc=False):
    """FLUSH: a close(2); there may be several for one open."""

    fh: int
    lock_owner: int


class Fsync(Request, gc=False):
    """FSYNC, FSYNCDIR."""

    fh: int
    fsync_flags: int


class Setxattr(Request, gc=False):
    """SETXATTR; `setxattr_flags` is 0 where the longer form was not agreed upon."""

    size: int
    flags: int
    setxattr_flags: int
    name: bytes
    data: memoryview


class Getxattr(Request, gc=False):
    """GETXATTR; `size` 0 asks for the value's size."""

    size: int
    name: bytes


class Listxattr(Request, gc=False):
    """LISTXATTR; `size` 0 asks for the list's size."""

    size: int


class Lock(Request, gc=False):
    """GETLK, SETLK, SETLKW; `lk` is a packed `fuse_file_lock`."""

    fh: int
    owner: int
    lk: bytes
    lk_flags: int


class Access(Request, gc=False):
    """ACCESS."""

    mask: int


class Init(Request, gc=False):
    """INIT; `flags2` is 0 from a kernel before 7.36."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    flags2: int


class CuseInit(Request, gc=False):
    """CUSE_INIT."""

    major: int
    minor: int
    flags: int


class Interrupt(Request, gc=False):
    """INTERRUPT: somebody who waits for the request `target` no longer wants to."""

    target: int


class Bmap(Request, gc=False):
    """BMAP."""

    block: int
    blocksize: int


class Ioctl(Request, gc=False):
    """IOCTL."""

    fh: int
    flags: int
    cmd: int
    arg: int
    in_size: int
    out_size: int
    data: memoryview


class Poll(Request, gc=False):
    """POLL; `kh` is what a wake-up names."""

    fh: int
    kh: int
    flags: int
    events: int


class NotifyReply(Request, gc=False):
    """NOTIFY_REPLY: the cached octets that a RETRIEVE asked for; `unique` is the asker's."""

    offset: int
    size: int
    data: memoryview


class Fallocate(Request, gc=False):
    """FALLOCATE; `mode` as in fallocate(2)."""

    fh: int
    offset: int
    length: int
    mode: int


class Lseek(Request, gc=False):
    """LSEEK: only SEEK_DATA and SEEK_HOLE arrive."""

    fh: int
    offset: int
    whence: int


class CopyFileRange(Request, gc=False):
    """COPY_FILE_RANGE, COPY_FILE_RANGE_64."""

    fh_in: int
    off_in: int
    nodeid_out: int
    fh_out: int
    off_out: int
    len: int
    flags: int


class Setupmapping(Request, gc=False):
    """SETUPMAPPING (DAX)."""

    fh: int
    foffset: int
    len: int
    flags: int
    moffset: int


class Removemapping(Request, gc=False):
    """REMOVEMAPPING (DAX): `(moffset, len)` of each."""

    records: list[tuple[int, int]]


class Statx(Request, gc=False):
    """STATX."""

    getattr_flags: int
    fh: int
    sx_flags: int
    sx_mask: int
