"""Calls that outlive their client: what they change is changed once, whoever asks again.

A task that answers somebody outside of the system, as a front end answers the host's kernel, may
die between a call that changes something and its own answer. Its next incarnation is asked the same
again. It must neither do it again nor lose the answer. So it makes such a call *resumable*: at one
of its few *places*, under a *tag* that stands for what it was asked.

Theory of operation. When an incarnation ends, its resumable calls are not aborted. For each place
the kernel keeps what came of every call under the latest tag, in order: its *steps*. The first call
that the next incarnation makes under the same tag gets what the first step came to, the second call
the second, and a step that is still in flight is waited for. A call under another tag says that the
former one is dealt with: its steps are forgotten, and aborted if they are still in flight.

Nobody withdraws a resumable call: who is cancelled while he waits for it just waits no more.

Invariants:

1. A task has at most RESUMABLE_PLACES places with RESUMABLE_STEPS steps each, and a step holds one
   reply without bulk. What is in flight of them counts like any other message.
2. A step is its request's client end until it has been answered, and what it came to from then on.
3. No step of an earlier incarnation refers to a slot of the client's transfer region: its bulk was
   copied before the next incarnation began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.abi import (
    NO_SLOT,
    PLACE_SHIFT,
    RESUMABLE_PLACES,
    RESUMABLE_STEPS,
    Kind,
    RightKind,
)
from core.errors import AtollError, BadMessageError, LimitError, WrongRightError, to_wire
from core.userlib.interface import Operation, encode
from core.userlib.line import Packet

from .cargo import check_bulk
from .ports import KernelRight, Port
from .requests import ClientEnd, Reply, Request
from .tasks import KernelTask, Placement

if TYPE_CHECKING:
    from .kernel import Kernel
    from .line import KernelLine


class Step:
    """One call under a tag: its request's client end, and later what it came to.

    Attributes:
        request: as long as it is in flight.
        asker: who waits for the answer; None: nobody does at present.
    """

    __slots__ = ("asker", "error", "port", "reply", "request", "spec")

    def __init__(self, port: Port, spec: Operation, asker: ClientEnd) -> None:
        self.port = port
        self.spec = spec
        self.asker: ClientEnd | None = asker
        self.request: Request | None = None
        self.reply: Reply | None = None
        self.error: AtollError | None = None

    def replied(self, request: Request, reply: Reply) -> None:
        """Keep the reply, and pass it on (`ClientEnd`)."""
        self.reply, self.request = reply, None
        asker, self.asker = self.asker, None
        if asker is not None:
            asker.replied(request, reply)

    def refused(self, request: Request, error: AtollError) -> None:
        """Keep the error, and pass it on (`ClientEnd`)."""
        self.error, self.request = error, None
        asker, self.asker = self.asker, None
        if asker is not None:
            asker.refused(request, error)

    def leave(self) -> None:
        """Nobody waits any more: the call goes on without its client."""
        self.asker = None
        request = self.request
        if request is not None and not isinstance(request.bulk, bytes):
            request.bulk = bytes(request.bulk)  # the memory that it lies in is the client's
        if request is not None:
            request.client_slot = NO_SLOT


class Place:
    """The steps under a place's latest tag. `next` is which of them the next call asks for."""

    __slots__ = ("next", "steps", "tag")

    def __init__(self, tag: int) -> None:
        self.tag = tag
        self.steps: list[Step] = []
        self.next = 0


def check(task: KernelTask, number: int, tag: int, right: KernelRight, spec: Operation) -> None:
    """Check that a call may be resumable.

    Raises:
        WrongRightError: the task has no later incarnations, or the right is used up by the call.
        BadMessageError: the reply may be more than fields, or the place or tag is none.
    """
    if task.program.placement is Placement.JOINED:
        raise WrongRightError(f"task {task.name} is never restarted, so nothing is resumed")
    if right.kind is not RightKind.SEND:
        raise WrongRightError("a resumable call takes a send right")
    if not spec.simple_reply or spec.rights or spec.descriptors:
        raise BadMessageError(f"{spec} carries more than can be kept for another time")
    if not (0 <= number < RESUMABLE_PLACES and 0 <= tag < 1 << 64):
        raise BadMessageError(f"there are {RESUMABLE_PLACES} places, and a tag has 64 bits")


def repeated(task: KernelTask, number: int, tag: int, port: Port, spec: Operation) -> Step | None:
    """Return the step that a call asks for again; None: it is a new one.

    Raises:
        BadMessageError: it asks for something else than the incarnation before it.
    """
    place = task.places.get(number)
    if place is None or place.tag != tag or place.next >= len(place.steps):
        return None
    step = place.steps[place.next]
    if step.port is not port or step.spec is not spec:
        raise BadMessageError(f"{spec} is not what was called under this tag: {step.spec}")
    place.next += 1
    return step


def enter(kernel: Kernel, task: KernelTask, number: int, tag: int, step: Step) -> None:
    """Enter a new step, and forget what is dealt with. LimitError at RESUMABLE_STEPS."""
    place = task.places.get(number)
    if place is None or place.tag != tag:
        if place is not None:
            _abort(kernel, place)
        place = task.places[number] = Place(tag)
    if len(place.steps) >= RESUMABLE_STEPS:
        raise LimitError(f"{RESUMABLE_STEPS} calls were made under one tag")
    place.steps.append(step)
    place.next = len(place.steps)


def take_back(task: KernelTask, step: Step) -> None:
    """Undo `enter` for a call that was not taken."""
    for place in task.places.values():
        if place.steps and place.steps[-1] is step:
            place.steps.pop()
            place.next = len(place.steps)


def _abort(kernel: Kernel, place: Place) -> None:
    for step in place.steps:
        if step.request is not None:
            kernel.abort(step.request)


def outlive(task: KernelTask) -> None:
    """An incarnation has ended: its resumable calls are nobody's until the next one asks."""
    for place in task.places.values():
        place.next = 0
        for step in place.steps:
            request = step.request
            if request is not None and task.calls.get(request.number) is request:
                del task.calls[request.number]
            step.leave()


def forget(kernel: Kernel, task: KernelTask) -> None:
    """There will be no other incarnation."""
    for place in task.places.values():
        _abort(kernel, place)
    task.places.clear()


def resumable(task: KernelTask) -> list[tuple[int, int]]:
    """Return place and tag of all that is kept."""
    return [(number, place.tag) for number, place in task.places.items() if place.steps]


# -- calls that come over a line -------------------------------------------------------------------


def take_resumable(line: KernelLine, packet: Packet) -> None:
    """Take a resumable call from a line.

    Raises:
        AtollError: it cannot be resumable, or would be refused anyway.
    """
    if packet.kind != Kind.CALL or packet.deadline_ms or packet.rights or packet.descriptors:
        raise BadMessageError("a resumable call has a reply, no deadline, and carries fields, bulk")
    task, number, tag = line.task, packet.flags >> PLACE_SHIFT, packet.badge
    right = task.right(packet.name)
    spec = right.check(packet.operation)
    check(task, number, tag, right, spec)
    if packet.request in task.calls:
        raise BadMessageError(f"a call numbered {packet.request} is under way already")
    step = repeated(task, number, tag, right.port, spec)
    if step is None:
        _take_new(line, packet, right, spec)
    elif step.reply is not None:
        line.answer(packet.request, step.reply.encoded(spec))
    elif step.error is not None:
        line.answer(packet.request, encode(to_wire(step.error)), Kind.ERROR)
    elif step.request is not None:
        step.request.number, step.asker = packet.request, line
        task.calls[packet.request] = step.request


def _take_new(line: KernelLine, packet: Packet, right: KernelRight, spec: Operation) -> None:
    task = line.task
    if not right.mask:
        right.hear()
    arguments = spec.decode_request(packet.fields)
    step = Step(right.port, spec, line)
    request = Request(packet.request, spec, right, task, step, arguments, packet.fields)
    if packet.slot != NO_SLOT or packet.bulk or packet.room:
        check_bulk(packet, request, line.region, line.their_slots)
    enter(line.kernel, task, packet.flags >> PLACE_SHIFT, packet.badge, step)
    try:
        line.enter_call(packet, request)
        request.weigh(len(packet.fields) + len(packet.bulk), 0)
        step.request = request
        line.kernel.submit(request)
    except AtollError:
        take_back(task, step)
        if task.calls.get(packet.request) is request:
            line.leave_call(request)
        request.end()
        raise
