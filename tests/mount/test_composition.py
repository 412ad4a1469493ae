"""What the composition makes of a system description."""

from __future__ import annotations

import pytest

from core.system.description import DescriptionError, SystemDescription
from mount.composition import front_end_of


def test_description_says_who_serves_the_mount() -> None:
    def served(**mount: object) -> tuple[str, str]:
        return front_end_of(SystemDescription({}, {}, mount))

    assert served() == ("pyfuse3", "colocated")
    assert served(front_end="native") == ("native", "colocated")
    assert served(front_end="native", placement="process") == ("native", "process")


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ({"front_end": "fusepy"}, "front_end is"),
        ({"front_end": 3}, "front_end is"),
        ({"frontend": "native"}, "unknown key 'frontend'"),
        ({"front_end": "native", "placement": "kernel"}, "placement is"),
        ({"placement": "process"}, "pyfuse3 keeps its session"),
    ],
)
def test_front_end_that_there_is_not_is_refused(mount: dict[str, object], reason: str) -> None:
    with pytest.raises(DescriptionError, match=reason):
        front_end_of(SystemDescription({}, {}, mount))
