"""Real work through the doors of a system: each function is one turn of one kind of it.

A turn does what a user would do, checks exit statuses and octets, and raises `LossError` for
anything that a user would complain of. What it left in the mount it removes, but for the last tree.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Final

from net_server.namespaces import run_inside
from tests.support.live_system import LiveSystem

from .deaths import Storm
from .run import LossError, Run

ADDRESS: Final = "10.90.0.2"
PATIENCE_S: Final = 60.0
"""A command that takes longer hangs."""
_NETWORK: Final = ("supervisor", "tap", "net")
_GIT: Final = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}
Manifest = dict[str, str]


class Workplace:
    """What a turn needs: the system, a tree to work with, and a place for each worker."""

    def __init__(self, run: Run, system: LiveSystem, namespace: int) -> None:
        self.run = run
        self.system = system
        self.mount = system.mountpoint
        self.namespace = namespace
        self.storm: Storm | None = None
        self.source = system.top / "source"
        self.manifest = make_tree(self.source, run.random("tree"), 20 if run.small else 60)

    def command(self, *words: str | Path, stdin: Path | None = None) -> str:
        """Run a program to its end and return its output. LossError unless it succeeded."""
        text = " ".join(map(str, words))
        environment = {**self.system.environment, **_GIT}
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
            try:
                done = subprocess.run(
                    list(map(str, words)), stdin=source, capture_output=True, check=False,
                    timeout=PATIENCE_S, env=environment,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise LossError(f"{text}: hangs for {PATIENCE_S:g} s; {self._waiting()}") from None
        self.run.count("commands")
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()[-600:]
            raise LossError(f"{text}: status {done.returncode}: {said}")
        return done.stdout.decode(errors="replace")

    def _waiting(self) -> str:
        """Return what the kernel's ports hold, to find out why something hangs."""
        done = self.system.atoll("ports", "--json")
        ports = json.loads(done.stdout) if done.returncode == 0 else []
        held = [port for port in ports if port["queued"] or port["in_flight"]]
        return f"ports that hold messages: {held}; {self.system.atoll('ps').stdout}"

    def disturbed(self, servers: tuple[str, ...], since: float) -> bool:
        """Tell whether one of the servers suffered a fault since then."""
        return self.storm is not None and self.storm.disturbed(servers, since)


def make_tree(top: Path, chance: random.Random, files: int) -> Manifest:
    """Make a tree of small and large files, links among them; return its manifest."""
    top.mkdir()
    places = [top]
    for number in range(files):
        place = chance.choice(places)
        if chance.random() < 0.15:
            places.append(place / f"directory {number}")
            places[-1].mkdir()
        path = place / f"file-{number}"
        size = chance.choice((0, 1, 100, 4096, 5000, 20_000, 131_072, 300_000))
        path.write_bytes(chance.randbytes(size))
        path.chmod(chance.choice((0o644, 0o755, 0o600)))
        if number % 10 == 0:
            (place / f"link-{number}").symlink_to(path.name)
    return manifest_of(top)


def manifest_of(top: Path, *, from_server: bool = False) -> Manifest:
    """Return what is below a directory: by relative path, a digest or what else it is.

    Args:
        from_server: have the host forget the octets that it caches first.
    """
    found: Manifest = {}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = Path(directory) / name
            key = str(path.relative_to(top))
            if path.is_symlink():
                found[key] = f"link {path.readlink()}"
            elif path.is_dir():
                found[key] = "directory"
            else:
                found[key] = digest_of(path, from_server=from_server)
    return found


def digest_of(path: Path, *, from_server: bool = False) -> str:
    """Return the SHA-256 of a file's octets."""
    with path.open("rb") as file:
        if from_server:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_tree(place: Workplace, top: Path) -> None:
    """LossError unless a copy of the source is the source, octet by octet."""
    found = manifest_of(top, from_server=True)
    if found != place.manifest:
        keys = found.keys() | place.manifest.keys()
        wrong = sorted(key for key in keys if found.get(key) != place.manifest.get(key))
        raise LossError(f"{top}: differs from what was copied in {wrong[:5]}")
    place.run.count("files compared", len(found))


def copy(place: Workplace, chance: random.Random, turn: int) -> None:
    """`cp -r`, `diff -r`, and the octets again past the host's cache."""
    last, target = place.mount / f"tree-{turn - 1}", place.mount / f"tree-{turn}"
    place.command("cp", "-r", place.source, target)
    place.command("diff", "-r", place.source, target)
    check_tree(place, target)
    if last.exists():
        check_tree(place, last)
        place.command("rm", "-r", last)


def archive(place: Workplace, chance: random.Random, turn: int) -> None:
    """`tar` in, `tar` out, and both compared."""
    work = place.mount / "archive"
    work.mkdir()
    place.command("tar", "-cf", work / "a.tar", "-C", place.source, ".")
    place.command("tar", "-df", work / "a.tar", "-C", place.source)
    (work / "out").mkdir()
    place.command("tar", "-xf", work / "a.tar", "-C", work / "out")
    check_tree(place, work / "out")
    shutil.rmtree(work)


def repository(place: Workplace, chance: random.Random, turn: int) -> None:
    """`git`: a history of some commits, packed and cloned."""
    work = place.mount / "repository"
    place.command("git", "init", "-q", "--template=", work)
    git = ("git", "-C", work)
    for number in range(1 if place.run.small else 3):
        for _ in range(5):
            path = work / f"file-{chance.randrange(20)}"
            path.write_bytes(chance.randbytes(chance.randrange(20_000)))
        place.command(*git, "add", "-A")
        place.command(*git, "commit", "-q", "--allow-empty", "-m", f"commit {number}")
    place.command(*git, "fsck", "--strict")
    if chance.random() < 0.3 and not place.run.small:
        place.command(*git, "gc", "-q")
    source = chance.choice((str(work), f"file://{work}"))  # the second by way of a packed stream
    clone = ("git", "clone", "-q", "--template=", "--no-hardlinks")
    place.command(*clone, source, place.mount / "clone")
    place.command("git", "-C", place.mount / "clone", "fsck", "--strict")
    heads = [place.command("git", "-C", top, "rev-parse", "HEAD") for top in (work, "clone")[:1]]
    heads.append(place.command("git", "-C", place.mount / "clone", "rev-parse", "HEAD"))
    if heads[0] != heads[1] or place.command(*git, "status", "--porcelain"):
        raise LossError(f"git: {heads}, or files differ from the last commit")
    shutil.rmtree(work)
    shutil.rmtree(place.mount / "clone")


def database(place: Workplace, chance: random.Random, turn: int) -> None:
    """SQLite: transfers between accounts, some taken back; their sum is known."""
    path = place.mount / "accounts.db"
    mode = chance.choice(("delete", "truncate", "persist", "wal"))
    wanted = dict.fromkeys(range(50), 100)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as data:
        data.execute(f"pragma journal_mode={mode}")
        data.execute("create table if not exists account (id integer primary key, sum integer)")
        data.execute("delete from account")
        data.execute("begin")
        data.executemany("insert into account values (?, ?)", wanted.items())
        data.execute("commit")
        for _ in range(6 if place.run.small else 20):
            amount, left, right = chance.randrange(50), *chance.sample(range(50), 2)
            data.execute("begin immediate")
            change = "update account set sum = sum + ? where id = ?"
            data.execute(change, (-amount, left))
            data.execute(change, (amount, right))
            if chance.random() < 0.2:
                data.execute("rollback")
            else:
                data.execute("commit")
                wanted[left] -= amount
                wanted[right] += amount
            place.run.count("transactions")
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as data:
        sound = data.execute("pragma integrity_check").fetchall()
        found = dict(data.execute("select id, sum from account").fetchall())
    if sound != [("ok",)] or found != wanted:
        raise LossError(f"sqlite, journal {mode}: {sound}, sums {'right' * (found == wanted)}")


def pipeline(place: Workplace, chance: random.Random, turn: int) -> None:
    """`atoll run`: octets through two or three ports of the pipe server."""
    path = place.system.top / "octets"
    sizes = (0, 1, 70_000, 1_000_000, *(() if place.run.small else (5_000_000,)))
    octets = chance.randbytes(chance.choice(sizes))
    path.write_bytes(octets)
    middle = chance.choice(
        ("cat", "gzip -1 | gunzip", "base64 | base64 -d", "dd bs=777 2>/dev/null")
    )
    if len(octets) > 1_000_000 and middle.startswith("dd"):
        middle = "cat"
    line = f"cat {path} | {middle} | sha256sum"
    command = place.system.command("run", "--pipefail", line)
    said = place.command(*command)
    if said.split()[:1] != [hashlib.sha256(octets).hexdigest()]:
        raise LossError(f"atoll run {line!r} of {len(octets)} octets: {said!r}")
    place.run.count("octets piped", len(octets))


def ping(place: Workplace, chance: random.Random, turn: int) -> None:
    """`ping` from the host: an answer to every echo, unless a server just died."""
    size, count = chance.choice((0, 56, 1000, 1472, 1473, 5000, 20_000)), 40
    count = 12 if place.run.small else count
    words = ("ping", "-q", "-c", count, "-i", "0.02", "-W", "2", "-s", size, ADDRESS)
    begin = time.monotonic()
    done = subprocess.run(
        place.system.command("exec", "--", *map(str, words)),
        capture_output=True, check=False, timeout=PATIENCE_S, text=True,
        env=place.system.environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    said = done.stdout + done.stderr
    received = next(
        (int(line.split()[3]) for line in said.splitlines() if "packets transm" in line), -1
    )
    if done.returncode not in (0, 1) or received < 0 or "wrong" in said or "duplicates" in said:
        raise LossError(f"ping -s {size}: status {done.returncode}: {said[-600:]}")
    place.run.count("echoes", received)
    if received < count:
        if not place.disturbed(_NETWORK, begin):
            raise LossError(f"ping -s {size}: {received} of {count} in a calm: {said[-300:]}")
        place.run.count("echoes lost in restarts", count - received)


def datagrams(place: Workplace, chance: random.Random, turn: int) -> None:
    """UDP to port 7 and back: the same octets, unless a server just died."""
    begin = time.monotonic()
    lost = 0
    with run_inside(place.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as s:
        s.settimeout(2)
        s.connect((ADDRESS, 7))
        for number in range(25 if place.run.small else 100):
            octets = number.to_bytes(4, "big") + chance.randbytes(chance.choice((0, 9, 1400, 7000)))
            try:
                s.send(octets)
                while (answer := s.recv(65_536))[:4] != octets[:4]:
                    if int.from_bytes(answer[:4], "big") >= number:
                        raise LossError(f"udp: datagram {number} came back as {answer[:8].hex()}")
                    place.run.count("datagrams late")
            except OSError:  # a time-out, or an error that the network reported
                lost += 1
                if not place.disturbed((*_NETWORK, "echo"), begin):
                    raise LossError(f"udp: no answer to datagram {number} in a calm") from None
                if place.run.over():
                    break
                continue
            if answer != octets:
                raise LossError(f"udp: datagram {number} came back changed")
            place.run.count("datagrams")
    place.run.count("datagrams lost in restarts", lost)
