"""Streams in the mount: `/pipe/NAME`, and the names of every other server that offers `Streams`.

Theory of operation. `StreamRouter` puts itself before the front end's handlers: what concerns a
node of a stream (`stream_nodes`) is handled here, everything else goes on as before. In the root,
each directory of streams appears under its name unless the volume has an entry of that name, which
then is what is seen; the streams are not, and a line in the log says so.

A stream behaves as fifo(7) says. Opening one end waits until somebody opens the other one; with
O_NONBLOCK, reading opens at once and writing fails with ENXIO; O_RDWR never waits. A name needs no
making: whoever opens one that is not there makes the stream, and its look-up finds it as if it were
there, so the host never has to create it, which it would do with the directory locked. It is listed
while somebody has it open. `rm` takes the name away, those who have it open go on. Beyond fifo(7):
a reader that came before any writer finds EAGAIN with O_NONBLOCK, not the end; who writes when
nobody reads gets EPIPE without SIGPIPE, which the protocol does not have; and see `blocked` for
signals.

What waits lies in `Blocked`. A program that polls is told by FUSE_NOTIFY_POLL as soon as the stream
has moved, once, and then asks again.

The file handle is the opening's number at the server, and the host's number of a request its turn
there. Both are known to the host and the server, so nothing that matters is known to this process
alone: after its death, a request that the host sends again is one that the server knows.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import select
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import trio

from core.abi import Right
from core.errors import AtollError, Refused
from core.userlib.interface import Bulk
from core.userlib.streams import (
    BROKEN,
    ENDED,
    MET,
    NAME_LIMIT,
    NAMES_LIMIT,
    READABLE,
    READING,
    STREAM_SHIFT,
    TAKE_LIMIT,
    WRITABLE,
    WRITING,
    Stream,
    Streams,
)
from fs_server.interface import ROOT_INODE, Attributes

from .blocked import Blocked, Blocking
from .front_end import Handler, NativeFrontEnd
from .protocol import layouts, requests
from .protocol.directory import Listing
from .protocol.flags import UNIQUE_RESEND, Fattr, Flag, Opened
from .protocol.notifications import wake_poll
from .protocol.opcodes import Opcode
from .protocol.replies import GetxattrOut, PollOut
from .stream_nodes import (
    DIRECTORIES_LIMIT,
    STREAMS,
    Node,
    Nodes,
    directory_entry,
    directory_node,
    entry,
    got,
    got_statx,
    inode_number,
)
from .stream_routes import route_root, route_streams

log: Final = logging.getLogger(__name__)

PATIENCE_S: Final = 1.0
"""Seconds between two tries to hear of a server's changes."""
_KEPT_OPEN: Final = (Opened.DIRECT_IO | Opened.STREAM | Opened.NOFLUSH).value
_NOTHING: Final = b""
_READERS, _WRITERS, _OPENERS = range(3)
_ACCESS: Final = {
    os.O_RDONLY: READING,
    os.O_WRONLY: WRITING,
    os.O_RDWR: READING | WRITING,
}
_EVENTS: Final = {
    READABLE: select.POLLIN | select.POLLRDNORM,
    WRITABLE: select.POLLOUT | select.POLLWRNORM,
    ENDED: select.POLLHUP,
    BROKEN: select.POLLERR,
}
_NODE: Final = layouts.FORGET_IN.unpack_from
_NO_ENTRY: Final = bytes(layouts.ENTRY_OUT.size)
_COOKIES: Final = 1 << 62
"""Listing the root goes on from here with the directories of streams."""


class Watch(Protocol):
    """Where notifications of a server arrive."""

    @property
    def port(self) -> Right:
        """A right for the server to notify."""

    @property
    def bits(self) -> int:
        """The bits that it shall set."""

    async def wait_changed(self) -> None:
        """Wait until they were set."""


class Attached(msgspec.Struct, frozen=True):
    """A directory of streams.

    Attributes:
        name: in the root.
        server: whose streams they are.
        watch: where it tells what other clients do; None: there are no others.
    """

    name: bytes
    server: Streams
    watch: Watch | None = None


class Session(Protocol):
    """What the router needs of a session."""

    def answer(self, request: requests.Request, body: Bulk) -> None:
        """Send a reply."""

    def fail(self, opcode: int, unique: int, number: int) -> None:
        """Send an error number."""

    def notify(self, notification: bytes) -> None:
        """Send a notification."""


def _ignore_name(name: bytes) -> None:
    """Refuse what can be no stream's name."""
    if len(name) > NAME_LIMIT:
        raise Refused(errno.ENAMETOOLONG)
    if name in {b".", b".."}:
        raise Refused(errno.ESTALE)


class StreamRouter:
    """The streams of one session.

    Args:
        front_end: whose handlers it goes before.
        attached: the directories of streams.
        session: where replies go that come later.
    """

    def __init__(
        self, front_end: NativeFrontEnd, attached: Sequence[Attached], session: Session
    ) -> None:
        if len(attached) > DIRECTORIES_LIMIT:
            raise ValueError(f"there may be {DIRECTORIES_LIMIT} directories of streams")
        self._attached = attached
        self._indices = {directory.name: index for index, directory in enumerate(attached)}
        self._front_end = front_end
        self._session = session
        self._nodes = Nodes()
        self._pollers: dict[tuple[int, int], dict[int, int]] = {}
        self._told: set[int] = set()
        self.blocked = Blocked(session.answer, session.fail)
        front_end.streams = self
        self._install(front_end.handlers)

    # Who handles what

    def _install(self, handlers: dict[int, Handler]) -> None:
        ours: dict[int, Handler] = {
            opcode.value: getattr(self, f"_on_{opcode.name.lower()}")
            for opcode in Opcode
            if hasattr(self, f"_on_{opcode.name.lower()}")
        }
        route_streams(handlers, ours)
        for opcode in (Opcode.LOOKUP, Opcode.READDIR, Opcode.READDIRPLUS):
            plain = handlers[opcode.value]
            shown = self._look_up_root if opcode is Opcode.LOOKUP else self._list_root
            handlers[opcode.value] = route_root(plain, functools.partial(shown, plain))

    def forget(self, node: int, count: int) -> None:
        """Be told that the host has forgotten so many look-ups of a node."""
        self._nodes.forget(node, count)

    def interrupt(self, unique: int) -> bool:
        """End the wait of a request. Returns if it is one of a stream's."""
        return self.blocked.interrupt(unique)

    async def run(self) -> None:
        """Serve what waits, and follow what others do, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.blocked.run)
            for index, directory in enumerate(self._attached):
                nursery.start_soon(self._remind, directory.server)
                if directory.watch is not None:
                    nursery.start_soon(self._follow, index, directory.server, directory.watch)

    async def leave(self) -> None:
        """Close everything: the mount has ended."""
        for directory in self._attached:
            try:
                with trio.move_on_after(PATIENCE_S):
                    await directory.server.leave()
            except AtollError as error:
                log.info("streams stay open until the task ends: %s", error)

    async def _remind(self, server: Streams) -> None:
        """Have those ask again who polled a stream in an earlier incarnation's time."""
        try:
            for _, key in await server.openings():
                if key:
                    self._session.notify(wake_poll(key))
        except AtollError as error:
            log.warning("who polls a stream may not be told: %s", error)

    async def _follow(self, index: int, server: Streams, watch: Watch) -> None:
        """Hear of what other clients do, and of the server's restarts."""
        while True:
            try:
                await server.watch(watch.bits, watch.port)
                while True:
                    self._moved_others(index, await server.changes())
                    await watch.wait_changed()
            except AtollError as error:
                log.warning("no changes of streams: %s: %s", type(error).__name__, error)
                await trio.sleep(PATIENCE_S)
                self._moved_others(index, None)

    def _moved_others(self, index: int, streams: list[int] | None) -> None:
        if streams is None:
            self.blocked.moved_any()
            for stream in list(self._pollers):
                self._wake_pollers(stream)
            return
        for number in streams:
            self._moved((index, number), _READERS, _WRITERS, _OPENERS)

    def _moved(self, stream: tuple[int, int], *lines: int) -> None:
        """Let those go on who wait in lines of a stream, or poll it."""
        for line in lines:
            self.blocked.moved((*stream, line))
        if stream in self._pollers:
            self._wake_pollers(stream)

    def _wake_pollers(self, stream: tuple[int, int]) -> None:
        for key in self._pollers.pop(stream).values():
            self._session.notify(wake_poll(key))

    # The root

    async def _look_up_root(self, files: Handler, request: requests.Name) -> Bulk:
        body = await files(request)
        index = self._indices.get(request.name)
        if index is None:
            return body
        if _NODE(body)[0]:
            self._hidden(index)
            return body
        return directory_entry(index, self._nodes.directory_attributes(index))

    async def _list_root(self, files: Handler, request: requests.Read) -> Bulk:
        """List the root's entries, and when those are at their end, ours."""
        if request.offset < _COOKIES:
            body = await files(request)
            if body:
                return body
        plus = request.opcode == Opcode.READDIRPLUS
        listing = Listing(request.size)
        for index in range(max(0, request.offset - _COOKIES), len(self._attached)):
            name = self._attached[index].name
            if await self._front_end.root_has(name):
                self._hidden(index)
                continue
            number, cookie = directory_node(index), _COOKIES + index + 1
            if not listing.add(name, number, cookie, 0o040000, _NO_ENTRY if plus else b""):
                break
        return listing.pack()

    def _hidden(self, index: int) -> None:
        """Say once that streams are not seen."""
        if index not in self._told:
            self._told.add(index)
            name = self._attached[index].name.decode()
            log.warning("the volume has a /%s of its own, which hides the streams", name)

    # Directories

    def _directory(self, node: int) -> tuple[int, Streams]:
        index = node - STREAMS
        if not 0 <= index < len(self._attached):
            raise Refused(errno.ENOTDIR)
        return index, self._attached[index].server

    async def _on_lookup(self, request: requests.Name) -> Bulk:
        index, server = self._directory(request.nodeid)
        _ignore_name(request.name)
        found = await server.find(request.name)
        node = self._nodes.new(index, request.name, request.uid, request.gid)
        node.shown = found
        return entry(node)

    async def _on_unlink(self, request: requests.Name) -> Bulk:
        _, server = self._directory(request.nodeid)
        await server.unlink(request.name)
        return _NOTHING

    async def _on_opendir(self, request: requests.Open) -> Bulk:
        return layouts.OPEN_OUT.pack(request.nodeid, 0, 0)

    async def _on_releasedir(self, request: requests.Release) -> Bulk:
        return _NOTHING

    async def _on_flush(self, request: requests.Flush) -> Bulk:
        return _NOTHING

    async def _on_fsyncdir(self, request: requests.Fsync) -> Bulk:
        return _NOTHING

    async def _on_readdir(self, request: requests.Read) -> Bulk:
        return await self._list(request, _NOTHING)

    async def _on_readdirplus(self, request: requests.Read) -> Bulk:
        return await self._list(request, _NO_ENTRY)

    async def _list(self, request: requests.Read, packed: bytes) -> Bulk:
        """List names in the order of their streams' numbers, which are the cookies."""
        _, server = self._directory(request.nodeid)
        listing = Listing(request.size)
        for name, cookie in ((b".", 1), (b"..", 2)):
            inode = request.nodeid if cookie == 1 else ROOT_INODE
            if request.offset < cookie and not listing.add(name, inode, cookie, 0o040000, packed):
                return listing.pack()
        for stream in sorted(await _all(server), key=lambda stream: stream.number):
            if stream.number > request.offset and not listing.add(
                stream.name, inode_number(stream), stream.number, 0o100000, packed
            ):
                break
        return listing.pack()

    # Attributes

    def _node(self, number: int) -> tuple[Node, Streams]:
        node = self._nodes.get(number)
        if node is None:
            raise Refused(errno.ESTALE)
        return node, self._attached[node.index].server

    async def _on_getattr(self, request: requests.Getattr) -> Bulk:
        return got(await self._attributes(request.nodeid))

    async def _on_statx(self, request: requests.Statx) -> Bulk:
        return got_statx(await self._attributes(request.nodeid))

    async def _attributes(self, number: int) -> Attributes:
        index = number - STREAMS
        if index < len(self._attached):
            return self._nodes.directory_attributes(index)
        if self._nodes.get(number) is None:  # of an open file, looked up by an earlier incarnation
            return Node(number, number & DIRECTORIES_LIMIT - 1, b"", 0, 0).attributes(links=0)
        node, server = self._node(number)
        found = await server.find(node.name)
        before = node.shown
        if before is None or (found is not None and found.number == before.number):
            node.shown = found or before
            return node.attributes()
        return node.attributes(links=0)

    async def _on_setattr(self, request: requests.Setattr) -> Bulk:
        """Change permissions and owner; times are not kept."""
        if request.valid & Fattr.SIZE:
            raise Refused(errno.EINVAL)
        node, server = self._node(request.nodeid)
        valid = request.valid
        if valid & (Fattr.MODE | Fattr.UID | Fattr.GID):
            node.shown = await server.alter(
                node.name,
                request.mode & 0o7777 if valid & Fattr.MODE else -1,
                request.new_uid if valid & Fattr.UID else -1,
                request.new_gid if valid & Fattr.GID else -1,
            )
        return got(node.attributes())

    async def _on_listxattr(self, request: requests.Listxattr) -> Bulk:
        return _NOTHING if request.size else GetxattrOut(0).pack()

    async def _on_access(self, request: requests.Access) -> Bulk:
        return _NOTHING

    # Opening

    async def _on_open(self, request: requests.Open) -> Bulk:
        index, server = self._of(request.nodeid)
        node = self._nodes.get(request.nodeid)
        name = b"" if node is None else node.name  # a turn is answered whatever the name
        access = _ACCESS.get(request.flags & os.O_ACCMODE)
        if access is None or request.flags & os.O_DIRECT:
            raise Refused(errno.EINVAL)  # what is read behind the program's back may not wait
        turn = request.unique & ~UNIQUE_RESEND
        self.blocked.expect(request.unique)
        try:
            opening = await server.open(name, access, request.uid, request.gid, turn)
        except BaseException as error:
            self.blocked.expected(request.unique)
            if node is None and isinstance(error, Refused):
                raise Refused(errno.ESTALE) from None
            raise
        stream = (index, opening >> STREAM_SHIFT)
        self._moved(stream, _READERS, _WRITERS, _OPENERS)
        reply = layouts.OPEN_OUT.pack(opening, _KEPT_OPEN, 0)
        if access & READING and (access & WRITING or request.flags & os.O_NONBLOCK):
            self.blocked.expected(request.unique)
            return reply

        async def attempt() -> Bulk:
            if await server.ready(opening, 0) & MET:
                return reply
            raise Refused(errno.EAGAIN)

        def give_up() -> None:
            self.blocked.aside(functools.partial(self._close, server, stream, opening))

        wait = not request.flags & os.O_NONBLOCK
        operation = Blocking(request, attempt, wait=wait, partial=give_up)
        try:
            return await self.blocked.do((*stream, _OPENERS), operation)
        except Refused as refusal:
            raise Refused(errno.ENXIO if refusal.errno == errno.EAGAIN else refusal.errno) from None

    async def _close(self, server: Streams, stream: tuple[int, int], opening: int) -> None:
        """Close an opening."""
        pollers = self._pollers.get(stream, {})
        if pollers.pop(opening, None) is not None and not pollers:
            del self._pollers[stream]
        try:
            await server.close(opening)
        except AtollError as error:
            log.warning("opening %d was not closed: %s", opening, error)
        self._moved(stream, _READERS, _WRITERS, _OPENERS)

    async def _on_release(self, request: requests.Release) -> Bulk:
        index, server = self._of(request.nodeid)
        await self._close(server, (index, request.fh >> STREAM_SHIFT), request.fh)
        return _NOTHING

    def _of(self, number: int) -> tuple[int, Streams]:
        """Return whose a node is, whether it is known or not."""
        index = number & DIRECTORIES_LIMIT - 1
        return index, self._attached[index].server

    # Octets

    async def _on_read(self, request: requests.Read) -> Bulk:
        index, server = self._of(request.nodeid)
        stream, opening = (index, request.fh >> STREAM_SHIFT), request.fh
        turn, size = request.unique & ~UNIQUE_RESEND, min(request.size, TAKE_LIMIT)

        async def attempt() -> Bulk:
            data = await server.take(opening, turn, size)
            self._moved(stream, _WRITERS)
            return data

        operation = Blocking(request, attempt, wait=not request.flags & os.O_NONBLOCK)
        return await self.blocked.do((*stream, _READERS), operation)

    async def _on_write(self, request: requests.Write) -> Bulk:
        writing = _Writing(self, request)
        operation = Blocking(
            request,
            writing.attempt,
            wait=not request.flags & os.O_NONBLOCK,
            partial=writing.partial,
            keep=writing.keep,
        )
        return await self.blocked.do((*writing.stream, _WRITERS), operation)

    # Polling

    async def _on_poll(self, request: requests.Poll) -> Bulk:
        index, server = self._of(request.nodeid)
        stream, opening = (index, request.fh >> STREAM_SHIFT), request.fh
        key = 0
        if request.flags & Flag.POLL_SCHEDULE_NOTIFY:
            key = request.kh  # noted first: what moves from now on is told
            self._pollers.setdefault(stream, {})[opening] = key
        ready = await server.ready(opening, key)
        found = sum(events for bit, events in _EVENTS.items() if ready & bit)
        return PollOut(found).pack()


class _Writing:
    """One write(2): how far it is."""

    def __init__(self, router: StreamRouter, request: requests.Write) -> None:
        index, self._server = router._of(request.nodeid)  # noqa: SLF001 - part of it
        self.stream = (index, request.fh >> STREAM_SHIFT)
        self._router = router
        self._opening = request.fh
        self._turn = request.unique & ~UNIQUE_RESEND
        self._request = request
        self._rest = request.data
        self._done = 0

    async def attempt(self) -> Bulk:
        """Put octets in until all are."""
        put, turn = self._server.put, self._turn
        while self._rest:
            try:
                done = await put(self._opening, turn, self._done, self._rest)
            except Refused as refusal:
                if refusal.errno == errno.EAGAIN or not self._done:
                    raise
                break
            self._rest = self._rest[done - self._done :]
            self._done = done
            self._router._moved(self.stream, _READERS)  # noqa: SLF001
        return layouts.WRITE_OUT.pack(self._done)

    def partial(self) -> Bulk | None:
        """Return the reply of a write that ends here."""
        return layouts.WRITE_OUT.pack(self._done) if self._done else None

    def keep(self, room: int) -> int:
        """Copy what is still to be written out of the worker's buffer."""
        self._rest = memoryview(bytes(self._rest[:room]))
        self._request.data = self._rest[:0]
        return len(self._rest)


async def _all(server: Streams) -> list[Stream]:
    """Return all streams of a server."""
    found: list[Stream] = []
    after = b""
    while part := await server.names(after, NAMES_LIMIT):
        found += part
        after = part[-1].name
    return found


__all__ = ["Attached", "Session", "StreamRouter", "Watch"]
