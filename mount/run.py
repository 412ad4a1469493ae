r"""`atoll run 'A | B | C'`: Unix commands whose pipes are kernel ports.

Each command is run by `sh -c` in a process of its own, all in the process group of the caller. At
every junction the octets go from the command's standard output through a pipe of the pipe server
to the next command's standard input. A host program can only write to a descriptor, so a *pump* at
either side carries octets between a host pipe and the port:

    A --host pipe--> feed --write--> [ port: pipe server ] --read--> drain --host pipe--> B

What a pipe(2) does holds across all of that:

1. Back-pressure: a pump reads only when what it read before was taken.
2. End of the stream: when A closes its output, the writing right is dropped, the reader finds the
   end behind the last octet, and B's input is closed.
3. SIGPIPE: when B closes its input, which is watched even while nothing flows, the pumps stop and
   A's host pipe loses its reader. So `yes | head -1` ends at once.
4. Exit status as in the shell: the last command's, 128 + n for a signal.

The terminal is nobody's business here: what it sends (^C, ^Z, ^\\) reaches the group, commands and
pumps alike. This process only outlives ^C to collect the commands, and passes on what was
sent to it alone. If the system ends below a pipeline, the commands are terminated before
their input ends: an end of input that is none would be loss in silence.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from core.abi import Right
from core.errors import AtollError
from core.system.pipe import RING_SIZE, Pipes
from core.userlib.interface import Bulk
from core.userlib.isolated import IsolatedTask, TaskRight
from core.userlib.joined import joined
from core.userlib.line import ClosedError

from .obstacle import ObstacleError
from .shell_line import Part, Pipeline

CHUNK_SIZE: Final = min(RING_SIZE, 512 * 1024)
"""Octets that a pump carries at a time. More than a ring holds would be copied more than once."""
HOST_PIPE_SIZE: Final = 1024 * 1024
SHELL: Final = "/bin/sh"
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_HEEDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Command:
    """One command of the pipeline, running."""

    def __init__(self, text: str, pid: int) -> None:
        self.text = text
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.status = -1

    async def wait(self) -> None:
        """Wait for its end and note the exit status, 128 + n for signal n."""
        await trio.lowlevel.wait_readable(self.pidfd)
        self.status = self._collect()

    def _collect(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code if code >= 0 else 128 - code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it has started, as the terminal would."""
        below = _descendants(self.pid)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)
            for pid in below:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)

    def close(self) -> None:
        """Let go of the process, which has been waited for."""
        os.close(self.pidfd)


class Junction:
    """The pipe between two commands.

    Attributes:
        output: what the first command writes to; close it when that command has it.
        input: what the second command reads from; close it when that command has it.
        failure: why the octets could not be carried; None: they were.
    """

    def __init__(self, task: IsolatedTask, ends: tuple[Right, Right]) -> None:
        self._task = task
        self._reading, self._writing = ends
        self._source, self.output = _host_pipe()
        self.input, self._sink = _host_pipe()
        os.set_blocking(self._source, False)
        os.set_blocking(self._sink, False)
        self._open = {self._source, self._sink}
        self.failure: Exception | None = None

    async def carry(self) -> None:
        """Carry octets until the stream ends, the reader is gone, or the system is."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._feed)
                nursery.start_soon(self._watch, nursery.cancel_scope)
                await self._drain()
                nursery.cancel_scope.cancel()
        except* (AtollError, ClosedError) as errors:
            self.failure = _cause(errors)

    async def _feed(self) -> None:
        """Carry octets from the first command into the port, and then its end."""
        writer = self._task.connect(Pipes, self._writing)
        while data := await _read(self._source):
            rest = memoryview(data)
            while rest:
                rest = rest[await writer.write(rest) :]
        self._close(self._source)
        await self._drop(self._writing)

    async def _drain(self) -> None:
        """Carry octets from the port to the second command; return when there are no more."""
        reader = self._task.connect(Pipes, self._reading)
        try:
            while data := await reader.read(CHUNK_SIZE):
                await _write(self._sink, data)
        except BrokenPipeError:
            return
        self._close(self._sink)

    async def _watch(self, carrying: trio.CancelScope) -> None:
        """Stop carrying when the second command closes its input, even if nothing flows."""
        with select.epoll(1) as watched:
            watched.register(self._sink, 0)  # an error is always reported: no reader is left
            await trio.lowlevel.wait_readable(watched.fileno())
        carrying.cancel()

    async def _drop(self, right: Right) -> None:
        assert isinstance(right, TaskRight)
        await self._task.kernel.drop(right.name)

    def _close(self, number: int) -> None:
        if number in self._open:
            self._open.discard(number)
            trio.lowlevel.notify_closing(number)
            os.close(number)

    def close(self) -> None:
        """Close the pumps' ends: what is still being written gets SIGPIPE, what is read ends."""
        for number in tuple(self._open):
            self._close(number)


def _descendants(pid: int) -> list[int]:
    """Return the processes below one that has not been waited for."""
    found: list[int] = []
    todo = [pid]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):  # it has just ended
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii")
            found += (below := [int(child) for child in children.split()])
            todo += below
    return found


def _host_pipe() -> tuple[int, int]:
    ends = os.pipe()
    with contextlib.suppress(OSError):  # the user's share of pipe memory is used up
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, HOST_PIPE_SIZE)
    return ends


async def _read(number: int) -> bytes:
    while True:
        try:
            return os.read(number, CHUNK_SIZE)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(number)


async def _write(number: int, data: Bulk) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(number, rest) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(number)


class _Signals:
    """Signals to this process while a pipeline runs: blocked, and heard by a thread.

    From the terminal they reach the commands anyway, and some programs take a second one
    differently. What a process sent to this one alone is passed on.
    """

    def __init__(self, commands: Sequence[Command]) -> None:
        self._commands = commands
        heeded = [number for number in _HEEDED if signal.getsignal(number) != signal.SIG_IGN]
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
        self.received: signal.Signals | None = None
        threading.Thread(target=self._listen, args=(heeded,), daemon=True).start()

    @property
    def mask(self) -> list[signal.Signals]:
        """What was blocked before, and is to be in the commands."""
        return [signal.Signals(number) for number in self._mask]

    def _listen(self, heeded: list[signal.Signals]) -> None:
        while True:
            found = signal.sigwaitinfo(heeded)
            self.received = signal.Signals(found.si_signo)
            if found.si_code <= 0:  # SI_USER and its like; the terminal's are the kernel's
                for command in tuple(self._commands):
                    command.send_signal(self.received)

    def die_of(self, number: signal.Signals) -> None:
        """End this process by the signal, as the commands did, so that the caller knows."""
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), number)  # to this thread: the other one waits
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])


def _start(part: Part, ends: tuple[int, int], mask: list[signal.Signals]) -> Command:
    """Start a command that reads and writes these descriptors."""
    actions: list[tuple[int, int, int]] = []
    for number, place in zip(ends, (0, 1), strict=True):
        if number != place:
            actions.append((os.POSIX_SPAWN_DUP2, number, place))
    if part.errors_too:
        actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
    pid = os.posix_spawn(
        SHELL,
        ["sh", "-c", part.text],
        os.environ,
        file_actions=actions,
        setsigmask=mask,
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores
    )
    return Command(part.text.strip(), pid)


async def _open_junctions(
    control: Path, count: int, stack: contextlib.AsyncExitStack
) -> list[Junction]:
    """Join the system once for each junction, so that pipelines of any length have room."""
    junctions: list[Junction] = []
    for _ in range(count):
        task = await stack.enter_async_context(joined(control))
        ends = await task.connect(Pipes, "pipe").create()
        junction = Junction(task, ends)
        stack.callback(junction.close)
        junctions.append(junction)
    return junctions


async def _run(
    control: Path, pipeline: Pipeline, commands: list[Command], signals: _Signals
) -> list[Junction]:
    """Run the pipeline to its end; `commands` is filled as they start."""
    async with contextlib.AsyncExitStack() as stack:
        junctions = await _open_junctions(control, len(pipeline.parts) - 1, stack)
        inputs = [0, *(junction.input for junction in junctions)]
        outputs = [*(junction.output for junction in junctions), 1]
        for part, ends in zip(pipeline.parts, zip(inputs, outputs, strict=True), strict=True):
            commands.append(_start(part, ends, signals.mask))
        for number in (*inputs[1:], *outputs[:-1]):
            os.close(number)
        async with trio.open_nursery() as nursery:
            for junction in junctions:
                nursery.start_soon(_carry, junction, commands)
            async with trio.open_nursery() as waiting:
                for command in commands:
                    waiting.start_soon(command.wait)
            if signals.received is not None:  # what they left behind shall not keep us
                nursery.cancel_scope.cancel()
    return junctions


async def _carry(junction: Junction, commands: list[Command]) -> None:
    await junction.carry()
    if junction.failure is not None:
        for command in commands:
            command.send_signal(signal.SIGTERM)
    junction.close()


def _keep_memory() -> None:
    """Have the C library keep freed chunks: new pages for each would cost as much as its copies."""
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(threshold, 64 * CHUNK_SIZE)


def _cause(error: Exception) -> Exception:
    """Return the one error of the system's that a group holds; anything else goes on."""
    while isinstance(error, ExceptionGroup):
        if error.split((AtollError, ClosedError))[1] is not None:
            raise error
        error = error.exceptions[0]
    return error


def exit_status(pipeline: Pipeline, statuses: list[int], *, pipefail: bool) -> int:
    """Return the pipeline's exit status.

    Args:
        pipefail: it is that of the rightmost command that failed, not the last command's.
    """
    status = statuses[-1]
    if pipefail:
        status = next((each for each in reversed(statuses) if each), 0)
    if pipeline.negated:
        status = 0 if status else 1
    return status


def run_pipeline(control: Path, pipeline: Pipeline, *, pipefail: bool = False) -> int:
    """Run a pipeline and return its exit status.

    If a signal ended both it and the last command, this process ends by that signal, too.

    Args:
        control: the control socket of the system whose pipes are used.

    Raises:
        ObstacleError: the system has no pipes, or ended below the pipeline.
    """
    _keep_memory()
    commands: list[Command] = []
    signals = _Signals(commands)
    try:
        junctions = trio.run(_run, control, pipeline, commands, signals)
    except (AtollError, ExceptionGroup) as error:
        raise ObstacleError("the pipe server", str(_cause(error)), "see: atoll status") from None
    for command in commands:
        command.close()
    broken = next((junction for junction in junctions if junction.failure is not None), None)
    if broken is not None:
        cause = f"the system ended below it ({broken.failure})"
        raise ObstacleError("the pipeline", cause, "its output is not complete: run it again")
    status = exit_status(pipeline, [command.status for command in commands], pipefail=pipefail)
    if signals.received is not None and status == 128 + signals.received:
        signals.die_of(signals.received)
    return status
