"""What is shipped is what is in the tree, and it works away from the tree."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .readme_map import PACKAGES, ROOT

pytestmark = pytest.mark.slow

SHOW_ORIGIN = """
import importlib.resources, json
packages = ("core", "fs_server", "net_server", "mount")
print(json.dumps([str(importlib.resources.files(name)) for name in packages]))
"""


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with what is installed: no network is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", ".")
    (built,) = folder.glob("*.whl")
    return built


def shipped(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    in_tree = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped(wheel) == in_tree


def test_wheel_holds_the_system_descriptions(wheel: Path) -> None:
    names = shipped(wheel)
    assert "mount/system.toml" in names
    assert "mount/fast.toml" in names


def test_wheel_names_the_command_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (scripts,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "atoll = mount.__main__:main" in archive.read(scripts).decode()
        assert [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]


def test_installed_command_runs_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip("install", "--no-index", "--no-deps", f"--target={target}", str(wheel))
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    origins = python("-c", SHOW_ORIGIN)
    assert all(f'"{target}/{package}"' in origins for package in PACKAGES), origins
    assert "usage" in python("-m", "mount", "--help").lower()
