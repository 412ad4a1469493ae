"""The tree of rights against a list of ancestors for each: who dies when, and how large it gets."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from core.kernel.ports import DEAD, KernelRight, Port, receive_right
from core.userlib.server import NoOperations

_STEPS = st.lists(
    st.tuples(st.sampled_from(["derive", "derive", "release", "revoke"]), st.integers(0, 1000)),
    max_size=120,
)


@given(_STEPS)
@settings(deadline=None, max_examples=300)
def test_revoking_reaches_what_was_derived_whatever_was_given_up_between(
    steps: list[tuple[str, int]],
) -> None:
    root = receive_right(Port(1, "x", NoOperations, None))
    ancestors: dict[KernelRight, set[KernelRight]] = {root: set()}
    for step, number in steps:
        living = list(ancestors)
        chosen = living[number % len(living)]
        if step == "derive":
            child = chosen.derive()
            ancestors[child] = {*ancestors[chosen], chosen}
        elif step == "release" and chosen is not root:
            chosen.release()
            del ancestors[chosen]
        elif step == "revoke":
            victims = {right for right, above in ancestors.items() if chosen in above}
            assert chosen.revoke() == len(victims)
            assert all(right.port is DEAD for right in victims)
            for victim in victims:
                del ancestors[victim]
        assert all(right.port is not DEAD for right in ancestors)
        below = list(root.descendants())
        assert {right for right in below if right.port is not DEAD} == set(ancestors) - {root}
        assert len(below) <= 2 * len(ancestors)
    assert sum(root.port.senders.values()) == len(ancestors) - 1


def test_giving_up_a_long_chain_leaves_no_chain_behind() -> None:
    root = receive_right(Port(1, "x", NoOperations, None))
    right = root.derive()
    for _ in range(5000):
        right, old = right.derive(), right
        old.release()
    assert list(root.descendants()) == [right]
