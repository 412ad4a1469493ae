"""What a system description declares for a server in `process` placement, beyond nothing.

    [server.example]
    capabilities = ["net_admin"]   # of the host, during its start and never after it
    reads = ["/etc/example"]       # host files that it may read during its start
    writes = ["{state}"]           # the same, to change; {state} is what the option `state` says
    network = "own"                # sockets and a network of its own, during its start; or "host"
    threads = 2                    # how many threads it may start after its start
    memory_mib = 256               # beyond what it is born with
    descriptors = 64               # how many it may have open
    file_mib = 64                  # the largest file or memory object it may write; 0: no limit
    confined = false               # none of this holds: to develop, and to measure its cost

Whatever is left out is nothing, or the limit that `core.userlib.confine` names. `atoll audit` shows
what is declared beside what the host says of the process.
"""

from __future__ import annotations

import re
from typing import Any, Final

from core.userlib.capabilities import NAMES
from core.userlib.confine import DESCRIPTORS, MEMORY_MIB, Confinement
from core.userlib.system_calls import words_of

KEYS: Final = frozenset(
    words_of("capabilities reads writes network threads memory_mib descriptors file_mib confined")
)
_OPTION: Final = re.compile(r"\{(\w+)\}")


class PrivilegeError(Exception):
    """A declaration is wrong; `key` is the word at fault."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


def read_privileges(table: dict[str, Any], options: dict[str, Any]) -> Confinement | None:
    """Return what a server's table declares; None: it is not confined.

    Args:
        options: the server's options, for what stands in braces; an option that is not there or
            is empty leaves the path out.

    Raises:
        PrivilegeError: a value is of the wrong form.
    """
    confined = table.get("confined", True)
    if not isinstance(confined, bool):
        raise PrivilegeError("confined", f"confined is true or false, not {confined!r}")
    network = _expand(_text(table, "network"), options)
    declared = Confinement(
        capabilities=_words(table, "capabilities"),
        reads=_paths(table, "reads", options),
        writes=_paths(table, "writes", options),
        network="host" if network == "host" else "own" if "network" in table else "",
        threads=_number(table, "threads", 0, 0),
        memory_mib=_number(table, "memory_mib", MEMORY_MIB, 16),
        descriptors=_number(table, "descriptors", DESCRIPTORS, 16),
        file_mib=_number(table, "file_mib", _number(table, "memory_mib", MEMORY_MIB, 16), 0),
    )
    for name in declared.capabilities:
        if name not in NAMES:
            raise PrivilegeError("capabilities", f"{name!r} is no capability of capabilities(7)")
    return declared if confined else None


def _words(table: dict[str, Any], key: str) -> list[str]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise PrivilegeError(key, f"{key} is a list of texts, not {value!r}")
    return value


def _text(table: dict[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise PrivilegeError(key, f"{key} is a text, not {value!r}")
    return value


def _number(table: dict[str, Any], key: str, default: int, least: int) -> int:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 30:
        raise PrivilegeError(key, f"{key} is a whole number of at least {least}, not {value!r}")
    return value


def _expand(text: str, options: dict[str, Any]) -> str:
    """Return the text with options in the place of their names; "" if one is not there."""
    names = _OPTION.findall(text)
    if not all(options.get(name) for name in names):
        return ""
    return _OPTION.sub(lambda found: str(options[found[1]]), text)


def _paths(table: dict[str, Any], key: str, options: dict[str, Any]) -> list[str]:
    paths = [_expand(text, options) for text in _words(table, key)]
    return [path for path in paths if path.startswith("/")]
