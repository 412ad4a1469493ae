"""Errors keep their class, number and text on their way between address spaces."""

from __future__ import annotations

import errno
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import errors
from core.errors import AtollError, Refused, ServerFaultError, from_wire, to_wire
from core.userlib.interface import encode

CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, AtollError) and cls is not AtollError
]
decode = msgspec.msgpack.Decoder(tuple[int, int, str]).decode


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_comes_out_as_it_went_in(cls: type[AtollError]) -> None:
    error = cls(errno.EIO, "why") if cls is Refused else cls("why", 5)
    there = from_wire(*decode(encode(to_wire(error))))
    assert type(there) is cls
    assert (there.detail, there.errno, str(there)) == ("why", 5, "why")


def test_every_error_has_a_code_of_its_own() -> None:
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)
    assert 0 not in {cls.code for cls in CLASSES}


@given(st.integers(-(2**63), 2**64 - 1), st.integers(-(2**63), 2**64 - 1), st.text())
def test_whatever_a_server_sends_as_an_error_is_one(code: int, number: int, detail: str) -> None:
    error = from_wire(*decode(encode((code, number, detail))))
    assert isinstance(error, AtollError)
    assert type(error) in CLASSES
    assert from_wire(*decode(encode(to_wire(error)))).code == error.code


@given(st.integers(), st.text(st.characters(exclude_categories=())))
def test_an_error_with_any_number_and_any_text_can_be_sent(number: int, detail: str) -> None:
    there = from_wire(*decode(encode(to_wire(Refused(number, detail)))))
    assert type(there) is Refused


def test_an_unknown_code_blames_the_server() -> None:
    assert type(from_wire(999, 0, "x")) is ServerFaultError


def test_refused_explains_its_number_when_nothing_else_does() -> None:
    assert Refused(errno.ENOENT).detail == os.strerror(errno.ENOENT)
