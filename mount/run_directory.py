"""Where running systems are known by name: one directory each, made by `up`, gone after `down`.

    /run/atoll/NAME/       root's; else $XDG_RUNTIME_DIR/atoll/NAME, else /tmp/atoll-UID/NAME
        control            the socket over which programs join; the composition binds it, mode 0600
        pid                who the kernel process is, and what to clear away if it dies
        log                what the system says
        faults             why servers ended, an event a line; faults.1 what was before
        mnt                where the tree appears if no other place was asked for

A system is alive as long as the process named in `pid` is: same number, same start, same boot of
the host. So a number that the host gave to another program meanwhile deceives nobody. A directory
whose system is dead is *stale*; whoever comes across it clears it away, with the dead mount it may
have left.

Making and clearing are done under a lock on the directory above, so two `up` with one name cannot
both win.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from .obstacle import NOT_RUNNING, ObstacleError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
OVERRIDE: Final = "ATOLL_RUN"
"""Environment variable that names another directory for all of this."""
SOCKET_PATH_LIMIT: Final = 107
"""Octets of a unix socket's path, the final NUL not counted."""
_LONGEST: Final = len("/" + 32 * "n" + "/control")
_FILES: Final = ("control", "pid", "log", "faults", "faults.1")
_HOST_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Record(msgspec.Struct, frozen=True):
    """What the `pid` file says of a system. Empty paths: there is none."""

    pid: int
    started: int
    """When the process started, in clock ticks after the host's boot."""
    host_boot: str
    state: str = ""
    mountpoint: str = ""


def check_name(name: str) -> str:
    """Return the name if a system may have it. ObstacleError otherwise."""
    if not NAME.fullmatch(name):
        remedy = "use up to 32 letters, digits, '_', '-' and '.', the first a letter or digit"
        raise ObstacleError(repr(name), "no name for a system", remedy, 2)
    return name


def started(pid: int) -> int | None:
    """Return when a process started, in clock ticks after the host's boot; None if it is dead."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def roots() -> list[Path]:
    """Return where systems of this user may be known, the place for new ones first."""
    if override := os.environ.get(OVERRIDE):
        return [Path(override).absolute()]
    uid = os.geteuid()
    if uid == 0:
        return [Path("/run/atoll")]
    session = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}")
    found = [Path(f"/tmp/atoll-{uid}")]  # noqa: S108 - mode and owner are checked
    with contextlib.suppress(OSError):
        if session.stat().st_uid == uid and len(os.fsencode(session)) < _session_limit():
            found.insert(0, session / "atoll")
    return found


def _session_limit() -> int:
    return SOCKET_PATH_LIMIT - _LONGEST - len("/atoll")


def _make_private(path: Path) -> None:
    """Make a directory that is this user's alone, or check the one that is there."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        path.mkdir(mode, parents=True)
        path.chmod(mode)
    except FileExistsError:
        pass
    except OSError as error:
        remedy = f"set {OVERRIDE} to a directory of yours"
        raise ObstacleError(path, f"cannot be made: {error.strerror}", remedy) from None
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        cause = "is not a directory that only you may write"
        raise ObstacleError(path, cause, f"remove it, or set {OVERRIDE} to a directory of yours")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class RunDirectory:
    """One system's directory. Making the object touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.control_path = path / "control"
        self.pid_path = path / "pid"
        self.log_path = path / "log"
        self.faults_path = path / "faults"
        self.default_mountpoint = path / "mnt"

    def __repr__(self) -> str:
        return f"RunDirectory({self.path})"

    @classmethod
    def create(cls, name: str) -> RunDirectory:
        """Make the directory of a system, and enter this process as its kernel.

        A stale one is cleared away first.

        Raises:
            ObstacleError: a live system has the name, or the directory cannot be made.
        """
        check_name(name)
        root = roots()[0]
        if len(os.fsencode(root)) + _LONGEST > SOCKET_PATH_LIMIT:
            remedy = f"set {OVERRIDE} to a shorter one"
            raise ObstacleError(root, "its name is too long for a socket in it", remedy)
        _make_private(root)
        with _locked(root):
            for other in roots():
                found = cls(other / name)
                if record := found.record():
                    if found.is_alive():
                        cause = f"is running already, as process {record.pid}"
                        remedy = f"run: atoll --name {name} down, or choose another --name"
                        raise ObstacleError(f"system {name}", cause, remedy)
                    found.clear()
            run = cls(root / name)
            _make_private(run.path)
            run.enter()
        return run

    def enter(self, state: str = "", mountpoint: str = "") -> None:
        """Write down that this process is the system's kernel, and what it uses."""
        pid = os.getpid()
        record = Record(pid, started(pid) or 0, _host_boot(), state, mountpoint)
        fresh = self.path / "pid.new"
        fresh.write_bytes(msgspec.json.encode(record) + b"\n")
        fresh.replace(self.pid_path)

    def record(self) -> Record | None:
        """Return what is written down; None if there is nothing."""
        try:
            return msgspec.json.decode(self.pid_path.read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None

    def is_alive(self) -> bool:
        """Return if the kernel process that is written down lives."""
        record = self.record()
        if record is None or record.host_boot != _host_boot():
            return False
        return started(record.pid) == record.started

    def clear(self) -> list[str]:
        """Clear away what a dead system left, its mount too; return what that was, in words."""
        from .mount_point import detach, is_stale  # light commands never come here

        done: list[str] = []
        record = self.record()
        places = {self.default_mountpoint}
        if record is not None and record.mountpoint:
            places.add(Path(record.mountpoint))
        for place in sorted(places):
            while is_stale(place) and detach(place):
                done.append(f"detached the dead mount {place}")
        if self.path.exists():
            self.remove()
            done.append(f"removed {self.path}")
        return done

    def remove(self) -> None:
        """Remove the directory with what is known to be in it."""
        for name in (*_FILES, "pid.new"):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or still a mount point
            self.default_mountpoint.rmdir()
        with contextlib.suppress(OSError):  # somebody else has put something there
            self.path.rmdir()


def _host_boot() -> str:
    return _HOST_BOOT.read_text(encoding="ascii").strip()


def list_systems() -> list[RunDirectory]:
    """Return the systems of this user that are alive, by name."""
    found = {}
    for root in reversed(roots()):
        with contextlib.suppress(OSError):
            for path in root.iterdir():
                run = RunDirectory(path)
                if NAME.fullmatch(path.name) and run.is_alive():
                    found[path.name] = run
    return [found[name] for name in sorted(found)]


def find_system(name: str) -> RunDirectory:
    """Return the directory of a live system. ObstacleError if none has the name."""
    check_name(name)
    for root in roots():
        run = RunDirectory(root / name)
        if run.is_alive():
            return run
    running = ", ".join(run.name for run in list_systems()) or "none"
    option = "" if name == "default" else f" --name {name}"
    raise ObstacleError(
        f"system {name}",
        "is not running",
        f"start it with: atoll{option} up   (running: {running})",
        NOT_RUNNING,
    )
