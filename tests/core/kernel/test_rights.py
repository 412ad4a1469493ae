"""Rights of running tasks: given, narrowed, revoked, used up, and gone with their holder."""

from __future__ import annotations

import pytest

from core.errors import DeadPortError, NoRightError, Refused, WrongRightError
from tests.support.servers import Probe, Slow
from tests.support.small_system import Small


async def test_a_badge_tells_the_server_whose_right_it_is(small: Small) -> None:
    right = await small.probe.mint(42, [])
    assert (await small.on(Probe, right).seen()).badge == 42
    copy = small.user.copy(right)
    assert (await small.on(Probe, copy).seen()).badge == 42


async def test_an_attenuated_copy_cannot_be_widened(small: Small) -> None:
    right = await small.probe.mint(42, [])
    narrow = small.user.attenuate(right, ["echo"], Probe)
    wide = small.user.attenuate(narrow, ["echo", "seen"], Probe)
    assert await small.on(Probe, wide).echo(1, "") == (1, "")
    with pytest.raises(WrongRightError):
        await small.on(Probe, wide).seen()


async def test_senders_that_vanish_are_told_once_when_the_last_copy_is_gone(small: Small) -> None:
    right = await small.probe.mint(42, [])
    copy = small.user.copy(right)
    small.user.drop(right)
    await small.probe.echo(1, "")
    assert small.journal.count("gone 42") == 0
    small.user.drop(copy)
    await small.journaled("gone 42")
    await small.probe.echo(1, "")
    assert small.journal.count("gone 42") == 1
    assert 42 not in small.senders("probe")


async def test_revoking_kills_every_copy_wherever_it_went(small: Small) -> None:
    right = await small.probe.mint(42, [])
    copy = small.user.copy(right)
    await small.names.register("x", copy)
    found = await small.names.lookup("x")
    small.user.revoke(right)
    assert await small.on(Probe, right).echo(1, "") == (1, "")
    for dead in (copy, found):
        with pytest.raises(NoRightError):
            await small.on(Probe, dead).echo(1, "")
    with pytest.raises(NoRightError):
        await small.names.lookup("x")
    assert small.generation("names") == 0


async def test_a_right_travels_to_a_server_and_back(small: Small) -> None:
    right = small.slow.right  # type: ignore[attr-defined]
    before = small.senders("slow")
    await small.probe.hold(right)
    assert sum(small.senders("slow").values()) == sum(before.values()) + 1
    returned = await small.probe.let_go()
    assert (await small.on(Slow, returned).seen()).badge == small.user.place.badge
    small.user.drop(returned)
    assert small.senders("slow") == before


async def test_what_a_refused_request_carried_is_not_kept(small: Small) -> None:
    before = small.senders("slow")
    rights = len(small.system.task("probe").names)
    for _ in range(20):
        with pytest.raises(Refused):
            await small.probe.turn_down(small.slow.right)  # type: ignore[attr-defined]
    await small.probe.echo(1, "")
    assert small.senders("slow") == before
    assert len(small.system.task("probe").names) == rights


async def test_a_servers_rights_end_with_its_incarnation(small: Small) -> None:
    before = small.senders("slow")
    await small.probe.hold(small.slow.right)  # type: ignore[attr-defined]
    await small.end("probe")
    assert small.senders("slow") == before
    with pytest.raises(Refused):
        await small.probe.let_go()


async def test_a_clients_end_releases_everything_it_had(small: Small) -> None:
    rights = [await small.probe.mint(badge, []) for badge in (61, 62, 63)]
    assert len(rights) == 3
    small.kernel.retire(small.user.place, "over")
    for badge in (61, 62, 63, small.user.place.badge):
        await small.journaled(f"gone {badge}")


async def test_a_send_once_right_is_used_up_by_one_message(small: Small) -> None:
    right = await small.probe.once(42)
    assert (await small.on(Probe, right).seen()).badge == 42
    with pytest.raises(NoRightError):
        await small.on(Probe, right).seen()
    await small.journaled("gone 42")
    assert right not in small.user.place.names.values()


async def test_a_send_once_right_cannot_be_copied_or_made_to_notify(small: Small) -> None:
    right = await small.probe.once(42)
    with pytest.raises(WrongRightError):
        small.user.copy(right)
    with pytest.raises(WrongRightError):
        small.user.notify(right, 1)
    small.user.drop(right)
    await small.journaled("gone 42")


async def test_a_send_once_right_moves_with_the_message_that_carries_it(small: Small) -> None:
    right = await small.probe.once(42)
    await small.probe.hold(right)
    returned = await small.probe.let_go()
    assert (await small.on(Probe, returned).seen()).badge == 42
    await small.journaled("gone 42")


async def test_a_granted_right_cannot_be_dropped(small: Small) -> None:
    relay = small.system.task("relay")
    assert len(relay.grants) == 3
    from core.kernel.calls import drop

    with pytest.raises(WrongRightError):
        drop(relay, relay.grants["probe"])
    assert await small.relay.echo(2, "x") == (4, "x")


async def test_a_right_to_a_retired_server_says_so(small: Small) -> None:
    small.kernel.retire(small.system.task("probe"), "no longer needed")
    with pytest.raises(DeadPortError, match="gone"):
        await small.probe.echo(1, "")
    with pytest.raises(DeadPortError, match="gone"):
        await small.probe.mirror(1, b"x")


async def test_a_full_name_space_refuses_the_reply_and_keeps_nothing(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    import core.kernel.tasks
    from core.errors import LimitError

    before = small.senders("probe")
    monkeypatch.setattr(core.kernel.tasks, "NAMES_LIMIT", len(small.user.place.names) + 1)
    with pytest.raises(LimitError):
        await small.probe.two()
    monkeypatch.undo()
    await small.journaled("gone 502")
    await small.journaled("gone 501")
    assert small.senders("probe") == before


async def test_vanished_senders_are_told_again_when_the_server_died_on_it(small: Small) -> None:
    right = await small.probe.mint(42, [])
    port = small.system.task("probe").main_port
    assert port is not None
    if small.isolated:
        import os
        import signal

        os.kill(small.pid("probe"), signal.SIGSTOP)
        small.user.drop(right)
        assert port.told == {42: 0}
    else:
        small.user.drop(right)
    await small.end("probe")
    await small.journaled("gone 42")
    await small.probe.echo(1, "")
    assert small.journal.count("gone 42") == 1
    assert not port.told
    assert not port.gone


async def test_a_badge_that_is_given_out_again_is_not_called_gone(small: Small) -> None:
    if not small.isolated:
        pytest.skip("a co-located server is told on its own turn, after the fact is looked up")
    import os
    import signal

    right = await small.probe.mint(42, [])
    os.kill(small.pid("probe"), signal.SIGSTOP)
    small.user.drop(right)  # the kernel tells; before the server hears it, there is a new right
    again = small.system.task("probe").names[1].derive(badge=42)
    os.kill(small.pid("probe"), signal.SIGCONT)
    await small.probe.echo(1, "")
    assert small.journal.count("gone 42") == 0
    again.release()
    await small.journaled("gone 42")
