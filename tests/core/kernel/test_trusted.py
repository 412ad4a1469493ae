"""The trusted base is counted from what is loaded, and counts code."""

from __future__ import annotations

from pathlib import Path

from core.kernel.trusted import ROOT, Loaded, code_lines, loaded, trusted_files

_SOURCE = '''\
"""Two lines
of documentation."""

import os  # a comment behind code counts for nothing more

# a comment
NUMBER = 1
"""What a number means."""


def greet() -> str:
    """Say something."""
    return """two
lines"""
'''


def test_blanks_comments_and_docstrings_are_no_code() -> None:
    assert code_lines(_SOURCE) == 5


def test_what_is_loaded_but_called_by_nobody_is_not_trusted(tmp_path: Path) -> None:
    found = loaded(["core.kernel.line"])
    assert "core.kernel.zygote" in found.roots
    files = trusted_files(found)
    assert files["core/kernel/kernel.py"] > 300
    assert files["core/userlib/confine.py"] > 100
    modules = {**found.modules, "fs_server.volume": f"{ROOT}/fs_server/volume.py"}
    more = Loaded(modules, found.libraries, found.roots, [])
    assert trusted_files(more) == files
    roots = [*found.roots, "fs_server.volume"]
    assert trusted_files(Loaded(modules, [], roots, []))["fs_server/volume.py"] > 100
