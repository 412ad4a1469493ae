"""The kernel: it checks every message, routes it, and keeps it until it is answered.

Life of a request: a client's end (a line, or a stub in this process) hands it to `submit`; it waits
at the port if the receiver is down, starting or full, else goes to the receiver's engine and stands
in `port.in_flight` until `replied` or `refused`. When an incarnation ends, what it had in flight
goes back to the head of the queue and the next incarnation gets it again, marked as redelivered,
with the id it had.

The kernel never waits for a server. Everything here runs to its end without a checkpoint, so the
tables are consistent whenever another trio task sees them. What does I/O is passed in as engines.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from core.abi import HOPS_LIMIT, NO_SLOT, POISON_LIMIT, PORTS_LIMIT, TIMERS_LIMIT, RightKind
from core.errors import (
    AbortedError,
    AtollError,
    Blame,
    DeadlineError,
    DeadPortError,
    LimitError,
    LostError,
    PoisonError,
    ServerFaultError,
    TaskError,
    WrongRightError,
)
from core.userlib.interface import Interface, Operation

from .attempts import Attempts, printable
from .cargo import carry, check_receiver
from .descriptors import give_up
from .endings import Death, Ending, Order
from .ports import KernelRight, Port, receive_right
from .requests import Reply, Request, Waiter
from .resumable import forget as forget_resumable
from .resumable import outlive
from .suspicion import LOOK_S, Trial, put_first, suspects_of
from .tasks import Engine, KernelTask, Placement, Program, State, TaskTable
from .timers import Timers
from .voice import Voice

Log = Callable[[str], None]
_now = time.monotonic


KILLED = Order("killed by SIGKILL, ordered within the system")
"""Why an incarnation ended, when who had it killed gave no reason."""


class Kernel:
    """All tables, and the rules that change them.

    Attributes:
        boot_id: unique for this kernel's life; with it request ids are unique for ever.
        start_incarnation: set by boot: starts a task's program in its placement.
        on_ready: set by boot: called when an incarnation serves.
        on_death: set by boot: tells the supervisor; called after the tables are in order again.
        on_halt: set by boot: ends the system, for a reason.
        log: where lines for the system's log go.
    """

    def __init__(self, boot_id: int, log: Log, timers: Timers) -> None:
        self.boot_id = boot_id
        self.log = log
        self.timers = timers
        self.tasks = TaskTable()
        self.ports: dict[int, Port] = {}
        self.next_id = itertools.count(1).__next__
        self._next_port = itertools.count(1).__next__
        self.start_incarnation: Callable[[KernelTask], None] = _nobody_starts
        self.on_ready: Callable[[KernelTask], None] = lambda task: None
        self.on_death: Callable[[Death], None] = lambda death: None
        self.on_halt: Callable[[str], None] = lambda reason: None

    # -- tasks and ports --------------------------------------------------------------------------

    def add_task(self, program: Program, interface: type[Interface]) -> KernelTask:
        """Make a task with its main port; nothing runs yet."""
        task = self.tasks.add(program)
        task.attempts = Attempts(task.name, self.log, self.timers.clock)
        task.voice = Voice(task.name, self.log, self.timers.clock)
        port = self.create_port(task, program.name, interface)
        task.main_port = port
        task.names[1] = receive_right(port)
        return task

    def create_port(self, task: KernelTask, label: str, interface: type[Interface]) -> Port:
        """Make a port that `task` receives from. LimitError at PORTS_LIMIT."""
        if len(task.ports) >= PORTS_LIMIT:
            raise LimitError(f"task {task.name} has {PORTS_LIMIT} ports")
        port = Port(self._next_port(), printable(label), interface, task)
        port.end = self.destroy_port
        self.ports[port.id] = port
        task.ports.add(port)
        return port

    def destroy_port(self, port: Port, reason: str) -> None:
        """End a port: everything that waits at it is answered with DeadPortError."""
        port.alive = False
        port.direct = None
        port.operations = 0
        if port.task is not None:
            port.task.ports.discard(port)
        self.ports.pop(port.id, None)
        waiting = [*port.in_flight.values(), *port.queue]
        port.in_flight.clear()
        port.queue.clear()
        for request in waiting:
            self._finish(request)
            request.refuse(DeadPortError(f"port {port.label}: {reason}"))

    def spawn(self, task: KernelTask) -> None:
        """Start the next incarnation of a task. TaskError when one runs or the task was retired."""
        if task.state is not State.DOWN:
            raise TaskError(f"task {task.name} is {task.state.value}")
        task.state = State.STARTING
        try:
            self.start_incarnation(task)
        except TaskError:
            task.state = State.DOWN
            raise

    def ready(self, task: KernelTask) -> None:
        """The incarnation serves now: deliver what has been waiting."""
        if task.state is State.STARTING:
            task.state = State.RUNNING
            task.has_served = True
            task.outages.served()
            self.on_ready(task)
            self.flush(task)

    def flush(self, task: KernelTask) -> None:
        """Deliver what waits at the task's ports, as far as the engine takes it."""
        engine = task.engine
        if task.state is not State.RUNNING or engine is None:
            return
        for port in list(task.ports):
            if not self._tell_gone(engine, port):
                return
            if port.bits:
                self._set_bits(port, 0)
            queue = port.queue
            while queue and task.engine is engine:
                if port.trial is not None and not self._may_go(task, port, port.trial):
                    break
                request = queue.popleft()
                if not self._hand_over(engine, port, request):
                    queue.appendleft(request)
                    return

    def lost(self, port: Port, receiver: KernelRight, detail: str) -> None:
        """Have every client of a port told once of a loss; a request that waits is told now.

        Args:
            receiver: the port's receive right.
        """
        port.lose(receiver, detail)
        for request in list(port.queue):
            if request.wants_reply and port.lost.pop(request.badge, None) is not None:
                port.queue.remove(request)
                self._finish(request)
                request.refuse(LostError(detail))

    def _may_go(self, task: KernelTask, port: Port, trial: Trial) -> bool:
        """Tell whether the first in the queue of a port with suspects may be delivered now."""
        request = port.queue[0]
        if not request.suspect:
            if not any(other.suspect for other in port.in_flight.values()):
                port.trial = None
            return True
        if trial.may_try(port, request, _now()):
            return True
        if not trial.looking:
            trial.looking = True

            def look() -> None:
                trial.looking = False
                self.flush(task)

            self.timers.arm(LOOK_S, look)
        return False

    def _tell_gone(self, engine: Engine, port: Port) -> bool:
        """Tell the engine which badges are gone; False when it cannot take more now."""
        while port.gone:
            badge, deaths = port.gone.popitem()
            if badge in port.senders:
                continue  # the receiver has given such a right to somebody meanwhile
            port.told[badge] = deaths
            if not engine.no_senders(port, badge):
                port.gone[badge] = port.told.pop(badge, deaths)
                return False
        return True

    def kill(self, task: KernelTask, order: Order = KILLED) -> None:
        """End the incarnation at once. TaskError when none runs or the placement forbids it."""
        if task.engine is None:
            raise TaskError(f"task {task.name} is {task.state.value}")
        task.engine.kill(order)

    def ending(self, task: KernelTask, engine: Engine) -> None:
        """An incarnation has nothing to say any more; how it ended will be told by `ended`."""
        if task.engine is engine and task.state is not State.RETIRED:
            task.state = State.ENDING

    def ended(self, task: KernelTask, engine: Engine, ending: Ending) -> None:
        """An incarnation has ended: put the tables in order and tell the supervisor.

        Args:
            engine: the incarnation; a report about an older one is ignored.
        """
        if task.engine is not engine:
            return
        death = Death(task, ending)
        task.engine = task.hung = None
        task.state = State.DOWN
        task.remember_end(ending.words, orderly=ending.orderly)
        outlive(task)
        self._abort_calls_of(task)
        self._drop_names_of(task)
        for port in list(task.ports):
            port.direct = None
            if port is not task.main_port:
                self.destroy_port(port, f"task {task.name} ended")
                continue
            port.tell_again(POISON_LIMIT)
            self._take_back(port, death)
        self.tasks.renew(task)
        self.on_death(death)

    def _take_back(self, port: Port, death: Death) -> None:
        """Put what was in flight back into the queue, but for what shall not be tried again."""
        ending = death.ending
        death.in_flight = delivered = list(port.in_flight.values())
        suspects: list[Request] = []
        if ending.guilty:
            death.blamed = [request for request in delivered if request.id == ending.guilty]
        elif ending.suspects:
            suspects = suspects_of(delivered)
            if len(suspects) == 1:
                death.blamed, suspects = suspects, []
        for request in death.blamed:
            request.deaths += 1
        death.suspects = suspects
        for request in suspects:
            request.suspect = True
        if suspects:
            port.trial = port.trial or Trial()
            port.trial.died()
        elif port.trial is not None:
            port.trial.interrupted()
        port.take_back()
        put_first(port, suspects)
        for request in delivered:
            self._after_death(port, request, death)

    def _after_death(self, port: Port, request: Request, death: Death) -> None:
        """Prepare a request that its server died on for the next delivery, or withdraw it."""
        request.redelivered = True
        request.delivered = False
        self._finish(request)
        if request.abandoned or not request.wants_reply:
            port.queue.remove(request)
            request.refuse(AbortedError("withdrawn"))
        elif request.deaths >= POISON_LIMIT:
            port.queue.remove(request)
            death.withdrawn.append(request)
            self.log(f"poison: {request} ended {port.label} {request.deaths} times; withdrawn")
            error = f"{request.spec} ended its server {request.deaths} times: {death.ending.cause}"
            request.refuse(PoisonError(error))

    def _finish(self, request: Request) -> None:
        """Forget where an incarnation kept the request's bulk."""
        request.slot = NO_SLOT

    def _abort_calls_of(self, task: KernelTask) -> None:
        for request in list(task.calls.values()):
            self.abort(request)
        task.calls.clear()
        for timer in list(task.timers):
            self.disarm(task, timer)

    def _drop_names_of(self, task: KernelTask) -> None:
        granted = set(task.grants.values()) | {1}
        for name in [name for name in task.names if name not in granted]:
            right = task.names.pop(name)
            if right.kind is not RightKind.RECEIVE:
                right.release()

    def retire(self, task: KernelTask, reason: str) -> None:
        """Give a task up for good: end it, and let its ports die."""
        engine, task.engine = task.engine, None
        task.state = State.RETIRED
        forget_resumable(self, task)
        if engine is not None:
            self._abort_calls_of(task)
            engine.stop()
        for port in list(task.ports):
            self.destroy_port(port, reason)
        if task.program.placement is Placement.JOINED:
            # Its badges are nobody's from now on. Copies that it had servers keep, each other's
            # among them, must not hold up the news that it is gone.
            for name in task.grants.values():
                task.names[name].revoke()
        for right in [*task.names.values(), *task.kept_rights.values()]:
            right.release()
        task.names.clear()
        task.kept_rights.clear()
        for number in task.kept.values():
            give_up(number)
        task.kept.clear()
        if task.program.placement is Placement.JOINED:
            task.main_port = None  # they know each other: only the collector would part them
            self.tasks.remove(task)

    # -- messages ----------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Take a checked request: deliver it, or let it wait at its port.

        Raises:
            QueueFullError: the port is full; the request is not taken.
        """
        port = request.port
        port.check_room(request.client)
        for right in request.rights:
            check_receiver(port.task, right)
        request.id = self.next_id()
        task = port.task
        assert task is not None
        engine = task.engine
        if (
            port.queue
            or engine is None
            or task.state is not State.RUNNING
            or not self._hand_over(engine, port, request)
        ):
            port.queue.append(request)

    def _hand_over(self, engine: Engine, port: Port, request: Request) -> bool:
        """Give a request to an engine; False when it must wait at the port."""
        if request.wants_reply:
            port.in_flight[request.id] = request
        request.delivered = True
        try:
            taken = engine.deliver(request)
        except AtollError as error:
            port.in_flight.pop(request.id, None)
            request.refuse(error)
            return True
        if not taken:
            port.in_flight.pop(request.id, None)
            request.delivered = False
            return False
        port.handled += 1
        client = request.client.name if request.client is not None else ""
        port.task.recent.append((request.id, request.spec, client, request.badge, _now()))  # type: ignore[union-attr]
        if not request.wants_reply:
            request.end()
        return True

    def in_flight_at(self, task: KernelTask, request_id: int) -> Request:
        """Return the request that `task` has to answer.

        ServerFaultError if it has no such request.
        """
        for port in task.ports:
            request = port.in_flight.get(request_id)
            if request is not None:
                return request
        raise ServerFaultError(f"task {task.name} has no request {request_id} to answer")

    def replied(self, request: Request, reply: Reply) -> None:
        """The server answered."""
        if request.port.in_flight.pop(request.id, None) is None:
            reply.discard()
            return
        request.reply(reply)
        if request.slot != NO_SLOT:
            self._slot_is_free(request)

    def refused(self, request: Request, error: AtollError) -> None:
        """The server declined."""
        if request.port.in_flight.pop(request.id, None) is None:
            return
        request.refuse(error)
        if request.slot != NO_SLOT:
            self._slot_is_free(request)

    def _slot_is_free(self, request: Request) -> None:
        """A slot of the server's transfer region is free again: something may wait for one."""
        request.slot = NO_SLOT
        port = request.port
        if port.queue and port.task is not None:
            self.flush(port.task)

    def expire(self, request: Request, delay_s: float) -> None:
        """End a request with DeadlineError if it is not answered in time."""
        request.timer = self.timers.arm(
            delay_s, lambda: self.abort(request, DeadlineError(f"{request.spec} took too long"))
        )

    def abort(self, request: Request, error: AtollError | None = None) -> None:
        """Answer the client at once; the server may stop, and what it still answers is discarded.

        The request stays in flight until the server has let go of it, because its slot of the
        transfer region is not free before.
        """
        if request.abandoned:
            return
        if request.client_end is not None:
            request.client_end.refused(request, error or AbortedError("withdrawn by the caller"))
        request.abandoned = True
        if request.delivered:
            task = request.port.task
            if task is not None and task.engine is not None:
                task.engine.abort(request)
        elif request in request.port.queue:
            request.port.queue.remove(request)
            request.end()

    def forward(
        self,
        request: Request,
        right: KernelRight,
        spec: Operation,
        arguments: tuple[Any, ...],
    ) -> None:
        """Pass a request in flight on to another port; its client gets that server's reply.

        Raises:
            ServerFaultError: the other operation's reply is not what the client expects, or the
                request has been passed on too often.
            LostError: the request carries what the other operation does not take.
            QueueFullError: the other port takes no further message.
        """
        if request.abandoned:
            self.refused(request, AbortedError("withdrawn"))
            return
        right.check(spec.index)
        check_forward(request, spec)
        right.port.check_room(request.client)
        request.port.in_flight.pop(request.id, None)
        freed, left = request.slot != NO_SLOT, request.port
        self._finish(request)
        if request.on_end is not None:
            request.on_end()
            request.on_end = None
        request.retarget(spec, right, arguments)
        self.submit_again(request)
        if freed and left.queue and left.task is not None:
            self.flush(left.task)

    def submit_again(self, request: Request) -> None:
        """Deliver a forwarded request under the id it has."""
        task = request.port.task
        assert task is not None
        engine = task.engine
        ready = engine is not None and task.state is State.RUNNING and not request.port.queue
        if not (ready and engine is not None and self._hand_over(engine, request.port, request)):
            request.port.queue.append(request)

    def notify(self, right: KernelRight, bits: int) -> None:
        """Set notification bits at a port. NoRightError, WrongRightError."""
        port = right.port
        if not port.alive or right.kind is RightKind.RECEIVE:
            right.check(0)
        if right.kind is RightKind.SEND_ONCE:
            raise WrongRightError("a send-once right sends one message, and a notification is none")
        self._set_bits(port, bits)

    def _set_bits(self, port: Port, bits: int) -> None:
        port.bits |= bits & 0xFFFF_FFFF_FFFF_FFFF
        engine = port.task.engine if port.task is not None else None
        if port.task is None or engine is None or port.task.state is not State.RUNNING:
            return
        bits, port.bits = port.bits, 0
        if not engine.notify(port, bits):
            port.bits |= bits

    # -- timers ------------------------------------------------------------------------------------

    def arm(self, task: KernelTask, delay_s: float, bits: int) -> int:
        """Arm a timer that notifies the task's main port; return its number. LimitError."""
        if len(task.timers) >= TIMERS_LIMIT:
            raise LimitError(f"task {task.name} has {TIMERS_LIMIT} timers")
        number = self.next_id()

        def fire() -> None:
            task.timers.pop(number, None)
            if task.main_port is not None:
                self._set_bits(task.main_port, bits)

        task.timers[number] = self.timers.arm(max(0.0, delay_s), fire)
        return number

    def disarm(self, task: KernelTask, number: int) -> None:
        """Cancel a timer of the task; one that has fired is ignored."""
        timer = task.timers.pop(number, None)
        if timer is not None:
            self.timers.cancel(timer)

    # -- calls from within this process ------------------------------------------------------------

    async def recover(
        self,
        client: KernelTask,
        right: KernelRight,
        spec: Operation,
        arguments: tuple[Any, ...],
        request_id: int,
        deaths: int,
    ) -> Any:
        """Wait for a request whose co-located server failed on the caller's own turn.

        It takes its place at the head of the queue, with the id that the server has already seen.
        """
        if not right.port.alive:
            raise DeadPortError(f"the server of {spec} failed and was given up")
        waiter = Waiter()
        request = Request(0, spec, right, client, waiter, arguments[: spec.fields])
        if not spec.simple:
            carry(request, arguments)
        request.id = request_id
        request.redelivered = True
        request.deaths = deaths
        request.port.queue.appendleft(request)
        await waiter.wait(lambda: self.abort(request))
        return waiter.result()


def check_forward(request: Request, spec: Operation) -> None:
    """ServerFaultError, LostError unless `spec` can take the request's place."""
    wanted = request.reply_spec
    if (spec.reply_type, spec.reply_carried) != (wanted.reply_type, wanted.reply_carried):
        raise ServerFaultError(f"{spec} does not reply what {wanted} does")
    if request.hops >= HOPS_LIMIT:
        raise ServerFaultError(f"{request.spec} was passed on {HOPS_LIMIT} times")
    if len(request.bulk) and not spec.bulk:
        raise LostError(f"{spec} takes no bulk")
    if (spec.rights, spec.descriptors) != (len(request.rights), len(request.descriptors)):
        raise LostError(f"{spec} does not carry what the request carries still")


def forward_failed(request: Request, error: AtollError) -> AtollError:
    """Return what the client is told when its request could not be passed on."""
    if error.blame is Blame.NOBODY:
        return error
    return ServerFaultError(f"{request.spec} was not passed on: {error.detail}")


def _nobody_starts(task: KernelTask) -> None:
    raise TaskError(f"nothing here can start {task.name}")
