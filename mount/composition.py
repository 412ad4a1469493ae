"""Composition: kernel, servers, front end and control socket become one running system.

`run_system` makes the calling process the kernel's. It returns when the system has ended: because
`atoll down` or a signal asked for it, because it could not start, or because something it cannot do
without is gone.

Order of the start: the zygote is forked before anything is opened; servers, a native mount's among
them; pyfuse3's mount; control socket; then, when mount, network and pipes have answered, the ready
line. The end goes the other way: a mount ends while its front end still serves.
Whatever the end of this process is, the zygote detaches the mount and removes the socket after it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from core.abi import ALL_OPERATIONS, Right
from core.errors import AtollError
from core.system.boot import BootError, Prepared, System, booted
from core.system.description import (
    PLACEMENTS,
    DescriptionError,
    Grant,
    SystemDescription,
    load_description,
)
from core.system.pipe import Pipes
from core.userlib.server import Server
from core.userlib.task import Task
from fs_server.interface import FileSystem
from net_server.network import Network

from .attached import take_leave
from .control import Control, Status
from .control_server import ControlServer
from .mount_options import FRONT_ENDS
from .mount_point import FILE_SYSTEM_TYPE, MountError, check_device, detach, mounted, prepare
from .native.described import with_native_mount
from .settings import FrontEndName, Settings
from .stream_directories import stream_directories

LOG_LIMIT: Final = 16 << 20
"""Octets of the log file, after which it begins again with the lines in memory."""
LOG_LINES: Final = 2000
"""Lines of the log that are remembered in memory."""
_NETWORK: Final = ("tap", "net", "echo")
_PEERCRED: Final = struct.Struct("3i")
_MOUNT_TIMEOUT_S: Final = 20.0


class FrontEndServer(Server):
    """pyfuse3's front end as a task: it serves no port but gets the file server's notifications."""

    def __init__(self, task: Task, composition: Composition) -> None:
        super().__init__(task)
        self._composition = composition
        self._changed = trio.Event()
        self._port: Right | None = None

    async def run(self) -> None:
        """Mount and serve until the system ends or somebody unmounts."""
        from .fuse_session import serve  # after the zygote's fork
        from .mount_options import MountOptions

        composition = self._composition
        fs = self.task.connect(FileSystem, "fs")
        mountpoint = composition.settings.mountpoint
        assert mountpoint is not None
        options = MountOptions(allow_other=composition.settings.allow_other or None)
        try:
            async with trio.open_nursery() as nursery:
                serving = functools.partial(serve, fs, mountpoint, options, watch=self)
                await nursery.start(serving)
                composition.mounted.set()
        except* MountError as errors:
            composition.fail(str(errors.exceptions[0]))
            await trio.sleep_forever()
        composition.log(f"{mountpoint} was unmounted from outside")
        await trio.sleep_forever()

    @property
    def port(self) -> Right:
        """A right for the file server to notify (`Watch`)."""
        if self._port is None:
            self._port = self.task.mint(1)
        return self._port

    async def wait_changed(self) -> None:
        """Wait for the file server's bit (`Watch`)."""
        await self._changed.wait()
        self._changed = trio.Event()

    def notified(self, bits: int) -> None:
        """The file server says that another client changed something."""
        self._changed.set()  # stays set until `wait_changed`: a bit that nobody waits for counts


class Composition:
    """One system, from its start to its end."""

    def __init__(self, settings: Settings, front_end: FrontEndName = "pyfuse3") -> None:
        self.settings = settings
        self.front_end = front_end
        self.lines: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self.mounted = trio.Event()
        self._end = trio.Event()
        self._failure = ""
        self._log_file = settings.run.log_path.open("a", encoding="utf-8", buffering=1)
        self._began = time.monotonic()
        self._interface = ""

    def log(self, text: str) -> None:
        """Write a line into the system's log."""
        first, *more = text.splitlines() or [""]  # only a new entry begins at a line's start
        line = "\n    ".join([f"{time.strftime('%H:%M:%S')} {first}", *more])
        self.lines.append(line)
        with contextlib.suppress(OSError, ValueError):  # closed: nobody reads it any more
            if self._log_file.tell() > LOG_LIMIT:
                self._log_file.seek(0)
                self._log_file.truncate()
                self._log_file.write("".join(f"{kept}\n" for kept in list(self.lines)[:-1]))
            self._log_file.write(line + "\n")

    def fail(self, reason: str) -> None:
        """Note why the system cannot go on, and end it."""
        self._failure = self._failure or reason
        self._end.set()

    def describe(self, system: System) -> Status:
        """Describe the system for `atoll status`."""
        settings = self.settings
        tasks = [system.task(name) for name in system.description.servers]
        net = system.description.servers.get("net")
        tap = system.description.servers.get("tap")
        return Status(
            settings.name,
            os.getpid(),
            str(settings.state),
            str(settings.mountpoint or ""),
            str(settings.system),
            settings.net,
            str(net.options.get("address", "10.90.0.2/24")) if net else "",
            str(tap.options.get("host_address", "10.90.0.1/24")) if tap else "",
            str(tap.options.get("name", "atoll0")) if tap else "",
            time.monotonic() - self._began,
            system.kernel.boot_id,
            sum(task.state.value == "running" for task in tasks),
            len(tasks),
        )

    async def run(self, prepared: Prepared, ready: int | None) -> None:
        """Run the system until it is told to end.

        Raises:
            BootError: it could not start, or something it needs is gone.
        """
        with self._log_file:
            await self._run(prepared, ready)
        if self._failure:
            raise BootError(self._failure)

    async def _run(self, prepared: Prepared, ready: int | None) -> None:
        faults, begin = self.settings.run.faults_path, self._order_last_rites
        try:
            async with booted(prepared, self.log, faults, begin) as system:
                try:
                    await self._open(system, ready)
                finally:
                    await self._leave_mount()
        finally:
            self._detach()

    async def _open(self, system: System, ready: int | None) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heed_signals)
            nursery.start_soon(self._watch_failure, system)
            await self._start_doors(system, nursery)
            if not self._end.is_set():
                self._announce(system, ready)
            await self._end.wait()
            nursery.cancel_scope.cancel()

    # -- a mount that the native front end serves

    @property
    def _native_path(self) -> Path | None:
        """Where such a mount is; None: there is none."""
        return self.settings.mountpoint if self.front_end == "native" else None

    def _is_mounted(self) -> bool:
        """Tell whether such a mount is there; asks the mount table and not the path."""
        table = mounted(self._native_path) if self._native_path is not None else None
        return table is not None and table[1] == FILE_SYSTEM_TYPE

    async def _leave_mount(self) -> None:
        """End the mount in good order, as long as its front end serves."""
        if self._native_path is not None and self._is_mounted():
            with trio.CancelScope(shield=True):
                await take_leave(self._native_path, trio.Event())

    def _detach(self) -> None:
        """Leave no mount behind, however the system has ended."""
        if self._native_path is not None and self._is_mounted():
            detach(self._native_path)

    async def _start_doors(self, system: System, nursery: trio.Nursery) -> None:
        """Open mount and control socket, and see that every door answers."""
        if self.settings.mountpoint is not None and self._native_path is None:
            system.add_colocated(
                "front-end",
                lambda task: FrontEndServer(task, self),
                grants={"fs": Grant("fs", ALL_OPERATIONS)},
            )
            with trio.move_on_after(_MOUNT_TIMEOUT_S):
                await _first(self.mounted, self._end)
            if not self.mounted.is_set():
                self.fail(f"nothing was mounted at {self.settings.mountpoint}")
                return
        system.add_colocated(
            "control",
            lambda task: ControlServer(
                task, system, lambda: self.describe(system), self.lines, self._end.set
            ),
            Control,
        )
        await system.wait_running(["control"])
        servers = system.description.servers
        if "net" in servers:
            await system.connect(Network, "net").addresses()
        if "pipe" in servers:
            for end in await system.connect(Pipes, "pipe").create():
                system.client().drop(end)
        listener = self._listen()
        nursery.start_soon(self._let_join, system, listener)

    def _order_last_rites(self, system: System) -> None:
        commands: list[list[str]] = []
        if self.settings.mountpoint is not None:
            path = str(self.settings.mountpoint)
            commands = [["umount", "-l", path]] if os.geteuid() == 0 else []
            commands.append(["fusermount3", "-u", "-z", "-q", path])
        run = self.settings.run
        system.at_end(commands, [str(run.control_path)])

    def _announce(self, system: System, ready: int | None) -> None:
        if ready is not None:
            facts: dict[str, Any] = msgspec.to_builtins(self.describe(system))
            _tell(ready, {"ready": True, **facts})

    async def _heed_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                self.log(f"{signal.Signals(number).name}: going down")
                self._end.set()

    async def _watch_failure(self, system: System) -> None:
        await system.failed.wait()
        self.fail(system.failure)

    # -- the control socket

    def _listen(self) -> trio.socket.SocketType:
        path = self.settings.run.control_path
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(64)
        return trio.socket.from_stdlib_socket(listener)

    async def _let_join(self, system: System, listener: trio.socket.SocketType) -> None:
        grants = {"control": Grant("control", ALL_OPERATIONS)}
        with listener:
            while True:
                connection, _ = await listener.accept()
                raw = socket.socket(fileno=connection.detach())
                pid, uid, _ = _PEERCRED.unpack(
                    raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
                )
                if uid not in (0, os.geteuid()):
                    raw.close()
                    continue
                try:
                    system.join(raw, pid, grants)
                except (AtollError, OSError) as error:
                    self.log(f"a program of process {pid} could not join: {error}")
                    raw.close()


async def _first(*events: trio.Event) -> None:
    """Wait for any of the events."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)


def _tell(ready: int, facts: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(ready, json.dumps(facts).encode() + b"\n")
        os.close(ready)


def options_for(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return what composition adds to the options of the servers that ship."""
    volume: dict[str, Any] = {"state": str(settings.state)}
    if settings.volume_size:
        volume["size"] = settings.volume_size
    options: dict[str, dict[str, Any]] = {"disk": volume, "fs": volume}
    if settings.net == "host":
        options["tap"] = {"namespace": "host"}
    return options


def describe_system(settings: Settings) -> SystemDescription:
    """Read and check the system description for these settings. DescriptionError."""
    without = _NETWORK if settings.net == "none" else ()
    description = load_description(Path(settings.system), options_for(settings), without)
    name, placement = front_end_of(description)
    if settings.mountpoint is None or name != "native":
        return description
    return with_native_mount(
        description,
        settings.mountpoint,
        program=str(description.mount.get("class", "")),
        placement=placement,
        allow_other=settings.allow_other or None,
        streams=stream_directories(description),
    )


def front_end_of(description: SystemDescription) -> tuple[FrontEndName, str]:
    """Return who is to speak with the host's kernel, and where that runs.

    Raises:
        DescriptionError: nobody, or no place, that is known.
    """
    table = description.mount
    name, placement = table.get("front_end", "pyfuse3"), table.get("placement", "colocated")
    unknown = set(table) - {"front_end", "placement", "class", "streams"}
    if unknown:
        known = "known are front_end, placement, class and streams"
        raise DescriptionError(f"[mount]: unknown key {min(unknown)!r}; {known}")
    if name not in FRONT_ENDS:
        raise DescriptionError(f'[mount]: front_end is "pyfuse3" or "native", not {name!r}')
    if placement not in PLACEMENTS:
        raise DescriptionError(f'[mount]: placement is "colocated" or "process", not {placement!r}')
    if placement == "process" and name != "native":
        reason = "pyfuse3 keeps its session in the process that mounts"
        raise DescriptionError(f'[mount]: placement is "colocated" for {name}: {reason}')
    return name, placement


def run_system(settings: Settings, ready: int | None = None) -> int:
    """Be the kernel of a system until it ends; return the exit status.

    Call it before trio runs, in a process without other threads.

    Args:
        ready: a descriptor that gets one line of JSON: `{"ready": true, ...}` or
            `{"error": "..."}`.
    """
    try:
        description = describe_system(settings)
        settings.state.mkdir(parents=True, exist_ok=True)
        settings.run.enter(str(settings.state), str(settings.mountpoint or ""))
        front_end, _ = front_end_of(description)
        composition = Composition(settings, front_end)
        if front_end == "native" and settings.mountpoint is not None:
            check_device()  # with all that can be known before anything runs
            prepare(settings.mountpoint)
        trio.run(composition.run, Prepared(description), ready)
    except (BootError, DescriptionError, MountError, OSError, BaseExceptionGroup) as error:
        cause = _cause(error)
        if cause is None:
            raise
        if ready is not None:
            _tell(ready, {"error": str(cause)})
        print(f"atoll: {cause}", file=sys.stderr)  # noqa: T201 - the command's own report
        return 1
    return 0


def _cause(error: BaseException) -> BaseException | None:
    """Return the reason that a user can act on; None when the error is a mistake of ours."""
    if isinstance(error, BaseExceptionGroup):
        causes = [_cause(inner) for inner in error.exceptions]
        return causes[0] if causes and None not in causes else None
    known = BootError | DescriptionError | MountError | OSError
    return error if isinstance(error, known) else None
