"""Nodes of streams: how the host's kernel knows them, and what `stat` shows.

Node ids from `STREAMS` on are no inodes of the file server. A directory of streams has a fixed one;
a stream gets a new one with every look-up, and the host may not keep the entry. For the host locks
a node while it writes to it: with one node for all, a writer that waits would hold up every other
one, and those could not be killed. (Measured on Linux 6.18, with FOPEN_STREAM and
FOPEN_DIRECT_IO: a read waits for nobody and keeps nobody waiting. Of two writes to one node the
second sleeps uninterruptibly until the first is answered; FOPEN_PARALLEL_DIRECT_WRITES does not
help beyond a file's end. That leaves two processes that write through one open file.)

A stream is a regular file to `stat`. A FIFO or a device would never be opened here: the host serves
those itself. Its size is 0; that it cannot be sought or truncated is said when it is opened.

A node that this process does not know (it was looked up before a restart) is ESTALE, which makes
the host look it up again; an open file needs no node but its handle, the opening's number.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Final

from core.userlib.streams import Stream
from fs_server.interface import Attributes

from .packed_inode import pack_attributes, pack_statx
from .protocol.layouts import ATTR, ATTR_OUT, ENTRY_OUT
from .protocol.replies import StatxOut

STREAMS: Final = 1 << 62
"""Node ids from here on are those of streams and their directories."""
DIRECTORIES_LIMIT: Final = 64
_NAMED: Final = STREAMS | 1 << 61
_DIRECTORY_S: Final = 1
"""Seconds that the host may keep the entry and the attributes of a directory of streams."""
_ENTRY_HEAD: Final = ENTRY_OUT.size - ATTR.size
_GOT_HEAD: Final = ATTR_OUT.size - ATTR.size


def directory_node(index: int) -> int:
    """Return the node id of a directory of streams."""
    return STREAMS | index


def inode_number(stream: Stream) -> int:
    """Return what `ls -i` shows: the same for all who have the stream open."""
    return STREAMS | stream.number


class Node:
    """One look-up of a stream's name.

    Attributes:
        index: of its directory.
        lookups: how often the host knows it.
        uid, gid: who looked it up, and will own the stream if it has to be made.
        shown: the stream that it is, once that is known.
    """

    __slots__ = ("gid", "index", "lookups", "name", "number", "shown", "uid")

    def __init__(self, number: int, index: int, name: bytes, uid: int, gid: int) -> None:
        self.number = number
        self.index = index
        self.name = name
        self.lookups = 1
        self.uid = uid
        self.gid = gid
        self.shown: Stream | None = None

    def attributes(self, *, links: int = 1) -> Attributes:
        """Return what `stat` shows."""
        shown = self.shown
        if shown is None:  # opening it will make it
            now = time.time_ns()
            shown = Stream(self.number & ~STREAMS, self.name, 0o600, self.uid, self.gid, now)
        mode, made = stat.S_IFREG | shown.mode, shown.made_ns
        number = inode_number(shown)
        return Attributes(number, mode, links, shown.uid, shown.gid, 0, 0, 0, made, made, made)


class Nodes:
    """All nodes that the host knows."""

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        # No node of an earlier process comes again: the host may still know those.
        self._next = time.time_ns() // 1000
        self._made_ns = time.time_ns()

    def __len__(self) -> int:
        return len(self._nodes)

    def new(self, index: int, name: bytes, uid: int, gid: int) -> Node:
        """Return a node for a look-up."""
        self._next += 1
        number = _NAMED | (self._next << 6 & (1 << 61) - 1) | index
        node = self._nodes[number] = Node(number, index, name, uid, gid)
        return node

    def get(self, number: int) -> Node | None:
        """Return a node, None if it is not known."""
        return self._nodes.get(number)

    def forget(self, number: int, count: int) -> None:
        """Be told that the host has forgotten so many look-ups."""
        node = self._nodes.get(number)
        if node is not None:
            node.lookups -= count
            if node.lookups <= 0:
                del self._nodes[number]

    def directory_attributes(self, index: int) -> Attributes:
        """Return what `stat` shows of a directory of streams: anybody may make names in it."""
        mode, made = stat.S_IFDIR | stat.S_ISVTX | 0o777, self._made_ns
        inode = directory_node(index)
        owner = os.geteuid(), os.getegid()
        return Attributes(inode, mode, 2, *owner, 0, 0, 0, made, made, made)


def directory_entry(index: int, attributes: Attributes) -> bytes:
    """Return a packed `fuse_entry_out` of a directory of streams."""
    head = ENTRY_OUT.pack(directory_node(index), 0, _DIRECTORY_S, _DIRECTORY_S, 0, 0, b"")
    return head[:_ENTRY_HEAD] + pack_attributes(attributes)


def entry(node: Node) -> bytes:
    """Return a packed `fuse_entry_out` of a stream: the host keeps nothing of it."""
    head = ENTRY_OUT.pack(node.number, 0, 0, 0, 0, 0, b"")
    return head[:_ENTRY_HEAD] + pack_attributes(node.attributes())


def got(attributes: Attributes) -> bytes:
    """Return a packed `fuse_attr_out`."""
    return ATTR_OUT.pack(0, 0, b"")[:_GOT_HEAD] + pack_attributes(attributes)


def got_statx(attributes: Attributes) -> bytes:
    """Return a packed `fuse_statx_out`."""
    return StatxOut(0, 0, 0, pack_statx(attributes, attributes.mtime)).pack()
