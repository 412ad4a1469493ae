"""What commands write: lines, tables for people, JSON for scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec


def say(text: str = "") -> None:
    """Write a line to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to standard error, as this program."""
    sys.stderr.write(f"atoll: {text}\n")
    sys.stderr.flush()


def advise(text: str) -> None:
    """Write a remedy to standard error, below what was wrong."""
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()


def named(info: object) -> dict[str, Any]:
    """Return what the kernel tells, with its fields' names: on the line they have none."""
    return {name: getattr(info, name) for name in info.__struct_fields__}  # type: ignore[attr-defined]


def say_json(value: Any) -> None:
    """Write a value as JSON, indented."""
    say(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table: drawn for a terminal, plain columns for anything else."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(heads, cells, _numeric(cells, len(heads)))
        return
    for line in columns(heads, cells):
        say(line)


def columns(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a plain table, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    numeric = _numeric(cells, len(heads))
    lines = []
    for row in [[head.upper() for head in heads], *cells]:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return lines


def _numeric(cells: Sequence[Sequence[str]], count: int) -> list[bool]:
    """Tell which columns hold nothing but numbers, and perhaps gaps: empty cells, or "-"."""
    return [
        all(row[i] in {"", "-"} or row[i].replace(".", "", 1).isdecimal() for row in cells)
        for i in range(count)
    ]


def _draw(heads: Sequence[str], cells: list[list[str]], numeric: list[bool]) -> None:
    from rich import box, console, text  # it takes longer than the rest of a command
    from rich import table as tables

    drawn = tables.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head, right in zip(heads, numeric, strict=True):
        drawn.add_column(head, justify="right" if right else "left")
    for row in cells:
        drawn.add_row(*(text.Text(cell) for cell in row))
    console.Console().print(drawn)


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Write names and values, one pair a line; pairs without a value are left out."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        if value not in {"", None}:
            say(f"{name.ljust(width)}  {value}")


def duration(elapsed_s: float) -> str:
    """Return a time as people say it: `3d 4h`, `5m 12s`."""
    rest = int(elapsed_s)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        number, rest = divmod(rest, length)
        if number or (unit == "s" and not parts):
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2])
