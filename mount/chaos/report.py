"""What came of it: a table of kills and pauses, and every loss in words."""

from __future__ import annotations

import shlex

import msgspec

from .pauses import Figures


class ServerRow(msgspec.Struct, frozen=True):
    """One server: what a client of its port saw of its deaths, and what the kernel did.

    `away` is from the end of an incarnation until a later one served; of several deaths that one
    start ended it is one.
    """

    server: str
    kills: int
    pause: Figures
    away: Figures


class ClientRow(msgspec.Struct, frozen=True):
    """A client that came another way: through the mount, or over the link."""

    client: str
    calls: int
    pause: Figures


class Report(msgspec.Struct, frozen=True):
    """All that `atoll chaos` has to say.

    Attributes:
        again: the command line that makes the same strikes again.
        status: the command's exit status, 128 + n if signal n ended it.
        calls: questions that all clients together asked.
        kills: orders to kill; of two that fall together the second finds nobody.
        stops, missed, spared: see `killer.Killer`.
        echoes_lost: echo requests that went down with a server that had taken them, as they may.
        losses: whatever should not have happened.
        notes: what else there is to know.
    """

    system: str
    seed: int
    again: str
    seconds: float
    status: int
    servers: list[ServerRow]
    clients: list[ClientRow]
    calls: int
    kills: int
    stops: int
    missed: int
    spared: int
    echoes_lost: int
    losses: list[str]
    notes: list[str]


_HEADS = ("server", "kills", "pause median ms", "p99", "max", "away median ms", "p99", "max")
_CLIENT_HEADS = ("client", "calls", "pauses", "median ms", "p99", "max")


def _cells(figures: Figures) -> list[str]:
    if not figures.count:
        return ["-", "-", "-"]
    return [f"{value:.1f}" for value in (figures.median_ms, figures.p99_ms, figures.max_ms)]


def server_table(report: Report) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return heads and rows of the servers."""
    return _HEADS, [
        [row.server, str(row.kills), *_cells(row.pause), *_cells(row.away)]
        for row in report.servers
    ]


def client_table(report: Report) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return heads and rows of the clients."""
    return _CLIENT_HEADS, [
        [row.client, str(row.calls), str(row.pause.count), *_cells(row.pause)]
        for row in report.clients
    ]


def last_lines(report: Report) -> list[str]:
    """Return what stands below the tables."""
    strikes = f"{report.kills} kills"
    for number, words in (
        (report.stops, "stops"),
        (report.missed, "strikes at a server that was away already"),
        (report.spared, "strikes spared, so that no supervisor gives a server up"),
    ):
        if number:
            strikes += f", {number} {words}"
    lines = [
        f"command  exit status {report.status}",
        f"strikes  {strikes}, in {report.seconds:.1f} s",
    ]
    if report.echoes_lost:
        lines.append(f"echoes   {report.echoes_lost} went down with a network server, as they may")
    if report.losses:
        lines += [f"LOSS     {loss}" for loss in report.losses]
    else:
        lines.append(f"losses   none: of {report.calls} calls none failed, and no octet was wrong")
        lines.append("after    all servers serve; the kernel's process is the same")
    lines += [f"note     {note}" for note in report.notes]
    return [*lines, f"again    {report.again}"]


def again(system: str, seed: int, rate: float, kill: list[str], stop: list[str]) -> str:
    """Return the command line for the same strikes, but for the command itself."""
    words = ["atoll", *(["--name", system] if system != "default" else []), "chaos"]
    words += ["--seed", str(seed), "--rate", f"{rate:g}", "--kill", ",".join(kill)]
    if stop:
        words += ["--stop", ",".join(stop)]
    return shlex.join(words) + " -- ..."
