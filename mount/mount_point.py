"""The place where the tree appears: what must be true of it before mounting, and how it is left.

Every obstacle that can be known beforehand is a `MountError` that names the thing, the cause and
the remedy; libfuse itself would only print a line.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Final

from .obstacle import ObstacleError

MOUNT_TABLE: Final = Path("/etc/mtab")
DEVICE: Final = Path("/dev/fuse")
FUSE_CONF: Final = Path("/etc/fuse.conf")
MOUNTS: Final = Path("/proc/self/mountinfo")
FILE_SYSTEM_TYPE: Final = "fuse.atoll"
"""What the mount table calls our mounts."""
DETACH: Final = 2
"""MNT_DETACH: the mount point is free at once, files that are open stay usable."""
UNMOUNT_PATIENCE_S: Final = 5.0


class MountError(ObstacleError):
    """A mount cannot be made."""


def unescape(path: str) -> str:
    r"""Return a path of /proc/self/mountinfo with its escapes (\040 for a space) undone."""
    parts = path.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])


def mounted(path: Path) -> tuple[str, str] | None:
    """Return `(device number, type)` of the uppermost mount at `path`, None if there is none.

    Asks the mount table and not the path: a dead or hung mount fails or blocks when touched.
    """
    found = None
    for line in MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split()
        if unescape(fields[4]) == str(path):
            found = (fields[2], fields[fields.index("-") + 1])
    return found


def is_stale(path: Path) -> bool:
    """Return if the path is a mount whose server has died."""
    try:
        path.stat()
    except OSError as error:
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    return False


def detach(path: Path) -> bool:
    """Take the uppermost mount at `path` away, lazily. Returns if it is gone. May block shortly."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), DETACH) == 0:
        return True
    program = shutil.which("fusermount3")
    if program is None:
        return False
    command = [program, "-u", "-z", "-q", "--", str(path)]
    try:
        return subprocess.run(command, check=False, timeout=UNMOUNT_PATIENCE_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def prepare(mountpoint: str | Path, *, nonempty: bool = False) -> Path:
    """Return the absolute mount point, fit to be mounted on. A dead mount there is detached first.

    Args:
        mountpoint: an existing directory.
        nonempty: mount even if the directory has entries, which are then hidden.

    Raises:
        MountError: it does not exist, is no directory, is in use, is not empty or not the user's.
    """
    path = Path(os.path.realpath(mountpoint))
    for _ in range(8):  # mounts can lie upon one another
        if not is_stale(path):
            break
        if not detach(path):
            remedy = f"run: fusermount3 -u -z {path}"
            raise MountError(path, "a mount whose server has died cannot be detached", remedy)
    table = mounted(path)
    if table is not None:
        cause = f"something is mounted there already (type {table[1]})"
        raise MountError(path, cause, f"choose another directory, or run: umount {path}")
    _check_directory(path, nonempty=nonempty)
    return path


def _check_directory(path: Path, *, nonempty: bool) -> None:
    try:
        found = path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise MountError(path, "is no directory", "name a directory to mount on")
        entries = any(path.iterdir())
    except FileNotFoundError:
        raise MountError(path, "does not exist", f"run: mkdir -p {path}") from None
    except OSError as error:
        remedy = "choose a directory that you own"
        raise MountError(path, os.strerror(error.errno or errno.EIO), remedy) from None
    if entries and not nonempty:
        raise MountError(
            path, "is not empty, its files would be hidden", "choose an empty directory"
        )
    if os.geteuid() and not os.access(path, os.W_OK):
        raise MountError(path, "you may not write there", "choose a directory that you own")


def check_device(device: Path = DEVICE) -> None:
    """Check that the host lets this user serve a mount.

    Raises:
        MountError: /dev/fuse is missing or closed, or fusermount3 is missing.
    """
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        remedy = "as root: modprobe fuse; a container needs: --device /dev/fuse --cap-add SYS_ADMIN"
        raise MountError(device, "does not exist", remedy) from None
    except PermissionError:
        mode = f"mode {stat.S_IMODE(device.stat().st_mode):04o}"
        remedy = f"run as root, or as root: chmod 0666 {device}"
        raise MountError(device, f"closed to uid {os.geteuid()} ({mode})", remedy) from None
    except OSError as error:
        remedy = "as root: modprobe fuse"
        raise MountError(device, os.strerror(error.errno or errno.EIO), remedy) from None
    if os.geteuid() and shutil.which("fusermount3") is None:
        cause = "not found, but needed to mount without being root"
        raise MountError("fusermount3", cause, "install it: apt install fuse3")
    if os.geteuid():
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            cause = "has no entry in /etc/passwd, and fusermount3 asks for one"
            raise MountError(f"uid {os.geteuid()}", cause, "use a user that has a name") from None
        if not MOUNT_TABLE.exists():
            cause = "does not exist, but fusermount3 wants it to unmount"
            raise MountError(MOUNT_TABLE, cause, f"as root: ln -s /proc/self/mounts {MOUNT_TABLE}")


def check_allow_other(conf: Path = FUSE_CONF) -> None:
    """Check that this user may let others see the mount.

    Raises:
        MountError: the user is not root, and the host's configuration does not say
        `user_allow_other`.
    """
    if os.geteuid() == 0:
        return
    lines = conf.read_text(encoding="utf-8").splitlines() if conf.exists() else []
    if "user_allow_other" not in [line.strip() for line in lines]:
        remedy = f"mount without allow_other, or as root: echo user_allow_other >> {conf}"
        raise MountError(conf, "does not say user_allow_other", remedy)
