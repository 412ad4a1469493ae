"""The state machine of a link's holder: what each event does, and any sequence of them."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.errors import Refused
from net_server.consent import TIMEOUT_LIMIT_S, Consent, Outcome

A, B, C = 1, 2, 3


def held() -> Consent:
    """Return a link that A holds."""
    consent = Consent()
    assert consent.claim(A)
    return consent


def asked(timeout_s: float = 1.0) -> tuple[Consent, int]:
    """Return a link that A holds and B asks for, at time 0."""
    consent = held()
    return consent, consent.ask(B, 100, 0.0, timeout_s)


def refusal(consent: Consent, badge: int) -> int:
    with pytest.raises(Refused) as refused:
        consent.claim(badge)
    return refused.value.errno


def outcome(consent: Consent, number: int) -> Outcome:
    ended = consent.result(number)
    assert ended is not None
    return ended.outcome


def error(consent: Consent, number: int) -> int:
    """Return the error that the asker is told."""
    ended = consent.result(number)
    assert ended is not None
    with pytest.raises(Refused) as refused:
        ended.check()
    return refused.value.errno


def test_first_who_comes_holds_a_free_link_and_others_are_refused() -> None:
    consent = held()
    assert consent.claim(A)
    assert refusal(consent, B) == errno.EBUSY


@pytest.mark.parametrize("badge", [0, -1])
def test_right_of_no_task_neither_holds_nor_asks(badge: int) -> None:
    assert refusal(Consent(), badge) == errno.EPERM
    with pytest.raises(Refused) as refused:
        held().ask(badge, 1, 0.0, 1.0)
    assert refused.value.errno == errno.EPERM


@pytest.mark.parametrize("timeout_s", [-1.0, TIMEOUT_LIMIT_S + 0.001, float("nan")])
def test_time_out_out_of_range_is_refused(timeout_s: float) -> None:
    with pytest.raises(Refused) as refused:
        held().ask(B, 1, 0.0, timeout_s)
    assert refused.value.errno == errno.EINVAL


def test_yes_makes_the_asker_the_holder_once_the_link_is_renewed() -> None:
    consent, number = asked()
    assert consent.answer(A, number, True, "", 0.5)
    assert refusal(consent, A) == errno.EBUSY
    assert not consent.claim(B)
    assert consent.result(number) is None
    consent.renewed()
    assert outcome(consent, number) is Outcome.YIELDED
    assert consent.claim(B)
    assert refusal(consent, A) == errno.EBUSY


def test_no_leaves_all_as_it_was_and_the_asker_learns_why() -> None:
    consent, number = asked()
    assert consent.answer(A, number, False, "in use", 0.5)
    ended = consent.result(number)
    assert ended is not None
    with pytest.raises(Refused, match="in use") as refused:
        ended.check()
    assert refused.value.errno == errno.EBUSY
    assert consent.claim(A)


def test_late_yes_is_void() -> None:
    consent, number = asked(timeout_s=1.0)
    consent.expire(0.999)
    assert consent.result(number) is None
    assert not consent.answer(A, number, True, "", 1.0)
    assert error(consent, number) == errno.ETIMEDOUT
    assert consent.claim(A)
    assert refusal(consent, B) == errno.EBUSY


def test_yes_to_an_ask_that_was_withdrawn_is_void_also_when_another_asks() -> None:
    consent, number = asked()
    consent.withdraw(number)
    other = consent.ask(C, 101, 0.0, 1.0)
    assert not consent.answer(A, number, True, "", 0.1)
    assert consent.claim(A)
    assert consent.answer(A, other, True, "", 0.1)


def test_only_the_holder_answers() -> None:
    consent, number = asked()
    for badge in (B, C):
        with pytest.raises(Refused) as refused:
            consent.answer(badge, number, True, "", 0.0)
        assert refused.value.errno == errno.EPERM


def test_second_asker_is_told_that_another_asks() -> None:
    consent, _ = asked()
    with pytest.raises(Refused) as refused:
        consent.ask(C, 101, 0.0, 1.0)
    assert refused.value.errno == errno.EALREADY


def test_answer_that_comes_again_gets_the_same_reply() -> None:
    for yes in (True, False):
        consent, number = asked()
        assert consent.answer(A, number, yes, "", 0.0)
        if yes:
            assert consent.answer(A, number, True, "", 9.0)  # in the midst of the renewal
            consent.renewed()
        assert consent.answer(A, number, yes, "", 9.0)


def test_request_that_comes_again_finds_its_ask_and_its_end() -> None:
    consent, number = asked()
    assert consent.ask(B, 100, 0.5, 1.0) == number
    consent.answer(A, number, False, "", 0.5)
    assert consent.ask(B, 100, 0.5, 1.0) == number
    assert consent.ask(B, 101, 0.5, 1.0) != number


def test_request_that_was_withdrawn_by_a_restart_asks_again() -> None:
    consent, number = asked()
    consent.withdraw(number)
    assert consent.ask(B, 100, 0.5, 1.0) > number


def test_holder_that_does_not_let_go_stays_the_holder() -> None:
    consent, number = asked()
    consent.answer(A, number, True, "", 0.0)
    consent.not_renewed(errno.EBUSY, "still open")
    assert error(consent, number) == errno.EBUSY
    assert not consent.answer(A, number, True, "", 0.0)
    assert consent.claim(A)
    consent.renew()
    assert not consent.claim(A)
    consent.renewed()
    assert consent.claim(A)


def test_holder_that_waits_for_a_renewal_may_still_be_asked() -> None:
    consent = held()
    consent.renew()
    number = consent.ask(B, 100, 0.0, 1.0)
    assert consent.answer(A, number, True, "", 0.0)
    consent.renewed()
    assert consent.state.holder == B


def test_link_of_a_task_that_was_given_up_goes_to_who_asks() -> None:
    consent, number = asked()
    consent.gone(A)
    consent.renewed()
    assert outcome(consent, number) is Outcome.FREE
    assert consent.claim(B)


def test_link_of_a_task_that_was_given_up_is_renewed_before_the_next_one_has_it() -> None:
    consent = held()
    consent.gone(A)
    assert consent.state.holder == 0
    assert not consent.claim(B)
    consent.renewed()
    assert consent.claim(B)


def test_link_that_was_taken_over_is_renewed_again_when_its_new_holder_is_given_up() -> None:
    consent, number = asked()
    consent.answer(A, number, True, "", 0.0)
    consent.renewed()
    assert consent.claim(B)
    consent.gone(B)
    assert not consent.claim(C)


def test_asker_that_was_given_up_before_the_yes_changes_nothing() -> None:
    consent, number = asked()
    consent.gone(B)
    assert outcome(consent, number) is Outcome.WITHDRAWN
    assert not consent.answer(A, number, True, "", 0.0)
    assert consent.claim(A)


def test_asker_that_was_given_up_after_the_yes_leaves_the_link_free() -> None:
    consent, number = asked()
    consent.answer(A, number, True, "", 0.0)
    consent.gone(B)
    consent.renewed()
    assert consent.answer(A, number, True, "", 0.0)
    assert consent.state.holder == 0
    assert consent.claim(A)


def test_withdrawal_after_the_yes_comes_too_late() -> None:
    consent, number = asked()
    consent.answer(A, number, True, "", 0.0)
    consent.withdraw(number)
    consent.expire(100.0)
    consent.renewed()
    assert outcome(consent, number) is Outcome.YIELDED
    assert consent.claim(B)


def test_holder_that_takes_over_its_own_link_has_it() -> None:
    assert held().ask(A, 1, 0.0, 1.0) == 0


@contextlib.contextmanager
def refused_only_with(number: int) -> Iterator[None]:
    """Let a refusal pass if it has this reason."""
    try:
        yield
    except Refused as refused:
        if refused.errno != number:
            raise


class Link(RuleBasedStateMachine):
    """A link among clients that may do anything at any time, with a host that counts descriptors.

    `open` is who has a descriptor that is attached to the device. The driver is started anew from
    what it has stored between any two events.
    """

    badges = st.sampled_from([A, B, C])

    def __init__(self) -> None:
        super().__init__()
        self.consent = Consent()
        self.now = 0.0
        self.requests = itertools.count(1)
        self.open: set[int] = set()

    @rule(badge=badges)
    def lend(self, badge: int) -> None:
        before = self.consent.state.holder
        with refused_only_with(errno.EBUSY):
            if self.consent.claim(badge):
                self.open.add(badge)
        assert self.consent.state.holder == (before or self.consent.state.holder)

    @rule(badge=badges, timeout_s=st.floats(0, 3))
    def ask(self, badge: int, timeout_s: float) -> None:
        before = self.consent.state.holder
        with refused_only_with(errno.EALREADY):
            self.consent.ask(badge, next(self.requests), self.now, timeout_s)
        assert self.consent.state.holder == before

    @rule(badge=badges, yes=st.booleans(), lets_go=st.booleans(), late=st.booleans())
    def answer(self, badge: int, yes: bool, lets_go: bool, late: bool) -> None:
        ask = self.consent.state.ask
        number = self.consent.state.asks if ask is None or late else ask.number
        if yes and lets_go and badge == self.consent.state.holder:
            self.open.discard(badge)
        before = self.consent.state.holder
        with refused_only_with(errno.EPERM):
            self.consent.answer(badge, number, yes, "no", self.now)
        assert self.consent.state.holder == before

    @rule(badge=badges)
    def take_over_whole(self, badge: int) -> None:
        """Everybody behaves, and the new holder borrows the link."""
        with refused_only_with(errno.EALREADY):
            number = self.consent.ask(badge, next(self.requests), self.now, 1.0)
            holder = self.consent.state.holder
            if number and holder:
                self.open.discard(holder)
                self.consent.answer(holder, number, True, "", self.now)
        self.host_attaches()
        self.lend(badge)

    @rule(badge=badges)
    def close(self, badge: int) -> None:
        self.open.discard(badge)

    @rule(badge=badges, remains=st.booleans())
    def given_up(self, badge: int, remains: bool) -> None:
        if not remains:
            self.open.discard(badge)
        self.consent.gone(badge)

    @rule()
    def lose_descriptor(self) -> None:
        if self.consent.state.holder:
            self.consent.renew()

    @rule()
    def host_attaches(self) -> None:
        if not self.consent.state.heir:
            return
        if self.open:
            self.consent.not_renewed(errno.EBUSY, "still open")
        else:
            self.consent.renewed()

    @rule(seconds=st.floats(0, 2))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.consent.expire(self.now)

    @rule()
    def asker_leaves(self) -> None:
        ask = self.consent.state.ask
        if ask is not None:
            self.consent.withdraw(ask.number)

    @rule()
    def driver_dies(self) -> None:
        self.consent = Consent(self.consent.encode())

    @invariant()
    def no_two_have_the_device(self) -> None:
        assert len(self.open) <= 1

    @invariant()
    def nobody_but_the_holder_is_lent_it(self) -> None:
        for badge in (A, B, C):
            copy = Consent(self.consent.encode())
            try:
                lent = copy.claim(badge)
            except Refused:
                continue
            if lent:
                assert self.open <= {badge}, "a second one would have the device"

    @invariant()
    def every_ask_ends(self) -> None:
        """Whatever has happened, an ask is over when its time is and the host has decided."""
        for host in (Consent.renewed, lambda each: Consent.not_renewed(each, errno.EBUSY, "open")):
            copy = Consent(self.consent.encode())
            copy.expire(self.now + TIMEOUT_LIMIT_S)
            if copy.state.heir:
                host(copy)
            copy.expire(self.now + TIMEOUT_LIMIT_S)
            assert copy.state.ask is None
            assert not copy.state.heir

    @invariant()
    def link_is_never_stuck(self) -> None:
        """Once nobody has it open, whoever holds it or finds it free can have it."""
        copy = Consent(self.consent.encode())
        copy.expire(self.now + TIMEOUT_LIMIT_S)
        if copy.state.heir:
            copy.renewed()
        badge = copy.state.holder or A
        if not copy.claim(badge):
            copy.renewed()
        assert copy.claim(badge)


TestLink = Link.TestCase
TestLink.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
