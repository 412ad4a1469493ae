"""The audit says what the host says."""

from __future__ import annotations

import trio

from core.kernel.audit import audit
from core.system.boot import Prepared, booted
from core.system.description import parse_description

from .hostile import Hostile

_DESCRIPTION = """
[server.supervisor]
class = "core.system.supervisor:SupervisorServer"
kernel = "full"

[server.tame]
class = "tests.attack_lab.hostile:HostileServer"

[server.free]
class = "tests.attack_lab.hostile:HostileServer"
confined = false

[server.near]
class = "tests.attack_lab.hostile:HostileServer"
placement = "colocated"
"""


def test_a_confined_server_has_given_up_what_the_others_have() -> None:
    async def main(prepared: Prepared) -> None:
        async with booted(prepared, lambda text: None) as system:
            for name in ("tame", "free", "near"):
                hostile: Hostile = system.connect(Hostile, name)
                refused = await hostile.attempt("read a file", "", 0)
                assert bool(refused) == (name == "tame")
            found = {server.name: server for server in audit(system.kernel)}
        tame, free, near = found["tame"], found["free"], found["near"]
        assert (tame.confined, free.confined, near.confined) == (True, False, False)
        assert (tame.seccomp, free.seccomp) == ("filter", "none")
        assert (tame.no_new_privileges, free.no_new_privileges) == (True, False)
        assert tame.capabilities == []
        assert tame.reported
        assert tame.attempts == {"openat": 1}

    trio.run(main, Prepared(parse_description(_DESCRIPTION, "audit")))
