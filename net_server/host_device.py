"""The host's side of a TAP device: making it, its offloads, and its address, by ioctl.

The requests and structures are those of Linux's if_tun.h, if.h and sockios.h. Nothing here needs a
library: a netlink library would cost more time at start than everything else the driver does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

from .stack.routes import Prefix

TUN_PATH: Final = "/dev/net/tun"

OFFLOAD_CHECKSUM: Final = 0x01
OFFLOAD_UDP: Final = 0x20 | 0x40
"""UDP segmentation; the two versions of IP can only be had together."""

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETIFF: Final = 0x800454D2
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_IFF_PERSIST: Final = 0x0800

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_SIOCSIFMTU: Final = 0x8922
_SIOCSIFHWADDR: Final = 0x8924
_IFF_UP: Final = 0x1
_ARPHRD_ETHER: Final = 1

_REQUEST: Final = struct.Struct("16s24s")


@dataclasses.dataclass(frozen=True, slots=True)
class HostDevice:
    """How the host's side shall be: its name, MTU, address with prefix, and link address."""

    name: str
    mtu: int
    prefix: Prefix
    link: bytes


def _request(name: str, value: bytes) -> bytes:
    return _REQUEST.pack(name.encode(), value)


def _flags(octets: bytes) -> int:
    return int(struct.unpack_from("=H", octets, 16)[0])


def open_device(wanted: HostDevice, *, header: bool) -> int:
    """Return the descriptor of a new device in this thread's network namespace, up and configured.

    Args:
        header: whether frames have a virtio header before them.

    Raises:
        OSError: see `explain`.
    """
    descriptor = open_file()
    try:
        attach(descriptor, wanted.name, header=header)
        configure(wanted)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_file() -> int:
    """Return a descriptor that a device of this thread's network namespace can be attached to."""
    return os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def attach(descriptor: int, name: str, *, header: bool) -> bool:
    """Attach a descriptor to the device of that name; return False if it was made for that.

    Raises:
        OSError: EBUSY, somebody has a descriptor that is attached to it. See `explain`.
    """
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if header else 0)
    fcntl.ioctl(descriptor, _TUNSETIFF, _request(name, struct.pack("=H", flags)))
    found = fcntl.ioctl(descriptor, _TUNGETIFF, bytes(_REQUEST.size))
    return bool(_flags(found) & _IFF_PERSIST)


def set_persistent(descriptor: int, *, persistent: bool) -> None:
    """Say whether the device outlives its descriptors; if so, only this user attaches others."""
    if persistent:
        fcntl.ioctl(descriptor, _TUNSETOWNER, os.geteuid())
    fcntl.ioctl(descriptor, _TUNSETPERSIST, int(persistent))


def configure(wanted: HostDevice) -> None:
    """Give a device of this thread's network namespace its addresses and bring it up."""
    # The host would otherwise send neighbor solicitations to a server that does not speak IPv6.
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{wanted.name}/disable_ipv6").write_text("1")
    link = struct.pack("=H", _ARPHRD_ETHER) + wanted.link
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SIOCSIFHWADDR, _request(wanted.name, link))
        fcntl.ioctl(control, _SIOCSIFMTU, _request(wanted.name, struct.pack("=i", wanted.mtu)))
        for request, address in (
            (_SIOCSIFADDR, wanted.prefix.address),
            (_SIOCSIFNETMASK, wanted.prefix.mask),
        ):
            value = struct.pack("=H", socket.AF_INET) + bytes(2) + address.to_bytes(4, "big")
            fcntl.ioctl(control, request, _request(wanted.name, value))
        _bring_up(control, wanted.name)


def _bring_up(control: socket.socket, name: str) -> None:
    flags = _flags(fcntl.ioctl(control, _SIOCGIFFLAGS, _request(name, b"")))
    fcntl.ioctl(control, _SIOCSIFFLAGS, _request(name, struct.pack("=H", flags | _IFF_UP)))


def bring_up_loopback() -> None:
    """Let the host's programs in this thread's network namespace talk to themselves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        _bring_up(control, "lo")


def set_offloads(descriptor: int, *, wanted: bool) -> int:
    """Set the device's offloads, as many as the host has of those wanted; return which.

    Args:
        wanted: False sets them to none, which matters for a device that had others.
    """
    choices = (OFFLOAD_CHECKSUM | OFFLOAD_UDP, OFFLOAD_CHECKSUM, 0)
    for offloads in choices if wanted and has_header(descriptor) else (0,):
        try:
            fcntl.ioctl(descriptor, _TUNSETOFFLOAD, offloads)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return offloads
    return 0


def is_alive(descriptor: int) -> bool:
    """Return whether the descriptor's device still exists."""
    try:
        fcntl.ioctl(descriptor, _TUNGETIFF, bytes(_REQUEST.size))
    except OSError:
        return False
    return True


def has_header(descriptor: int) -> bool:
    """Return whether the device puts a virtio header before each frame."""
    octets = fcntl.ioctl(descriptor, _TUNGETIFF, bytes(_REQUEST.size))
    return bool(_flags(octets) & _IFF_VNET_HDR)


def explain(error: OSError, name: str) -> str:
    """Return what went wrong when a device was made, and what can be done about it."""
    number = error.errno
    if number in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
        return f"{TUN_PATH} is missing: load the tun module, or give the container the device"
    if number in {errno.EPERM, errno.EACCES}:
        try:
            mode = f"mode {Path(TUN_PATH).stat().st_mode & 0o7777:o}"
        except OSError:
            mode = "mode unknown"
        return (
            f"{TUN_PATH} ({mode}): {error.strerror}; opening it and making {name} takes "
            "write permission and CAP_NET_ADMIN in the network namespace: run as root, or in a "
            "user namespace"
        )
    if number == errno.EBUSY:
        return f"{name} exists already and is in use: choose another name"
    return f"{name}: {error.strerror}"
