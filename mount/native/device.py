"""The device and the mount: /dev/fuse opened, and the file system attached to its mount point."""

from __future__ import annotations

import array
import ctypes
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Final

from mount.mount_options import fuse_options
from mount.mount_point import DEVICE, MountError

_NOSUID_NODEV: Final = 2 | 4
_PATIENCE_S: Final = 10.0


def open_device(path: Path, *, others: bool) -> int:
    """Mount at `path`, and return the session's descriptor of /dev/fuse, which is the caller's.

    Args:
        others: users other than this one may enter.

    Raises:
        MountError: neither mount(2) nor fusermount3 would.
    """
    if os.geteuid() == 0:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        failure = _mount(descriptor, path, others=others)
        if not failure:
            return descriptor
        os.close(descriptor)
    else:
        received, failure = _by_program(path, fuse_options(others=others))
        if received >= 0:
            return received
    cause = f"the host refused the mount ({failure})"
    remedy = "mounting needs root, or a set-uid fusermount3; a container needs CAP_SYS_ADMIN"
    raise MountError(path, cause, remedy)


def _mount(descriptor: int, path: Path, *, others: bool) -> str:
    """Call mount(2). Returns why it failed, "" if it did not."""
    kind = stat.S_IFMT(path.stat().st_mode)
    words = [
        f"fd={descriptor}",
        f"rootmode={kind:o}",
        f"user_id={os.getuid()}",
        f"group_id={os.getgid()}",
        "default_permissions",
    ]
    if others:
        words.append("allow_other")
    libc = ctypes.CDLL(None, use_errno=True)
    data = ",".join(words).encode()
    done = libc.mount(b"atoll", os.fsencode(path), b"fuse.atoll", _NOSUID_NODEV, data)
    return os.strerror(ctypes.get_errno()) if done else ""


def _by_program(path: Path, options: set[str]) -> tuple[int, str]:
    """Have fusermount3 mount. Returns the descriptor, or -1 and why there is none."""
    program = shutil.which("fusermount3")
    if program is None:
        return -1, "there is no fusermount3"
    ours, its = socket.socketpair()
    with ours:
        with its:
            done = subprocess.run(
                [program, "-o", ",".join(sorted(options)), "--", str(path)],
                pass_fds=(its.fileno(),),
                env={**os.environ, "_FUSE_COMMFD": str(its.fileno())},
                stderr=subprocess.PIPE,
                timeout=_PATIENCE_S,
                check=False,
            )
        if done.returncode:
            return -1, done.stderr.decode(errors="replace").strip()
        size = socket.CMSG_LEN(array.array("i").itemsize)
        _, ancillary, _, _ = ours.recvmsg(1, size, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: descriptors.itemsize])
    return (descriptors[0], "") if descriptors else (-1, "fusermount3 sent no descriptor")
