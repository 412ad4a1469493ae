"""Interfaces: what a signature may be, and what follows from it."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.abi import BULK_LIMIT, Right
from core.errors import BadMessageError, ServerFaultError
from core.userlib.interface import Bulk, Descriptor, Interface, encode, octets, operation
from core.userlib.server import Server, is_blocking
from core.userlib.stub import stub_class, with_deadline
from core.userlib.task import complete
from tests.support.servers import Point, Probe, ProbeServer, SlowServer


class All(Interface):
    """Every kind of parameter and of result."""

    @operation
    async def nothing(self) -> None:
        """Nothing."""

    @operation
    async def everything(
        self, number: int, point: Point, data: Bulk, a: Right, b: Right, c: Descriptor
    ) -> tuple[int, Bulk, Right, Descriptor]:
        """All kinds."""

    @operation(waits=True, idempotent=True, room="size")
    async def bulk(self, size: int = 7) -> Bulk:
        """One carried value."""

    @operation
    async def pair(self) -> tuple[int, str]:
        """A tuple of fields."""

    @operation
    async def carried(self) -> tuple[Right, Right]:
        """Carried values without fields."""

    @operation
    async def optional(self, maybe: int | None = None, ratio: float = 0.5) -> list[int] | None:
        """Defaults, a union and a number with a point."""

    @operation
    async def clash(self, right: Right) -> None:
        """A parameter called as something in a stub might be."""


def test_numbers_follow_the_order_and_inheritance_appends() -> None:
    class More(All):
        @operation
        async def extra(self) -> None:
            """One more."""

    assert [spec.index for spec in All.OPERATIONS] == list(range(7))
    assert More.OPERATIONS[:7] == All.OPERATIONS
    assert More.named("extra").index == 7
    with pytest.raises(KeyError):
        All.named("extra")


def test_a_signature_says_what_a_message_carries() -> None:
    spec = All.named("everything")
    assert (spec.fields, spec.bulk, spec.rights, spec.descriptors) == (2, True, 2, 1)
    assert (spec.reply_has_field, spec.reply_bulk) == (True, True)
    assert (spec.reply_rights, spec.reply_descriptors) == (1, 1)
    assert All.named("carried").reply_rights == 2
    assert not All.named("pair").reply_carried
    assert [spec.name for spec in All.OPERATIONS if spec.simple] == ["nothing", "pair", "optional"]
    assert All.named("bulk").waits
    assert All.named("bulk").idempotent


@pytest.mark.parametrize("name", ["everything", "bulk", "pair", "carried", "nothing"])
def test_a_reply_taken_apart_is_put_together_again(name: str) -> None:
    spec = All.named(name)
    values: dict[str, Any] = {
        "everything": (1, b"x", Right(), Descriptor(-1)),
        "bulk": b"y",
        "pair": (1, "x"),
        "carried": (Right(), Right()),
        "nothing": None,
    }
    plain, carried = spec.split_reply(values[name])
    assert spec.join_reply(plain, carried) == values[name]


def test_parameters_out_of_order_are_an_error_of_the_interface() -> None:
    with pytest.raises(TypeError, match="ordered"):

        class Wrong(Interface):
            @operation
            async def wrong(self, data: Bulk, number: int) -> None:
                """Out of order."""

    with pytest.raises(TypeError, match="ordered"):

        class Twice(Interface):
            @operation
            async def twice(self, one: Bulk, two: Bulk) -> None:
                """Two of bulk."""

    with pytest.raises(TypeError, match="underscore"):

        class Hidden(Interface):
            @operation
            async def hidden(self, _right: int) -> None:
                """A name that a stub uses."""


@given(st.binary(max_size=60))
def test_no_octets_make_a_request_that_is_no_request(data: bytes) -> None:
    for spec in (*All.OPERATIONS, *Probe.OPERATIONS):
        try:
            arguments = spec.decode_request(data)
        except BadMessageError:
            pass
        else:
            assert spec.decode_request(encode(arguments)) == arguments
        with contextlib.suppress(ServerFaultError):
            spec.decode_reply(data)


@given(st.integers(-(2**63), 2**64 - 1))
def test_room_is_never_negative_and_never_beyond_a_message(size: int) -> None:
    assert 0 <= All.named("bulk").room_of((size,)) <= BULK_LIMIT
    assert All.named("bulk").room_of(("wrong",)) == 0


def test_octets_are_counted_whatever_the_memory_holds() -> None:
    assert len(octets(memoryview(bytes(8)).cast("Q"))) == 8
    assert octets(b"x") == b"x"
    for wrong in (memoryview(b"abcd")[::2], "text", 7, None):
        with pytest.raises(BadMessageError):
            octets(wrong)  # type: ignore[arg-type]


class FakeTask:
    """Takes calls and returns their arguments."""

    async def call(
        self, right: Right, spec: Any, arguments: tuple[Any, ...], deadline_s: float | None = None
    ) -> Any:
        """Return what was called."""
        return right, spec.name, arguments, deadline_s


class FakePort:
    """A port without a co-located server."""

    direct = None


class FakeRight(Right):
    """A right as a stub sees it."""

    port = FakePort
    mask = 0


def test_a_stub_passes_its_arguments_on() -> None:
    right, other = FakeRight(), FakeRight()
    stub: Any = stub_class(All)(FakeTask(), right)
    whole: object = stub
    assert complete(stub.bulk()) == (right, "bulk", (7,), None)
    assert complete(stub.optional(ratio=2)) == (right, "optional", (None, 2), None)
    assert complete(stub.clash(other)) == (right, "clash", (other,), None)
    assert stub.right is right
    assert isinstance(whole, All)


def test_a_stub_in_a_hurry_passes_its_deadline_on() -> None:
    stub: Any = stub_class(All)(FakeTask(), FakeRight())
    assert complete(with_deadline(stub, 2.5).bulk(3))[2:] == ((3,), 2.5)
    assert complete(with_deadline(with_deadline(stub, 2.5), 1.5).bulk(3))[3] == 1.5


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("bulk", ("7",)),
        ("bulk", (True,)),
        ("bulk", (7.0,)),
        ("optional", ("x",)),
        ("optional", (1, "x")),
        ("everything", (1, (1, 2.0), b"", 1, 1, 1)),
        ("everything", (1, Point(1, 2.0), "text", 1, 1, 1)),
    ],
)
def test_a_stub_refuses_wrong_types(name: str, arguments: tuple[Any, ...]) -> None:
    stub: Any = stub_class(All)(FakeTask(), FakeRight())
    with pytest.raises(BadMessageError, match=name):
        complete(getattr(stub, name)(*arguments))


def test_a_server_that_lacks_an_operation_is_no_server() -> None:
    class One(Interface):
        @operation
        async def go(self, number: int) -> None:
            """Go."""

        @operation(waits=True)
        async def stay(self) -> None:
            """Stay."""

    with pytest.raises(TypeError, match="no method go"):
        type("S", (Server,), {"interface": One})

    async def stay(self: Any) -> None:
        """Stay."""

    with pytest.raises(TypeError, match="declares"):
        type("S", (Server,), {"interface": One, "go": lambda self, count: None, "stay": stay})

    async def go(self: Any, number: int) -> None:
        """Go."""

    with pytest.raises(TypeError, match="must be a plain function"):
        type("S", (Server,), {"interface": One, "go": go, "stay": stay})


def test_only_a_server_that_never_waits_is_served_without_a_scheduler() -> None:
    assert is_blocking(ProbeServer)
    assert not is_blocking(SlowServer)


def test_structs_are_validated_on_both_sides() -> None:
    spec = Probe.named("move")
    good = encode((Point(1, 2.0, ["a"]), {"x": 1.0}))
    assert spec.decode_request(good) == (Point(1, 2.0, ["a"]), {"x": 1.0})
    bads: list[Any] = [("p", {}), ([1, "x"], {}), ([1, 2.0], {"x": "y"}), ([1, 2.0],)]
    for bad in bads:
        with pytest.raises(BadMessageError):
            spec.decode_request(msgspec.msgpack.encode(bad))
