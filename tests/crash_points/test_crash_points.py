"""A slice of the enumeration: all kinds of operations, and every kind of point."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fs_server.interface import FileSystem

from .boundaries import Boundary, run_boundaries, start_while_disk_dies
from .dying import Point
from .history import NOT_IN_HISTORIES, OWN_WORK, STEP_NS, chosen, history
from .looking import Seen
from .power import PowerCuts
from .recorded import Recorded, workplace
from .table import Table
from .writes import WritePoints, is_torn

SEED = 1


def test_every_operation_of_the_interface_is_in_a_history() -> None:
    there = {step.operation for step in history(SEED, 0).steps}
    wanted = {spec.name for spec in FileSystem.OPERATIONS} - NOT_IN_HISTORIES.keys()
    assert there == wanted | set(OWN_WORK)


def test_a_history_follows_from_its_seed_alone() -> None:
    one, two, other = history(3, 220), history(3, 220), history(4, 220)
    assert one.steps == two.steps
    assert one.replies == two.replies
    assert one.steps != other.steps
    assert len(one.steps) == len(one.replies) == len(one.states) - 1 >= 220
    assert one.now(1) - one.now(0) == STEP_NS


def test_the_cases_change_the_state_in_every_operation_that_can() -> None:
    of = history(SEED, 0)
    changing = {
        step.operation
        for index, step in enumerate(of.steps)
        if of.states[index].nodes != of.states[index + 1].nodes
    }
    assert changing >= {
        "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "create", "open",
        "release", "setattr", "write", "setxattr", "removexattr", "allocate", "tmpfile", "copy",
    }  # fmt: skip


@pytest.mark.slow
def test_a_death_at_any_write_leaves_the_state_before_or_after() -> None:
    of, table = history(SEED, 200), Table()
    with workplace() as directory:
        WritePoints(Recorded(of, directory / "recorded"), table, directory / "volume").run(
            chosen(of, 45)
        )
    total = table.total()
    assert not table.losses
    assert total.between == 0
    assert total.replays == total.points == total.before + total.after + total.torn > 200
    assert min(total.before, total.after) > 0


@pytest.mark.slow
def test_a_power_cut_at_any_write_keeps_what_was_synced() -> None:
    of, table = history(SEED, 200), Table()
    with workplace() as directory:
        PowerCuts(
            Recorded(of, directory / "recorded"), table, directory / "volume", variants=3
        ).run(chosen(of, 30))
    assert not table.losses
    assert table.total().cuts > 200


@pytest.mark.slow
def test_a_death_at_any_message_boundary_changes_no_answer_and_no_state(tmp_path: Path) -> None:
    of, table = history(SEED, 0), Table()
    boundaries = list(Boundary)
    random.Random(SEED).shuffle(boundaries)
    steps = [index for index in chosen(of, 40) if of.steps[index].operation not in OWN_WORK]
    plan = {index: boundaries[n % len(boundaries)] for n, index in enumerate(steps)}
    run_boundaries(of, table, tmp_path / "volume", plan.get)
    total = table.total()
    assert not table.losses
    assert total.boundaries == len(steps)
    assert total.deaths >= len(steps)


@pytest.mark.parametrize("point", [Point.DELIVERED, Point.COMMITTED, Point.REPLIED])
def test_the_file_server_starts_while_the_disk_server_dies(tmp_path: Path, point: Point) -> None:
    assert start_while_disk_dies(tmp_path / "volume", point) == (1, 0)


# -- what the checks are worth: with one mechanism taken away they fail ----------------------------


@pytest.mark.slow
def test_without_recorded_answers_the_enumeration_finds_losses() -> None:
    of, table = history(SEED, 0), Table()
    steps = [n for n, step in enumerate(of.steps) if step.operation == "mkdir"]
    with workplace() as directory:
        WritePoints(
            Recorded(of, directory / "recorded"), table, directory / "volume", replay=False
        ).run(steps)
    assert table.rows["mkdir"].losses > 0
    assert table.total().between == 0
    assert any("EEXIST" in loss for loss in table.losses)


@pytest.mark.slow
def test_on_a_disk_that_ignores_syncs_the_enumeration_finds_losses() -> None:
    of, table = history(SEED, 0), Table()
    with workplace() as directory:
        PowerCuts(
            Recorded(of, directory / "recorded"),
            table,
            directory / "volume",
            variants=3,
            obeys=False,
        ).run(range(12, 24))
    assert table.total().losses > 0


def test_only_octets_of_before_and_after_count_as_torn() -> None:
    before, after = Seen({b"/": ()}, {b"f": b"aaaa"}), Seen({b"/": (1,)}, {b"f": b"abbb"})
    assert is_torn(Seen({b"/": ()}, {b"f": b"aabb"}), before, after)
    assert not is_torn(Seen({b"/": ()}, {b"f": b"aacb"}), before, after)
    assert not is_torn(Seen({b"/": (1,)}, {b"f": b"aabb"}), before, after)
