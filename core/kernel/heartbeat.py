"""The heartbeat: which incarnations give no sign of life, and what the host says of them.

One trio task serves all lines. Every packet of a task is a sign of life, so a busy one costs
nothing but a flag. One that has been silent is sent a PING, which its serve loop answers: at the
next beat if it has requests, once in `IDLE_BEATS` if it is idle.

Silence alone says little: the handler may have much to do, the disk may be slow, the machine may be
loaded, the kernel itself may have been stopped. So a silent task is looked at in /proc, and only
what cannot be honest work counts:

- *stopped*: the host's scheduler does not run it (state T). Measured in beats, so that a time in
  which the kernel was stopped too does not count.
- *spins*: it used that much processor time, outside the host's kernel, since it was asked. One that
  gets no processor does not grow older by it.
- *waits in the host*: asleep or in a system call, for a much longer time.

This is the mechanism. How long is too long stands in each task's `Watch`, and what follows is the
supervisor's to decide. Half-way to a verdict the task is made to write down its Python stack. A
promoted server has no heartbeat: it shares the kernel's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from core.abi import TaskId

from .line import KernelLine
from .tasks import KernelTask, Placement, State

if TYPE_CHECKING:
    from .kernel import Kernel

BEAT_S: Final = 0.25
IDLE_BEATS: Final = 4
"""Beats after which a task is asked that has nothing to do."""
_AGAIN_S: Final = 1.0
"""How often a silence is told, as long as nothing follows."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Look(msgspec.Struct, frozen=True):
    """What the host says of a process' main thread: its state, and the processor time it used."""

    state: str
    user_s: float
    system_s: float


class Silence(msgspec.Struct, frozen=True):
    """A task counts as hung.

    Attributes:
        how: what it does instead of answering, in words.
        blames: the requests in flight may be the reason.
    """

    how: str
    blames: bool


def look_at(pid: int) -> Look | None:
    """Look at a process; None if there is none."""
    try:
        with open(f"/proc/{pid}/task/{pid}/stat", "rb") as file:  # noqa: PTH123 - every beat
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return Look(fields[0].decode(), int(fields[11]) / _TICKS, int(fields[12]) / _TICKS)


def _place_in_host(pid: int) -> str:
    """Return which function of the host's kernel a process waits in, "" if that is hidden."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/wchan", encoding="ascii") as file:  # noqa: PTH123
        return file.read().strip("0\n")
    return ""


class _Pulse:
    """What is known of one line since its last sign of life."""

    __slots__ = ("asked", "beats", "dumped", "silent_s", "stopped_s", "told_s")

    def __init__(self) -> None:
        self.beats = 0
        self.asked: Look | None = None
        self.silent_s = 0.0
        self.stopped_s = 0.0
        self.told_s = 0.0
        self.dumped = False


class Heartbeat:
    """Watches the tasks of a kernel. See the module head.

    Args:
        clock: returns the present in seconds, monotonic.
        on_silence: called when a task counts as hung, and again while it goes on to.
        look: looks at a process.
    """

    def __init__(
        self,
        kernel: Kernel,
        clock: Callable[[], float],
        on_silence: Callable[[KernelTask, Silence], None],
        look: Callable[[int], Look | None] = look_at,
    ) -> None:
        self._kernel = kernel
        self._clock = clock
        self._on_silence = on_silence
        self._look = look
        self._pulses: dict[TaskId, _Pulse] = {}
        self._last = clock()

    async def run(self) -> None:
        """Beat until cancelled."""
        self._last = self._clock()
        while True:
            await trio.sleep(BEAT_S)
            self.beat()

    def beat(self) -> None:
        """Look at every task that is watched."""
        now = self._clock()
        passed_s = min(now - self._last, 2 * BEAT_S)
        self._last = now
        pulses: dict[TaskId, _Pulse] = {}
        for task in self._kernel.tasks:
            line = task.engine
            if (
                isinstance(line, KernelLine)
                and task.program.placement is Placement.PROCESS
                and task.watch.silence_s
                and line.pid
                and not line.closed
            ):
                pulse = self._pulses.get(task.id) or _Pulse()
                pulses[task.id] = self._feel(task, line, pulse, passed_s)
        self._pulses = pulses

    def _feel(self, task: KernelTask, line: KernelLine, pulse: _Pulse, passed_s: float) -> _Pulse:
        """Look for a sign of life of one line; return its pulse after that."""
        if line.heard:
            line.heard = False
            task.hung = None
            if pulse.dumped and line.last_stack is not None:
                line.last_stack.clear()
            return _Pulse()
        if pulse.asked is None:
            pulse.beats += 1
            if pulse.beats >= IDLE_BEATS or _has_work(task):
                line.ping()  # if it takes none, it has not read for as long as that
                pulse.asked = self._look(line.pid)
            return pulse
        # The sign may have come while the kernel was busy with something else.
        if line.readable() or line.closed:
            return pulse
        seen = self._look(line.pid)
        if seen is not None:
            pulse.silent_s += passed_s
            pulse.stopped_s = pulse.stopped_s + passed_s if seen.state in "Tt" else 0.0
            self._judge(task, line, pulse, seen)
        return pulse

    def _judge(self, task: KernelTask, line: KernelLine, pulse: _Pulse, seen: Look) -> None:
        assert pulse.asked is not None
        watch = task.watch
        own_s = seen.user_s - pulse.asked.user_s
        limit_s = watch.start_s if task.state is State.STARTING else watch.silence_s
        waits = seen.state in "SD" or seen.system_s - pulse.asked.system_s > own_s
        share = own_s / limit_s if limit_s else 0.0
        if waits and watch.host_s:
            share = max(share, pulse.silent_s / watch.host_s)
        if share >= 0.5 and not pulse.dumped and not pulse.stopped_s:
            pulse.dumped = True
            if line.last_stack is not None:
                line.last_stack.clear()
            line.dump_stack(line.pid)
        if pulse.stopped_s >= watch.silence_s:
            by = "a debugger" if seen.state == "t" else "a signal (SIGSTOP)"
            silence = Silence(f"stopped by {by} for {pulse.stopped_s:.1f} s", blames=False)
        elif limit_s and own_s >= limit_s:
            silence = Silence(
                f"spun for {own_s:.1f} s of processor time{_where(task)}", blames=True
            )
        elif waits and watch.host_s and pulse.silent_s >= watch.host_s:
            place = _place_in_host(line.pid)
            how = f"waited for {pulse.silent_s:.1f} s in the host{place and f' ({place})'}"
            silence = Silence(f"{how}{_where(task)}", blames=True)
        else:
            return
        task.hung = silence
        if not pulse.told_s or pulse.silent_s - pulse.told_s >= _AGAIN_S:
            pulse.told_s = pulse.silent_s
            self._on_silence(task, silence)


def _has_work(task: KernelTask) -> bool:
    """Tell whether somebody waits for the task, or it has yet to say that it serves."""
    port = task.main_port
    waiting = port is not None and (port.in_flight or port.queue)
    return bool(waiting) or task.state is State.STARTING


def _where(task: KernelTask) -> str:
    """Say which request a silent task has, as far as that is known."""
    if task.state is State.STARTING:
        return ", while starting"
    port = task.main_port
    delivered = list(port.in_flight.values()) if port is not None else []
    if not delivered:
        return ", with no request in flight"
    waits = any(spec.waits for spec in delivered[0].port.interface.OPERATIONS)
    if waits and len(delivered) > 1:
        return f", with {len(delivered)} requests in flight"
    return f", in {delivered[0].spec} of request {delivered[0].id}"
