"""What an enumeration found, by kind of operation, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

LOSSES_LIMIT: Final = 20
"""Losses that are described; all are counted."""


@dataclass
class Row:
    """One kind of operation. Each count is explained by the heading of its column."""

    operations: int = 0
    boundaries: int = 0
    deaths: int = 0
    points: int = 0
    before: int = 0
    after: int = 0
    torn: int = 0
    between: int = 0
    replays: int = 0
    cuts: int = 0
    older: int = 0
    losses: int = 0


_HEADINGS: Final = {
    "operations": "operations",
    "boundaries": "boundaries",
    "deaths": "real deaths",
    "points": "write points",
    "before": "before",
    "after": "after",
    "torn": "torn",
    "between": "between",
    "replays": "right replays",
    "cuts": "power cuts",
    "older": "older octets",
    "losses": "losses",
}
LEGEND: Final = """\
operations     looked at, of this kind
boundaries     message boundaries at which the running file server, or disk server, was ended
real deaths    SIGKILLs that this took; a boundary that an operation does not reach takes none
write points   points right before, right after or within a write, sync, truncation or punch
before, after  state of the reopened volume at those points, before the request is repeated
torn           as before, but for some of the octets that the operation overwrites; see `writes`
between        anything else: must be 0
right replays  requests delivered again: the reply, and all of the state, are the model's
power cuts     disks that a power cut may have left: what was not synced is lost, torn, reordered
older octets   disks with octets behind a former end of their own file: allowed, see `power`
losses         anything that is not as promised: must be 0"""


@dataclass
class Table:
    """Rows by kind of operation, and what was lost."""

    rows: dict[str, Row] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)

    def row(self, kind: str) -> Row:
        """Return the row of a kind."""
        return self.rows.setdefault(kind, Row())

    def lose(self, kind: str, what: str) -> None:
        """Note a loss."""
        self.row(kind).losses += 1
        if len(self.losses) < LOSSES_LIMIT:
            self.losses.append(what)

    def add(self, other: Table) -> None:
        """Add what another enumeration of the same history found."""
        for kind, row in other.rows.items():
            for name, count in vars(row).items():
                setattr(self.row(kind), name, getattr(self.row(kind), name) + count)
        self.losses = [*self.losses, *other.losses][:LOSSES_LIMIT]

    def total(self) -> Row:
        """Return the sums of all columns."""
        total = Row()
        for row in self.rows.values():
            for name, count in vars(row).items():
                setattr(total, name, getattr(total, name) + count)
        return total

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        rows = {kind: vars(row) for kind, row in sorted(self.rows.items())}
        return {"rows": rows, "total": vars(self.total()), "losses": self.losses}

    def __str__(self) -> str:
        lines = [["", *_HEADINGS.values()]]
        for kind, row in [*sorted(self.rows.items()), ("all", self.total())]:
            lines.append([kind, *(str(getattr(row, name)) for name in _HEADINGS)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        text.insert(-1, "-" * len(text[0]))
        return "\n".join([*text, *(f"LOSS: {loss}" for loss in self.losses)])
