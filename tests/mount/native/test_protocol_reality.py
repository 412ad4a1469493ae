"""What the host's kernel really says: every request of a mount is decoded, and encoded again.

The mount is served by a small file system in a thread, which knows the protocol by the codec alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from mount.native.protocol import replies, requests
from mount.native.protocol.decoding import Decoder
from mount.native.protocol.directory import Listing
from mount.native.protocol.encoding import encode_request
from mount.native.protocol.flags import Fattr, Init, Opened
from mount.native.protocol.negotiation import Wishes, negotiate
from mount.native.protocol.opcodes import Opcode
from mount.native.protocol.operations import UNANSWERED

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.slow]

FEATURES: Final = (
    Init.MAX_PAGES
    | Init.BIG_WRITES
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.POSIX_LOCKS
    | Init.FLOCK_LOCKS
    | Init.SETXATTR_EXT
    | Init.HAS_IOCTL_DIR
    | Init.ATOMIC_O_TRUNC
    | Init.CREATE_SUPP_GROUP
)
FIRST_HANDLE: Final = 100


class Node:
    """A file of the small file system."""

    def __init__(self, mode: int, data: bytes = b"") -> None:
        self.mode = mode
        self.data = bytearray(data)
        self.names: dict[bytes, int] = {}
        self.attributes: dict[bytes, bytes] = {}


class Recorder:
    """Serves a mount, and keeps every request that came, in octets and decoded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.groups: set[int] = set()
        self.nodes = {1: Node(stat.S_IFDIR | 0o777)}
        self.gid = 0
        self.ext = False
        self.features = Init(0)
        self.holding = False
        self.waiting = 0
        self.held = threading.Event()
        self.released = threading.Event()
        self.lookups: Counter[int] = Counter()
        self.forgotten_all = threading.Event()
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"test", os.fsencode(path), b"fuse.test", 6, options.encode()):
            os.close(self.device)
            pytest.skip(f"mount(2) fails: {os.strerror(ctypes.get_errno())}")
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def end(self) -> None:
        subprocess.run(["umount", "-f", "-l", self.path], check=True, timeout=10)
        self.thread.join(10)

    def serve(self) -> None:
        """Serve until unmounted. A mistake here ends the mount, and hangs nobody."""
        try:
            self.serve_all()
        finally:
            os.close(self.device)

    def serve_all(self) -> None:
        decoder = Decoder()
        buffer = bytearray((1 << 20) + 8192)
        while True:
            try:
                size = os.readv(self.device, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue
            message = memoryview(buffer)[:size]
            request = decoder.decode(message)
            octets = bytes(message)
            if encode_request(request, setxattr_ext=self.ext) != octets:
                self.wrong.append(f"{request}: {octets!r}")
            if isinstance(request, requests.Init):
                agreed = negotiate(request, Wishes(features=FEATURES))
                self.features = agreed.features
                self.ext = Init.SETXATTR_EXT in agreed.features
                decoder = Decoder(setxattr_ext=self.ext)
                self.answer(agreed.reply)
            elif isinstance(request, requests.Forget):
                self.forget(request.nodeid, request.nlookup)
            elif isinstance(request, requests.BatchForget):
                for inode, count in request.records:
                    self.forget(inode, count)
            elif not self.hold(request):
                self.serve_one(request)
            name = "?" if isinstance(request, requests.Unknown) else Opcode(request.opcode).name
            self.seen[name] += 1

    def hold(self, request: requests.Request) -> bool:
        """Leave a READ unanswered if that is wanted, until it is interrupted."""
        if isinstance(request, requests.Interrupt):
            if request.target == self.waiting:
                self.answer(replies.error_reply(self.waiting, errno.EINTR))
                self.released.set()
            return True
        if self.holding and request.opcode == Opcode.READ:
            self.holding = False
            self.waiting = request.unique
            self.held.set()
            return True
        return False

    def serve_one(self, request: requests.Request) -> None:
        try:
            body = self.handle(request)
        except OSError as error:
            octets = replies.error_reply(request.unique, error.errno or errno.EIO)
        else:
            octets = replies.good_reply(request.unique, body)
        if request.opcode not in UNANSWERED:
            self.answer(octets)

    def forget(self, inode: int, count: int) -> None:
        self.lookups[inode] -= count
        if not self.lookups[inode]:
            del self.lookups[inode]
        if not self.lookups:
            self.forgotten_all.set()

    def answer(self, octets: bytes) -> None:
        try:
            os.write(self.device, octets)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the asker has gone
                self.wrong.append(f"{error}: {octets!r}")

    def attr(self, inode: int) -> bytes:
        node = self.nodes[inode]
        numbers = (inode, len(node.data), 0, 1, 1, 1, 0, 0, 0, node.mode, 1, 0, self.gid, 0, 4096)
        return replies.Attr(*numbers).pack()

    def entry(self, inode: int) -> bytes:
        self.lookups[inode] += 1
        return replies.EntryOut(inode, 0, 0, 0, 0, 0, self.attr(inode)).pack()

    def make(self, parent: int, name: bytes, mode: int, data: bytes = b"") -> bytes:
        inode = max(self.nodes) + 1
        self.nodes[inode] = Node(mode, data)
        self.nodes[parent].names[name] = inode
        return self.entry(inode)

    def handle(self, request: requests.Request) -> bytes:  # noqa: C901, PLR0912
        node = self.nodes.get(request.nodeid, Node(0))
        opened = replies.OpenOut(FIRST_HANDLE + request.nodeid, Opened.KEEP_CACHE).pack()
        match request:
            case requests.Name(name=name) if request.opcode == Opcode.LOOKUP:
                if name not in node.names:
                    raise FileNotFoundError(errno.ENOENT, "")
                return self.entry(node.names[name])
            case requests.Name(name=name) if request.opcode == Opcode.REMOVEXATTR:
                del node.attributes[name]
            case requests.Name(name=name):
                del node.names[name]
            case requests.Getattr():
                return replies.AttrOut(0, 0, self.attr(request.nodeid)).pack()
            case requests.Setattr():
                if request.valid & Fattr.SIZE:
                    node.data = (node.data + bytes(request.size))[: request.size]
                if request.valid & Fattr.MODE:
                    node.mode = request.mode
                return replies.AttrOut(0, 0, self.attr(request.nodeid)).pack()
            case requests.Mkdir():
                self.groups |= set(request.extensions.groups or ())
                return self.make(request.nodeid, request.name, stat.S_IFDIR | request.mode)
            case requests.Mknod():
                return self.make(request.nodeid, request.name, request.mode)
            case requests.Symlink():
                return self.make(request.nodeid, request.name, stat.S_IFLNK | 0o777, request.target)
            case requests.Link():
                node.names[request.name] = request.oldnodeid
                return self.entry(request.oldnodeid)
            case requests.Create() if request.opcode == Opcode.CREATE:
                return self.make(request.nodeid, request.name, request.mode) + opened
            case requests.Rename() | requests.Rename2():
                inode = node.names.pop(request.name)
                self.nodes[request.newdir].names[request.new_name] = inode
            case requests.Open():
                return opened
            case requests.Read() if request.opcode == Opcode.READ:
                return bytes(node.data[request.offset : request.offset + request.size])
            case requests.Read():
                return self.list(request, node)
            case requests.Write():
                end = request.offset + request.size
                node.data.extend(bytes(max(0, end - len(node.data))))
                node.data[request.offset : end] = request.data
                return replies.WriteOut(request.size).pack()
            case requests.Setxattr():
                node.attributes[request.name] = bytes(request.data)
            case requests.Getxattr() | requests.Listxattr():
                return self.attribute(request, node)
            case requests.Release() | requests.Fsync() | requests.Access():
                pass
            case _ if request.opcode == Opcode.READLINK:
                return bytes(node.data)
            case _ if request.opcode == Opcode.STATFS:
                return replies.Kstatfs(9, 8, 7, 6, 5, 4096, 255, 4096).pack()
            case _:
                raise OSError(errno.ENOSYS, "")
        return b""

    def attribute(self, request: requests.Getxattr | requests.Listxattr, node: Node) -> bytes:
        if isinstance(request, requests.Getxattr):
            if request.name not in node.attributes:
                raise OSError(errno.ENODATA, "")
            value = node.attributes[request.name]
        else:
            value = b"".join(name + b"\0" for name in node.attributes)
        return value if request.size else replies.GetxattrOut(len(value)).pack()

    def list(self, request: requests.Read, node: Node) -> bytes:
        listing = Listing(request.size)
        for cookie, (name, inode) in enumerate(list(node.names.items())[request.offset :]):
            entry = self.entry(inode) if request.opcode == Opcode.READDIRPLUS else b""
            mode = self.nodes[inode].mode
            if not listing.add(name, inode, request.offset + cookie + 1, mode, entry):
                break
        return listing.pack()


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path)
    try:
        yield recorder
    finally:
        recorder.end()


USE: Final = """
import array, fcntl, os, select, stat, sys
os.chdir(sys.argv[1])
os.mkdir("d", 0o700); os.mknod("p", stat.S_IFIFO | 0o600); os.symlink("to", "s")
assert os.readlink("s") == "to"
f = os.open("f", os.O_RDWR | os.O_CREAT, 0o644)
assert os.write(f, b"x" * 300000) == 300000
assert os.pread(f, 10, 299995) == b"x" * 5
os.ftruncate(f, 5); os.fchmod(f, 0o600); os.utime("f", ns=(1, 2)); os.fsync(f)
def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return error
attempt(os.posix_fallocate, f, 0, 100)
attempt(os.lseek, f, 0, os.SEEK_HOLE)
attempt(os.copy_file_range, f, f, 1, 0, 3)
attempt(fcntl.lockf, f, fcntl.LOCK_EX | fcntl.LOCK_NB)
attempt(fcntl.lockf, f, fcntl.LOCK_EX)
attempt(fcntl.flock, f, fcntl.LOCK_EX)
attempt(fcntl.fcntl, f, fcntl.F_GETLK, b"\\1" + bytes(31))
attempt(fcntl.ioctl, f, 0x80086601, array.array("l", [0]))
attempt(os.open, ".", os.O_TMPFILE | os.O_RDWR)
poll = select.poll(); poll.register(f); poll.poll(0)
os.setxattr("f", "user.name", b"value"); assert os.getxattr("f", "user.name") == b"value"
assert os.listxattr("f") == ["user.name"]; os.removexattr("f", "user.name")
os.link("f", "g"); os.rename("g", "d/h"); os.rename("d/h", "i")
attempt(os.access, "f", os.R_OK)
assert os.statvfs(".").f_namemax == 255
assert sorted(os.listdir(".")) == ["d", "f", "i", "p", "s"]
assert [e.name for e in os.scandir(".") if e.stat(follow_symlinks=False).st_size == 2] == ["s"]
root = os.open(".", os.O_RDONLY); attempt(os.fsync, root); os.close(root)
os.close(f); os.unlink("i"); os.rmdir("d")
"""


def test_kernels_requests_are_understood_octet_by_octet(recorder: Recorder) -> None:
    command = [sys.executable, "-c", USE, str(recorder.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    move = ["mv", "--no-clobber", f"{recorder.path}/f", f"{recorder.path}/k"]
    subprocess.run(move, check=True, timeout=10)
    assert not recorder.wrong
    expected = {
        "INIT LOOKUP GETATTR SETATTR READLINK SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME LINK OPEN "
        "READ WRITE STATFS RELEASE FSYNC SETXATTR GETXATTR LISTXATTR REMOVEXATTR FLUSH OPENDIR "
        "READDIRPLUS RELEASEDIR FSYNCDIR SETLK ACCESS CREATE IOCTL POLL FALLOCATE LSEEK"
    }
    missing = set(" ".join(expected).split()) - set(recorder.seen)
    assert not missing, f"seen: {dict(recorder.seen)}"
    assert "?" not in recorder.seen, "an opcode that the table does not have"


def test_callers_group_that_the_directory_has_comes_with_a_mkdir(recorder: Recorder) -> None:
    recorder.gid = 77
    script = f'stat "{recorder.path}" > /dev/null; mkdir "{recorder.path}/d"'
    subprocess.run(["setpriv", "--groups", "5,77", "sh", "-c", script], check=True, timeout=10)
    assert not recorder.wrong
    assert recorder.seen["MKDIR"] == 1
    if Init.CREATE_SUPP_GROUP not in recorder.features:
        pytest.skip("this host's kernel does not tell groups")
    assert recorder.groups == {77}


def test_blocked_reader_that_is_killed_is_an_interrupt(recorder: Recorder) -> None:
    (recorder.path / "f").write_bytes(b"text")
    recorder.holding = True
    reader = subprocess.Popen(["cat", recorder.path / "f"])
    assert recorder.held.wait(10)
    reader.terminate()
    assert recorder.released.wait(10)
    assert reader.wait(10) < 0
    assert recorder.seen["INTERRUPT"] >= 1
    assert not recorder.wrong


def test_dropped_names_are_forgotten_as_often_as_they_were_looked_up(recorder: Recorder) -> None:
    for name in ("a", "b", "c"):
        (recorder.path / name).write_text(name)
        (recorder.path / name).unlink()
    assert recorder.forgotten_all.wait(10)
    assert not recorder.wrong
