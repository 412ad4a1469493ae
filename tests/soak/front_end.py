"""The native front end is killed at random instants while programs work at the mount.

Trees are copied and compared, repositories cloned and checked, a file is changed at random beside a
model, and names are made and removed, each of which fails if it is done twice. Nobody at the mount
may see anything of it but time: no error, no octet that differs, and above all not that the mount
is gone.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from core.errors import TaskError
from mount.chaos.pauses import figures
from mount.native.server import FrontEndServer
from tests.support.live_system import LiveSystem

from .door import Door, opened
from .front_ends import UNTOLD, describe
from .run import LossError, Run

NAME: Final = "front-end"
_FILE: Final = 1 << 20
_STEPS: Final = 40
_STRIKES: Final = (*("kill",) * 12, "restart", "stop")
_GAPS_S: Final = (0.02, 0.2, 0.6, 1.2)
"""About as often as the supervisor mends without waiting."""
_RETURN_S: Final = 30.0
_SOURCE: Final = Path(os.__file__).parent
_TREES: Final = ("asyncio", "email", "encodings", "multiprocessing", "xml")
_ALARMING: Final = ("Traceback", "kernel: a packet", "given up", "EIO", "the host took no answer")


def front_end(
    run: Run,
    server: type[FrontEndServer] = FrontEndServer,
    works: Iterable[str] = ("copies", "clones", "operations", "names"),
) -> None:
    """Work, kill, and compare; see the module head.

    Args:
        server: serves the mount.
        works: what is done meanwhile.
    """
    system = LiveSystem(f"front{run.seed % 10_000}")
    try:
        system.up("--system", str(describe(server, system.top)), "--net", "none")
        with opened(system) as door:
            _weather(run, system.mountpoint, door, works)
        for line in system.run.log_path.read_text().splitlines():
            run.count("untold changes", UNTOLD in line)
            if any(word in line for word in _ALARMING):
                run.lose(f"the log says: {line}")
        done = system.atoll("down")
        run.check(done.returncode == 0, f"down: {done.stderr}{done.stdout}")
        run.check(not system.is_mounted(), "down left a mount")
        run.check(not system.living(), f"down left processes: {system.living()}")
        done = system.atoll("fsck", "--state", str(system.state))
        run.check(done.returncode == 0, f"fsck: {done.stdout}{done.stderr}")
    finally:
        system.close()


def _weather(run: Run, mount: Path, door: Door, works: Iterable[str]) -> None:
    over = threading.Event()
    run.begin_now()
    workers = [
        threading.Thread(target=_worker, args=(run, mount, name, _WORKS[name], over))
        for name in works
    ]
    for thread in workers:
        thread.start()
    try:
        _kill(run, door)
    finally:
        over.set()
        for thread in workers:
            thread.join()
    outages = door.ask(door.control.outages(NAME, 0))
    run.counts["ends"] = len(outages)
    found = figures([each.ready_s - each.ended_s for each in outages if each.ready_s])
    run.facts.append(
        f"away: median {found.median_ms:.0f}, p99 {found.p99_ms:.0f}, longest {found.max_ms:.0f} ms"
    )


def _kill(run: Run, door: Door) -> None:
    """Strike whatever incarnation there is, at random instants; it need not serve yet."""
    chance = run.random("kills")
    while not run.over() and not run.losses:
        time.sleep(chance.choice(_GAPS_S) * chance.uniform(0.5, 1.5))
        task = door.tasks()[NAME]
        if task.state not in {"running", "starting"} or not task.pid:
            continue
        how = chance.choice(_STRIKES)
        if how == "restart":
            with contextlib.suppress(TaskError):  # it is just dying of the strike before
                door.ask(door.control.restart(NAME, _RETURN_S))
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(task.pid, signal.SIGSTOP if how == "stop" else signal.SIGKILL)
        run.count(f"{how} ordered")
    until = time.monotonic() + _RETURN_S
    while door.tasks()[NAME].state != "running" and time.monotonic() < until:
        time.sleep(0.05)


def _worker(
    run: Run,
    mount: Path,
    name: str,
    work: Callable[[Run, Path, random.Random], None],
    over: threading.Event,
) -> None:
    chance = run.random(name)
    place = mount / name
    try:
        place.mkdir()
        while not over.is_set():
            work(run, place, chance)
            run.count(name)
    except (OSError, LossError) as error:
        run.lose(f"{name}: {type(error).__name__}: {error}")


def _command(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise LossError(f"{' '.join(map(str, words))}: {done.stderr[-2000:]}")


def _same(left: Path, right: Path) -> None:
    """Compare two trees. LossError."""
    found = filecmp.dircmp(left, right, ignore=["__pycache__"])
    if found.left_only or found.right_only or found.funny_files:
        raise LossError(f"{right}: {found.left_only} {found.right_only} {found.funny_files}")
    _, differing, failed = filecmp.cmpfiles(left, right, found.common_files, shallow=False)
    if differing or failed:
        raise LossError(f"{right}: these differ: {differing}, these fail: {failed}")
    for name in found.common_dirs:
        _same(left / name, right / name)


def _copy(run: Run, place: Path, chance: random.Random) -> None:
    source = _SOURCE / ("json" if run.small else chance.choice(_TREES))
    target = place / "tree"
    _command("cp", "-r", source, target)
    _same(source, target)
    _command("rm", "-r", target)


def _clone(run: Run, place: Path, chance: random.Random) -> None:
    repository = place / "repository"
    origin = place.parent / "origin"
    if not origin.exists():
        _command("git", "init", "-q", origin)
        for number in range(10 if run.small else 60):
            (origin / f"{number}.txt").write_text(f"{number}\n" * chance.randrange(1, 2000))
        _command("git", "-C", origin, "add", ".")
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        _command("git", "-C", origin, *who, "commit", "-q", "-m", "all")
    _command("git", "clone", "-q", "--no-local", origin, repository)
    _command("git", "-C", repository, "fsck", "--strict", "--no-progress")
    _command("rm", "-r", repository)


def _change(run: Run, place: Path, chance: random.Random) -> None:
    """Change a file at random, and a model with it; read often."""
    model = bytearray()
    path = place / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        for step in range(_STEPS):
            _step(descriptor, path, model, chance)
            size = os.fstat(descriptor).st_size
            if size != len(model):
                raise LossError(f"step {step}: {size} octets, not {len(model)}")
        if path.read_bytes() != model:
            raise LossError("the file is not what was written")
    finally:
        os.close(descriptor)
    path.unlink()


def _step(descriptor: int, path: Path, model: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(model) + 1)
    match chance.randrange(6):
        case 0 | 1:
            data = chance.randbytes(chance.choice((10, 5000, 70_000, 300_000)))
            if start + len(data) > _FILE:
                return
            if os.pwrite(descriptor, data, start) != len(data):
                raise LossError("a short write")
            model[start : start + len(data)] = data
        case 2:
            appending = os.open(path, os.O_WRONLY | os.O_APPEND)
            data = chance.randbytes(1000)
            os.write(appending, data)
            os.close(appending)
            model += data
        case 3:
            os.ftruncate(descriptor, start)
            del model[start:]
        case 4:
            size = min(start + 4096, _FILE)
            os.posix_fallocate(descriptor, 0, max(1, size))
            model += bytes(max(0, max(1, size) - len(model)))
        case _:
            size = chance.randrange(100_000)
            if os.pread(descriptor, size, start) != model[start : start + size]:
                raise LossError(f"{size} octets at {start} differ")


def _name(run: Run, place: Path, chance: random.Random) -> None:
    """Make, change and remove names: each fails if it is done twice."""
    (place / "d").mkdir()
    (place / "d/f").touch(exist_ok=False)
    os.link(place / "d/f", place / "d/g")
    (place / "d/s").symlink_to("f")
    os.mkfifo(place / "d/p")
    os.rename(place / "d/f", place / "d/h")
    os.setxattr(place / "d/h", "user.a", b"1", os.XATTR_CREATE)
    os.removexattr(place / "d/h", "user.a")
    if os.stat(place / "d/h").st_nlink != 2:
        raise LossError("a link too many, or too few")
    for name in ("g", "h", "s", "p"):
        (place / "d" / name).unlink()
    (place / "d").rmdir()


_WORKS: Final[dict[str, Callable[[Run, Path, random.Random], None]]] = {
    "copies": _copy,
    "clones": _clone,
    "operations": _change,
    "names": _name,
}
