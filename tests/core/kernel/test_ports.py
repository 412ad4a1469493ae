"""Ports and rights against a model: who may send what, and when a badge is gone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from core.abi import QUEUE_LIMIT, RightKind
from core.errors import (
    AtollError,
    DeadPortError,
    NoRightError,
    QueueFullError,
    WrongRightError,
)
from core.kernel.ports import DEAD, KernelRight, Port, receive_right
from core.kernel.requests import Request
from tests.support.servers import Relay

OPERATIONS = len(Relay.OPERATIONS)


class Receiver:
    """The task behind a port: notes the badges that are gone."""

    def __init__(self) -> None:
        self.gone: list[int] = []

    def no_senders(self, port: Port, badge: int) -> None:
        """Note it."""
        self.gone.append(badge)


class RightsTree(RuleBasedStateMachine):
    """The model of a right: its parent, badge, reach and whether it lives."""

    rights = Bundle("rights")

    def __init__(self) -> None:
        super().__init__()
        self.receiver = Receiver()
        self.port = Port(1, "p", Relay, self.receiver)  # type: ignore[arg-type]
        self.root = receive_right(self.port)
        self.model: dict[KernelRight, dict[str, Any]] = {
            self.root: {"parent": None, "badge": 0, "reach": (1 << 64) - 1, "alive": True}
        }
        self.expected_gone: list[int] = []

    @rule(target=rights)
    def main(self) -> KernelRight:
        return self.root

    @rule(
        target=rights,
        right=rights,
        badge=st.integers(1, 3),
        reach=st.integers(0, (1 << OPERATIONS) - 1),
        once=st.booleans(),
    )
    def derive(self, right: KernelRight, badge: int, reach: int, once: bool) -> KernelRight:
        parent = self.model[right]
        kind = RightKind.SEND_ONCE if once else RightKind.SEND
        chosen = badge if right is self.root else None
        if not parent["alive"] or right.kind is RightKind.SEND_ONCE:
            with pytest.raises((NoRightError, WrongRightError)):
                right.derive(kind, reach, chosen)
            return right
        child = right.derive(kind, reach, chosen)
        self.model[child] = {
            "parent": right,
            "badge": badge if chosen else parent["badge"],
            "reach": parent["reach"] & reach,
            "alive": True,
        }
        return child

    @rule(right=rights)
    def choose_a_badge_without_the_receive_right(self, right: KernelRight) -> None:
        if right.kind is RightKind.SEND and self.model[right]["alive"]:
            with pytest.raises(WrongRightError):
                right.derive(badge=self.model[right]["badge"] + 1)

    def _below(self, right: KernelRight) -> list[KernelRight]:
        found = []
        for other, entry in self.model.items():
            parent = entry["parent"]
            while parent is not None and parent is not right:
                parent = self.model[parent]["parent"]
            if parent is right and entry["alive"]:
                found.append(other)
        return found

    def _die(self, victims: list[KernelRight]) -> None:
        for victim in victims:
            self.model[victim]["alive"] = False
        for badge in {self.model[victim]["badge"] for victim in victims} - {0}:
            if badge not in self.counts():
                self.expected_gone.append(badge)

    @rule(right=rights)
    def revoke(self, right: KernelRight) -> None:
        victims = self._below(right) if self.model[right]["alive"] else []
        assert right.revoke() == len(victims)
        self._die(victims)

    @rule(right=rights)
    def release(self, right: KernelRight) -> None:
        entry = self.model[right]
        if right is self.root:
            return
        if entry["alive"]:
            for other in self.model.values():
                if other["parent"] is right:
                    other["parent"] = entry["parent"]
            self._die([right])
        right.release()
        right.release()

    def counts(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for right, entry in self.model.items():
            if entry["alive"] and right is not self.root:
                counts[entry["badge"]] = counts.get(entry["badge"], 0) + 1
        return counts

    @invariant()
    def senders_are_counted(self) -> None:
        assert self.port.senders == self.counts()

    @invariant()
    def every_vanished_badge_was_told_once(self) -> None:
        assert sorted(self.receiver.gone) == sorted(self.expected_gone)

    @invariant()
    def exactly_the_living_rights_allow_exactly_their_reach(self) -> None:
        for right, entry in self.model.items():
            if right is self.root:
                continue
            for operation in range(OPERATIONS):
                allowed = entry["alive"] and entry["reach"] >> operation & 1
                if allowed:
                    assert right.check(operation) is Relay.OPERATIONS[operation]
                else:
                    with pytest.raises(AtollError):
                        right.check(operation)
                if right.kind is RightKind.SEND:
                    assert bool(right.mask >> operation & 1) == bool(allowed)
                else:
                    assert right.mask == 0
            assert (right.port is DEAD) == (not entry["alive"])


TestRightsTree = RightsTree.TestCase
TestRightsTree.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def port() -> Port:
    """Return a port without a receiver."""
    return Port(1, "p", Relay, None)


@pytest.mark.parametrize("operation", [-1, OPERATIONS, 65_535, 10**9])
def test_an_operation_that_does_not_exist_is_refused(operation: int) -> None:
    with pytest.raises(WrongRightError):
        receive_right(port()).derive(badge=1).check(operation)


def test_a_receive_right_does_not_send() -> None:
    with pytest.raises(WrongRightError):
        receive_right(port()).check(0)


def test_a_dead_port_says_so_until_its_rights_are_revoked() -> None:
    root = receive_right(port())
    right = root.derive(badge=1)
    right.port.alive = False
    with pytest.raises(DeadPortError):
        right.check(0)


def test_giving_up_a_receive_right_ends_its_port() -> None:
    made = port()
    ends: list[str] = []
    made.end = ends.append
    receive_right(made).release()
    assert len(ends) == 1


def test_requests_in_flight_return_to_the_head_of_the_queue_in_their_order() -> None:
    made = port()
    right = receive_right(made).derive(badge=1)
    requests = []
    for number in range(6):
        request = Request(0, Relay.OPERATIONS[0], right, None, None)
        request.id = number
        requests.append(request)
    for request in reversed(requests[:4]):
        made.in_flight[request.id] = request
    made.queue.extend(requests[4:])
    assert made.take_back() == requests[:4]
    assert list(made.queue) == requests
    assert not made.in_flight


def test_a_full_port_refuses_the_next_message() -> None:
    made = port()
    right = receive_right(made).derive(badge=1)
    request = Request(0, Relay.OPERATIONS[0], right, None, None)
    made.queue.extend([request] * (QUEUE_LIMIT - 1))
    made.check_room()
    made.in_flight[1] = request
    with pytest.raises(QueueFullError):
        made.check_room()


def test_what_was_told_is_told_again_until_it_was_deadly_too_often() -> None:
    made = port()
    for deaths in range(3):
        made.told[7] = made.gone.pop(7, 0)
        made.tell_again(3)
        assert made.gone.get(7) == (deaths + 1 if deaths < 2 else None)
