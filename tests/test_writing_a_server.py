"""The code on the page about writing a server is run, and does what the page says."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import Refused
from core.system.description import parse_description
from core.userlib.kept_value import VALUE_LIMIT
from core.userlib.server import Server, handlers_of, hooks_of
from core.userlib.task import complete
from tests.support.keeping_task import KeepingTask

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/writing-a-server.md").read_text()


@pytest.fixture
def counting() -> Iterator[Any]:
    """The page's code, as the module that its description names."""
    module = types.ModuleType("counting")
    sys.modules["counting"] = module
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/writing-a-server.md", "exec"), vars(module))
    yield module
    del sys.modules["counting"]


@pytest.fixture
def task() -> Iterator[KeepingTask]:
    made = KeepingTask()
    yield made
    made.close()


def born(cls: type[Server], task: KeepingTask) -> Any:
    """Begin an incarnation; return what serves `add`."""
    server = cls(task.task)
    complete(hooks_of(server).start())

    def add(amount: int, request: int, *, redelivered: bool = False) -> Any:
        server.request.id, server.request.redelivered = request, redelivered
        return handlers_of(server)[0](amount)

    return add


def test_the_pages_server_keeps_its_word(counting: Any, task: KeepingTask) -> None:
    add = born(counting.CountingServer, task)
    assert add(5, 1) == 5
    with pytest.raises(Refused):
        add(-100, 2)
    assert add(1, 3) == 6
    add = born(counting.CountingServer, task)
    assert add(1, 3, redelivered=True) == 6
    assert add(1, 4, redelivered=True) == 7


def test_the_pages_new_version_takes_over_what_the_old_one_left(
    counting: Any, task: KeepingTask
) -> None:
    born(counting.CountingServer, task)(5, 1)
    assert born(counting.TallyingServer, task)(1, 2) == 6
    assert born(counting.TallyingServer, task)(1, 3) == 7
    assert not task.losses


@pytest.mark.parametrize("placement", ["process", "colocated"])
def test_the_pages_description_starts_it(counting: Any, placement: str) -> None:
    text = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
    description = parse_description(f'{text}placement = "{placement}"\n', "page")
    server = description.servers["counting"]
    assert server.cls is counting.CountingServer
    assert server.placement == placement


def test_the_pages_limit_is_the_limit() -> None:
    assert f"{VALUE_LIMIT // (1 << 20)} MiB" in PAGE
