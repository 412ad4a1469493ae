"""What the composition makes of a system description."""

from __future__ import annotations

from pathlib import Path

import pytest

import mount
from core.system.description import DescriptionError, SystemDescription, load_description
from mount.composition import front_end_of
from mount.stream_directories import stream_directories


def test_description_says_who_serves_the_mount() -> None:
    def served(**mount: object) -> tuple[str, str]:
        return front_end_of(SystemDescription({}, {}, mount))

    assert served() == ("pyfuse3", "colocated")
    assert served(front_end="native") == ("native", "colocated")
    assert served(front_end="native", placement="process") == ("native", "process")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"front_end": "fusepy"}, "front_end is"),
        ({"front_end": 3}, "front_end is"),
        ({"frontend": "native"}, "unknown key 'frontend'"),
        ({"front_end": "native", "placement": "kernel"}, "placement is"),
        ({"placement": "process"}, "pyfuse3 keeps its session"),
    ],
)
def test_front_end_that_there_is_not_is_refused(table: dict[str, object], reason: str) -> None:
    with pytest.raises(DescriptionError, match=reason):
        front_end_of(SystemDescription({}, {}, table))


def test_pipes_are_shown_if_there_are_any() -> None:
    shipped = load_description(Path(mount.__file__).with_name("system.toml"), {}, ())
    assert stream_directories(shipped) == {"pipe": "pipe"}
    assert stream_directories(SystemDescription({}, {})) == {}


@pytest.mark.parametrize(
    ("streams", "reason"),
    [
        ("pipe", "is a table"),
        ({"a/b": "pipe"}, "cannot be a name"),
        ({"": "pipe"}, "cannot be a name"),
        ({"p": "pump"}, "no server 'pump'"),
        ({"p": 7}, "no server 7"),
        ({"f": "fs"}, "offers no streams"),
        ({str(number): "pipe" for number in range(17)}, "up to 16 names"),
    ],
)
def test_streams_that_there_are_not_are_refused(streams: object, reason: str) -> None:
    shipped = load_description(Path(mount.__file__).with_name("system.toml"), {}, ())
    wrong = SystemDescription(shipped.servers, shipped.joined, {"streams": streams})
    with pytest.raises(DescriptionError, match=reason):
        stream_directories(wrong)
