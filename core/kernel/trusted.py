"""The trusted base: the code that nothing confines, counted from the files that really run.

Trusted is what runs in the kernel's process, and what runs in a zygote until a task is confined.
Both load the modules of the servers too, for their declarations, but call nothing of them; those
are left out, unless trusted code imports them for an interface: then the whole file counts. Beside
these lines stand the interpreter, the libraries that are named, and the host.
"""

from __future__ import annotations

import ast
import functools
import io
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from core.userlib.confine import lacks

_IGNORED: Final = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
)
_PACKAGES: Final = ("core", "fs_server", "mount", "net_server")
ROOT: Final = Path(__file__).parents[2]
ZYGOTE: Final = ("core.kernel.zygote",)
"""What a zygote runs begins here."""


class Loaded(msgspec.Struct, frozen=True, array_like=True):
    """What a process has loaded, as far as it counts here.

    Args:
        modules: this project's, with their files.
        libraries: the names of those installed beside it.
        roots: modules of which something runs in the process or in its zygotes.
        lacks: what this host does not have of what confines tasks, in words.
    """

    modules: dict[str, str]
    libraries: list[str]
    roots: list[str]
    lacks: list[str]


def code_lines(source: str) -> int:
    """Return how many lines of a module hold code: no blanks, no comments, no docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _IGNORED:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def loaded(roots: Iterable[str]) -> Loaded:
    """Look at this process. Quick: no file is read."""
    modules: dict[str, str] = {}
    libraries: set[str] = set()
    places = tuple({f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib")})
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str):
            continue
        top = name.partition(".")[0]
        if top in _PACKAGES or (file.startswith(f"{ROOT}/") and not file.startswith(places)):
            modules[name] = file
        elif file.startswith(places):
            libraries.add(top)
    return Loaded(modules, sorted(libraries), [*roots, *ZYGOTE], lacks())


@functools.cache
def _imports(name: str, path: Path) -> list[str]:
    """Return the names that a module's import statements may load, parents first."""
    found: list[str] = []
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found += _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(
                [*(start if node.level else []), *([node.module] if node.module else [])]
            )
            found += _with_parents(base)
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


@functools.cache
def _code_lines_of(path: Path) -> int:
    return code_lines(path.read_text())


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def trusted_files(found: Loaded) -> dict[str, int]:
    """Return the lines of code of each trusted file, by its path; 0: it is not in Python.

    Takes some tenths of a second.
    """
    todo, trusted = list(found.roots), set[str]()
    while todo:
        name = todo.pop()
        if name not in found.modules or name in trusted:
            continue
        trusted.add(name)
        if found.modules[name].endswith(".py"):
            todo += _imports(name, Path(found.modules[name]))
    files: dict[str, int] = {}
    for path in sorted({Path(found.modules[name]) for name in trusted}):
        count = _code_lines_of(path) if path.suffix == ".py" else 0
        if count or path.suffix != ".py":
            files[str(path.relative_to(ROOT))] = count
    return files
