"""System descriptions: what is wrong is found before anything starts, and the line is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.abi import ALL_OPERATIONS
from core.system.description import DescriptionError, load_description, parse_description
from tests.support.servers import Probe

GOOD = """\
[server.probe]
class = "tests.support.servers:ProbeServer"
options = { journal = "/dev/null" }

[server.relay]
class = "tests.support.servers:RelayServer"
placement = "colocated"
restart = "transient"
intensity = 3
period_s = 2.5
grants = { probe = { server = "probe", operations = ["echo", "seen"] }, slow = "slow" }

[server.slow]
class = "tests.support.servers:SlowServer"
kernel = "full"

[joined]
grants = { probe = "probe" }
"""


def test_a_good_description_is_read_whole() -> None:
    read = parse_description(GOOD, "good.toml", options={"probe": {"more": 1}})
    relay = read.servers["relay"]
    assert (relay.placement, relay.restart, relay.intensity) == ("colocated", "transient", 3)
    assert relay.period_s == 2.5
    echo, seen = Probe.named("echo").index, Probe.named("seen").index
    assert relay.grants["probe"].mask == 1 << echo | 1 << seen
    assert relay.grants["slow"].mask == ALL_OPERATIONS
    assert read.servers["slow"].privileged
    assert not relay.privileged
    assert read.servers["probe"].options == {"journal": "/dev/null", "more": 1}
    assert read.joined["probe"].server == "probe"
    assert read.modules() == ["tests.support.servers"]


def test_each_server_starts_after_those_it_has_rights_to() -> None:
    assert parse_description(GOOD, "x").start_order() == ["probe", "slow", "relay"]


def test_servers_with_rights_to_each_other_start_in_some_order() -> None:
    text = GOOD.replace('kernel = "full"', 'grants = { relay = "relay" }')
    assert sorted(parse_description(text, "x").start_order()) == ["probe", "relay", "slow"]


def test_a_server_left_out_takes_the_rights_to_it_along() -> None:
    read = parse_description(GOOD, "x", without=("probe",))
    assert sorted(read.servers) == ["relay", "slow"]
    assert list(read.servers["relay"].grants) == ["slow"]
    assert read.joined == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('placement = "colocated"', 'placement = "here"', r":7: placement is one of"),
        ('restart = "transient"', 'restart = "never"', r":8: restart is one of"),
        ("intensity = 3", "intensity = 0", r":9: intensity is a number above 0"),
        ("intensity = 3", "intensity = true", r":9: intensity is a number above 0"),
        ("period_s = 2.5", "period_s = -1", r":10: period_s is a number above 0"),
        ("period_s = 2.5", "period_s = nan", r":10: period_s is a number above 0"),
        ("period_s = 2.5", 'perod_s = "x"', r":10: unknown key 'perod_s'"),
        ('"echo", "seen"', '"echo", "sing"', r":11: Probe has no operation 'sing'"),
        ('["echo", "seen"]', '"echo"', r":11: "),
        ('["echo", "seen"]', "[1]", r":11: "),
        ('slow = "slow"', 'slow = "slowly"', r":11: .*no server here"),
        ('slow = "slow"', "slow = 7", r":11: "),
        ('slow = "slow"', 'slow = ["slow"]', r":11: "),
        ('slow = "slow"', 'slow = { serve = "slow" }', r":11: "),
        ("RelayServer", "NoServer", r":6: .*cannot be loaded"),
        ("RelayServer", "Journal", r":6: .*no subclass"),
        ("tests.support.servers:RelayServer", "no.such:Server", r":6: .*cannot be loaded"),
        ("tests.support.servers:RelayServer", "plain", r":6: a server needs class"),
        ('kernel = "full"', 'kernel = "half"', r":15: kernel is"),
        ('{ journal = "/dev/null" }', "7", r":3: options is a table"),
        ('{ probe = "probe" }\n', "7\n", r":18: grants is a table"),
        ("[joined]", "[jointed]", r":17: unknown table"),
        ("[server.slow]", "[server]\nslow = 3\n[other]", r": "),
        ("[server.slow]", "[server.slow", r"good.toml: "),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(
        DescriptionError, match=rf"good\.toml.*{message}" if message[0] == ":" else message
    ):
        parse_description(GOOD.replace(old, new), "good.toml")


def test_what_is_said_of_the_mount_is_for_the_composition() -> None:
    read = parse_description(GOOD + '\n[mount]\nfront_end = "native"\n', "x")
    assert read.mount == {"front_end": "native"}
    assert parse_description(GOOD, "x").mount == {}
    with pytest.raises(DescriptionError, match="mount is a table"):
        parse_description("mount = 3\n" + GOOD, "x")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"nothing\.toml: No such file"):
        load_description(tmp_path / "nothing.toml")


@given(st.data())
def test_no_change_of_the_text_gets_past_as_another_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(len(GOOD), start + 20)))
    text = (
        GOOD[:start]
        + data.draw(st.sampled_from(["", "7", '"x"', "[]", "{}", "=", "\n"]))
        + GOOD[end:]
    )
    found = ""
    try:
        parse_description(text, "x")
    except DescriptionError as error:
        found = str(error)
    assert not found or found.startswith("x:")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('dependents = ["nobody"]', "'nobody' in dependents is no server here"),
        ('dependents = ["relay"]', "relay does not depend on itself"),
        ('dependents = ["slow", "slow"]', "dependents names a server twice"),
        ('dependents = "slow"', "dependents is a list of servers' names"),
        ('escalation = "panic"', "escalation is one of give-up, restart-all, end-system"),
        ("silence_s = -1", "silence_s is a number, 0 or more"),
        ("first_delay_s = 9", "first_delay_s is more than longest_delay_s"),
        ("longest_delay_s = 0", "longest_delay_s is a number above 0"),
    ],
)
def test_a_wrong_policy_is_named_with_its_line(line: str, said: str) -> None:
    text = GOOD.replace("intensity = 3", line)
    with pytest.raises(DescriptionError) as caught:
        parse_description(text, "policy.toml")
    assert said in str(caught.value)
    number = text.splitlines().index(line) + 1
    assert str(caught.value).startswith(f"policy.toml:{number}: ")


def test_a_policy_is_read_whole() -> None:
    more = 'dependents = ["slow"]\nescalation = "restart-all"\nsilence_s = 0\nhost_s = 3'
    relay = parse_description(GOOD.replace("intensity = 3", more), "x").servers["relay"]
    assert relay.policy.dependents == ["slow"]
    assert relay.policy.escalation == "restart-all"
    assert (relay.watch.silence_s, relay.watch.host_s, relay.watch.start_s) == (0.0, 3.0, 20.0)
