"""A link changes hands only by consent: two network servers, a real TAP device, real deaths."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from core.errors import AtollError, Refused, WrongRightError
from net_server import host_device, namespaces
from net_server.attachment import SPARES
from net_server.link import LinkState
from net_server.network import Network
from tests.net_server.consent_servers import CRASH, Door
from tests.net_server.support import DRIVER, HOST_OCTETS, LiveSystem, run_live

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]

FIRST, SECOND = "10.90.0.2", "10.90.0.3"
SECONDS = 1000
"""Milliseconds in one."""
PLACEMENTS = ["process", "colocated"]

_TWO = (
    DRIVER
    + """
[server.net]
class = "net_server.server:NetServer"
placement = "{placement}"
grants = {{ link = "tap" }}
options = {{ address = "10.90.0.2/24", yields = "always" }}

[server.second]
class = "net_server.server:NetServer"
placement = "{placement}"
grants = {{ link = "tap" }}
options = {{ address = "10.90.0.3/24", yields = "always", standby = true }}
"""
)
NEVER = _TWO.replace('yields = "always"', 'yields = "never"', 1)
IDLE = _TWO.replace('yields = "always"', 'yields = "idle"', 1)
POWERLESS = (
    'grants = {{ link = {{ server = "tap", operations = ["describe", "watch", "lend"] }} }}\n'
)
NOT_GRANTED = POWERLESS.join(_TWO.rsplit('grants = {{ link = "tap" }}\n', 1))
MORTAL = _TWO.replace("net_server.server:NetServer", "tests.net_server.consent_servers:MortalNet")
MORTAL = MORTAL.replace("net_server.tap:TapServer", "tests.net_server.consent_servers:MortalTap")
LYING = _TWO.replace("net_server.server:NetServer", "tests.net_server.consent_servers:Liar", 1)
DEAF = LYING.replace(":Liar", ":Deaf")


class Pair:
    """A live system with two servers that want the link."""

    def __init__(self, live: LiveSystem) -> None:
        self.live = live
        self.first: Network = live.network
        self.second: Network = live.system.connect(Network, "second")

    async def answers(self, address: str) -> bool:
        """Return whether a ping from the host is answered; one that shall not be waits shortly."""
        shown = await self.live.run("ping", "-c", "1", "-w", "9", address)
        return b" 1 received" in shown.stdout

    async def is_silent(self, address: str) -> bool:
        shown = await self.live.run("ping", "-c", "2", "-i", "0.01", "-W", "0.2", address)
        return b" 0 received" in shown.stdout or b"nreachable" in shown.stdout

    async def state(self) -> LinkState:
        return await self.live.link.watch(0)

    async def holder(self) -> str:
        badge = (await self.state()).holder
        names = {task.badge: task.name for task in self.live.system.kernel.tasks}
        return names.get(badge, "")

    async def outcome(self) -> str:
        last = (await self.state()).last
        return "" if last is None else last.outcome

    async def wait_pending(self) -> None:
        """Wait until somebody asks."""
        state = await self.state()
        while state.pending is None:
            state = await self.live.link.watch(state.version)

    async def check_first_undisturbed(self) -> None:
        assert await self.holder() == "net"
        assert await self.answers(FIRST)
        assert await self.is_silent(SECOND)

    async def check_second_has_it(self) -> None:
        assert await self.holder() == "second"
        assert await self.answers(SECOND)
        assert await self.is_silent(FIRST)

    @asynccontextmanager
    async def stopped(self, name: str) -> AsyncIterator[None]:
        """Have a server's process stand still meanwhile, unless it is killed."""
        engine = self.live.system.task(name).engine
        assert engine is not None
        pid = engine.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if self.live.system.task(name).engine is engine:
                os.kill(pid, signal.SIGCONT)

    def crash(self, name: str, step: int) -> None:
        """Have a server die at a step of what comes next."""
        memory = os.memfd_create(CRASH)
        os.write(memory, str(step).encode())
        self.live.system.task(name).keep(CRASH, memory)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("offload", [True, False])
def test_holder_that_yields_is_followed_by_the_asker_and_may_ask_back(
    placement: str, offload: bool
) -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        await pair.check_first_undisturbed()
        with pytest.raises(Refused) as caught:
            await pair.second.ping(HOST_OCTETS, 100, b"")
        assert caught.value.errno == errno.ENETDOWN
        await pair.second.link_take(5 * SECONDS)
        await pair.check_second_has_it()
        assert await pair.outcome() == "yielded"
        with pytest.raises(Refused) as caught:
            await pair.first.ping(HOST_OCTETS, 100, b"")
        assert caught.value.errno == errno.ENETDOWN
        assert (await pair.second.ping(HOST_OCTETS, 5 * SECONDS, b"there")).intact
        await pair.first.link_take(5 * SECONDS)
        await pair.check_first_undisturbed()

    run_live(body, placement=placement, offload=offload, description=_TWO)


def test_link_changes_hands_more_often_than_there_are_spare_files() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        for _ in range(6):
            await pair.second.link_take(5 * SECONDS)
            await pair.first.link_take(5 * SECONDS)
        await pair.check_first_undisturbed()
        shown = await live.run("ip", "-d", "link", "show", "atoll0")
        assert b"persist off" in shown.stdout, "it would outlive the system"

    run_live(body, description=_TWO)


def test_driver_that_can_open_nothing_any_more_refuses_and_harms_nobody(tmp_path: Path) -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        live.system.task("tap").keep("netns", os.open(tmp_path, os.O_RDONLY))
        await live.kill("tap")  # the next one finds a namespace that it cannot enter
        askers = itertools.cycle((pair.second, pair.first))
        for _ in range(SPARES - 1):  # making the device took one
            await next(askers).link_take(5 * SECONDS)
        with pytest.raises(Refused, match="used up"):
            await next(askers).link_take(5 * SECONDS)
        await pair.check_second_has_it()
        await live.kill("tap")
        await pair.check_second_has_it()

    run_live(body, description=_TWO, timeout_s=30)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_holder_that_refuses_keeps_the_link_and_the_asker_learns_why(placement: str) -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        with pytest.raises(Refused, match="net never gives up the link") as caught:
            await pair.second.link_take(5 * SECONDS)
        assert caught.value.errno == errno.EBUSY
        assert await pair.outcome() == "refused"
        await pair.check_first_undisturbed()

    run_live(body, placement=placement, description=NEVER)


def test_idle_holder_yields_only_when_its_clients_hold_nothing() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        _, right = await pair.first.udp_bind(0, False)
        with pytest.raises(Refused, match="1 sockets and 0 captures"):
            await pair.second.link_take(5 * SECONDS)
        await pair.check_first_undisturbed()
        await live.connect(right).udp_close()
        await pair.second.link_take(5 * SECONDS)
        await pair.check_second_has_it()

    run_live(body, description=IDLE)


def test_holder_that_hangs_costs_the_asker_its_time_out_and_its_late_yes_is_void() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        async with pair.stopped("net"):
            with pytest.raises(Refused) as caught:
                await pair.second.link_take(50)
            assert caught.value.errno == errno.ETIMEDOUT
            assert await pair.outcome() == "timed out"
            assert await pair.holder() == "net"
        await pair.check_first_undisturbed()

    run_live(body, description=_TWO)


def test_holder_that_never_listens_costs_the_asker_its_time_out() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        with pytest.raises(Refused) as caught:
            await pair.second.link_take(50)
        assert caught.value.errno == errno.ETIMEDOUT
        assert await pair.holder() == "net"

    run_live(body, description=DEAF)


def test_holder_that_says_yes_and_keeps_the_device_is_found_out() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        liar: Door = live.system.connect(Door, "net")
        with pytest.raises(Refused, match="was not let go") as caught:
            await pair.second.link_take(5 * SECONDS)
        assert caught.value.errno == errno.EBUSY
        assert await pair.holder() == "net"
        await liar.frames()
        await pair.is_silent(SECOND)
        assert await liar.frames(), "the liar has what it was lent, and nobody else has anything"
        await liar.let_go()
        await pair.second.link_take(5 * SECONDS)
        await pair.check_second_has_it()

    run_live(body, description=LYING)


def test_restart_of_a_lying_holder_gives_it_a_link_again() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        liar: Door = live.system.connect(Door, "net")
        with pytest.raises(Refused):
            await pair.second.link_take(5 * SECONDS)
        await live.kill("net")
        await liar.frames()
        await pair.is_silent(SECOND)
        assert await liar.frames()

    run_live(body, description=LYING)


def test_holder_killed_while_it_is_asked_is_asked_again_after_its_restart() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        async with trio.open_nursery() as nursery, pair.stopped("net"):
            nursery.start_soon(pair.second.link_take, 8 * SECONDS)
            await pair.wait_pending()
            assert await pair.holder() == "net"
            await live.kill("net")
        await pair.check_second_has_it()

    run_live(body, description=_TWO)


def test_death_of_a_holder_is_no_consent() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        reasons: list[str] = []

        async def ask() -> None:
            try:
                await pair.second.link_take(8 * SECONDS)
            except Refused as refused:
                reasons.append(refused.detail)

        async with trio.open_nursery() as nursery, pair.stopped("net"):
            nursery.start_soon(ask)
            await pair.wait_pending()
            await live.kill("net")
        assert reasons == ["net never gives up the link"]
        await pair.check_first_undisturbed()
        for _ in range(3):
            await live.kill("net")
            assert await pair.holder() == "net"
        await pair.check_first_undisturbed()

    run_live(body, description=NEVER)


def test_link_of_a_holder_that_is_given_up_goes_to_who_asks() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.second.link_take, 8 * SECONDS)
            await pair.wait_pending()
            live.system.kernel.retire(live.system.task("net"), "the test gave it up")
        assert await pair.outcome() == "free"
        assert await pair.holder() == "second"
        assert await pair.answers(SECOND)

    run_live(body, description=DEAF)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_link_that_nobody_holds_is_had_for_the_asking(placement: str) -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        live.system.kernel.retire(live.system.task("net"), "the test gave it up")
        await pair.second.link_take(0)
        await pair.check_second_has_it()

    run_live(body, placement=placement, description=_TWO)


def test_asker_killed_while_it_asks_asks_again_and_one_that_gives_up_changes_nothing() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        async with pair.stopped("net"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.second.link_take, 8 * SECONDS)
                await pair.wait_pending()
                await live.kill("second")
                await pair.wait_pending()
                nursery.cancel_scope.cancel()
            state = await pair.state()
            while state.pending is not None:
                state = await live.link.watch(state.version)
            assert await pair.outcome() == "withdrawn"
        await pair.check_first_undisturbed()

    run_live(body, description=_TWO)


def test_second_asker_is_told_that_somebody_asks_already() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        async with pair.stopped("net"), trio.open_nursery() as nursery:
            nursery.start_soon(pair.second.link_take, 8 * SECONDS)
            await pair.wait_pending()
            with pytest.raises(Refused) as caught:
                await live.link.take_over(50)
            assert caught.value.errno == errno.EALREADY
            nursery.cancel_scope.cancel()

    run_live(body, description=_TWO)


@pytest.mark.parametrize("victim", ["tap", "net", "second"])
def test_death_at_any_step_leaves_one_holder_and_the_change_is_done(victim: str) -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        step = 0
        while True:
            step += 1
            generation = live.system.task(victim).id.generation
            pair.crash(victim, step)
            await pair.second.link_take(8 * SECONDS)
            assert await pair.holder() == "second", f"after a death at step {step}"
            assert await pair.answers(SECOND), f"after a death at step {step}"
            for _ in range(3):  # a death that is due has come when the victim has taken turns
                await pair.first.addresses()
            if live.system.task(victim).id.generation == generation:
                break
            await pair.first.link_take(8 * SECONDS)
            assert await pair.holder() == "net"
            assert await pair.answers(FIRST), f"after a death at step {step}"
        await pair.check_second_has_it()
        assert step > {"tap": 20, "net": 4, "second": 7}[victim]

    run_live(body, description=MORTAL, timeout_s=90)


def test_server_that_was_not_granted_the_operation_cannot_ask() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        with pytest.raises(WrongRightError, match="take_over"):
            await pair.second.link_take(5 * SECONDS)
        await pair.check_first_undisturbed()

    run_live(body, description=NOT_GRANTED)


def test_nobody_but_the_holder_is_lent_the_device() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)
        with pytest.raises(Refused) as caught:
            await live.link.lend()
        assert caught.value.errno == errno.EBUSY
        for number in (-1, 0, 1, 2**62):
            with pytest.raises(AtollError):
                await live.link.answer(number, True, "")
        await pair.check_first_undisturbed()

    run_live(body, description=_TWO)


def test_host_refuses_a_rogue_process_the_device() -> None:
    async def body(live: LiveSystem) -> None:
        pair = Pair(live)

        def attach(more: int) -> int:
            rogue = host_device.open_file()
            flags = struct.pack("=H", 0x0002 | 0x1000 | 0x4000 | more)
            try:
                fcntl.ioctl(rogue, 0x400454CA, struct.pack("16s24s", b"atoll0", flags))
            except OSError as error:
                return error.errno or 0
            finally:
                os.close(rogue)
            return 0

        multi_queue = 0x0100
        for _ in range(2):
            assert namespaces.run_inside(live.namespace, lambda: attach(0)) == errno.EBUSY
            assert namespaces.run_inside(live.namespace, lambda: attach(multi_queue))
            await pair.second.link_take(5 * SECONDS)

    run_live(body, description=_TWO)
