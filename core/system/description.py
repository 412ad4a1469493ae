"""The system description: which servers there are, where they run, and who may talk to whom.

    [server.fs]
    class = "fs_server.server:FileServer"     # module:class, imported by name
    placement = "process"                     # or "colocated"
    restart = "permanent"                     # "transient": only after a fault; "temporary": never
    intensity = 20                            # deaths within period_s that are mended; after more:
    period_s = 5.0
    escalation = "give-up"                    # or "restart-all" (once), "end-system"
    first_delay_s = 0.01                      # of restarts, once deaths have become frequent
    longest_delay_s = 2.0                     # the delay doubles up to this
    dependents = ["net"]                      # restarted with it, in this order
    silence_s = 1.0                           # stopped or spinning for so long, it counts as hung;
                                              # 0: it may be silent for ever, as under a debugger
    host_s = 60.0                             # the same while it waits in the host, as for a disk
    start_s = 20.0                            # the same, of its own work, until it serves
    grants = { disk = "disk" }                # name here = server, with all its operations; or
                                              # disk = { server = "disk", operations = ["lend"] }
    options = { readahead = 8 }               # handed to the server as they are
    writes = ["{state}"]                      # what it may touch of the host: see `privileges`

    [joined]
    grants = { pipe = "pipe" }                # what programs get that join over the control socket

    [mount]
    front_end = "pyfuse3"                     # or "native"; for the composition, which checks it

Everything is checked before anything starts: a server that does not exist, a class that cannot be
loaded, an operation that an interface lacks, an unknown word. The error names the line.
"""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from core.abi import ALL_OPERATIONS
from core.kernel.tasks import Watch
from core.userlib.confine import Confinement
from core.userlib.server import Server

from .privileges import KEYS, PrivilegeError, read_privileges
from .supervisor import ESCALATIONS, FIRST_DELAY_S, LONGEST_DELAY_S, Policy

_TABLES: Final = ("server", "joined", "mount")
PLACEMENTS: Final = ("process", "colocated")
RESTARTS: Final = ("permanent", "transient", "temporary")
_SERVER_KEYS: Final = KEYS | frozenset(
    {
        "class",
        "placement",
        "restart",
        "intensity",
        "period_s",
        "grants",
        "options",
        "kernel",
        "user_namespace",
        "first_delay_s",
        "longest_delay_s",
        "dependents",
        "escalation",
        "silence_s",
        "host_s",
        "start_s",
    }
)
SILENCE_S: Final = 1.0
"""Silence of a stopped or spinning server, unless its description says more."""


class DescriptionError(Exception):
    """The description is wrong; the text names the file, the line and the remedy."""


class Grant(msgspec.Struct, frozen=True):
    """A send right to a server's port, with the operations that it allows."""

    server: str
    mask: int


class ServerDescription(msgspec.Struct, frozen=True):
    """One server of the description, checked."""

    name: str
    program: str
    cls: type[Server]
    placement: str
    restart: str
    intensity: int
    period_s: float
    grants: dict[str, Grant]
    options: dict[str, Any]
    privileged: bool
    user_namespace: bool
    policy: Policy = Policy()
    watch: Watch = Watch()
    confinement: Confinement | None = None


class SystemDescription(msgspec.Struct, frozen=True):
    """A whole system, checked. `mount` is handed to the composition as it is."""

    servers: dict[str, ServerDescription]
    joined: dict[str, Grant]
    mount: dict[str, Any] = {}

    def modules(self) -> list[str]:
        """Return the modules that hold the servers' classes."""
        return sorted({server.program.partition(":")[0] for server in self.servers.values()})

    def start_order(self) -> list[str]:
        """Return the servers, each after those it has rights to, where that is possible."""
        order: list[str] = []
        visiting: set[str] = set()

        def visit(name: str) -> None:
            if name in order or name in visiting:
                return
            visiting.add(name)
            for grant in self.servers[name].grants.values():
                visit(grant.server)
            visiting.discard(name)
            order.append(name)

        for name in self.servers:
            visit(name)
        return order


class _Reader:
    def __init__(self, text: str, source: str) -> None:
        self._lines = text.splitlines()
        self._source = source
        try:
            self.tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise DescriptionError(f"{source}: {error}") from None

    def fail(self, table: str, word: str, reason: str) -> DescriptionError:
        """Return an error that points at the line of `word` in `table`."""
        return DescriptionError(f"{self._source}:{self._find(table, word)}: {reason}")

    def _find(self, table: str, word: str) -> int:
        start = 0
        header = re.compile(rf"^\s*\[\s*{re.escape(table)}\s*[\].]")
        for number, line in enumerate(self._lines):
            if header.match(line):
                start = number
                break
        for number in range(start, len(self._lines)):
            line = self._lines[number]
            if number > start and re.match(r"^\s*\[[^=]*$", line) and not header.match(line):
                break
            if word and re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", line):
                return number + 1
        return start + 1

    def server(self, name: str, table: dict[str, Any], added: dict[str, Any]) -> ServerDescription:
        """Return a server's checked table, with the options that composition adds."""
        where = f"server.{name}"
        if not isinstance(table, dict):
            raise self.fail("server", name, f"{name} is a table: [server.{name}]")
        for key in table:
            if key not in _SERVER_KEYS:
                known = ", ".join(sorted(_SERVER_KEYS))
                raise self.fail(where, key, f"unknown key {key!r}; known are {known}")
        for key in ("grants", "options"):
            self.table(where, table, key)
        options = {**table.get("options", {}), **added}
        program = table.get("class", "")
        placement = self._word(where, table, "placement", PLACEMENTS)
        policy = self._policy(where, table)
        if table.get("kernel", "") not in ("", "full"):
            raise self.fail(where, "kernel", 'kernel is "full" or left out')
        return ServerDescription(
            name,
            program,
            self._load(where, program),
            placement,
            policy.restart,
            policy.intensity,
            policy.period_s,
            {},
            options,
            table.get("kernel") == "full",
            self._flag(where, table, "user_namespace"),
            policy=policy,
            watch=self._watch(where, table),
            confinement=self._privileges(where, table, options),
        )

    def _privileges(
        self, where: str, table: dict[str, Any], options: dict[str, Any]
    ) -> Confinement | None:
        try:
            return read_privileges(table, options)
        except PrivilegeError as error:
            raise self.fail(where, error.key, str(error)) from None

    def _policy(self, where: str, table: dict[str, Any]) -> Policy:
        policy = Policy(
            restart=self._word(where, table, "restart", RESTARTS),
            intensity=int(self._number(where, table, "intensity", 50)),
            period_s=float(self._number(where, table, "period_s", 10)),
            first_delay_s=float(self._number(where, table, "first_delay_s", FIRST_DELAY_S)),
            longest_delay_s=float(self._number(where, table, "longest_delay_s", LONGEST_DELAY_S)),
            dependents=self._names(where, table, "dependents"),
            escalation=self._word(where, table, "escalation", ESCALATIONS),
        )
        if policy.first_delay_s > policy.longest_delay_s:
            raise self.fail(where, "first_delay_s", "first_delay_s is more than longest_delay_s")
        if policy.restart == "temporary" and policy.escalation != "give-up":
            reason = "a temporary server is never restarted, so nothing escalates"
            raise self.fail(where, "escalation", reason)
        return policy

    def _watch(self, where: str, table: dict[str, Any]) -> Watch:
        def limit(key: str, default: float) -> float:
            return float(self._number(where, table, key, default, zero=True))

        return Watch(limit("silence_s", SILENCE_S), limit("host_s", 60.0), limit("start_s", 20.0))

    def _names(self, where: str, table: dict[str, Any], key: str) -> list[str]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.fail(where, key, f"{key} is a list of servers' names, not {value!r}")
        if len(set(value)) < len(value):
            raise self.fail(where, key, f"{key} names a server twice")
        return value

    def dependents(self, name: str, servers: dict[str, ServerDescription]) -> None:
        """Check that the dependents of a server are other servers, and can be ended with it."""
        where = f"server.{name}"
        for other in servers[name].policy.dependents:
            if other == name:
                raise self.fail(where, "dependents", f"{name} does not depend on itself")
            if other not in servers:
                known = ", ".join(sorted(servers))
                reason = f"{other!r} in dependents is no server here; there are {known}"
                raise self.fail(where, "dependents", reason)
            if servers[other].policy.restart == "temporary":
                reason = f"{other} is temporary: it is not restarted, with {name} or without"
                raise self.fail(where, "dependents", reason)
            if other == "supervisor":
                reason = "the supervisor is restarted by the kernel alone"
                raise self.fail(where, "dependents", reason)

    def table(self, where: str, table: dict[str, Any], key: str) -> dict[str, Any]:
        """Return a table inside a table, empty if there is none."""
        value = table.get(key, {})
        if not isinstance(value, dict):
            raise self.fail(where, key, f"{key} is a table, not {value!r}")
        return value

    def _flag(self, where: str, table: dict[str, Any], key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self.fail(where, key, f"{key} is true or false, not {value!r}")
        return value

    def _number(
        self, where: str, table: dict[str, Any], key: str, default: float, *, zero: bool = False
    ) -> float:
        value = table.get(key, default)
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
        if not good or (not value and not zero):
            least = "a number, 0 or more" if zero else "a number above 0"
            raise self.fail(where, key, f"{key} is {least}, not {value!r}")
        return float(value)

    def _word(self, where: str, table: dict[str, Any], key: str, words: tuple[str, ...]) -> str:
        value = table.get(key, words[0])
        if value not in words:
            raise self.fail(where, key, f"{key} is one of {', '.join(words)}, not {value!r}")
        return str(value)

    def _load(self, where: str, program: str) -> type[Server]:
        module, colon, name = str(program).partition(":")
        if not (module and colon and name):
            raise self.fail(where, "class", 'a server needs class = "module:Class"')
        try:
            cls = getattr(importlib.import_module(module), name)
        except Exception as error:
            raise self.fail(where, "class", f"{program} cannot be loaded: {error}") from error
        if not (isinstance(cls, type) and issubclass(cls, Server)):
            raise self.fail(
                where, "class", f"{program} is no subclass of core.userlib.server.Server"
            )
        return cls

    def grants(
        self, where: str, table: dict[str, Any], servers: dict[str, ServerDescription]
    ) -> dict[str, Grant]:
        return {
            name: self._grant(where, name, value, servers)
            for name, value in self.table(where, table, "grants").items()
        }

    def _grant(
        self, where: str, name: str, value: Any, servers: dict[str, ServerDescription]
    ) -> Grant:
        target = _target(value)
        if target not in servers:
            known = ", ".join(sorted(servers))
            raise self.fail(
                where,
                str(target or name),
                f"{name!r} is a right to {target!r}, which is no server here; there are {known}",
            )
        if isinstance(value, str) or "operations" not in value:
            return Grant(target, ALL_OPERATIONS)
        mask, interface = 0, servers[target].cls.interface
        if not isinstance(value["operations"], list):
            raise self.fail(where, name, f"operations of {name!r} is a list of names")
        for word in value["operations"]:
            try:
                mask |= 1 << interface.named(word).index
            except KeyError:
                known = ", ".join(spec.name for spec in interface.OPERATIONS)
                raise self.fail(
                    where,
                    str(word),
                    f"{interface.__name__} has no operation {word!r}; it has {known}",
                ) from None
        return Grant(target, mask)


def parse_description(
    text: str,
    source: str,
    options: dict[str, dict[str, Any]] | None = None,
    without: tuple[str, ...] = (),
) -> SystemDescription:
    """Return the checked description.

    Args:
        source: what errors call the text, usually a path.
        options: what the composition adds to servers' options, by server.
        without: servers that shall be left out, with every right to them.

    Raises:
        DescriptionError: something is wrong; nothing has been started.
    """
    reader = _Reader(text, source)
    for key in reader.tree:
        if key not in _TABLES:
            raise reader.fail(key, key, f"unknown table {key!r}; known are {', '.join(_TABLES)}")
    tables = dict(reader.table("server", reader.tree, "server"))
    joins = reader.table("joined", reader.tree, "joined")
    for name in without:
        tables.pop(name, None)
    servers: dict[str, ServerDescription] = {}
    for name, table in tables.items():
        added = (options or {}).get(name, {})
        servers[name] = reader.server(name, _less(table, without), added)
    reader.table("joined", joins, "grants")
    complete = {name: _without(table, without) for name, table in tables.items()}
    for name in servers:
        granted = reader.grants(f"server.{name}", complete[name], servers)
        servers[name] = msgspec.structs.replace(servers[name], grants=granted)
        reader.dependents(name, servers)
    joined = reader.grants("joined", _without(joins, without), servers)
    return SystemDescription(servers, joined, reader.table("mount", reader.tree, "mount"))


def _without(table: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the table without the rights to servers that are left out."""
    grants = {
        name: value
        for name, value in table.get("grants", {}).items()
        if _target(value) not in names
    }
    return {**table, "grants": grants}


def _less(table: Any, without: tuple[str, ...]) -> Any:
    """Return a server's table without the dependents that are left out."""
    names = table.get("dependents") if isinstance(table, dict) else None
    if not isinstance(names, list):
        return table
    return {**table, "dependents": [name for name in names if name not in without]}


def _target(value: Any) -> str:
    """Return the server that a grant names, "" if it names none."""
    named = value.get("server") if isinstance(value, dict) else value
    return named if isinstance(named, str) else ""


def load_description(
    path: Path, options: dict[str, dict[str, Any]] | None = None, without: tuple[str, ...] = ()
) -> SystemDescription:
    """Read and check a description. DescriptionError also when the file cannot be read."""
    try:
        text = path.read_text()
    except OSError as error:
        raise DescriptionError(f"{path}: {error.strerror}") from None
    return parse_description(text, str(path), options, without)
