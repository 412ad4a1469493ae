"""Ports beyond a task's first one: they serve the same, and the server sees which one is meant."""

from __future__ import annotations

import pytest

from core.errors import DeadPortError, NoRightError, WrongRightError
from tests.support.servers import Probe
from tests.support.small_system import Small


async def test_a_request_shows_the_port_it_came_to(small: Small) -> None:
    name, right = await small.probe.open_port(9)
    other = small.on(Probe, right)
    assert name != 1
    assert await other.port() == name
    assert await small.probe.port() == 1
    assert (await other.seen()).badge == 9
    assert await other.mirror(9000, b"x" * 9000) == b"x" * 9000
    assert await small.probe.port() == 1


async def test_senders_of_another_port_vanish_at_that_port(small: Small) -> None:
    _, right = await small.probe.open_port(9)
    small.user.drop(right)
    await small.journaled("gone 9 elsewhere")
    assert small.journal.count("gone 9") == 0


async def test_a_closed_port_is_dead_and_its_server_serves_on(small: Small) -> None:
    name, right = await small.probe.open_port(9)
    other = small.on(Probe, right)
    await other.port()
    await small.probe.close_port(name)
    with pytest.raises((DeadPortError, NoRightError)):
        await other.port()
    assert await small.probe.port() == 1


async def test_other_ports_end_with_the_incarnation(small: Small) -> None:
    _, right = await small.probe.open_port(9)
    other = small.on(Probe, right)
    assert await small.probe.fault(1) == 2
    with pytest.raises((DeadPortError, NoRightError)):
        await other.port()


async def test_a_receive_right_moves_with_its_port(small: Small) -> None:
    name, right = await small.probe.open_port(9)
    other = small.on(Probe, right)
    await small.probe.pass_port(name, small.probe.right)  # type: ignore[attr-defined]
    assert await other.port() != 1
    assert (await other.seen()).badge == 9


async def test_a_receive_right_does_not_go_where_its_interface_is_not_served(
    small: Small,
) -> None:
    name, right = await small.probe.open_port(9)
    with pytest.raises(WrongRightError):
        await small.probe.misplace_port(name, small.names.right)  # type: ignore[attr-defined]
    assert await small.on(Probe, right).port() != 1
    assert await small.names.entries() == []
