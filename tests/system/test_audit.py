"""What a user is told of a server that tried what it may not, and of what nothing confines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack_lab.hostile import Hostile
from tests.attack_lab.laboratory import HOSTILE, SHIPPED
from tests.soak.door import opened
from tests.support.live_system import NO_DEVICES, LiveSystem

pytestmark = pytest.mark.slow


@pytest.fixture
def system(tmp_path: Path) -> Iterator[LiveSystem]:
    """The system that ships, with a hostile server beside the others."""
    description = tmp_path / "system.toml"
    description.write_text(SHIPPED.read_text().replace("[joined]", f"{HOSTILE}\n[joined]"))
    made = LiveSystem("audit")
    try:
        made.up(*NO_DEVICES, "--system", str(description))
        yield made
    finally:
        made.close()


def test_attempts_and_the_trusted_base_are_shown(system: LiveSystem) -> None:
    with opened(system) as door:
        hostile = door.server(Hostile, "hostile")
        assert door.ask(hostile.attempt("read a file", "", 0))
        assert door.ask(hostile.misuse("exhaust timers", 0))
    told = system.atoll("why", "hostile").stdout
    assert "tried what it may not: openat 1 times, LimitError 1 times" in told
    assert "has 1024 timers" in told
    assert "tried" not in system.atoll("why", "names").stdout
    assert "hostile tried openat('/etc/passwd')" in system.atoll("log").stdout

    found = json.loads(system.atoll("audit", "--json").stdout)
    servers = {server["name"]: server for server in found["servers"]}
    assert servers["hostile"]["attempts"] == {"openat": 1, "LimitError": 1}
    files = found["trusted"]["files"]
    assert files["core/kernel/kernel.py"] > 300
    assert files["core/userlib/confine.py"] > 100
    assert files["mount/composition.py"] > 100
    # nothing is mounted here, and servers are confined
    assert not {"mount/front_end.py", "fs_server/server.py", "net_server/server.py"} & set(files)
    assert "trio" in found["trusted"]["libraries"]
    words = system.atoll("audit").stdout
    assert f"trusted: {sum(files.values())} lines of code in {len(files)} files" in words
