"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from core.userlib.kernel_calls import KernelCalls

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/kernel-calls.md").read_text()


def test_the_page_of_kernel_calls_has_every_call_with_its_parameters() -> None:
    described = set(re.findall(r"^\| `(\w+\([\w, ]*\))`", PAGE, re.MULTILINE))
    declared = {
        f"{spec.name}({', '.join(parameter.name for parameter in spec.parameters)})"
        for spec in KernelCalls.OPERATIONS
    }
    assert described == declared


def test_links_of_the_documentation_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_file_that_prose_names_exists() -> None:
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        named = re.findall(
            r"`((?:core|mount|fs_server|net_server|tests)/[\w/.]+)`", path.read_text()
        )
        for name in named:
            assert (ROOT / name).exists(), f"{path.name}: {name}"
