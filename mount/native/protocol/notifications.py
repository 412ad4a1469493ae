"""What the server tells the kernel unasked: a reply's header with number 0 and a code for an error.

The kernel takes some of these under locks that a process waiting for an answer may hold: never
write one from inside a handler. Those it does not know, or cannot follow, fail with EINVAL or
ENOENT at write(2).
"""

from __future__ import annotations

import struct
from typing import Final

from . import layouts
from .flags import Flag
from .layout import Layout
from .opcodes import Notify
from .replies import HEADER_SIZE, pack_header

_NODE: Final = struct.Struct("=Q")

BODIES: Final[dict[Notify, Layout]] = {
    Notify.POLL: layouts.NOTIFY_POLL_WAKEUP_OUT,
    Notify.INVAL_INODE: layouts.NOTIFY_INVAL_INODE_OUT,
    Notify.INVAL_ENTRY: layouts.NOTIFY_INVAL_ENTRY_OUT,
    Notify.STORE: layouts.NOTIFY_STORE_OUT,
    Notify.RETRIEVE: layouts.NOTIFY_RETRIEVE_OUT,
    Notify.DELETE: layouts.NOTIFY_DELETE_OUT,
    Notify.RESEND: layouts.NOTHING,
    Notify.INC_EPOCH: layouts.NOTHING,
    Notify.PRUNE: layouts.NOTIFY_PRUNE_OUT,
}
"""The structure that each begins with."""


def _notification(code: Notify, body: bytes = b"") -> bytes:
    return pack_header(HEADER_SIZE + len(body), code.value, 0) + body


def wake_poll(kh: int) -> bytes:
    """Return "ask the file again what is ready": `kh` is the POLL request's."""
    return _notification(Notify.POLL, layouts.NOTIFY_POLL_WAKEUP_OUT.pack(kh))


def invalidate_inode(inode: int, offset: int = 0, length: int = 0) -> bytes:
    """Return "forget attributes, and data from `offset` on".

    Args:
        inode: the node id.
        offset: below 0: attributes only.
        length: octets of data; 0: to the end.
    """
    return _notification(
        Notify.INVAL_INODE, layouts.NOTIFY_INVAL_INODE_OUT.pack(inode, offset, length)
    )


def invalidate_entry(parent: int, name: bytes, *, expire: bool = False) -> bytes:
    """Return "forget this entry".

    Args:
        parent: the directory's node id.
        name: the entry's name.
        expire: only look it up again when it is next used (agreed upon as HAS_EXPIRE_ONLY).
    """
    flags = Flag.EXPIRE_ONLY.value if expire else 0
    fixed = layouts.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags)
    return _notification(Notify.INVAL_ENTRY, fixed + name + b"\0")


def delete_entry(parent: int, child: int, name: bytes) -> bytes:
    """Return "this entry of this inode was removed": who watches the directory hears of it."""
    fixed = layouts.NOTIFY_DELETE_OUT.pack(parent, child, len(name))
    return _notification(Notify.DELETE, fixed + name + b"\0")


def store(inode: int, offset: int, data: bytes) -> bytes:
    """Return "put these octets into the cache"."""
    fixed = layouts.NOTIFY_STORE_OUT.pack(inode, offset, len(data))
    return _notification(Notify.STORE, fixed + data)


def retrieve(notify_unique: int, inode: int, offset: int, size: int) -> bytes:
    """Return "say what is cached here": a NOTIFY_REPLY whose `unique` is ours will come."""
    body = layouts.NOTIFY_RETRIEVE_OUT.pack(notify_unique, inode, offset, size)
    return _notification(Notify.RETRIEVE, body)


def prune(inodes: list[int]) -> bytes:
    """Return "drop these inodes if nobody uses them" (7.45)."""
    fixed = layouts.NOTIFY_PRUNE_OUT.pack(len(inodes))
    return _notification(Notify.PRUNE, fixed + b"".join(map(_NODE.pack, inodes)))


RESEND: Final = _notification(Notify.RESEND)
"""Say again every request that was read and not answered (agreed upon as HAS_RESEND, 7.40)."""
INCREASE_EPOCH: Final = _notification(Notify.INC_EPOCH)
"""Look up every entry again when it is next used (7.44)."""
