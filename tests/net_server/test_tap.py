"""The driver: options, messages when it cannot work, and namespaces that stay in their thread."""

from __future__ import annotations

import errno
import gc
import os
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from core.errors import Refused, TaskError
from core.userlib.interface import Descriptor
from core.userlib.task import Task, complete
from net_server import host_device, namespaces
from net_server.host_device import HostDevice
from net_server.link import LinkInfo
from net_server.server import NetServer
from net_server.stack.routes import Prefix, station_address
from net_server.tap import TapServer


class Place:
    """A task whose kernel keeps nothing."""

    name = "tap"

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.lines: list[str] = []
        self.descriptors: dict[str, int] = {}

    def keep(self, label: str, descriptor: int) -> None:
        self.descriptors[label] = os.dup(descriptor)

    def kept(self, label: str) -> int | None:
        number = self.descriptors.get(label)
        return None if number is None else os.dup(number)

    def forget(self, label: str) -> None:
        number = self.descriptors.pop(label, None)
        if number is not None:
            os.close(number)

    def log(self, text: str) -> None:
        self.lines.append(text)


def tap(place: Place) -> TapServer:
    return TapServer(cast("Task", place))


def lend(driver: TapServer) -> tuple[LinkInfo, Descriptor]:
    """Borrow the link of a driver, as the task with badge 1."""
    driver.request.badge = 1
    return complete(driver.lend())


def own_namespace() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


@pytest.mark.parametrize(
    "options",
    [
        {"host_address": "10.90.0.1"},
        {"host_address": 7},
        {"host_link_address": "01:00:5e:00:00:01"},
        {"name": "much too long a name for it"},
        {"name": "a/b"},
        {"mtu": 100},
        {"mtu": "1500"},
        {"offload": "no"},
    ],
    ids=str,
)
def test_wrong_option_of_the_driver_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="task tap, options: "):
        tap(Place(**options))


@pytest.mark.parametrize(
    "options",
    [{"address": "10.90.0"}, {"address": None}, {"gateway": "x"}, {"link_address": "02"}],
    ids=str,
)
def test_wrong_option_of_the_server_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="options: "):
        NetServer(cast("Task", Place(**options)))


def test_namespace_that_is_not_there_is_named() -> None:
    with pytest.raises(TaskError, match="/nowhere/at/all: No such file"):
        tap(Place(namespace="/nowhere/at/all"))


def test_missing_device_file_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_device, "TUN_PATH", "/nowhere/tun")
    with pytest.raises(TaskError, match="/nowhere/tun is missing: load the tun module"):
        tap(Place(namespace="host"))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_closed_device_file_is_explained_with_its_mode(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tun"
    path.touch(0o600)
    monkeypatch.setattr(host_device, "TUN_PATH", str(path))
    said = host_device.explain(OSError(number, os.strerror(number)), "atoll0")
    assert f"{path} (mode 600)" in said
    assert "CAP_NET_ADMIN" in said
    assert "run as root" in said


def test_name_in_use_is_explained() -> None:
    said = host_device.explain(OSError(errno.EBUSY, "busy"), "atoll0")
    assert "atoll0 exists already" in said


@pytest.mark.needs_root
def test_work_inside_a_namespace_leaves_this_thread_where_it_was() -> None:
    before = own_namespace()
    namespace = namespaces.create()
    try:
        threads = threading.active_count()
        inside = namespaces.run_inside(namespace, own_namespace)
        assert inside != before
        assert own_namespace() == before
        assert namespaces.run_inside(None, own_namespace) == before
        assert threading.active_count() == threads
    finally:
        os.close(namespace)


@pytest.mark.needs_root
def test_error_inside_a_namespace_comes_out() -> None:
    namespace = namespaces.create()
    try:
        with pytest.raises(FileNotFoundError):
            namespaces.run_inside(namespace, lambda: os.open("/nowhere/at/all", os.O_RDONLY))
        with pytest.raises(ZeroDivisionError):
            namespaces.run_inside(namespace, lambda: 1 // 0)
    finally:
        os.close(namespace)
    with pytest.raises(OSError, match="Invalid argument"), Path("/dev/null").open() as nothing:
        namespaces.run_inside(nothing.fileno(), own_namespace)


@pytest.mark.needs_root
def test_driver_finds_its_device_again_and_lends_it() -> None:
    place = Place(name="atoll7")
    try:
        first, lent = lend(tap(place))
        again, lent_again = lend(tap(place))
        assert first == again
        assert (first.name, first.mtu, first.host_address) == ("atoll7", 1500, "10.90.0.1/24")
        assert first.device_header
        assert first.checksum_offload
        assert os.fstat(lent.fileno()).st_ino == os.fstat(lent_again.fileno()).st_ino
        assert not place.lines
        namespace = tap(place).namespace()
        names = namespaces.run_inside(namespace.fileno(), device_names)
        assert names == ["atoll7", "lo"]
    finally:
        for descriptor in place.descriptors.values():
            os.close(descriptor)


@pytest.mark.needs_root
def test_driver_without_offload_says_so() -> None:
    place = Place(offload=False)
    try:
        info, _ = lend(tap(place))
        assert not info.device_header
        assert not info.checksum_offload
        assert not info.udp_segmentation
    finally:
        for descriptor in place.descriptors.values():
            os.close(descriptor)


@pytest.mark.needs_root
def test_given_namespace_is_entered_by_its_path() -> None:
    namespace = namespaces.create()
    place = Place(namespace=f"/proc/self/fd/{namespace}")
    try:
        driver = tap(place)
        assert namespaces.run_inside(namespace, device_names) == ["atoll0", "lo"]
        assert os.fstat(driver.namespace().fileno()).st_ino == os.fstat(namespace).st_ino
    finally:
        os.close(namespace)
        for descriptor in place.descriptors.values():
            os.close(descriptor)


@pytest.mark.needs_root
def test_device_name_in_use_is_refused() -> None:
    namespace = namespaces.create()
    prefix = Prefix.from_text("10.90.0.1/24")
    wanted = HostDevice("atoll0", 1500, prefix, station_address("", prefix))
    made = namespaces.run_inside(namespace, lambda: host_device.open_device(wanted, header=False))
    try:
        with pytest.raises(TaskError, match="exists already"):
            tap(Place(namespace=f"/proc/self/fd/{namespace}"))
    finally:
        os.close(made)
        os.close(namespace)


def test_driver_in_the_hosts_namespace_has_none_to_lend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TapServer, "_take_up", lambda self: None)
    with pytest.raises(Refused) as refused:
        tap(Place(namespace="host")).namespace()
    assert refused.value.errno == errno.ENOENT


def device_names() -> list[str]:
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return sorted(line.partition(":")[0].strip() for line in lines)


@pytest.mark.needs_root
def test_incarnation_that_is_gone_leaves_no_descriptor_open() -> None:
    place = Place()
    try:
        lend(tap(place))
        tap(place)  # opens another spare file for the one that the first has used
        gc.collect()  # what other tests left behind must not end just now
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            lend(tap(place))
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        for descriptor in place.descriptors.values():
            os.close(descriptor)
