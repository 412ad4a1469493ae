"""`atoll link`: a user sees who holds the network link, and orders it to change hands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount import settings
from mount.obstacle import FAILED
from tests.support.live_system import LiveSystem

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

_SECOND = """
[server.second]
class = "net_server.server:NetServer"
grants = { link = "tap" }
options = { address = "10.90.0.3/24", standby = true }
"""


@pytest.fixture(params=["idle"])
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LiveSystem]:
    """The shipped system with a second network server in standby, up."""
    shipped = (Path(settings.__file__).parent / "system.toml").read_text()
    header = "[server.net]\n"
    assert header in shipped
    description = tmp_path / "two.toml"
    chosen = f'{header}options = {{ yields = "{request.param}" }}\n'
    description.write_text(shipped.replace(header, chosen) + _SECOND)
    found = LiveSystem()
    try:
        found.up("--no-mount", "--system", str(description))
        yield found
    finally:
        found.close()


def ping(system: LiveSystem, address: str) -> bool:
    done = system.atoll("exec", "--", "ping", "-c", "1", "-w", "9", address)
    return " 1 received" in done.stdout


def test_user_sees_who_holds_the_link_and_why_it_is_not_given_up(system: LiveSystem) -> None:
    before = system.atoll("link")
    assert before.returncode == 0, before.stderr
    assert [line.split(maxsplit=1)[1] for line in before.stdout.splitlines()[:2]] == [
        "atoll0",
        "net",
    ]
    assert "nobody has asked" in before.stdout
    assert ping(system, "10.90.0.2")

    # the echo server has a socket of net's, so net is not idle
    refused = system.atoll("link", "--to", "second")
    assert refused.returncode == FAILED
    assert "net is in use: its clients have 1 sockets" in refused.stderr
    assert json.loads(system.atoll("link", "--json").stdout)["holder"] == "net"
    assert ping(system, "10.90.0.2")

    unknown = system.atoll("link", "--to", "nosuch")
    assert unknown.returncode == FAILED
    assert "there is no server 'nosuch'" in unknown.stderr


@pytest.mark.parametrize("system", ["always"], indirect=True)
def test_user_orders_a_change_of_hands_that_outlives_the_holders_death(system: LiveSystem) -> None:
    given = system.atoll("link", "--to", "second", "--timeout", "20")
    assert given.returncode == 0, given.stderr
    assert "second asked net: yielded" in given.stdout
    for _ in range(2):
        for server in ("second", "net", "tap"):
            assert system.atoll("kill", server).returncode == 0
        assert json.loads(system.atoll("link", "--json").stdout)["holder"] == "second"
    assert ping(system, "10.90.0.3")
