"""The command line: what is understood, what is refused, and how it is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mount.__main__ import commands, main
from mount.commands import output, parser
from mount.obstacle import NOT_RUNNING, USAGE
from mount.run import exit_status
from mount.run_directory import OVERRIDE
from mount.shell_line import split

NAMES = [
    *("up", "down", "status", "ps", "ports", "why", "log", "kill", "restart", "exec", "run"),
    *("capture", "mkfs", "fsck", "link", "demo"),
]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No system runs, as far as these tests can see."""
    monkeypatch.setenv(OVERRIDE, str(tmp_path / "run"))


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_command_has_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert (
        f"atoll {name}" in text.partition("example")[2]
        or f" {name}" in text.partition("example")[2]
    )


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert [name for name in NAMES if f"\n    {name} " not in text] == []


@pytest.mark.parametrize("words", [["--name", "x", "ps"], ["ps", "--name", "x"]])
def test_name_may_stand_before_and_behind_the_command(words: list[str]) -> None:
    assert commands().parser.parse_args(words).name == "x"


def test_name_is_default_if_none_is_given() -> None:
    assert commands().parser.parse_args(["ps"]).name == "default"


def test_words_of_a_program_are_left_alone() -> None:
    found = commands().parser.parse_args(["exec", "--", "ping", "-c3", "--name", "y"])
    assert found.program[-4:] == ["ping", "-c3", "--name", "y"]
    assert found.name == "default"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["up", "--fast", "--system", "x"],
        ["up", "--mount", "x", "--no-mount"],
        ["up", "--net", "wide"],
        ["kill"],
        ["run"],
        ["mkfs", "--size", "0"],
        ["mkfs", "--size", "many"],
        ["capture", "x", "--count", "-1"],
        ["capture", "x", "--seconds", "nan"],
        ["log", "-n", "0"],
    ],
)
def test_wrong_command_line_exits_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == USAGE


@pytest.mark.parametrize(
    "words",
    [
        ["down"],
        ["status"],
        ["status", "--json"],
        ["ps"],
        ["ports"],
        ["why", "fs"],
        ["log"],
        ["kill", "fs"],
        ["restart", "fs"],
        ["exec", "--", "true"],
        ["run", "a | b"],
        ["capture", "-"],
    ],
)
def test_missing_system_is_named_with_the_remedy(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--name", "lost", *words]) == NOT_RUNNING
    text = capsys.readouterr()
    assert "system lost: is not running" in text.err
    assert "atoll --name lost up" in text.err
    assert not text.out


def test_impossible_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--name", "../x", "ps"]) == USAGE
    assert "no name for a system" in capsys.readouterr().err


def test_exec_without_a_program_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec"]) == USAGE
    assert "there is no program" in capsys.readouterr().err


def test_fsck_of_nothing_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["fsck", "--state", str(tmp_path / "none")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_volume_is_made_once_and_is_sound(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = str(tmp_path / "volume")
    assert main(["mkfs", "--size", "16M", "--state", state]) == 0
    assert main(["fsck", "--state", state]) == 0
    assert "sound" in capsys.readouterr().out
    assert main(["mkfs", "--size", "16M", "--state", state]) == 1
    assert "already" in capsys.readouterr().err


def test_damaged_volume_fails_its_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["mkfs", "--size", "16M", "--state", str(tmp_path)]) == 0
    (database,) = tmp_path.glob("*.db")
    octets = bytearray(database.read_bytes())
    octets[4096:8192] = bytes(4096)
    database.write_bytes(octets)
    assert main(["fsck", "--state", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("atoll: ")


@pytest.mark.parametrize(
    ("text", "octets"),
    [("1", 1), ("4K", 4096), ("512m", 512 << 20), ("8GiB", 8 << 30), ("1 T", 1 << 40)],
)
def test_size_is_read_in_powers_of_1024(text: str, octets: int) -> None:
    assert parser.size(text) == octets


def test_table_is_plain_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["name", "pid"], [["fs", 7], ["network", 12345]])
    assert capsys.readouterr().out == "NAME       PID\nfs           7\nnetwork  12345\n"


def test_table_is_drawn_for_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.table(["name", "pid"], [["[fs]", 7]])
    text = capsys.readouterr().out
    assert "[fs]" in text
    assert "─" in text


@pytest.mark.parametrize(
    ("elapsed_s", "words"),
    [(0.4, "0s"), (59, "59s"), (312, "5m 12s"), (3600, "1h"), (273_600, "3d 4h")],
)
def test_duration_is_said_in_two_units(elapsed_s: float, words: str) -> None:
    assert output.duration(elapsed_s) == words


@pytest.mark.parametrize(
    ("line", "statuses", "pipefail", "status"),
    [
        ("a | b", [1, 0], False, 0),
        ("a | b", [1, 0], True, 1),
        ("a | b | c", [1, 141, 0], True, 141),
        ("a | b", [0, 3], False, 3),
        ("! a | b", [0, 3], False, 0),
        ("! a | b", [3, 0], False, 1),
        ("! a | b", [3, 0], True, 0),
    ],
)
def test_exit_status_follows_the_shells_rules(
    line: str, statuses: list[int], pipefail: bool, status: int
) -> None:
    assert exit_status(split(line), statuses, pipefail=pipefail) == status


def test_light_commands_do_without_what_is_heavy() -> None:
    script = (
        "import sys\nfrom mount.__main__ import main\nmain(['--name', 'lost', 'ps'])\n"
        "heavy = {'pyfuse3', 'scapy', 'pyroute2', 'rich', 'apsw', 'mount.composition'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout == b"[]\n"
