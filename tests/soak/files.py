"""`files`: volumes against the host's file system and against a model, with and without disasters.

Turn by turn, each with a seed of its own that is told when something was lost:

* `twins`: the same random operations, by several users, on a volume and on the host; every answer
  is compared, and every now and then the two trees.
* `long life`: one volume through a long program, closed or abandoned and opened again many times,
  against the model.
* `killed`, `failing`, `power cut`: short programs in which the process dies, the host refuses, or
  the power fails at any write.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from core.errors import Refused
from fs_server.volume import Volume
from tests.fs_server import test_crash
from tests.fs_server.programs import perform, random_program, show
from tests.fs_server.support import (
    ALICE,
    BOB,
    CAROL,
    ROOT,
    Clock,
    Kernel,
    assert_free_blocks_known,
    assert_sound,
    new_volume,
)
from tests.fs_server.test_against_host import AgainstHost, Path_, acting

from .run import Run

_NAMES: Final = (b"a", b"b", b"c")
_MODES: Final = (0o777, 0o755, 0o700, 0o750, 0o070, 0o1777, 0o2777, 0o6755, 0o644, 0)
_SIZES: Final = (0, 1, 100, 4095, 4096, 4097, 9000, 20_000, 70_000)
_XATTRS: Final = (b"user.a", b"user.b", b"trusted.a", b"bad.a", b"user.", b"plain")
_TIMES: Final = (None, (10**18, 2 * 10**18))
_TWINS_STEPS: Final = 3000
_LOOK_EVERY: Final = 150
_LIFE_STEPS: Final = 1500


class Twins(AgainstHost):
    """The two sides, driven by plain chance: thousands of operations a second."""

    def step(self, chance: random.Random) -> None:
        """Do a random operation on both sides and compare the answers."""
        path = tuple(chance.choices(_NAMES, k=chance.randint(1, 3)))
        caller = chance.choice((ROOT, ROOT, ALICE, BOB, CAROL))
        operation, *arguments = self._draw(chance, path)
        opens = operation in {"truncate", "write", "read", "allocate"}
        if not (opens and self.is_fifo(path)):
            if operation == "link":
                caller = ROOT  # whom the host lets link what is another's is a setting of the host
            self.answers(operation, caller, path, *arguments)

    def _draw(self, chance: random.Random, path: Path_) -> tuple[Any, ...]:
        draw = chance.choice
        other = tuple(chance.choices(_NAMES, k=chance.randint(1, 3)))
        octets = chance.randbytes(8) * draw((1, 1000, 9000))
        flags = draw((0, 0, 0, 1, 2, 3))
        kind = draw((stat.S_IFREG, stat.S_IFREG, stat.S_IFREG, stat.S_IFIFO))
        return draw(
            (
                ("mkdir", draw(_MODES)),
                ("mkdir", 0o777),
                ("mknod", kind | draw(_MODES)),
                ("mknod", stat.S_IFREG | 0o666),
                ("symlink", b"dangling"),
                ("link", other),
                ("unlink",),
                ("rmdir",),
                ("rename", other, flags),
                ("rename", other, flags),
                ("chmod", draw(_MODES)),
                ("chown", draw((0, 1001, 1002)), draw((0, 2001, 2002))),
                ("utimes", draw(_TIMES)),
                ("truncate", draw(_SIZES)),
                ("write", draw(_SIZES), octets),
                ("write", draw(_SIZES), octets),
                ("read", draw(_SIZES), draw(_SIZES)),
                ("allocate", draw((0, 1, 3, 0x10, 0x11)), draw(_SIZES), draw(_SIZES)),
                ("setxattr", draw(_XATTRS), octets[:20], draw((0, 0, 1, 2))),
                ("removexattr", draw(_XATTRS[:3])),
                ("getxattr", draw(_XATTRS[:4])),
                ("access", chance.randrange(8)),
            )
        )

    def answers(self, operation: str, caller: Any, *arguments: Any) -> None:
        """Compare the answers of one operation."""
        results: list[Any] = []
        try:
            with acting(caller):
                results.append(getattr(self.host, operation)(caller, *arguments))
        except OSError as error:
            results.append(errno.errorcode[error.errno or 0])
        try:
            results.append(getattr(self.ours, operation)(caller, *arguments))
        except Refused as error:
            results.append(errno.errorcode[error.errno])
        step = f"{operation}{str(arguments)[:200]} by {caller.uid}"
        assert results[0] == results[1], f"{step}: host {results[0]!r}, volume {results[1]!r}"


def twins(run: Run, directory: Path, chance: random.Random) -> None:
    """A volume and the host's file system, side by side."""
    machine = Twins()
    try:
        for number in range(_TWINS_STEPS):
            machine.step(chance)
            if number % _LOOK_EVERY == 0:
                machine.compare(f"step {number}", with_times=False)
        run.count("operations", 2 * _TWINS_STEPS)
    finally:
        machine.teardown()


def long_life(run: Run, directory: Path, chance: random.Random) -> None:
    """One volume, opened again and again, against the model."""
    new_volume(directory, size=4 << 20).close()
    steps, models = random_program(chance.getrandbits(32), _LIFE_STEPS)
    kernel = Kernel()
    volume = Volume(
        directory,
        reserve=kernel.reserve(),
        clock=Clock(),
        cache_limit=chance.choice((4, 64, 10_000)),
    )
    for number, step in enumerate(steps):
        perform(volume, step, models[number].names)
        if chance.random() < 0.1:
            volume.survey()
        if chance.random() < 0.01:
            if chance.random() < 0.5:
                assert_free_blocks_known(volume)
            assert show(volume) == models[number + 1].shown(), f"after step {number}, {step}"
            chance.choice((volume.close, volume.abandon))()
            volume = Volume(directory, reserve=kernel.reserve(), clock=Clock())
            run.count("reopenings")
    assert show(volume) == models[-1].shown()
    volume.close()
    assert_sound(directory)
    run.count("operations", _LIFE_STEPS)


def _crash(test: Callable[..., None], *numbers: Callable[[random.Random], int]) -> Any:
    """Return a turn that is an example of a test in `test_crash`, with numbers drawn here."""
    inner = test.hypothesis.inner_test  # type: ignore[attr-defined]

    def turn(run: Run, directory: Path, chance: random.Random) -> None:
        directory.mkdir()
        for _ in range(10):
            inner(directory, *(draw(chance) for draw in numbers))
            run.count("disasters")

    return turn


def _seed(chance: random.Random) -> int:
    return chance.getrandbits(32)


def _limit(chance: random.Random) -> int:
    return chance.randint(1, 250)


def _errno(chance: random.Random) -> int:
    return chance.choice((errno.EIO, errno.ENOSPC))


Turn = Callable[[Run, Path, random.Random], None]
TURNS: Final[dict[str, Turn]] = {
    "long life": long_life,
    "killed": _crash(
        test_crash.test_a_killed_server_has_lost_nothing_and_repeats_nothing, _seed, _limit
    ),
    "failing": _crash(
        test_crash.test_a_failing_host_refuses_one_operation_and_spoils_none, _seed, _limit, _errno
    ),
    "power cut": _crash(
        test_crash.test_a_power_cut_leaves_a_sound_volume_with_all_that_was_synced, _seed, _seed
    ),
}
if os.geteuid() == 0:  # it acts as several users
    TURNS["twins"] = twins


def files(run: Run) -> None:
    """Take turns until the time is over; see the module head."""
    top = Path(tempfile.mkdtemp(prefix="atoll-soak-files-"))
    chance = run.random("turns")
    try:
        while not run.over():
            for name, turn in TURNS.items():
                seed = chance.getrandbits(32)
                place = top / "volume"
                try:
                    turn(run, place, random.Random(seed))
                except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss
                    text = f"{type(error).__name__}: {str(error)[:1500]}"
                    run.lose(f"{name}, turn of seed {seed}: {text}")
                shutil.rmtree(place, ignore_errors=True)
                run.count("turns")
    finally:
        shutil.rmtree(top, ignore_errors=True)
