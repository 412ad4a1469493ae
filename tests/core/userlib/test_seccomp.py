"""Filters for system calls: what they answer, on both processors."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.userlib import seccomp
from core.userlib.confine import Confinement, settled_rules, starting_rules
from core.userlib.seccomp import ALLOW, REPORT, Argument, assemble, run_filter
from core.userlib.system_calls import AUDIT_ARCHITECTURES, numbers_of

MACHINES = sorted(AUDIT_ARCHITECTURES)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    "rules",
    [
        starting_rules(Confinement()),
        starting_rules(Confinement(network="own", threads=1)),
        settled_rules(Confinement(), listened=True),
        settled_rules(Confinement(), listened=False),
    ],
)
def test_a_filter_allows_what_its_rules_name_and_nothing_else(
    machine: str, rules: seccomp.Rules
) -> None:
    numbers = numbers_of(machine)
    program = assemble(rules, REPORT, machine, numbers)
    allowed = {numbers[name] for name in rules if name in numbers and not rules[name]}
    conditional = {numbers[name] for name in rules if name in numbers and rules[name]}
    for number in range(-1, 600):
        if number not in conditional:
            wanted = ALLOW if number in allowed else REPORT
            assert run_filter(program, number, machine=machine) == wanted, number


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "allowed"),
    [
        ("ioctl", (3, 0x5421), True),
        ("ioctl", (0, 0x5412), False),  # TIOCSTI
        ("fcntl", (3, 3), True),
        ("fcntl", (3, 8), False),  # F_SETOWN
        ("fcntl", (3, 10), False),  # F_SETSIG
        ("prctl", (15,), True),
        ("prctl", (1, 0), False),  # PR_SET_PDEATHSIG
        ("prlimit64", (0, 7, 0, 1), True),
        ("prlimit64", (1, 7, 0, 1), False),
        ("prlimit64", (0, 7, 1 << 32, 1), False),
        ("sched_getaffinity", (0,), True),
        ("sched_getaffinity", (1,), False),
        ("kill", (1, 9), False),
        ("execve", (), False),
        ("clone", (0x3D0F00,), False),
    ],
)
def test_arguments_of_a_settled_task(
    machine: str, name: str, arguments: tuple[int, ...], allowed: bool
) -> None:
    numbers = numbers_of(machine)
    program = assemble(settled_rules(Confinement(), listened=True), REPORT, machine, numbers)
    answer = run_filter(program, numbers[name], arguments, machine)
    assert answer == (ALLOW if allowed else REPORT)


@pytest.mark.parametrize(
    ("flags", "allowed"), [(0x3D0F00, True), (17, False), (0x3D0F00 | 0x4000_0000, False)]
)
def test_only_threads_are_made_and_only_by_who_declares_them(flags: int, allowed: bool) -> None:
    numbers = numbers_of("x86_64")
    for threads, wanted in ((1, allowed), (0, False)):
        rules = starting_rules(Confinement(threads=threads))
        program = assemble(rules, REPORT, "x86_64", numbers)
        answer = run_filter(program, numbers["clone"], (flags,), "x86_64")
        assert answer == (ALLOW if wanted else REPORT)


def test_another_processor_mode_is_allowed_nothing() -> None:
    program = assemble(
        settled_rules(Confinement(), listened=True), REPORT, "x86_64", numbers_of("x86_64")
    )
    assert run_filter(program, 0, machine="aarch64") == REPORT
    assert run_filter(program, 0x4000_0000, machine="x86_64") == REPORT  # x32


@given(
    st.dictionaries(
        st.integers(0, 2000),
        st.lists(
            st.builds(
                Argument,
                st.integers(0, 5),
                st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
                st.sampled_from([0xFFFF_FFFF, 7]),
                st.booleans(),
            ),
            max_size=3,
        ).map(tuple),
        min_size=1,
        max_size=300,
    ),
    st.lists(st.integers(0, 12) | st.just(1 << 32), min_size=6, max_size=6),
)
def test_any_rules_are_answered_as_they_say(
    by_number: dict[int, seccomp.Conditions], arguments: list[int]
) -> None:
    def holds(condition: Argument) -> bool:
        value = arguments[condition.place]
        return value & condition.mask in condition.values and not (condition.wide and value >> 32)

    numbers = {f"call{number}": number for number in by_number}
    rules = {f"call{number}": conditions for number, conditions in by_number.items()}
    program = assemble(rules, seccomp.ERRNO | errno.EPERM, "x86_64", numbers)
    for number in [*by_number, 2001]:
        allowed = number in by_number and all(map(holds, by_number[number]))
        answer = run_filter(program, number, arguments, "x86_64")
        assert answer == (ALLOW if allowed else seccomp.ERRNO | errno.EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_that_libseccomp_knows(machine: str) -> None:
    found = ctypes.util.find_library("seccomp")
    if found is None:
        pytest.skip("the host has no libseccomp to compare with")
    resolve = ctypes.CDLL(found).seccomp_syscall_resolve_name_arch
    resolve.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    architecture = AUDIT_ARCHITECTURES[machine]
    known = 0
    for name, number in numbers_of(machine).items():
        answer = resolve(architecture, name.encode())
        if answer >= 0:  # an older library does not know the newest calls
            assert answer == number, name
            known += 1
    assert known > 250
