"""What every test may rely on: marked needs are met or the test is skipped with the reason.

Most tests boot a system, and its zygote is forked from this process. So once all modules are loaded
the stubs of their interfaces are derived, which every zygote would else do for itself, and what is
loaded is taken for permanent: no collection looks at it again.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

from core.userlib.stub import derive_all

# On a noisy machine an example's duration says nothing. With CI set, examples stay the same.
settings.register_profile("atoll", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "atoll")


def unmet(marker: str) -> str:
    """Return why a marked need cannot be met here, "" if it can."""
    if marker == "needs_root" and os.geteuid() != 0:
        return "needs root: makes network namespaces, TAP devices or mounts"
    if marker == "needs_fuse" and not os.access(Path("/dev/fuse"), os.R_OK | os.W_OK):
        return "needs read and write access to /dev/fuse"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this host cannot run, and say why."""
    for marker in ("needs_root", "needs_fuse"):
        if reason := unmet(marker):
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Do once what every zygote and every collection would do again; see the module head."""
    derive_all()
    gc.collect()
    gc.freeze()
