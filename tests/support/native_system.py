"""The system that ships, with the native front end: a description for `atoll up --system`."""

from __future__ import annotations

from pathlib import Path

import mount

from .live_system import LiveSystem


def native_description(system: LiveSystem, *words: str) -> Path:
    """Write it, with more words under `[mount]`, and return where."""
    shipped = Path(mount.__file__).with_name("system.toml").read_text(encoding="utf-8")
    path = system.top / "native.toml"
    table = "\n".join(("[mount]", 'front_end = "native"', *words))
    path.write_text(f"{table}\n\n{shipped}", encoding="utf-8")
    return path


def up_native(system: LiveSystem, *words: str) -> Path:
    """Start it without a network, and return its mount point."""
    system.up("--net", "none", "--system", str(native_description(system, *words)))
    return system.mountpoint
