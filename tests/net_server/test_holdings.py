"""What clients hold survives the server: sockets and captures in kept memory."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator

import pytest

from core.errors import Refused
from core.userlib.kept_value import KeptValue
from net_server.capture import CAPTURES_LIMIT, SNAPLEN_LIMIT, Captures
from net_server.holdings import FIRST_BADGE, BoundSocket, HeldCapture, Holdings
from net_server.stack.udp import Udp
from tests.net_server.peer import Peer
from tests.support.keeping_task import KeepingTask


@pytest.fixture
def keeper() -> Iterator[KeepingTask]:
    keeper = KeepingTask()
    yield keeper
    keeper.close()


@pytest.fixture
def incarnate(keeper: KeepingTask) -> Iterator[Callable[[], Holdings]]:
    """Return what starts the next incarnation, with a stack that knows nothing."""
    kept: list[KeptValue] = []

    def start() -> Holdings:
        kept.append(KeptValue(keeper, "holdings"))
        return Holdings(kept[-1], new_udp(), Captures(0))

    yield start
    for each in kept:
        each.close()


def new_udp() -> Udp:
    return Peer().stack.udp


def test_socket_is_bound_again_under_its_badge(incarnate: Callable[[], Holdings]) -> None:
    before = incarnate()
    held = before.bind(1, 5000, broadcast=True)
    before.bind(2, 5001, broadcast=False)
    after = incarnate()
    again = after.get(held.entry.badge, BoundSocket)
    assert (again.socket.port, again.socket.broadcast) == (5000, True)
    assert after.bind(3, 5002, broadcast=False).entry.badge == FIRST_BADGE + 2


def test_port_given_by_lot_is_the_same_again(incarnate: Callable[[], Holdings]) -> None:
    held = incarnate().bind(1, 0, broadcast=False)
    assert incarnate().get(held.entry.badge, BoundSocket).socket.port == held.socket.port


def test_closed_socket_stays_closed(incarnate: Callable[[], Holdings]) -> None:
    before = incarnate()
    held = before.bind(1, 5000, broadcast=False)
    before.close(held.entry.badge)
    assert held.closed
    after = incarnate()
    with pytest.raises(Refused) as refused:
        after.get(held.entry.badge, BoundSocket)
    assert refused.value.errno == errno.EBADF
    after.bind(2, 5000, broadcast=False)


def test_capture_goes_on_and_says_that_it_was_interrupted(
    incarnate: Callable[[], Holdings],
) -> None:
    held = incarnate().start_capture(1, 96)
    assert not held.interrupted
    again = incarnate().get(held.entry.badge, HeldCapture)
    assert (again.capture.snaplen, again.interrupted) == (96, True)


def test_request_that_was_applied_is_found_by_its_id(incarnate: Callable[[], Holdings]) -> None:
    before = incarnate()
    bound, capture = before.bind(17, 5000, broadcast=False), before.start_capture(18, 0)
    after = incarnate()
    found = after.applied(17, BoundSocket)
    assert found is not None
    assert found.entry.badge == bound.entry.badge
    assert after.applied(17, HeldCapture) is None
    assert after.applied(18, HeldCapture) is after.get(capture.entry.badge, HeldCapture)
    assert after.applied(19, BoundSocket) is None


def test_right_to_one_kind_is_none_to_the_other(incarnate: Callable[[], Holdings]) -> None:
    holdings = incarnate()
    bound, capture = holdings.bind(1, 0, broadcast=False), holdings.start_capture(2, 0)
    with pytest.raises(Refused, match="no capture"):
        holdings.get(bound.entry.badge, HeldCapture)
    with pytest.raises(Refused, match="no socket"):
        holdings.get(capture.entry.badge, BoundSocket)
    with pytest.raises(Refused, match="no socket"):
        holdings.get(3, BoundSocket)
    holdings.close(3)


def test_limits_are_refusals(incarnate: Callable[[], Holdings]) -> None:
    holdings = incarnate()
    for snaplen in (-1, SNAPLEN_LIMIT + 1):
        with pytest.raises(Refused):
            holdings.start_capture(1, snaplen)
    for index in range(CAPTURES_LIMIT):
        holdings.start_capture(index, 0)
    with pytest.raises(Refused) as refused:
        holdings.start_capture(99, 0)
    assert refused.value.errno == errno.ENOBUFS
    holdings.bind(1, 5000, broadcast=False)
    with pytest.raises(Refused) as refused:
        holdings.bind(2, 5000, broadcast=False)
    assert refused.value.errno == errno.EADDRINUSE


def test_as_many_sockets_as_there_may_be_are_kept(
    incarnate: Callable[[], Holdings],
) -> None:
    before = incarnate()
    badges = [before.bind(2**62 + n, 0, broadcast=True).entry.badge for n in range(1024)]
    after = incarnate()
    random.Random(1).shuffle(badges)
    for badge in badges:
        after.get(badge, BoundSocket)


def test_holdings_that_cannot_be_read_are_lost_aloud(
    keeper: KeepingTask, incarnate: Callable[[], Holdings]
) -> None:
    before = incarnate()
    badge = before.bind(1, 5000, broadcast=False).entry.badge
    assert not before.lost
    number = keeper.descriptors["holdings"]
    os.pwrite(number, b"\xff" * os.fstat(number).st_size, 0)
    after = incarnate()
    assert "cannot be read" in after.lost
    with pytest.raises(Refused):
        after.get(badge, BoundSocket)
    after.bind(2, 5000, broadcast=False)
    assert not incarnate().lost
