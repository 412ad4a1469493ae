"""A zygote with fresh code: a new interpreter, which inherits no module and then forks as asked.

A running zygote cannot take changed code: its modules are loaded, and so are those of every fork of
it. So the first zygote, which has no other thread and no trio, starts a new interpreter. That one
loads the programs it is told, reports what it has loaded, and from then on is a zygote like the
first, until the kernel closes its socket. It dies with the zygote that started it.

The interpreter compares a source file with its compiled form by whole seconds and size, so two
versions saved within one second may look the same to it. Here no compiled form is believed that is
older than its source, or hardly younger.

Nothing of the project is imported before `main` runs under its own exception handler: code that
cannot be loaded is reported, whichever module it is in.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import msgspec

from .process import die_with_parent

_BOOTSTRAP: Final = (
    "import sys, json; a = json.loads(sys.argv[1]); sys.path[:] = a['path']; "
    "from core.kernel.fresh import main; main(a)"
)
_TEXT_LIMIT: Final = 16_000
_YOUNG_NS: Final = 100_000_000
"""A compiled form made before its source was saved, or this soon after, may be of another one."""


class Version(msgspec.Struct, frozen=True, array_like=True):
    """What a zygote has loaded, as far as others must fit it.

    Attributes:
        interfaces: the form of every interface, by `module:Class`; see `core.userlib.forms`.
        serves: the interface that each program serves.
        line: the constants and types that the line to the kernel is made of.
        files: the project's own source files, with size and time of their last change.
    """

    interfaces: dict[str, list[Any]] = {}
    serves: dict[str, str] = {}
    line: dict[str, str] = {}
    files: dict[str, tuple[int, int]] = {}


class Loaded(msgspec.Struct, tag="loaded", array_like=True):
    """Report of a fresh zygote: it has loaded its programs, or `error` says why it has not."""

    error: str
    version: Version


def start_interpreter(
    connection: int, programs: list[str], path: list[str], host_network: int = -1
) -> int:
    """Start an interpreter that becomes a zygote; return its pid. OSError: the host has no room.

    Args:
        connection: descriptor of its end of the socket to the kernel; stays the caller's.
        programs: what it loads, as `module:Class`.
        path: where it looks for modules.
        host_network: descriptor of the network that this process has left; stays the caller's.
    """
    for number in (connection, host_network):
        if number >= 0:
            os.set_inheritable(number, True)
    order = {"connection": connection, "parent": os.getpid(), "programs": programs, "path": path}
    order["host_network"] = host_network
    words = [sys.executable, "-P", "-u", *["-O"] * sys.flags.optimize]
    words += ["-B"] * sys.dont_write_bytecode
    words += ["-c", _BOOTSTRAP, json.dumps(order)]
    try:
        return os.posix_spawn(sys.executable, words, os.environ)
    finally:
        if host_network >= 0:
            os.set_inheritable(host_network, False)


def main(order: Mapping[str, Any]) -> NoReturn:
    """Be a zygote, in a new interpreter."""
    die_with_parent()
    if os.getppid() != order["parent"]:
        os._exit(1)
    for number in (order["connection"], order["host_network"]):
        if number >= 0:
            os.set_inheritable(number, False)
    connection = socket.socket(fileno=order["connection"])
    distrust_young_bytecode()
    programs: list[str] = order["programs"]
    try:
        from .zygote import Zygote

        zygote = Zygote(connection, [], order["host_network"])
        report = Loaded("", load(programs))
        zygote.settle()
    except BaseException as error:  # noqa: BLE001 - whatever the new code does, it is reported
        connection.send(msgspec.msgpack.encode(Loaded(_words(error), Version())))
        os._exit(1)
    try:
        zygote.fork_spare()  # it prepares itself while the old incarnation comes to its end
        connection.send(msgspec.msgpack.encode(report))
        zygote.run()
    except BaseException:  # noqa: BLE001 - as in `start_zygote`
        traceback.print_exc()
    os._exit(1)


def _words(error: BaseException) -> str:
    lines = traceback.format_exception(error)
    text = "".join(line for line in lines if "<frozen importlib" not in line).rstrip()
    if isinstance(error, SystemExit):
        text += " (the code asked the interpreter to exit)"
    return text[-_TEXT_LIMIT:]


def load(programs: list[str]) -> Version:
    """Load programs and describe what is loaded then. Any exception that their code raises."""
    serves = {}
    for program in programs:
        interface = server_class(program).interface
        serves[program] = f"{interface.__module__}:{interface.__qualname__}"
    return describe(serves, project_files(programs))


def server_class(program: str) -> Any:
    """Import a program. TypeError, AttributeError, and whatever its code raises."""
    from core.userlib.server import Server

    module, _, name = program.partition(":")
    cls = getattr(importlib.import_module(module), name)
    if not (isinstance(cls, type) and issubclass(cls, Server)):
        raise TypeError(f"{program} is no subclass of core.userlib.server.Server")
    return cls


def describe(serves: dict[str, str], files: dict[str, tuple[int, int]]) -> Version:
    """Describe the interfaces that are loaded in this process, and its line to the kernel."""
    from core import abi
    from core.userlib.forms import constants_of, forms_of, interfaces, type_text
    from core.userlib.isolated import Birth

    from .zygote import Order, Report

    forms = {name: forms_of(cls) for name, cls in interfaces().items()}
    line = constants_of(abi)
    line |= {"Birth": type_text(Birth), "Order": type_text(Order), "Report": type_text(Report)}
    builtin: dict[str, list[Any]] = msgspec.to_builtins(forms)
    return Version(builtin, serves, line, files)


def project_files(programs: list[str]) -> dict[str, tuple[int, int]]:
    """Return size and time of the last change of the loaded source files that are no libraries.

    The packages that the programs are in count as the project's, wherever they lie.
    """
    own = {"core", *(program.partition(":")[0].partition(".")[0] for program in programs)}
    libraries = (f"{sys.prefix}/lib", f"{sys.base_prefix}/lib")
    found: dict[str, tuple[int, int]] = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if not path or not path.endswith(".py"):
            continue
        if path.startswith(libraries) and name.partition(".")[0] not in own:
            continue
        stamp = stamp_of(path)
        if stamp is not None:
            found[path] = stamp
    return found


def stamp_of(path: str) -> tuple[int, int] | None:
    """Return size in octets and time of the last change in ns; None if there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - pathlib is not loaded here
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def distrust_young_bytecode() -> None:
    """Have sources compiled anew whose compiled form may be that of an earlier version."""
    loader: Any = importlib.machinery.SourceFileLoader
    trusting: Callable[[Any, str], Mapping[str, Any]] = loader.path_stats

    def path_stats(self: Any, path: str) -> Mapping[str, Any]:
        try:
            compiled = os.stat(importlib.util.cache_from_source(path)).st_mtime_ns  # noqa: PTH116
        except (OSError, NotImplementedError):
            return trusting(self, path)
        if compiled - os.stat(path).st_mtime_ns < _YOUNG_NS:  # noqa: PTH116
            raise OSError(f"the compiled form of {path} is not to be believed")
        return trusting(self, path)

    loader.path_stats = path_stats
