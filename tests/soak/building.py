"""`make` as a work: a program of many small files is built, touched, built again, and cleaned.

What is built is known from the sources, and so is which of it may be built again.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path
from typing import Final

from .run import LossError
from .works import Workplace

PARTS: Final = 24
_MAKEFILE: Final = """\
parts := {parts}

all: sum

parts/%.out: sources/%.in
\t@mkdir -p parts
\t@sha256sum < $< | cut -c1-64 > $@.new && mv $@.new $@
\t@echo $* >> made

sum: $(parts:%=parts/%.out)
\t@cat $^ | sha256sum | cut -c1-64 > $@.new && mv $@.new $@

clean:
\t@rm -r parts sum made
"""


def build(place: Workplace, chance: random.Random, turn: int) -> None:
    """Build all, then what was touched and nothing else, then clean."""
    top = place.mount / "building"
    (top / "sources").mkdir(parents=True)
    names = [f"part-{number}" for number in range(4 if place.run.small else PARTS)]
    (top / "Makefile").write_text(_MAKEFILE.format(parts=" ".join(names)))
    for name in names:
        (top / "sources" / f"{name}.in").write_bytes(chance.randbytes(chance.randrange(9000)))
    command = ("make", "-s", "-j2", "-C", top)
    place.command(*command)
    _check(top, names, set(names))
    touched = set(chance.sample(names, len(names) // 4))
    newest = max((top / "parts" / f"{name}.out").stat().st_mtime_ns for name in names)
    for name in touched:
        path = top / "sources" / f"{name}.in"
        path.write_bytes(chance.randbytes(100))
        os.utime(path, ns=(newest + 10_000_000, newest + 10_000_000))
    (top / "made").unlink()
    while _present_ns(top) <= newest + 20_000_000:
        pass  # what is made now has to be newer than what was touched
    place.command(*command)
    _check(top, names, touched)
    place.command(*command, "-q")  # status 0: nothing is left to do
    place.command(*command, "clean")
    if {path.name for path in top.iterdir()} != {"Makefile", "sources"}:
        raise LossError(f"make clean left {sorted(path.name for path in top.iterdir())}")
    shutil.rmtree(top)
    place.run.count("builds")


def _present_ns(top: Path) -> int:
    """Return what a file gets for its time now."""
    clock = top / "clock"
    clock.touch()
    now = clock.stat().st_mtime_ns
    clock.unlink()
    return now


def _check(top: Path, names: list[str], wanted: set[str]) -> None:
    """LossError unless just these were made, and every output is what its source makes it."""
    made = (top / "made").read_text().split()
    if sorted(made) != sorted(wanted):
        raise LossError(f"make made {sorted(made)}, wanted {sorted(wanted)}")
    digests = ""
    for name in names:
        source = (top / "sources" / f"{name}.in").read_bytes()
        digest = hashlib.sha256(source).hexdigest() + "\n"
        if (top / "parts" / f"{name}.out").read_text() != digest:
            raise LossError(f"make: {name}.out is not what {name}.in makes it")
        digests += digest
    if (top / "sum").read_text().strip() != hashlib.sha256(digests.encode()).hexdigest():
        raise LossError("make: the sum is not that of the parts")
