"""What `atoll up` was asked for, complete: every default is filled in here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from .run_directory import RunDirectory

DEFAULT_NAME: Final = "default"
SYSTEM: Final = Path(__file__).with_name("system.toml")
"""The system description that ships: every server in a process of its own."""
FAST: Final = Path(__file__).with_name("fast.toml")
"""The same system with its servers promoted into the kernel's process."""
PATIENCE_S: Final = 10.0
"""How long the clients of a restarted server wait for it to be ready."""
PROBATION_S: Final = 5.0
"""How long a failure of new code brings the old code back."""
NETS: Final = ("private", "host", "none")

Net = Literal["private", "host", "none"]
FrontEndName = Literal["pyfuse3", "native"]
"""Who speaks with the host's kernel for the mount."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A system to be.

    Attributes:
        state: directory of the volume; made, with a new volume, when it is not there.
        mountpoint: an absolute path, made when it is missing; None: nothing is mounted.
        net: the host's side of the link is in a network namespace of its own ("private") or in the
            host's ("host"), or there is no link.
        system: the system description.
        run: made already, by this very process; whoever made it removes it.
        volume_size: octets of a volume that has to be made; 0: the file server's default.
        allow_other: let other users see the mount; None: if this is root.
    """

    name: str
    state: Path
    mountpoint: Path | None
    net: Net
    system: Path
    run: RunDirectory
    volume_size: int = 0
    allow_other: bool | None = None


def default_state(name: str) -> Path:
    """Return where a system's volume is if no other place is named."""
    if os.geteuid() == 0:
        return Path("/var/lib/atoll") / name
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local/state").absolute() / "atoll" / name
