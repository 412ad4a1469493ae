"""The life of a system: `up`, `down`.

The kernel is a process of its own with a session of its own, also when `up` stays in the
foreground: so ^C reaches `up` alone, which then ends the system in good order. What `up` knows of
the start it reads from a pipe: one line of JSON, written when everything answers or nothing will.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

from mount.obstacle import FAILED, ObstacleError
from mount.run_directory import Record, RunDirectory, find_system, started
from mount.settings import FAST, NETS, SYSTEM, Settings

from .output import complain, facts, say, say_json
from .parser import Commands, seconds
from .volume import claimed, state_of

DOWN_PATIENCE_S: Final = 15.0
_CLEARING_PATIENCE_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1


def register(commands: Commands) -> None:
    """Describe these commands to the parser."""
    parser = commands.add(
        "up",
        up,
        "start a system",
        "Without --detach the system ends with ^C. Files are below the mount point that is\n"
        "printed; the network is in a namespace of its own, entered with `atoll exec`.\n\n"
        "examples:\n  atoll up --detach\n  atoll up --net none --fast\n"
        "  atoll --name test up --state /tmp/volume --mount ~/mnt",
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="the volume, made if missing")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--mount", type=Path, metavar="DIR", help="where the files appear")
    place.add_argument("--no-mount", action="store_true", help="mount nothing")
    parser.add_argument(
        "--net", choices=NETS, default="private", help="where the host's end of the link is"
    )
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--system", type=Path, metavar="FILE", help="another system description")
    system.add_argument(
        "--fast", action="store_true", help="promote all servers into the kernel's process"
    )
    parser.add_argument("--detach", action="store_true", help="return when it is up")
    parser.add_argument("--json", action="store_true", help="say what is up as JSON")
    parser = commands.add(
        "down",
        down,
        "end a system in good order",
        "A kernel that does not end in time is killed; what it left is cleared away.\n\n"
        "example:\n  atoll --name test down",
    )
    parser.add_argument(
        "--patience", type=seconds, default=DOWN_PATIENCE_S, help="seconds (default: %(default)g)"
    )


# -- up --------------------------------------------------------------------------------------------


def up(arguments: argparse.Namespace) -> int:
    """Run `atoll up`."""
    reading, writing = os.pipe()
    state = state_of(arguments)
    parent = os.getpid()
    kernel = os.fork()
    if kernel == 0:
        os.close(reading)
        _become_kernel(arguments, state, writing, parent)
    os.close(writing)
    try:
        ready = _read_ready(reading)
        if "error" in ready or arguments.detach:
            return _report(arguments, ready, kernel)
        _report(arguments, ready, kernel)
    except KeyboardInterrupt:
        os.kill(kernel, signal.SIGTERM)
    return _stay(kernel)


def _become_kernel(arguments: argparse.Namespace, state: Path, ready: int, parent: int) -> None:
    """Be the kernel, in the forked child; never returns."""
    status = FAILED
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if not arguments.detach:
            _die_with(parent)
        status = _run_kernel(arguments, state, ready)
    except Exception as error:  # noqa: BLE001 - the parent says it, whatever it is
        with contextlib.suppress(OSError):
            os.write(ready, json.dumps({"error": _words(error)}).encode() + b"\n")
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _die_with(parent: int) -> None:
    """Have the host end this process in good order when the `up` in the foreground dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(FAILED)


def _words(error: Exception) -> str:
    from core.errors import AtollError
    from mount.mount_point import MountError

    expected = (ObstacleError, MountError, AtollError, OSError)
    return str(error) if isinstance(error, expected) else f"{type(error).__name__}: {error}"


def _run_kernel(arguments: argparse.Namespace, state: Path, ready: int) -> int:
    """Make what a system needs on the host, run it, and clear it away."""
    from mount.mount_point import check_device

    if not arguments.no_mount:
        check_device()
    run = RunDirectory.create(arguments.name)
    mountpoint: Path | None = (arguments.mount or run.default_mountpoint).absolute()
    made = None
    try:
        with claimed(state):
            if arguments.no_mount or mountpoint is None:
                mountpoint = None
            else:
                made = _make_mountpoint(mountpoint)
                _make_volume(state)
            _redirect(run.log_path)
            settings = Settings(
                name=arguments.name,
                state=state,
                mountpoint=mountpoint,
                net=arguments.net,
                system=FAST if arguments.fast else (arguments.system or SYSTEM).absolute(),
                run=run,
            )
            from mount.composition import run_system

            return run_system(settings, ready)
    finally:
        if made is not None:
            with contextlib.suppress(OSError):
                made.rmdir()
        run.remove()


def _make_volume(state: Path) -> None:
    """Make a volume in an empty directory, so that its root is this user's."""
    if any(state.iterdir()):
        return  # there is one; what is wrong with it the file server says
    from fs_server.mkfs import make_volume

    make_volume(state, owner=(os.geteuid(), os.getegid()))


def _make_mountpoint(path: Path) -> Path | None:
    """Make the directory to mount on, unless it is there; return it if it was made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except FileExistsError:
        return None  # perhaps with a dead mount upon it, which is dealt with when mounting
    except OSError as error:
        remedy = "choose another directory with --mount"
        raise ObstacleError(error.filename, error.strerror or "", remedy) from None
    return path


def _redirect(log: Path) -> None:
    """Let standard input be empty, and output and errors go to the log."""
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(null)
    os.close(file)


def _read_ready(reading: int) -> dict[str, Any]:
    with os.fdopen(reading, "rb") as pipe:
        line = pipe.readline()
    if not line:
        return {"error": "the kernel process ended before it was ready; see: atoll log"}
    facts_: dict[str, Any] = json.loads(line)
    return facts_


def _report(arguments: argparse.Namespace, ready: dict[str, Any], kernel: int) -> int:
    if "error" in ready:
        os.waitpid(kernel, 0)
        if arguments.json:
            say_json(ready)
        complain(f"system {arguments.name} did not start\n  {ready['error']}")
        return FAILED
    if arguments.json:
        say_json(ready)
        return 0
    option = "" if arguments.name == "default" else f" --name {arguments.name}"
    network = "" if ready["net"] == "none" else f"{ready['address']}, enter it with: "
    facts(
        [
            ("up", f"system {arguments.name}, process {ready['pid']}"),
            ("files", ready["mountpoint"] or "not mounted"),
            ("volume", ready["state_directory"]),
            ("network", network and network + f"atoll{option} exec -- sh"),
            ("end it with", f"atoll{option} down" if arguments.detach else "^C"),
        ]
    )
    return 0


def _stay(kernel: int) -> int:
    """Wait in the foreground; what would end this process ends the system first."""

    def end(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(kernel, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    code = os.waitstatus_to_exitcode(os.waitpid(kernel, 0)[1])
    if code == 0:
        say("down")
        return 0
    cause = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed; see its log"
    complain(f"the kernel process {cause}")
    return FAILED


# -- down ------------------------------------------------------------------------------------------


def down(arguments: argparse.Namespace) -> int:
    """Run `atoll down`."""
    run = find_system(arguments.name)
    record = run.record()
    if record is None:
        find_system(arguments.name)  # it has ended meanwhile, and says so
        return FAILED
    try:
        kernel = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return _clear(run, record, "had just ended")
    if started(record.pid) != record.started:  # the number has been given to another process
        os.close(kernel)
        return _clear(run, record, "had just ended")
    try:
        return _end(run, record, kernel, arguments.patience)
    except PermissionError:
        remedy = "run it as the user who started the system"
        raise ObstacleError(f"process {record.pid}", "is not yours to end", remedy) from None
    finally:
        os.close(kernel)


def _end(run: RunDirectory, record: Record, kernel: int, patience_s: float) -> int:
    begin = time.monotonic()
    signal.pidfd_send_signal(kernel, signal.SIGTERM)
    if _ended(kernel, patience_s):
        say(f"system {run.name} is down, after {time.monotonic() - begin:.1f} s")
        run.clear()
        return 0
    complain(f"process {record.pid} did not end within {patience_s:g} s: killing it")
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(kernel, signal.SIGKILL)
    _ended(kernel, _CLEARING_PATIENCE_S)
    return _clear(run, record, "was killed")


def _ended(kernel: int, patience_s: float) -> bool:
    poll = select.poll()
    poll.register(kernel, select.POLLIN)
    return bool(poll.poll(patience_s * 1000))


def _clear(run: RunDirectory, record: Record, how: str) -> int:
    """Clear away what a kernel left that did not end by itself; say what that was."""
    from mount.mount_point import mounted

    end = time.monotonic() + _CLEARING_PATIENCE_S
    while record.mountpoint and mounted(Path(record.mountpoint)) and time.monotonic() < end:
        if run.clear():
            break
        time.sleep(0.05)  # noqa: TID251 - the mount table can only be looked at
    complain(f"system {run.name}: process {record.pid} {how}")
    for done in run.clear():
        say(done)
    return 0
