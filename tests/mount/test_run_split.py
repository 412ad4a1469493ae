"""Where a shell line is split: by a table, and by comparison with what a shell makes of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from mount.shell_line import LineError, Pipeline, split

SPLIT = [
    ("a | b", ["a ", " b"]),
    ("a|b|c", ["a", "b", "c"]),
    ("a", ["a"]),
    ("a || b", ["a || b"]),
    ("a; b & c", ["a; b & c"]),
    ("a | b;", ["a ", " b;"]),
    ("a '|' b | c", ["a '|' b ", " c"]),
    ('a "|" | c', ['a "|" ', " c"]),
    ("a \\| b|c", ["a \\| b", "c"]),
    ('"\\"|" | c', ['"\\"|" ', " c"]),
    ("a\\ |b", ["a\\ ", "b"]),
    ("(a | b) | c", ["(a | b) ", " c"]),
    ("(a; b || c) | d", ["(a; b || c) ", " d"]),
    ("{ a | b; } | c", ["{ a | b; } ", " c"]),
    ("echo } | b", ["echo } ", " b"]),
    ("echo { done | b", ["echo { done ", " b"]),
    ("x=$(a | b) | c", ["x=$(a | b) ", " c"]),
    ('"$(a "|" | b)" | c', ['"$(a "|" | b)" ', " c"]),
    ("`a | b` | c", ["`a | b` ", " c"]),
    ("`a \\` | b` | c", ["`a \\` | b` ", " c"]),
    ("echo $((1 | 2)) | b", ["echo $((1 | 2)) ", " b"]),
    ("echo $(((1 << 2) | 2)) | b", ["echo $(((1 << 2) | 2)) ", " b"]),
    ("echo ${x:-|} | b", ["echo ${x:-|} ", " b"]),
    ('echo "${x:-"|"}" | b', ['echo "${x:-"|"}" ', " b"]),
    ("echo ${x#'}|'} | b", ["echo ${x#'}|'} ", " b"]),
    ("while read x; do a | b; done | c", ["while read x; do a | b; done ", " c"]),
    ("for x in if do; do a | b; done | c", ["for x in if do; do a | b; done ", " c"]),
    ("if a | b; then c; else d; fi | e", ["if a | b; then c; else d; fi ", " e"]),
    ("case $x in a|b) c|d;; (e|f) g;; esac | h", ["case $x in a|b) c|d;; (e|f) g;; esac ", " h"]),
    ("case x in esac | b", ["case x in esac ", " b"]),
    ("f() { a | b; }", ["f() { a | b; }"]),
    ("a >| f | b", ["a >| f ", " b"]),
    ("a 2>&1 | b", ["a 2>&1 ", " b"]),
    ("a <&- | b", ["a <&- ", " b"]),
    ("a # x | y", ["a # x | y"]),
    ("a#b | c", ["a#b ", " c"]),
    ("a | # x\n b", ["a ", " # x\n b"]),
    ("a |\n\n b\n", ["a ", "\n\n b\n"]),
    ("a \\\n| b", ["a \\\n", " b"]),
    ("$'a\\\\' | b", ["$'a\\\\' ", " b"]),
]


@pytest.mark.parametrize(("line", "parts"), SPLIT)
def test_line_is_split_at_its_top_level_pipes(line: str, parts: list[str]) -> None:
    assert [part.text for part in split(line).parts] == parts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "no command"),
        ("  # only a comment", "no command"),
        ("| a", "no command before"),
        ("a |", "no command after"),
        ("a | | b", "no command before"),
        ("a | # b", "no command after"),
        ("a; b | c", "';' beside a pipe"),
        ("a | b && c", "'&&' beside a pipe"),
        ("a | b || c", "'||' beside a pipe"),
        ("a | b &", "'&' beside a pipe"),
        ("a\nb | c", "a new line beside a pipe"),
        ("a <<E | b\nx\nE", "here-document"),
        ("a | ! b", "one '!'"),
        ("a 'b | c", "not closed"),
        ('a "b | c', "not closed"),
        ("a `b | c", "not closed"),
        ("a $(b | c", "not closed"),
        ("a ${b | c", "not closed"),
        ("a $((1 | 2)", "not closed"),
        ("(a | b", "not closed"),
        ("a) | b", "closes nothing"),
        ("{ a | b", "'}' is missing"),
        ("while a | b", "'done' is missing"),
        ("a; done | b", "closes nothing"),
        ("$'a\\'' | b", "shells do not agree"),
    ],
)
def test_line_that_cannot_be_split_is_refused_with_the_place(line: str, reason: str) -> None:
    with pytest.raises(LineError, match=re.escape(reason)) as error:
        split(line)
    assert 1 <= error.value.column <= len(line) + 1


def test_pipe_for_errors_too_is_noted() -> None:
    first, second = split("a |& b").parts
    assert (first.text, first.errors_too) == ("a ", True)
    assert (second.text, second.errors_too) == (" b", False)


def test_negation_is_taken_off_a_pipeline_and_left_to_the_shell_otherwise() -> None:
    assert split("! a | b").negated
    assert split("! a | b").parts[0].text == " a "
    assert not split("! a").negated
    assert split("! a").parts[0].text == "! a"


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """A directory with two programs that tell their arguments and pass their input on."""
    with tempfile.TemporaryDirectory(prefix="atoll-split-") as name:
        place = Path(name)
        for program in ("a", "b"):
            path = place / program
            path.write_text(
                f"#!/bin/bash\nprintf {program}\nprintf '<%s>' \"$@\"\nwhile read -r x;"
                ' do echo "$x"; done\nprintf "%s" "$x"\nexit 3\n'
            )
            path.chmod(0o755)
        yield place


def _bash(text: str, given_input: bytes, place: Path) -> tuple[bytes, int]:
    done = subprocess.run(
        ["/bin/bash", "--posix", "-c", text],
        input=given_input,
        capture_output=True,
        check=False,
        cwd=place,
        env={"PATH": str(place)},
        timeout=20,
    )
    return done.stdout, done.returncode


def _chain(pipeline: Pipeline, place: Path) -> tuple[bytes, int]:
    output, status = b"", 0
    for part in pipeline.parts:
        output, status = _bash(part.text, output, place)
    if pipeline.negated:
        status = 0 if status else 1
    return output, status


FILTERS = st.sampled_from(
    [
        *("a", "b x", "a 'x|y'", 'b "|" \\|', "a # |\n", "b $(a | b)", "a `b | a`"),
        *("(a | b)", "{ a | b; }", "a ${x:-|}", 'b "${x:-"|"}"', "a $((1 | 2))", "b '#' {a,b}"),
        *('while read -r x; do echo "$x|" | b; done', "if a | b; then a; else b y; fi"),
        *("case y in x|y) a | b;; esac", "case z in (x|z) b;; y|w) a;; esac", "a || b", "a '\\'"),
        *(
            "for i in 1 2; do echo $i | a; done",
            "(case x in x) a;; esac) 2>&1",
            "a x#y",
            "b \\\n z",
        ),
    ]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FILTERS, min_size=2, max_size=4))
def test_split_line_does_what_the_shell_does_with_the_whole(
    programs: Path, filters: list[str]
) -> None:
    parts = [f"({part})" if "||" in part else part for part in filters]
    parts = [part if not part.endswith("\n") else f"{{ {part}}}" for part in parts]
    line = " | ".join(parts)
    pipeline = split(line)
    assert [part.text.strip() for part in pipeline.parts] == parts
    assert _chain(pipeline, programs) == _bash(line, b"", programs)


SCRAPS = st.sampled_from(
    [
        *("a", "b", " ", " ", "x", "'", '"', "\\", "`", "$(a", "$((1", "${x", "}", ")", "))", "("),
        *("#", "\n", "'|'", '"|"', "\\|", "(a|b)", "{ a; }", "; ", "$", "!", "$'x|'", "in", "esac"),
    ]
)
PARTS = st.lists(SCRAPS, max_size=5).map(lambda scraps: "a " + "".join(scraps))


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.lists(PARTS, min_size=2, max_size=3).map("|".join))
def test_whatever_is_split_means_the_same_to_the_shell(programs: Path, line: str) -> None:
    pipeline = _split_or_none(line)
    assume(pipeline is not None and len(pipeline.parts) > 1 and "$$" not in line)
    assert pipeline is not None
    command = ["/bin/bash", "--posix", "-n", "-c", line]
    assume(subprocess.run(command, capture_output=True, check=False).returncode == 0)
    event(f"{len(pipeline.parts)} parts")
    assert _chain(pipeline, programs) == _bash(line, b"", programs)


def _split_or_none(line: str) -> Pipeline | None:
    try:
        return split(line)
    except LineError:
        return None
