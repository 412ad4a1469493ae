"""The native session: requests are read from /dev/fuse, handled, and answered by one write each.

Theory of operation. After INIT `WORKERS_LIMIT` workers take requests as `fuse_wait` says: poll
first, park in trio only if nothing is there, one watches and the others rest. A worker reads a
request into a buffer of its own, runs the handler, and writes the reply; it keeps the buffer until
then, so a WRITE's data are handed on without a copy.

A handler is stepped by hand: one that does not suspend costs trio nothing. One that does gets a
cancel scope at that moment, found by the request's number. That is sound because whatever a handler
does before it first suspends opens no cancel scope that outlives this step.

Interrupts. The kernel says INTERRUPT for every signal that reaches a waiting process, also for one
whose handler would just run (SIGCHLD, SIGALRM). A file system on a disk does not fail with EINTR
then, and programs do not expect it. So the handler is cancelled when a signal waits that will end
the process; its call at the server aborts, and the request is answered EINTR. The kernel says
INTERRUPT once for each request, so the process is looked at again until the request is answered.
Waiting for a lock is another matter: every signal that is handled ends it.

Invariants:

1. Between a poll that says "readable" and the read there is no checkpoint; who finds nothing all
   the same (the request was withdrawn) waits again.
2. Every request is answered exactly once, but those that want no answer; one that waits for a
   stream leaves its worker (`Later`) and is answered by `blocked`.
3. No error of a handler leaves a worker.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import select
import types
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final

import trio

from core.abi import RESUMABLE_PLACES
from core.errors import Refused
from core.userlib.interface import Bulk
from core.userlib.resuming import Place
from mount.error_numbers import error_number
from mount.fuse_wait import Workers
from mount.host import Host

from .attachment import Terms
from .blocked import Later
from .front_end import NativeFrontEnd
from .protocol import requests
from .protocol.decoding import Decoder
from .protocol.flags import Init
from .protocol.malformed import MalformedError
from .protocol.notifications import RESEND
from .protocol.opcodes import Opcode
from .protocol.operations import OPERATIONS, UNANSWERED
from .protocol.replies import HEADER_SIZE, error_reply, pack_header
from .resent import UNIQUE, Resent

log: Final = logging.getLogger(__name__)

WORKERS_LIMIT: Final = RESUMABLE_PLACES
"""Requests that can be with the file server at once: each is worked on at a place of its own."""
HEED_S: Final = 0.05
"""Seconds between two looks at a process that was interrupted and lives."""
WAITS_LIMIT: Final = 1024
"""Requests that wait for another request to come, at once."""
NOBODY: Final = 0
"""Stands for the process of a request that every signal interrupts."""
DECLINED_LIMIT: Final = 64
"""Kinds of requests of which the log says that they are not served."""
_SHORT: Final = 4096
"""Octets of a reply up to which joining header and body is cheaper than writing two pieces."""
_GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF})
"""Errors of the device that say that the mount is no more."""


class NativeSession:
    """One mount that was made and agreed upon, as long as this incarnation serves it.

    Args:
        descriptor: the session's /dev/fuse, owned by whoever made the session.
        host: looks at processes that were interrupted.
        workers: how workers wait for requests at the descriptor.
        kept: place and tag of what the kernel keeps of an earlier incarnation's calls.
    """

    def __init__(
        self,
        front_end: NativeFrontEnd,
        descriptor: int,
        terms: Terms,
        host: Host,
        workers: Workers,
        kept: Iterable[tuple[int, int]] = (),
    ) -> None:
        self._front_end = front_end
        self._descriptor = descriptor
        self._terms = terms
        self._host = host
        self._workers = workers
        self._handlers = front_end.handlers
        self._under_way: dict[int, tuple[trio.CancelScope, int]] = {}
        self._declined: set[int] = set()
        self._waiting = 0
        self._decode = Decoder().decode
        self._nursery: trio.Nursery | None = None
        self._resent = Resent(kept)
        front_end.groups_told = bool(terms.features & Init.CREATE_SUPP_GROUP)

    # The life of the session

    async def work(self) -> None:
        """Serve requests until the mount is gone, or cancelled."""
        if self._terms.resends:
            self._write(RESEND)
            self._take_resent()
        async with trio.open_nursery() as outer:
            self._nursery = outer
            streams = self._front_end.streams
            if streams is not None:
                outer.start_soon(streams.run)
            async with trio.open_nursery() as nursery:
                for number in range(WORKERS_LIMIT):
                    nursery.start_soon(self._work, number)
            if streams is not None:
                await streams.leave()
            outer.cancel_scope.cancel()

    def _take_resent(self) -> None:
        """Read what is said again, all of it before anything is begun.

        Such requests stand before all others in the host's queue.
        """
        buffer = make_buffer(self._terms.buffer_size)
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while poll.poll(0) == [(self._descriptor, select.POLLIN)]:
            size = self._receive(buffer)
            if size > 0 and not self._resent.take(bytes(memoryview(buffer)[:size])):
                return

    # One worker

    async def _work(self, number: int) -> None:
        await self._workers.drive(self._work_off(Place(number)))

    async def _work_off(self, place: Place) -> None:
        place.enter()
        decode, handlers = self._decode, self._handlers
        resent: Resent | None = self._resent
        buffer: mmap.mmap | None = None
        view = memoryview(b"")
        while True:
            message = resent.give(place.number) if resent is not None else None
            if message is None:
                resent = None
                if not await self._workers.wait_readable():
                    return
                if buffer is None:
                    buffer = make_buffer(self._terms.buffer_size)
                    view = memoryview(buffer)
                size = self._receive(buffer)
                if size <= 0:
                    continue
                message = view[:size]
            try:
                request = decode(message)
            except MalformedError as error:
                self._malformed(error)
                continue
            handler = handlers.get(request.opcode)
            if handler is None:
                self._handle_other(request)
                continue
            place.tag = request.unique & UNIQUE
            try:
                steps = handler(request).__await__()
                try:
                    trap = next(steps)
                except StopIteration as done:
                    body: Bulk = done.value
                else:
                    body = await self._attended(steps, trap, request)
            except Exception as error:  # noqa: BLE001 - invariant 3
                self._failed(request, error)
            else:
                self._answer(request, body)

    @types.coroutine
    def _attended(
        self, steps: Generator[Any, Any, Bulk], trap: Any, request: requests.Request
    ) -> Generator[Any, Any, Bulk]:
        """Finish a handler that has suspended with `trap`, so that an interrupt finds it."""
        with trio.CancelScope() as scope:  # noqa: ASYNC100 - it waits in `yield from`
            self._under_way[request.unique] = scope, request.pid
            interrupted = request.unique in self._resent.interrupted
            if interrupted and self._front_end.interrupt(request.unique):
                pass  # a stream's: it is not cancelled, what it has taken would be lost
            elif interrupted and self._nursery is not None:
                self._nursery.start_soon(self._heed, request.unique)
            try:
                return (yield from _rest(steps, trap))
            finally:
                del self._under_way[request.unique]
        raise Refused(errno.EINTR)

    def _handle_other(self, request: requests.Request) -> None:
        """Handle what has no handler of the front end's."""
        match request:
            case requests.Forget():
                self._front_end.forget(request.nodeid, request.nlookup)
            case requests.BatchForget():
                for inode, count in request.records:
                    self._front_end.forget(inode, count)
            case requests.Interrupt() if self._front_end.interrupt(request.target):
                pass
            case requests.Interrupt():
                if request.target in self._under_way and self._nursery is not None:
                    self._nursery.start_soon(self._heed, request.target)
            case _ if request.opcode == Opcode.DESTROY:
                self._write(error_reply(request.unique, 0))
            case _ if request.opcode in self._front_end.waiting:
                self._begin_wait(request)
            case _:
                self._decline(request)

    def _begin_wait(self, request: requests.Request) -> None:
        """Handle what may wait for another request, beside the workers that have to read that."""
        if self._nursery is None or self._waiting >= WAITS_LIMIT:
            self._fail(request.opcode, request.unique, errno.ENOLCK)
            return
        scope = trio.CancelScope()
        self._under_way[request.unique] = scope, NOBODY
        self._waiting += 1
        if request.unique in self._resent.interrupted:
            scope.cancel()
        self._nursery.start_soon(self._wait, request, scope)

    async def _wait(self, request: requests.Request, scope: trio.CancelScope) -> None:
        body: Bulk | None = None
        number = errno.EINTR
        try:
            with scope:
                body = await self._front_end.waiting[request.opcode](request)
        except Exception as error:  # noqa: BLE001 - invariant 3
            number = error_number(Opcode(request.opcode).name, error)
        finally:
            del self._under_way[request.unique]
            self._waiting -= 1
        if body is None:
            self._fail(request.opcode, request.unique, number)
        else:
            self._answer(request, body)

    def _decline(self, request: requests.Request) -> None:
        """Say of what nobody knows here that it is not done; and in the log, once of each kind."""
        opcode = request.opcode
        if opcode not in self._declined and len(self._declined) < DECLINED_LIMIT:
            self._declined.add(opcode)
            name = Opcode(opcode).name if opcode in OPERATIONS else "of an unknown kind"
            log.info("a request %s (%d) is not served", name, opcode)
        self._fail(opcode, request.unique, errno.ENOSYS)

    async def _heed(self, unique: int) -> None:
        """Cancel a request when nobody will be there to take its answer."""
        while unique in self._under_way:
            scope, pid = self._under_way[unique]
            if pid == NOBODY or await self._host.is_ending(pid):
                scope.cancel()
                return
            await trio.sleep(HEED_S)

    # Replies of streams: later, from outside of a worker

    def answer(self, request: requests.Request, body: Bulk) -> None:
        """Send a reply whose request has left its worker."""
        self._answer(request, body)

    def fail(self, opcode: int, unique: int, number: int) -> None:
        """Send an error number likewise."""
        self._fail(opcode, unique, number)

    def notify(self, notification: bytes) -> None:
        """Tell the kernel something unasked that it takes no lock for."""
        self._write(notification)

    # The device

    def _receive(self, buffer: mmap.mmap) -> int:
        """Read a request. Returns its octets; 0: there was none; -1: the session is over."""
        try:
            return os.readv(self._descriptor, (buffer,))
        except OSError as error:
            if error.errno in _GONE:
                self._workers.end()
                return -1
            if error.errno not in {errno.EAGAIN, errno.EINTR, errno.ENOENT}:
                log.warning("a request could not be read: %s", error)
            return 0

    def _answer(self, request: requests.Request, body: Bulk) -> None:
        size = HEADER_SIZE + len(body)
        header = pack_header(size, 0, request.unique)
        try:
            if size <= _SHORT and isinstance(body, bytes):
                os.write(self._descriptor, header + body)
            else:
                os.writev(self._descriptor, (header, body))
        except OSError as error:
            self._front_end.undo(request.opcode, body)
            if error.errno not in _GONE and error.errno != errno.ENOENT:  # ENOENT: withdrawn
                log.error(  # noqa: TRY400 - the text says it all
                    "the host took no answer to %s: %s", Opcode(request.opcode).name, error
                )
                self._fail(request.opcode, request.unique, errno.EIO)

    def _failed(self, request: requests.Request, error: Exception) -> None:
        """Answer a request whose handler raised, unless it will be answered later."""
        if not isinstance(error, Later):
            number = error_number(Opcode(request.opcode).name, error)
            self._fail(request.opcode, request.unique, number)

    def _fail(self, opcode: int, unique: int, number: int) -> None:
        if opcode not in UNANSWERED:
            self._write(error_reply(unique, number))

    def _write(self, octets: bytes) -> None:
        try:
            os.write(self._descriptor, octets)
        except OSError as error:
            if error.errno not in _GONE and error.errno != errno.ENOENT:
                log.warning("the host took no answer: %s", error)

    def _malformed(self, error: MalformedError) -> None:
        log.error("opcode %d: %s", error.opcode, error.reason)
        if error.unique:
            self._write(error_reply(error.unique, errno.EIO))


def make_buffer(size: int) -> mmap.mmap:
    """Return memory for requests, with pages behind all of it.

    The host's kernel fails a request with EIO if a process that is being killed lacks the page that
    it is copied to.
    """
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)


def _rest(steps: Generator[Any, Any, Bulk], trap: Any) -> Generator[Any, Any, Bulk]:
    """Go on with steps that have yielded `trap`."""
    resume: Callable[[Any], Any]
    while True:
        try:
            value = yield trap
        except BaseException as error:  # noqa: BLE001 - belongs to the steps, which get it
            resume, given = steps.throw, error
        else:
            resume, given = steps.send, value
        try:
            trap = resume(given)
        except StopIteration as done:
            answered: Bulk = done.value
            return answered
