"""Style as a test: what a linter does not know of this project's form.

The limits are there to be split before, not to be filled: a module of 600 lines is two modules.
"""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from core.userlib.server import Server

from .readme_map import PACKAGES, ROOT, entries, rewrite, tree

FILE_LINES_MAX: Final = 600
FUNCTION_LINES_MAX: Final = 70
VAGUE: Final = frozenset(
    {"base", "channel", "common", "handle", "helper", "helpers", "manager", "misc", "util", "utils"}
)
"""Words that say nothing, or that stand for a thing which has another name here."""
FOREIGN: Final = re.compile(r"(?<!\w)/" + r"work/|(?<![\w/.-])shared" + r"/\w")
"""Places outside this repository."""


def python_files() -> list[Path]:
    """Return every module of the packages and the tests, relative to the root."""
    folders = (ROOT / name for name in (*PACKAGES, "tests"))
    return sorted(path.relative_to(ROOT) for folder in folders for path in folder.rglob("*.py"))


def text_files() -> Iterator[Path]:
    """Yield every file that people write, relative to the root."""
    suffixes = {".py", ".md", ".toml", ".sh", ""}
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT)
        hidden = any(part.startswith(".") and part != ".ci" for part in name.parts)
        if path.is_file() and path.suffix in suffixes and not hidden:
            yield name


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function of a module, methods and nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", python_files(), ids=str)
def test_module_says_what_it_is_and_stays_small(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    module = ast.parse(text)
    assert ast.get_docstring(module), f"{path}: no docstring"
    assert text.count("\n") <= FILE_LINES_MAX, f"{path}: longer than {FILE_LINES_MAX} lines"
    long = [
        f"{path}:{function.lineno} {function.name}"
        for function in functions(module)
        if (function.end_lineno or 0) - function.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long, f"longer than {FUNCTION_LINES_MAX} lines: {long}"


def test_file_names_say_what_is_inside() -> None:
    vague = [str(path) for path in python_files() if VAGUE & set(path.stem.split("_"))]
    assert not vague


def test_folders_of_tests_are_packages() -> None:
    """Else tests/core becomes `core` itself, and hides it."""
    folders = {path.parent for path in python_files() if path.parts[0] == "tests"}
    assert not [str(path) for path in folders if not (ROOT / path / "__init__.py").exists()]


def test_packages_are_four_and_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == list(PACKAGES)
    inits = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert inits == {*PACKAGES, "tests"}
    assert not [package for package in PACKAGES if not (ROOT / package / "py.typed").exists()]


def test_map_in_the_readme_equals_the_tree() -> None:
    """`make map` mends it."""
    listed = entries((ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(tree()) - set(listed) == set(), "not in the map"
    assert set(listed) - set(tree()) == set(), "no longer in the tree"
    assert not [path for path, words in listed.items() if not words], "say what these are"


def test_map_is_rewritten_without_losing_words() -> None:
    old = "# X\n\n## Map\n\n```text\ncore/abi.py  Words of ours\ngone.py  Gone\n```\n\nrest\n"
    new = rewrite(old)
    assert entries(new)["core/abi.py"] == "Words of ours"
    assert list(entries(new)) == tree()
    assert new.endswith("```\n\nrest\n")
    assert rewrite(new) == new


def test_project_speaks_of_itself_alone() -> None:
    foreign = [
        f"{path}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert not foreign


def test_system_descriptions_name_servers_that_exist() -> None:
    """Composition is by string, so no import shows a server that was renamed."""
    descriptions = list((ROOT / "mount").rglob("*.toml"))
    assert descriptions
    for path in descriptions:
        description = tomllib.loads(path.read_text(encoding="utf-8"))
        for name, server in description.get("server", {}).items():
            module, _, attribute = server["class"].partition(":")
            found = getattr(importlib.import_module(module), attribute)
            assert issubclass(found, Server), f"{path}: {name}"
