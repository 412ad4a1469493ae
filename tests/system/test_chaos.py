"""`atoll chaos` as its user sees it: a command, servers that die under it, and a report."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.live_system import LiveSystem

pytestmark = [pytest.mark.slow, pytest.mark.needs_root, pytest.mark.needs_fuse]
SERVERS = {"fs", "disk", "net", "tap", "pipe", "names", "supervisor"}


@pytest.fixture(scope="module")
def system() -> Iterator[LiveSystem]:
    live = LiveSystem("chaos")
    try:
        live.up()
        yield live
    finally:
        live.close()


def chaos(system: LiveSystem, *words: str) -> subprocess.CompletedProcess[str]:
    return system.atoll("chaos", *words)  # type: ignore[no-any-return]


def generations(system: LiveSystem) -> dict[str, int]:
    tasks = system.tasks().items()
    return {name: task["generation"] for name, task in tasks if task["placement"] == "process"}


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_command_works_on_while_servers_die_and_the_report_says_what_it_cost(
    system: LiveSystem,
) -> None:
    kernel = system.kernel
    work = (
        "for n in $(seq 30); do echo $n > {mount}/f && test $(cat {mount}/f) = $n || exit 9; done"
    )
    line = f"{work}; test $ATOLL_MOUNT = {{mount}} || exit 8; sleep 1; {work}; exit 3"
    done = chaos(system, "--json", "--seed", "11", "--rate", "12", "--", "sh", "-c", line)
    assert done.returncode == 3, done.stderr
    report = report_of(done)
    assert report["status"] == 3
    assert report["losses"] == []
    assert {row["server"] for row in report["servers"]} == SERVERS
    killed = [row for row in report["servers"] if row["kills"]]
    assert report["kills"] >= sum(row["kills"] for row in killed) >= 10
    for row in killed:
        assert 0 < row["away"]["median_ms"] <= row["pause"]["median_ms"] <= row["pause"]["max_ms"]
    assert {row["client"] for row in report["clients"]} == {"files", "ping"}
    assert all(row["calls"] > 50 for row in report["clients"])
    assert system.kernel == kernel
    assert all(task["state"] == "running" for task in system.tasks().values())


def test_only_who_is_named_is_killed_and_the_table_is_not_in_the_commands_output(
    system: LiveSystem,
) -> None:
    before = generations(system)
    done = chaos(system, "--kill", "pipe", "--rate", "10", "--", "sh", "-c", "sleep 1; echo said")
    assert (done.returncode, done.stdout) == (0, "said\n"), done.stderr
    assert "pipe " in done.stderr
    assert "losses   none" in done.stderr
    after = generations(system)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"pipe"}


def test_a_restart_that_the_command_asks_for_is_no_death_and_no_loss(system: LiveSystem) -> None:
    restart = " ".join(system.command("restart", "names"))
    done = chaos(
        system, "--json", "--kill", "pipe,names", "--rate", "0.01", "--", "sh", "-c", restart
    )
    assert done.returncode == 0, done.stderr
    report = report_of(done)
    assert report["losses"] == []
    assert sum(row["kills"] for row in report["servers"]) == report["kills"]
    (names,) = (row for row in report["servers"] if row["server"] == "names")
    assert names["pause"]["count"] >= 1


def test_the_report_names_the_command_line_for_the_same_strikes(system: LiveSystem) -> None:
    done = chaos(system, "--seed", "77", "--kill", "names,tap", "--rate", "3", "--", "true")
    again = f"atoll --name {system.name} chaos --seed 77 --rate 3 --kill names,tap -- ..."
    assert again in done.stderr


def test_who_cannot_be_killed_is_declined_before_the_command_runs(system: LiveSystem) -> None:
    done = chaos(system, "--kill", "nobody", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there are names, supervisor" in done.stderr
    done = chaos(system, "--kill", "front-end", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (2, "")
    assert "promoted" in done.stderr


def test_a_command_that_cannot_be_started_is_named(system: LiveSystem) -> None:
    done = chaos(system, "--", "/no/such/program")
    assert done.returncode == 127
    assert "/no/such/program" in done.stderr


def test_an_interrupt_ends_it_in_good_order_with_a_report(system: LiveSystem) -> None:
    command = system.command("chaos", "--kill", "fs", "--rate", "5", "--", "sh", "-c")
    process = subprocess.Popen(
        [*command, "trap 'exit 6' INT; echo ready; while :; do sleep 0.1; done"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=system.environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    subprocess.run(["kill", f"-{signal.SIGINT.value}", "--", f"-{process.pid}"], check=True)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 6, said
    assert "again " in said
    assert "losses   none" in said


def test_without_a_system_one_is_made_and_nothing_of_it_is_left(system: LiveSystem) -> None:
    alone = LiveSystem("alone", beside=system)
    line = "echo octets > {mount}/file; cat {mount}/file"
    done = chaos(alone, "--kill", "fs", "--rate", "9", "--", "sh", "-c", line)
    assert (done.returncode, done.stdout) == (0, "octets\n"), done.stderr
    assert "making one" in done.stderr
    assert not alone.run.path.exists()
    assert not alone.is_mounted()
