"""The table of locks, against a model that knows octets one by one, and against the host's own."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.errors import Refused
from fs_server import locks as locks_module
from fs_server.interface import LOCK_END, LOCK_NONE, LOCK_READ, LOCK_WRITE, Lock
from fs_server.locking import Locking
from fs_server.locks import LockTable, check_lock

from .support import refused

OCTETS: Final = 12
"""The model's files are so long; the last of its octets stands for all from there to the end."""
CLIENTS: Final = (7, 9)
INODE: Final = 3
kinds = st.sampled_from([LOCK_READ, LOCK_WRITE, LOCK_NONE])
numbers = st.integers(1, 3)
spans = st.tuples(st.integers(0, OCTETS - 1), st.integers(0, OCTETS - 1)).map(sorted)


def lock(
    kind: int, span: list[int], owner: int = 1, opened: int = 0, *, whole: bool = False
) -> Lock:
    start, end = (0, OCTETS - 1) if whole else span
    return Lock(kind, start, LOCK_END if end == OCTETS - 1 else end, owner, opened, 5, whole)


class Model:
    """Who holds which octet how: `held[whole, octet][client, owner] = (kind, opened)`."""

    def __init__(self) -> None:
        self.held: dict[tuple[bool, int], dict[tuple[int, int], tuple[int, int]]] = defaultdict(
            dict
        )

    def octets(self, wanted: Lock) -> range:
        return range(wanted.start, min(wanted.end, OCTETS - 1) + 1)

    def obstacles(self, client: int, wanted: Lock) -> dict[int, set[tuple[int, int]]]:
        """Return whose locks are in the way, by octet."""
        found = {}
        for octet in self.octets(wanted):
            others = {
                who
                for who, (kind, _) in self.held[wanted.whole, octet].items()
                if who != (client, wanted.owner) and LOCK_WRITE in {kind, wanted.kind}
            }
            if others and wanted.kind != LOCK_NONE:
                found[octet] = others
        return found

    def put(self, client: int, wanted: Lock) -> None:
        for octet in self.octets(wanted):
            held = self.held[wanted.whole, octet]
            if wanted.kind == LOCK_NONE:
                held.pop((client, wanted.owner), None)
            else:
                held[client, wanted.owner] = (wanted.kind, wanted.opened)

    def drop(self, gone: Any) -> None:
        """Drop what `gone(whole, client, owner, opened)` says."""
        for (whole, _), held in self.held.items():
            for who, (_, opened) in list(held.items()):
                if gone(whole, *who, opened):
                    del held[who]

    def pieces(self) -> int:
        """Count the pieces that the table should have."""
        count = 0
        for whole in (False, True):
            before: dict[tuple[int, int], tuple[int, int]] = {}
            for octet in range(OCTETS):
                held = self.held[whole, octet]
                count += sum(before.get(who) != how for who, how in held.items())
                before = held
        return count


class LockMachine(RuleBasedStateMachine):
    """Locks by chance, in the table with its journal and in the model; deaths in between."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.kept: int | None = None
        self.told: list[int] = []
        self.locking = self.incarnation(None)
        self.hopeful: set[int] = set()

    def incarnation(self, kept: int | None) -> Locking:
        return Locking(11, self.keep, kept, self.told.append, capacity=5)

    def keep(self, descriptor: int) -> None:
        if self.kept is not None:
            os.close(self.kept)
        self.kept = os.dup(descriptor)

    def teardown(self) -> None:
        self.locking.close()
        if self.kept is not None:
            os.close(self.kept)

    @rule(
        client=st.sampled_from(CLIENTS),
        kind=kinds,
        span=spans,
        owner=numbers,
        opened=numbers,
        whole=st.booleans(),
        eager=st.booleans(),
    )
    def set(
        self,
        client: int,
        kind: int,
        span: list[int],
        owner: int,
        opened: int,
        whole: bool,
        eager: bool,
    ) -> None:
        wanted = lock(kind, span, owner, opened, whole=whole)
        asked = self.locking.locked(client, INODE, wanted)
        before = self.model.held[True, 0].get((client, owner), (LOCK_NONE, 0))[0]
        if whole and before not in {LOCK_NONE, kind}:
            self.model.put(client, lock(LOCK_NONE, span, owner, whole=True))
        obstacles = self.model.obstacles(client, wanted)
        found = self.locking.lock(client, INODE, wanted, eager=eager)
        assert found == asked
        if not obstacles:
            assert found is None
            self.model.put(client, wanted)
            return
        assert found is not None
        first = min(obstacles)
        holders = {number if holder == client else -1 for holder, number in obstacles[first]}
        assert found.owner in holders
        assert max(found.start, wanted.start) == first
        if eager:
            self.hopeful.add(client)

    @rule(client=st.sampled_from(CLIENTS), owner=numbers)
    def unlock(self, client: int, owner: int) -> None:
        self.locking.drop_owner(client, INODE, owner)
        self.model.drop(lambda whole, *who: not whole and who[:2] == (client, owner))

    @rule(client=st.sampled_from(CLIENTS), opened=numbers)
    def close(self, client: int, opened: int) -> None:
        self.locking.drop_opened(client, INODE, opened)
        self.model.drop(lambda _, holder, __, through: (holder, through) == (client, opened))

    @rule(client=st.sampled_from(CLIENTS), all_files=st.booleans())
    def leave(self, client: int, all_files: bool) -> None:
        if all_files:
            self.locking.drop_client(client)
        else:
            self.locking.drop_file(client, INODE)
        self.model.drop(lambda _, holder, *__: holder == client)
        self.hopeful.discard(client)

    @rule()
    def die(self) -> None:
        self.locking.close()
        self.locking = self.incarnation(None if self.kept is None else os.dup(self.kept))
        self.hopeful.clear()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        found: dict[tuple[bool, int], dict[tuple[int, int], tuple[int, int]]] = defaultdict(dict)
        for client, inode, held in self.locking.table.all():
            assert inode == INODE
            for octet in self.model.octets(held):
                assert (client, held.owner) not in found[held.whole, octet]
                found[held.whole, octet][client, held.owner] = (held.kind, held.opened)
        for whole in (False, True):
            for octet in range(OCTETS):
                assert found[whole, octet] == self.model.held[whole, octet]
        assert self.locking.table.count == self.model.pieces()

    @invariant()
    def tells_only_who_hopes(self) -> None:
        assert set(self.told) <= self.hopeful
        self.hopeful -= set(self.told)
        self.told.clear()


TestLocks = LockMachine.TestCase
TestLocks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_who_was_refused_is_told_once_when_something_is_given_back() -> None:
    told: list[int] = []
    locking = Locking(tell=told.append)
    everything = lock(LOCK_WRITE, [0, OCTETS - 1])
    assert locking.lock(7, INODE, everything, eager=True) is None
    assert locking.lock(9, INODE, everything, eager=True) is not None
    assert locking.lock(8, INODE, everything, eager=False) is not None
    locking.lock(7, 4, everything, eager=False)
    locking.drop_file(7, 4)
    assert told == []
    locking.lock(7, INODE, lock(LOCK_READ, [0, 3]), eager=False)
    assert told == [9]
    locking.drop_client(7)
    assert told == [9]


def test_two_shared_owners_that_both_want_more_do_not_wait_for_ever() -> None:
    """As with the host's own locks, each gives its lock up before it asks for the other kind."""
    locking = Locking()
    for owner in (1, 2):
        assert locking.lock(7, INODE, lock(LOCK_READ, [], owner, whole=True), eager=False) is None
    wanted = lock(LOCK_WRITE, [], 1, whole=True)
    assert locking.lock(7, INODE, wanted, eager=True) is not None
    assert locking.lock(7, INODE, lock(LOCK_WRITE, [], 2, whole=True), eager=True) is None
    assert locking.lock(7, INODE, wanted, eager=True) is not None


def test_another_boots_locks_are_void() -> None:
    kept: list[int] = []
    locking = Locking(1, lambda number: kept.append(os.dup(number)))
    locking.lock(7, INODE, lock(LOCK_WRITE, [0, 3]), eager=False)
    locking.close()
    assert Locking(1, kept=os.dup(kept[0])).table.count == 1
    assert Locking(2, kept=kept[0]).table.count == 0


def test_nothing_is_kept_before_the_first_lock() -> None:
    kept: list[int] = []
    locking = Locking(1, kept.append)
    locking.drop_owner(7, INODE, 1)
    locking.drop_opened(7, INODE, 1)
    locking.drop_file(7, INODE)
    locking.drop_client(7)
    assert locking.locked(7, INODE, lock(LOCK_WRITE, [0, 3])) is None
    assert kept == []


def test_limits_are_kept_also_by_giving_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks_module, "CLIENT_LOCKS_LIMIT", 3)
    monkeypatch.setattr(locks_module, "LOCKS_LIMIT", 4)
    table = LockTable()
    for start in (0, 10, 20):
        table.put(7, INODE, Lock(LOCK_READ, start, start + 4))
    assert refused(table.put, 7, INODE, Lock(LOCK_READ, 30, 34)) == "ENOLCK"
    assert refused(table.put, 7, INODE, Lock(LOCK_NONE, 2, 2)) == "ENOLCK"
    table.put(9, INODE, Lock(LOCK_READ, 0, 4))
    assert refused(table.put, 9, INODE, Lock(LOCK_READ, 10, 14)) == "ENOLCK"
    table.put(7, INODE, Lock(LOCK_READ, 5, 9))
    assert table.count == 3
    table.put(9, INODE, Lock(LOCK_READ, 40, 44))
    table.drop_client(7)
    assert table.count == 2
    table.drop_client(9)
    assert (table.count, list(table.all())) == (0, [])


huge = st.one_of(st.integers(-3, 3), st.integers(-(1 << 65), 1 << 65))


@given(kind=huge, start=huge, end=huge, owner=huge, opened=huge, pid=huge, whole=st.booleans())
def test_whatever_is_asked_is_done_or_refused(
    kind: int, start: int, end: int, owner: int, opened: int, pid: int, whole: bool
) -> None:
    locking = Locking()
    asked = Lock(kind, start, end, owner, opened, pid, whole)
    try:
        assert locking.locked(7, INODE, asked) is None
        assert locking.lock(7, INODE, asked, eager=True) is None
        check_lock(asked)
    except Refused as error:
        assert error.errno == errno.EINVAL  # noqa: PT017
        assert locking.table.count == 0
    locking.drop_owner(7, INODE, owner)
    locking.close()


# -- the host's own locks --------------------------------------------------------------------------

_FLOCK: Final = struct.Struct("hhqqi4x")
_KINDS: Final = {LOCK_READ: fcntl.F_RDLCK, LOCK_WRITE: fcntl.F_WRLCK, LOCK_NONE: fcntl.F_UNLCK}
_HOST: Final = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
for line in sys.stdin:
    command, flock = line.split()
    try:
        done = fcntl.fcntl(file, int(command), bytes.fromhex(flock))
        print(done.hex(), flush=True)
    except (BlockingIOError, PermissionError):
        print("-", flush=True)
"""


class HostOwner:
    """A process of the host, as an owner of range locks on a file."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", _HOST, str(path)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self, command: int, wanted: Lock) -> str:
        length = 0 if wanted.end == LOCK_END else wanted.end - wanted.start + 1
        octets = _FLOCK.pack(_KINDS[wanted.kind], os.SEEK_SET, wanted.start, length, 0)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(command, octets.hex(), file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def set(self, wanted: Lock) -> bool:
        return self.ask(fcntl.F_SETLK, wanted) != "-"

    def free(self, wanted: Lock) -> bool:
        """Return whether nothing is in the way of a lock (F_GETLK)."""
        kind, *_ = _FLOCK.unpack(bytes.fromhex(self.ask(fcntl.F_GETLK, wanted)))
        return bool(kind == fcntl.F_UNLCK)

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("locks") / "f"
    path.touch()
    made = [HostOwner(path) for _ in range(3)]
    yield made
    for owner in made:
        owner.end()


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(numbers, kinds, spans), max_size=25))
def test_range_locks_are_given_and_refused_as_by_the_host(
    owners: list[HostOwner], steps: list[tuple[int, int, list[int]]]
) -> None:
    for owner in owners:
        owner.set(lock(LOCK_NONE, [0, OCTETS - 1]))
    locking = Locking()
    for number, kind, span in steps:
        wanted = lock(kind, span, number)
        given = locking.lock(7, INODE, wanted, eager=False) is None
        assert given == owners[number - 1].set(wanted)
    for number, owner in enumerate(owners, 1):
        for octet in range(OCTETS):
            for kind in (LOCK_READ, LOCK_WRITE):
                probe = lock(kind, [octet, octet], number)
                assert (locking.locked(7, INODE, probe) is None) == owner.free(probe)
