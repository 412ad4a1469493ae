"""The attack lab's table: every way out, isolated and promoted, and what isolation costs.

    python -m tests.attack_lab [isolated] [promoted] [cost]

It takes about a minute. The exit status is 1 when a way out succeeded against a server in a
process, or when anything was amiss afterwards.
"""

from __future__ import annotations

import sys
from typing import Final

from core.userlib.confine import lacks

from . import cost
from .hostile import WAYS
from .laboratory import LIVES, UNTOLD, Outcome, has_devices, isolated
from .misuses import MISUSES
from .promoted import DESTROYED, SUCCEEDED, outcomes

_WIDTHS: Final = (44, 62, 46, 60)


def _row(*cells: str) -> None:
    cut = [
        cell if len(cell) <= width else f"{cell[: width - 1]}…"
        for cell, width in zip(cells, _WIDTHS, strict=True)
    ]
    print(" | ".join(cell.ljust(width) for cell, width in zip(cut, _WIDTHS, strict=True)).rstrip())


def _show(found: dict[str, Outcome], promoted: dict[str, str]) -> None:
    _row("way out", "in a process: stopped by", "written down", "promoted")
    for way in [*WAYS, *MISUSES, *LIVES]:
        one = found.get(way, Outcome(way, "-"))
        logged = one.logged or f"- ({UNTOLD.get(way, 'nothing')})"
        harm = f" HARM: {one.harm}" if one.harm else ""
        _row(way, (one.stopped or "SUCCEEDED") + harm, logged, promoted.get(way, "-"))


def _sums(found: dict[str, Outcome], promoted: dict[str, str]) -> None:
    if found:
        through = sum(not one.stopped for one in found.values())
        harmed = sum(bool(one.harm) for one in found.values())
        told = sum(bool(one.logged) for one in found.values())
        print(f"\nin a process: {len(found)} ways, {through} successes, {harmed} harmed others or")
        print(f"left something behind, {told} were written down")
    if promoted:
        words = list(promoted.values())
        destroyed = sum(word.startswith(DESTROYED) for word in words)
        successes = words.count(SUCCEEDED)
        print(f"promoted: {len(words)} ways, {successes} successes, {destroyed} destroyed the")
        print(f"system, {len(words) - successes - destroyed} refused by the host")


def main(*words: str) -> int:
    """Run what is asked for, or all; return the exit status."""
    parts = set(words or ("isolated", "promoted", "cost"))
    found: dict[str, Outcome] = {}
    promoted: dict[str, str] = {}
    for lack in lacks():
        print(f"this host lacks {lack}")
    if "isolated" in parts:
        if not has_devices():
            print("without root or /dev/net/tun there is no network server in this run")
        found = {one.way: one for one in isolated()[0]}
    if "promoted" in parts:
        promoted = outcomes([*WAYS, *MISUSES])
    if found or promoted:
        _show(found, promoted)
        _sums(found, promoted)
    if "cost" in parts:
        print("\n" + "\n".join(cost.lines()))
    return int(any(one.harm or not one.stopped for one in found.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
