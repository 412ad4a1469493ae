"""The map in the README: one line for every file that a reader may want to open.

The map is a fenced block under the heading "Map". Each line is a path, at least two spaces, and
what is there. Listed are the files at the root, every folder and file of the four packages, and
the folders of the tests. A path that ends in "/" is a folder. `test_tidy` compares the map with
the tree; `python -m tests.readme_map` rewrites it: lines that stand keep their words, a new path
gets the first line of its own documentation, a path that is gone loses its line.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("core", "fs_server", "net_server", "mount")
UNLISTED: Final = frozenset({"__init__.py", "py.typed", "README.md", "LICENSE"})
_BLOCK: Final = re.compile(r"(?ms)^## Map\n.*?^```\w*\n(?P<lines>.*?)^```$")


def entries(readme: str) -> dict[str, str]:
    """Return the map's lines as `{path: description}`, in their order; empty if there is no map."""
    block = _BLOCK.search(readme)
    lines = block["lines"].splitlines() if block else []
    pairs = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if line.strip())
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


def tree() -> list[str]:
    """Return the paths that the map must list, in the order in which it lists them."""
    root = [path.name for path in sorted(ROOT.iterdir()) if path.is_file() and _listed(path)]
    packages = [line for package in PACKAGES for line in _walk(ROOT / package, with_files=True)]
    return [*root, *packages, *_walk(ROOT / "tests", with_files=False)]


def _listed(path: Path) -> bool:
    return not path.name.startswith((".", "__pycache__")) and path.name not in UNLISTED


def _walk(folder: Path, *, with_files: bool) -> Iterator[str]:
    """Yield a folder, then its files, then what is in its folders."""
    yield f"{folder.relative_to(ROOT)}/"
    inside = sorted(path for path in folder.iterdir() if _listed(path))
    if with_files:
        yield from (str(path.relative_to(ROOT)) for path in inside if path.is_file())
    for path in inside:
        if path.is_dir() and any(map(_listed, path.iterdir())):
            yield from _walk(path, with_files=with_files)


def describe(name: str) -> str:
    """Return the first line of a path's own documentation, without its full stop; "" if none."""
    path = ROOT / name
    if path.is_dir():
        path /= "__init__.py"
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    else:
        comments = (line[2:] for line in text.splitlines() if line.startswith("# "))
        first = next(comments, "")
    return first.rstrip(".")


def rewrite(readme: str) -> str:
    """Return the README with its map equal to the tree."""
    known = entries(readme)
    paths = tree()
    width = max(map(len, paths)) + 2
    lines = (f"{path:<{width}}{known.get(path) or describe(path)}".rstrip() for path in paths)
    return _BLOCK.sub(
        lambda block: block[0].replace(f"\n{block['lines']}```", "\n" + "\n".join(lines) + "\n```"),
        readme,
    )


def main() -> int:
    """Rewrite the map of the README in place."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    if not _BLOCK.search(old):
        print("README.md: no fenced block under a heading '## Map'", file=sys.stderr)
        return 1
    path.write_text(rewrite(old), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
