"""New address spaces: a process forked early, with all programs loaded, that forks the tasks.

The zygote is forked before trio starts and before any device is opened, so its children hold
nothing but what the kernel sends with the order to spawn. One of them is forked in advance
(`spare`), so that a server that died is back without waiting even for the fork.

It is also the *last one out*. Its children die with it (PR_SET_PDEATHSIG). When the kernel's
process goes away, by whatever means, the zygote finds its socket closed: it kills the tasks, undoes
what the kernel asked it to undo (mounts, files), and ends. So nothing is left behind even when the
kernel is killed with SIGKILL.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from typing import Any, Final, NoReturn

import msgspec

from core.userlib.confine import Confinement, Confiner
from core.userlib.isolated import Birth
from core.userlib.last_stack import write_stacks_to
from core.userlib.line import ANCILLARY_SIZE, descriptors_in
from core.userlib.serving import rehearse, run_task
from core.userlib.stub import derive_all

from .fresh import Loaded, start_interpreter
from .process import (
    HOST_NETWORK,
    enter_network,
    enter_user_namespace,
    leave_host_namespaces,
    set_process_name,
)
from .spare import ORDER_LIMIT, Spare, fork_spare

_SPARE_DELAY_MS: Final = 20
"""So long nothing must have been ordered before a spare is forked: what was forked last starts."""


class Spawn(msgspec.Struct, tag="spawn", array_like=True):
    """Order: start a task.

    Comes with descriptors: its line, its transfer region, what its last stack goes into, and those
    that are kept for it.

    Args:
        user_namespace: give the task a user namespace of its own if this is no privileged user.
        confinement: what the task is left with; None: all that this user has.
    """

    token: int
    birth: Birth
    user_namespace: bool = False
    confinement: Confinement | None = None


class Fresh(msgspec.Struct, tag="fresh", array_like=True):
    """Order: start a zygote with fresh code. Comes with its end of a socket to the kernel.

    Args:
        programs: what it loads, as `module:Class`.
        path: where it looks for modules.
    """

    token: int
    programs: list[str]
    path: list[str]


class Kill(msgspec.Struct, tag="kill", array_like=True):
    """Order: send a signal to one of the zygote's children, SIGKILL if no other is named."""

    pid: int
    signal: int = signal.SIGKILL


class AtEnd(msgspec.Struct, tag="at-end", array_like=True):
    """Order: what to undo when the kernel is gone. Replaces what was ordered before.

    Args:
        commands: commands to run, in order; failures are ignored.
        remove: files to unlink.
    """

    commands: list[list[str]]
    remove: list[str]


class Spawned(msgspec.Struct, tag="spawned", array_like=True):
    """Report: the task ordered with `token` has this pid; 0 if it could not be forked."""

    token: int
    pid: int


class Exited(msgspec.Struct, tag="exited", array_like=True):
    """Report: a child has ended, with a status as os.waitstatus_to_exitcode gives it."""

    pid: int
    status: int


Order = Spawn | Fresh | Kill | AtEnd
Report = Spawned | Exited | Loaded

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_order: Final = msgspec.msgpack.Decoder(Order).decode
decode_report: Final = msgspec.msgpack.Decoder(Report).decode


def start_zygote(programs: list[str]) -> tuple[int, socket.socket]:
    """Fork the zygote; return its pid and the kernel's end of the socket to it.

    Call it before trio runs, with no other thread alive.

    Args:
        programs: the modules to load in advance.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    ours.close()
    try:
        _cover_descriptors({0, 1, 2, theirs.fileno()})
        Zygote(theirs, programs).run()
    except BaseException:  # noqa: BLE001 - nothing above this frame may go on in the child
        traceback.print_exc()
    os._exit(1)


def _cover_descriptors(ours: set[int]) -> None:
    """Put /dev/null in the place of everything inherited, but for `ours`.

    Who forked the zygote may hold sockets whose other end waits for their last holder to close,
    such as the one to another zygote. The numbers stay in use, because objects that this process
    inherited with them may still close them. Those objects are never collected.
    """
    gc.freeze()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208 - as below
        if number not in ours and number != null:
            with contextlib.suppress(OSError):  # the listing's own
                os.fstat(number)
                os.dup2(null, number, inheritable=False)


class Zygote:
    """The process itself; see the module head.

    Args:
        kernel: its end of the socket to the kernel; owned.
        programs: the modules to load; one that cannot be loaded is reported when it is spawned.
        host_network: descriptor of the host's network, if this process has left it already.
    """

    def __init__(self, kernel: socket.socket, programs: list[str], host_network: int = -1) -> None:
        self._kernel = kernel
        self._host_network = host_network
        self._children: set[int] = set()
        self._watched: dict[int, int] = {}
        """Children by pidfd, which is readable once the child has ended."""
        self._poll = select.poll()
        self._at_end = AtEnd([], [])
        self._spare: Spare | None = None
        self._confiner: Confiner | None = None
        os.setsid()  # keyboard signals of the terminal are the kernel's to interpret
        set_process_name("atoll-zygote")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for module in programs:
            with contextlib.suppress(ImportError):  # reported when the task is spawned
                importlib.import_module(module)
        self.settle()

    def settle(self) -> None:
        """Do once what every child would do, and take what is loaded now for permanent.

        A child's collector need not look at it then, which would copy every page that it stands on.
        """
        derive_all()
        if self._host_network < 0:
            self._host_network = leave_host_namespaces()
        if self._confiner is not None:
            self._confiner.close()
        self._confiner = Confiner()
        gc.collect()
        gc.freeze()

    def run(self) -> NoReturn:
        """Obey orders and report ends until the kernel is gone."""
        self._poll.register(self._kernel, select.POLLIN)
        while True:
            events = self._poll.poll(None if self._spare is not None else _SPARE_DELAY_MS)
            if not events:
                self.fork_spare()
            for number, _ in events:
                if number in self._watched:
                    self._reap(number)
                elif not self._obey():
                    self._last_one_out()

    def fork_spare(self) -> None:
        """Have a spare from now on, who prepares itself for the next order to spawn."""
        self._spare = self._fork()

    def _watch(self, pid: int) -> None:
        """Notice when a child ends, by a pidfd."""
        pidfd = os.pidfd_open(pid)
        self._watched[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)

    def _reap(self, pidfd: int) -> None:
        """Take the status of a child that has ended, and report it if it was a task."""
        self._poll.unregister(pidfd)
        os.close(pidfd)
        pid = self._watched.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        if self._spare is not None and self._spare.pid == pid:
            self._spare = None  # somebody has killed it
        elif pid in self._children:
            self._children.discard(pid)
            self._report(Exited(pid, os.waitstatus_to_exitcode(status)))

    def _report(self, report: Report) -> None:
        with contextlib.suppress(OSError):
            self._kernel.send(_encode(report))

    def _obey(self) -> bool:
        """Carry out one order; False when the kernel is gone."""
        try:
            data, ancillary, _, _ = self._kernel.recvmsg(
                ORDER_LIMIT, ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return False
        if not data:
            return False
        order = _decode_order(data)
        if isinstance(order, Spawn):
            descriptors = descriptors_in(ancillary)
            self._spawn(order.token, data, descriptors)
            for number in descriptors:
                os.close(number)
        elif isinstance(order, Fresh):
            (connection,) = descriptors_in(ancillary)
            self._start_fresh(order, connection)
            os.close(connection)
        elif isinstance(order, Kill):
            if order.pid in self._children:
                os.kill(order.pid, order.signal)
        else:
            self._at_end = order
        return True

    def _spawn(self, token: int, order: bytes, descriptors: list[int]) -> None:
        """Give the order to the spare, or to a new process if there is none or it is gone."""
        spare, self._spare = self._spare, None
        if spare is not None and not spare.become(order, descriptors):
            spare = None
        if spare is None:
            spare = self._fork(rehearsed=False)
            if spare is not None:
                spare.become(order, descriptors)
        if spare is not None:
            self._children.add(spare.pid)
        self._report(Spawned(token, spare.pid if spare is not None else 0))

    def _fork(self, *, rehearsed: bool = True) -> Spare | None:
        spare = fork_spare(self._detach, self._become, self._rehearse if rehearsed else None)
        if spare is not None:
            self._watch(spare.pid)
        return spare

    def _rehearse(self) -> None:
        rehearse()
        if self._confiner is not None:
            self._confiner.rehearse()

    def _detach(self) -> None:
        """In a new process: give up what is the zygote's."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._kernel.close()
        for pidfd in self._watched:
            os.close(pidfd)

    def _start_fresh(self, order: Fresh, connection: int) -> None:
        try:
            pid = start_interpreter(connection, order.programs, order.path, self._host_network)
        except OSError:
            self._report(Spawned(order.token, 0))
            return
        self._watch(pid)
        self._children.add(pid)
        self._report(Spawned(order.token, pid))

    def _become(self, data: bytes, descriptors: list[int]) -> None:
        """In a new process: be the task that is ordered, with no more than is declared for it."""
        order = _decode_order(data)
        assert isinstance(order, Spawn)
        line, region, stack, *kept = descriptors
        declared = order.confinement
        set_process_name(f"atoll-{order.birth.name}")
        if self._host_network >= 0:
            if declared is None or declared.network == HOST_NETWORK:
                enter_network(self._host_network)
            os.close(self._host_network)
        if order.user_namespace and os.geteuid() != 0:
            enter_user_namespace()
        write_stacks_to(stack)
        connection = socket.socket(fileno=line)
        connection.setblocking(True)
        confiner = self._confiner
        if declared is None or confiner is None:
            run_task(connection, region, order.birth, kept)
        run_task(connection, region, order.birth, kept, lambda: confiner.confine(declared))

    def _last_one_out(self) -> NoReturn:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for command in self._at_end.commands:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(command, check=False, timeout=10, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        for path in self._at_end.remove:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - pathlib is not loaded here
        for pid in self._children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        os._exit(0)


class ZygoteLine:
    """The kernel's end: sends orders, takes reports. Watched by the rim."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.on_report: Any = lambda report: None
        self.on_end: Any = lambda: None

    def order(self, order: Order, descriptors: tuple[int, ...] = ()) -> None:
        """Send an order. The zygote does nothing but read them, so its socket has room."""
        data = _encode(order)
        if descriptors:
            socket.send_fds(self.socket, [data], list(descriptors))
        else:
            self.socket.send(data)

    def readable(self) -> bool:
        """Take one report."""
        try:
            data = self.socket.recv(ORDER_LIMIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.on_end()
            return False
        self.on_report(decode_report(data))
        return True

    def writable(self) -> None:
        """Nothing ever waits here."""
