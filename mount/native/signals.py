"""Whether a process will end as soon as it can: what /proc says of its signals."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

_HARMLESS: Final = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
)
"""Signals that end nobody who does not catch them."""
_DEADLY: Final = ~sum(1 << (number - 1) for number in _HARMLESS)


def is_ending(pid: int) -> bool:
    """Return if a signal is pending that ends the process, or if there is none such process.

    Args:
        pid: of a process or a thread; 0: one that is not visible from here, and counts as ending.
    """
    if not pid:
        return True
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    words = dict(
        line.split(":", 1) for line in status.splitlines() if line.startswith(("Sig", "ShdPnd"))
    )
    masks = {name: int(words[name], 16) for name in ("SigPnd", "SigBlk", "SigIgn", "SigCgt")}
    pending = masks["SigPnd"] | int(words.get("ShdPnd", "0"), 16)
    left_alone = masks["SigBlk"] | masks["SigIgn"] | masks["SigCgt"]
    return bool(pending & ~left_alone & _DEADLY)
