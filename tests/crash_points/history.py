"""A scripted history: every operation of the interface in all its cases, and what each leads to.

The script is one list of cases, then as many operations drawn by chance as are asked for. It is
performed on the model alone, so a history is a pure function of its seed and length: steps, the
state before each and after the last, and the reply to each.

Three steps are no operations of a client, but the server's own work: `(timer)` makes changes
durable when the server is idle, `(checkpoint)` starts the database's log anew, `(restart)` ends the
server in good order and starts it again.
"""

from __future__ import annotations

import os
import random
import stat
from dataclasses import dataclass, field
from typing import Any, Final

from fs_server.interface import (
    ALLOCATE_KEEP_SIZE,
    ALLOCATE_PUNCH_HOLE,
    ALLOCATE_ZERO_RANGE,
    LOCK_NONE,
    LOCK_READ,
    LOCK_WRITE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_INODE,
    XATTR_CREATE,
    XATTR_REPLACE,
    Attributes,
    Caller,
    Changes,
    Lock,
)

from .model import Model, Node, perform

START_NS: Final = 1_700_000_000_000_000_000
STEP_NS: Final = 1_000_000_000
BLOCKS: Final = 1024
"""Blocks of the volume: few, so that a history comes to their end."""
ROOT: Final = Caller(0, 0, (), 0)
ALICE: Final = Caller(1001, 2001, (2002,), 0o027)
OWN_WORK: Final = ("(timer)", "(checkpoint)", "(restart)")
NOT_IN_HISTORIES: Final = {
    "watch": "a promise for one incarnation: a restart breaks it, by contract, with Change(0)",
    "changes": "the same",
}
SYNCING: Final = ("fsync", "sync", *OWN_WORK)
"""What makes everything before it durable."""
CHANGING: Final = (
    "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "create", "open", "release",
    "setattr", "write", "setxattr", "removexattr", "allocate", "read", "readdir", "tmpfile", "copy",
)  # fmt: skip
_SIZES: Final = (0, 1, 100, 511, 4095, 4096, 4097, 9000, 20_000, 70_000)
_KEEP: Final = ALLOCATE_KEEP_SIZE
_PUNCH: Final = ALLOCATE_PUNCH_HOLE | ALLOCATE_KEEP_SIZE


@dataclass(frozen=True)
class Step:
    """One operation; inode numbers are the model's."""

    operation: str
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(
            f"{len(value)} octets" if isinstance(value, bytes) and len(value) > 40 else repr(value)
            for value in self.arguments
            if not isinstance(value, Caller)
        )
        return f"{self.operation}({shown})"


@dataclass
class History:
    """What happens, and what it leads to."""

    seed: int
    steps: list[Step] = field(default_factory=list)
    states: list[Model] = field(default_factory=list)
    replies: list[Any] = field(default_factory=list)

    def now(self, index: int) -> int:
        """Return the time at which a step happens."""
        return START_NS + (index + 1) * STEP_NS

    def synced(self, index: int) -> int:
        """Return the newest state, up to that before step `index`, that was made durable."""
        return max((n + 1 for n in range(index) if self.steps[n].operation in SYNCING), default=0)


class _Script:
    """Writes a history by performing it on the model."""

    def __init__(self, seed: int) -> None:
        self.history = History(seed)
        self.chance = random.Random(f"history/{seed}")
        self.model = Model(BLOCKS, START_NS)
        self.history.states.append(self.model.twin())

    def do(self, operation: str, *arguments: Any) -> Any:
        """Perform a step."""
        self.model.now = self.history.now(len(self.history.steps))
        reply = None
        if operation not in OWN_WORK:
            reply = perform(self.model, operation, arguments)
        self.history.steps.append(Step(operation, arguments))
        self.history.replies.append(reply)
        self.history.states.append(self.model.twin())
        return reply

    def make(self, operation: str, *arguments: Any) -> int:
        """Perform a step that makes an inode, and return its number."""
        made = self.do(operation, *arguments)
        assert isinstance(made, Attributes), f"{operation}{arguments}: {made}"
        return made.inode

    def octets(self, size: int) -> bytes:
        """Return octets without zeros, so that a hole is told from them."""
        return self.chance.randbytes(size).replace(b"\0", b"\1")

    # -- the cases --------------------------------------------------------------------------------

    def cases(self) -> None:
        """Write every case once."""
        top = ROOT_INODE
        d = self.make("mkdir", ROOT, top, b"d", 0o755)
        e = self.make("mkdir", ROOT, top, b"e", 0o3777)
        f = self.make("create", ROOT, top, b"f", 0o644, os.O_RDWR | os.O_EXCL)
        self._writing(f)
        g = self.make("mknod", ROOT, d, b"g", stat.S_IFREG | 0o6777, 0)
        self._interleaved(f, g)
        self._attributes(d, g)
        self._making(d, e)
        self._linking(d, e, f)
        self._renaming(d, e)
        self._opens(e)
        self._nameless(d, e)
        self._copying(d)
        self._locks(d)
        self._space(f)
        self._looking(d, f)

    def _writing(self, f: int) -> None:
        do, octets = self.do, self.octets
        do("write", ROOT, f, 0, b"")
        do("write", ROOT, f, 0, octets(1))
        do("write", ROOT, f, 1, octets(4095))  # ends with a block
        do("write", ROOT, f, 100, octets(300))  # in place
        do("write", ROOT, f, 4000, octets(5000))  # over the end, over a block's border
        do("fsync", f, False)
        do("write", ROOT, f, 50_000, octets(700))  # leaves a hole
        do("write", ROOT, f, 20_000, octets(9000))  # into the hole
        do("setattr", ROOT, f, Changes(size=21_000))
        do("setattr", ROOT, f, Changes(size=40_001))
        do("write", ROOT, f, 30_000, octets(12_000))
        do("setattr", ROOT, f, Changes(size=100))
        do("setattr", ROOT, f, Changes(size=5000))  # octets behind 100 must not come back
        do("fsync", f, True)
        do("setattr", ROOT, f, Changes(size=0))
        do("write", ROOT, f, 0, octets(200_000))  # large: through a slot
        do("(timer)")

    def _interleaved(self, f: int, g: int) -> None:
        """Make two files whose blocks lie between each other's, and write across them."""
        do, octets = self.do, self.octets
        for block in range(60, 64):
            do("write", ROOT, f, block * 4096, octets(4096))
            do("write", ROOT, g, (block - 60) * 4096, octets(4096))
        do("write", ROOT, g, 1000, octets(14_000))
        do("write", ALICE, g, 5, octets(10))  # takes the set-id bits
        do("setattr", ROOT, g, Changes(size=4 * 4096 - 7))
        do("sync")
        do("write", ROOT, f, 59 * 4096, octets(5 * 4096))

    def _attributes(self, d: int, g: int) -> None:
        do = self.do
        do("setattr", ROOT, g, Changes(mode=0o6755))
        do("setattr", ROOT, g, Changes(uid=1001, gid=2001))
        do("setattr", ALICE, g, Changes(mode=0o6751))
        do("setattr", ALICE, g, Changes(gid=2002))  # takes them, must not happen twice
        do("setattr", ALICE, g, Changes(size=9000))
        do("setattr", ALICE, g, Changes(mode=0o600, size=8000))
        do("setattr", ALICE, g, Changes(atime=1, mtime=2, now=True))
        do("setattr", ROOT, g, Changes(atime=10**18 + 1))
        do("setattr", ROOT, g, Changes(mtime=-5, ctime=7))
        do("setattr", ROOT, d, Changes(mode=0o1777))
        do("setattr", ROOT, d, Changes(uid=5, atime=3, mtime=4))
        do("setxattr", ROOT, g, b"user.a", XATTR_CREATE, b"small")
        do("setxattr", ROOT, g, b"user.a", XATTR_CREATE, b"again")
        do("setxattr", ROOT, g, b"user.a", XATTR_REPLACE, self.octets(30_000))
        do("setxattr", ROOT, g, b"user.b", XATTR_REPLACE, b"nothing there")
        do("setxattr", ROOT, d, b"trusted.t", 0, b"")
        do("listxattr", ROOT, g)
        do("getxattr", ROOT, g, b"user.a", 65_536)
        do("getxattr", ROOT, g, b"user.a", 10)
        do("removexattr", ROOT, g, b"user.a")
        do("removexattr", ROOT, g, b"user.a")
        do("setxattr", ROOT, g, b"user.z", 0, b"stays")
        do("(restart)")

    def _making(self, d: int, e: int) -> None:
        do = self.do
        do("mknod", ROOT, d, b"pipe", stat.S_IFIFO | 0o600, 0)
        do("mknod", ROOT, d, b"socket", stat.S_IFSOCK | 0o600, 0)
        do("mknod", ROOT, d, b"null", stat.S_IFCHR | 0o666, 0x103)
        do("mknod", ROOT, d, b"disk", stat.S_IFBLK | 0o660, 0x800)
        do("mknod", ROOT, d, b"pipe", stat.S_IFREG | 0o600, 0)  # EEXIST
        do("symlink", ROOT, d, b"s", b"some/where")
        do("readlink", self.child(d, b"s"))
        do("symlink", ROOT, d, b"s", b"else/where")  # EEXIST
        do("symlink", ALICE, e, b"long", b"x" * 4095)
        do("mkdir", ALICE, e, b"sub", 0o777)  # inherits the group
        do("mkdir", ROOT, e, b"sub", 0o755)  # EEXIST
        do("mkdir", ROOT, e, b"gone", 0o755)
        do("rmdir", ROOT, e, b"gone")
        do("rmdir", ROOT, e, b"gone")  # ENOENT
        do("rmdir", ROOT, ROOT_INODE, b"d")  # ENOTEMPTY
        do("fsync", d, False)

    def _linking(self, d: int, e: int, f: int) -> None:
        do = self.do
        do("link", ROOT, f, d, b"f2")
        do("link", ROOT, f, e, b"f3")
        do("link", ROOT, f, e, b"f3")  # EEXIST
        do("link", ROOT, d, e, b"loop")  # EPERM
        do("unlink", ROOT, d, b"f2")
        do("unlink", ROOT, d, b"f2")  # ENOENT
        do("unlink", ROOT, ROOT_INODE, b"d")  # EISDIR
        do("unlink", ROOT, d, b"null")
        do("unlink", ROOT, d, b"s")

    def _renaming(self, d: int, e: int) -> None:
        do, top, make = self.do, ROOT_INODE, self.make
        a = make("mknod", ROOT, top, b"a", stat.S_IFREG | 0o644, 0)
        do("write", ROOT, a, 0, self.octets(6000))
        do("rename", ROOT, top, b"a", top, b"b", 0)  # in one directory
        do("rename", ROOT, top, b"b", d, b"b", 0)  # into another
        do("rename", ROOT, d, b"b", e, b"f3", RENAME_NOREPLACE)  # EEXIST
        do("rename", ROOT, d, b"b", e, b"c", RENAME_NOREPLACE)
        do("rename", ROOT, e, b"f3", e, b"c", 0)  # over a file, which goes
        do("rename", ROOT, top, b"f", e, b"c", 0)  # two links of one file: nothing
        do("rename", ROOT, top, b"nothing", e, b"c", 0)  # ENOENT
        do("rename", ROOT, top, b"e", e, b"into", 0)  # EINVAL
        make("mkdir", ROOT, d, b"empty", 0o755)
        do("rename", ROOT, e, b"sub", d, b"empty", 0)  # over an empty directory
        do("rename", ROOT, d, b"empty", top, b"d2", 0)  # a directory to another parent
        do("rename", ROOT, d, b"g", top, b"d2", 0)  # EISDIR
        do("rename", ROOT, top, b"d2", d, b"g", RENAME_EXCHANGE)  # a directory for a file
        do("rename", ROOT, d, b"pipe", e, b"c", RENAME_EXCHANGE)
        do("rename", ROOT, d, b"pipe", e, b"none", RENAME_EXCHANGE)  # ENOENT
        do("sync")

    def _opens(self, e: int) -> None:
        do = self.do
        h = self.make("create", ALICE, e, b"h", 0o666, os.O_WRONLY)
        do("create", ROOT, e, b"h", 0o666, os.O_EXCL)  # EEXIST
        do("write", ROOT, h, 0, self.octets(10_000))
        do("open", ROOT, h, os.O_RDONLY)
        do("unlink", ROOT, e, b"h")  # lives on
        do("write", ROOT, h, 5000, self.octets(9000))
        do("fsync", h, False)
        do("setattr", ROOT, h, Changes(size=7000, opened=True))
        do("link", ROOT, h, e, b"back")  # ENOENT
        do("release", h)
        do("(restart)")
        do("read", h, 0, 20_000)
        do("release", h)  # and is gone
        do("release", h)  # EBADF
        i = self.make("create", ROOT, e, b"i", 0o600, os.O_RDWR)
        do("write", ROOT, i, 0, self.octets(3000))
        do("create", ROOT, e, b"i", 0o600, os.O_RDWR | os.O_TRUNC)
        do("write", ROOT, i, 0, self.octets(5000))
        do("open", ROOT, i, os.O_RDWR | os.O_TRUNC)
        for _ in range(3):
            do("release", i)
        j = self.make("mknod", ROOT, e, b"j", stat.S_IFREG | 0o600, 0)
        do("open", ROOT, j, os.O_RDONLY)
        do("rename", ROOT, e, b"i", e, b"j", 0)  # over an open file
        do("release", j)

    def _nameless(self, d: int, e: int) -> None:
        do = self.do
        n = self.make("tmpfile", ALICE, e, 0o666, os.O_RDWR)
        do("write", ROOT, n, 0, self.octets(6000))
        do("birth", n)
        do("(restart)")
        do("link", ROOT, n, d, b"named")
        do("release", n)
        do("unlink", ROOT, d, b"named")  # and is gone
        n = self.make("tmpfile", ROOT, d, 0o600, os.O_RDWR | os.O_EXCL)
        do("link", ROOT, n, d, b"named")  # ENOENT
        do("open", ROOT, n, os.O_RDONLY)
        do("release", n)
        do("release", n)  # and is gone
        n = self.make("tmpfile", ROOT, d, 0o600, os.O_RDWR)
        do("link", ROOT, n, d, b"named")
        do("unlink", ROOT, d, b"named")
        do("link", ROOT, n, d, b"again")  # ENOENT
        do("release", n)

    def _locks(self, d: int) -> None:
        do = self.do
        f = self.make("create", ROOT, d, b"locked", 0o600, os.O_RDWR)
        do("open", ROOT, f, os.O_RDWR)
        mine, other = Lock(LOCK_WRITE, 0, 99, 1, 11, 21), Lock(LOCK_READ, 50, 150, 2, 12, 22)
        do("lock", f, mine, False)
        do("lock", f, other, True)  # is refused
        do("locked", f, other)
        do("lock", f, Lock(LOCK_WRITE, owner=1, opened=11, whole=True), False)
        do("(restart)")
        do("lock", f, Lock(LOCK_READ, owner=2, opened=12, whole=True), True)  # is refused
        do("lock", f, Lock(LOCK_READ, 0, 99, 1, 11, 21), False)  # less than before
        do("lock", f, other, False)
        do("locked", f, Lock(LOCK_WRITE, 120, 130, 3))
        do("lock", f, Lock(LOCK_NONE, 0, 99, 1), False)
        do("lock", f, Lock(LOCK_READ, 5, 4, 1), False)  # EINVAL
        do("unlock", f, 2)
        do("locked", f, Lock(LOCK_WRITE, 0, 200, 3))
        do("lock", f, mine, False)
        do("close", f, 11)  # and with it the locks that were made through this open
        do("locked", f, Lock(LOCK_WRITE, owner=3, whole=True))
        do("lock", f, other, False)
        do("release", f)
        do("locked", f, mine)  # nothing: it was the last open
        do("lock", f, mine, False)  # EBADF
        do("close", f, 12)  # EBADF
        do("unlink", ROOT, d, b"locked")

    def _copying(self, d: int) -> None:
        do = self.do
        source = self.make("mknod", ROOT, d, b"source", stat.S_IFREG | 0o600, 0)
        target = self.make("mknod", ROOT, d, b"target", stat.S_IFREG | 0o6755, 0)
        do("write", ROOT, source, 0, self.octets(9000))
        do("write", ROOT, source, 40_000, self.octets(3000))
        do("copy", ROOT, source, 0, target, 0, 100_000)  # up to the hole
        do("copy", ROOT, source, 12_288, target, 12_288, 100_000)  # the hole
        do("copy", ALICE, source, 36_864, target, 36_864, 100_000)  # takes the set-id bits
        do("copy", ROOT, source, 100, target, 4000, 5000)  # in place
        do("copy", ROOT, source, 20_000, target, 100, 9000)  # a hole into octets
        do("copy", ROOT, source, 0, source, 5000, 5000)
        do("copy", ROOT, source, 0, source, 4000, 5000)  # EINVAL
        do("copy", ROOT, source, 43_000, target, 0, 10)  # the end
        do("unlink", ROOT, d, b"source")
        do("unlink", ROOT, d, b"target")

    def _space(self, f: int) -> None:
        do = self.do
        k = self.make("mknod", ROOT, ROOT_INODE, b"k", stat.S_IFREG | 0o600, 0)
        do("allocate", ROOT, k, 0, 0, 10_000)
        do("write", ROOT, k, 0, self.octets(16_000))
        do("allocate", ROOT, k, _KEEP, 16_000, 30_000)
        do("allocate", ROOT, k, _PUNCH, 3000, 9000)
        do("allocate", ROOT, k, _PUNCH, 100, 50)
        do("allocate", ROOT, k, ALLOCATE_ZERO_RANGE, 1000, 30_000)
        do("allocate", ROOT, k, ALLOCATE_ZERO_RANGE | _KEEP, 0, 100)
        do("statfs")
        do("allocate", ROOT, k, _KEEP, 0, 600 * 4096)
        do("setattr", ROOT, k, Changes(size=5000))
        do("allocate", ROOT, k, _KEEP, 0, 601 * 4096)  # needs what was just given up
        do("allocate", ROOT, k, _KEEP, 0, 1024 * 4096)  # ENOSPC
        do("write", ROOT, k, 2_000_000, self.octets(1 << 20))
        do("(checkpoint)")
        do("unlink", ROOT, ROOT_INODE, b"k")
        do("(timer)")
        do("write", ROOT, f, 0, self.octets(4096))

    def _looking(self, d: int, f: int) -> None:
        do = self.do
        do("lookup", ROOT, ROOT_INODE, b"d")
        do("lookup", ROOT, ROOT_INODE, b"nothing")
        do("getattr", f)
        do("birth", f)
        do("access", ROOT, f, os.R_OK)
        do("opendir", ROOT, d)
        do("readdir", d, 0, 100)
        do("seek", f, 0, os.SEEK_HOLE)
        do("read", f, 100, 5000)
        do("statfs")

    # -- by chance --------------------------------------------------------------------------------

    def child(self, parent: int, name: bytes) -> int:
        """Return the inode that a name leads to."""
        return self.model.nodes[parent].entries[name]

    def _some(self, *, files: bool) -> Node | None:
        nodes = self.model.nodes.values()
        fitting = [node for node in nodes if (node.is_file if files else node.is_directory)]
        return self.chance.choice(fitting) if fitting else None

    def _place(self, *, taken: bool) -> tuple[int, bytes] | None:
        """Return a directory and a name in it, that is there or not."""
        directory = self._some(files=False)
        assert directory is not None
        if taken:
            names = list(directory.entries)
            return (directory.number, self.chance.choice(names)) if names else None
        return directory.number, b"n%d" % self.chance.randrange(12)

    def by_chance(self) -> None:
        """Write one more step."""
        draw = self.chance.choice
        group = draw((self._chance_name, self._chance_file, self._chance_file, self._chance_rest))
        step = group()
        if step is not None:
            self.do(*step)

    def _chance_name(self) -> tuple[Any, ...] | None:
        draw, free, taken = self.chance.choice, self._place(taken=False), self._place(taken=True)
        file = self._some(files=True)
        if free is None or taken is None or file is None:
            return None
        other = self._place(taken=True) or free
        return draw(
            (
                ("mkdir", ROOT, *free, draw((0o777, 0o2755, 0o700))),
                ("mknod", ROOT, *free, draw((stat.S_IFREG, stat.S_IFIFO)) | 0o644, 0),
                ("symlink", ROOT, *free, b"over/there"),
                ("link", ROOT, file.number, *free),
                ("unlink", ROOT, *taken),
                ("rmdir", ROOT, *taken),
                ("rename", ROOT, *taken, *free, draw((0, RENAME_NOREPLACE))),
                ("rename", ROOT, *taken, *other, draw((0, RENAME_EXCHANGE))),
                ("create", ROOT, *free, 0o644, os.O_RDWR | draw((0, os.O_TRUNC, os.O_EXCL))),
                ("tmpfile", ROOT, free[0], 0o644, os.O_RDWR | draw((0, 0, os.O_EXCL))),
            )
        )

    def _chance_file(self) -> tuple[Any, ...] | None:
        draw, file = self.chance.choice, self._some(files=True)
        if file is None:
            return None
        number, size = file.number, draw(_SIZES)
        other = (self._some(files=True) or file).number
        mode = draw((0, _KEEP, _PUNCH, ALLOCATE_ZERO_RANGE))
        return draw(
            (
                ("write", draw((ROOT, ALICE)), number, draw(_SIZES), self.octets(size)),
                ("write", ROOT, number, max(0, file.size - draw(_SIZES)), self.octets(size)),
                ("setattr", ROOT, number, Changes(size=size)),
                ("setattr", ROOT, number, Changes(size=max(0, file.size - size))),
                ("allocate", ROOT, number, mode, draw(_SIZES), max(1, size)),
                ("open", ROOT, number, draw((os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC))),
                ("release", number),
                ("copy", ROOT, number, draw(_SIZES), other, draw(_SIZES), max(1, size)),
                ("read", number, 0, size),
                ("fsync", number, True),
            )
        )

    def _chance_rest(self) -> tuple[Any, ...] | None:
        draw, file, directory = self.chance.choice, self._some(files=True), self._some(files=False)
        if file is None or directory is None:
            return None
        number = draw((file, directory)).number
        name = draw((b"user.a", b"user.b", b"trusted.a"))
        return draw(
            (
                ("setattr", ROOT, number, Changes(mode=draw((0o6755, 0o777, 0o600)))),
                ("setattr", ROOT, number, Changes(uid=draw((0, 1001)), gid=draw((0, 2001)))),
                ("setattr", ROOT, number, Changes(atime=1, mtime=1, now=True)),
                ("setxattr", ROOT, number, name, draw((0, 1, 2)), self.octets(draw(_SIZES[1:]))),
                ("removexattr", ROOT, number, name),
                ("readdir", directory.number, 0, 100),
                draw((("sync",), ("(timer)",), ("(restart)",), ("(checkpoint)",))),
            )
        )


def history(seed: int, operations: int) -> History:
    """Return a history of at least so many operations, and of all the cases."""
    script = _Script(seed)
    script.cases()
    while len(script.history.steps) < operations:
        script.by_chance()
    return script.history


def chosen(of: History, count: int) -> list[int]:
    """Return `count` indices of steps: of every kind, and rather such as are not refused."""
    chance = random.Random(f"chosen/{of.seed}")
    by_kind: dict[str, list[int]] = {}
    for index, step in enumerate(of.steps):
        by_kind.setdefault(step.operation, []).append(index)
    for indices in by_kind.values():
        chance.shuffle(indices)
        indices.sort(key=lambda index: isinstance(of.replies[index], str))
    found: list[int] = []
    while len(found) < min(count, len(of.steps)):
        for indices in by_kind.values():
            if indices and len(found) < count:
                found.append(indices.pop(0))
    return sorted(found)
