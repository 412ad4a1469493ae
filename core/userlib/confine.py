"""Least privilege for a task in an address space of its own: what it gives up, and when.

Theory of operation. A process is confined in two steps, neither of which can be undone.

1. *At birth*, before any code of the server runs: no capability but the declared ones; host files
   only where the description declares them (and the installed code); no way to start a program, to
   make a process, to see or to touch another one; limits of memory and descriptors. What is
   forbidden fails with ENOSYS.
2. *Settled*, when `start()` is over and before the first request: no capability at all; nothing of
   the host's file system but code, and that only to read; no new sockets, no new memory objects.
   From here on whatever is not allowed is *reported*: the caller stops, and the kernel, which holds
   the listener, refuses and writes it down.

What a server holds then is what it was lent and what it opened in `start`. Standard input, output
and error lead nowhere.

A host without landlock or without filters is no reason not to run: `lacks` says what is
missing, and the kernel says so in the log and in the audit.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import threading
from collections.abc import Callable
from typing import Final

import msgspec

from . import capabilities, landlock, seccomp
from .seccomp import Argument, Conditions
from .system_calls import words_of

MEMORY_MIB: Final = 512
"""Memory that a task may have beyond what it was born with, if the description does not say."""
DESCRIPTORS: Final = 512
"""Descriptors that a task may have open, likewise."""


class Confinement(msgspec.Struct, array_like=True, frozen=True):
    """What the system description declares for a server beyond nothing.

    Args:
        capabilities: held during `start` and never after it.
        reads: files and directories that it may read during `start`.
        writes: the same, to change.
        network: "own": it may make sockets, network namespaces and threads to enter them, during
            `start`; "host": and it begins in the host's; "": nothing of that.
        threads: how many threads it may start after `start`.
        memory_mib: memory beyond what it was born with.
        descriptors: how many it may have open.
        file_mib: the largest file or memory object that it may write; 0: no limit.
    """

    capabilities: list[str] = []
    reads: list[str] = []
    writes: list[str] = []
    network: str = ""
    threads: int = 0
    memory_mib: int = MEMORY_MIB
    descriptors: int = DESCRIPTORS
    file_mib: int = MEMORY_MIB


Settle = Callable[[], int]
"""Takes the second step; returns the listener for the kernel, -1 if there is none."""
Confine = Callable[[], Settle]
"""Takes the first step, and returns the second."""


def unconfined() -> Settle:
    """Give nothing up (`Confine`)."""
    return lambda: -1


_ALWAYS: Final[Conditions] = ()
_ORDINARY: Final = words_of(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range
    fstat fsync fdatasync sync_file_range ftruncate fallocate fadvise64 readahead copy_file_range
    sendfile splice flock getdents64 fstatfs dup dup2 dup3 pipe pipe2 poll ppoll select pselect6
    epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2
    timerfd_create timerfd_settime timerfd_gettime recvmsg recvfrom recvmmsg sendmsg sendto sendmmsg
    shutdown getsockopt getsockname getpeername mmap munmap mprotect mremap madvise msync mincore
    brk mlock munlock membarrier rseq futex set_robust_list set_tid_address exit exit_group
    restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigpending sigaltstack pause alarm getitimer setitimer sched_yield getcpu nanosleep
    clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage getrandom getpid
    getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp umask uname
    sysinfo getcwd arch_prctl getrlimit
    """
)
_NETWORK: Final = ("socket", "setns", "unshare")
_STARTING: Final = words_of(
    """
    open openat openat2 creat stat lstat newfstatat statx access faccessat faccessat2 readlink
    readlinkat getdents mkdir mkdirat rename renameat renameat2 unlink unlinkat rmdir link linkat
    symlink symlinkat chmod fchmod fchmodat chown fchown fchownat lchown utimensat chdir fchdir
    truncate memfd_create statfs capget capset seccomp landlock_create_ruleset landlock_add_rule
    landlock_restrict_self prlimit64 setrlimit
    """
)

_IOCTL: Final = (0x541B, 0x5421, 0x5451, 0x5401, 0x8004_54D2)
"""FIONREAD, FIONBIO, FIOCLEX, TCGETS, TUNGETIFF."""
_IOCTL_DEVICE: Final = (0x4004_54CA, 0x4004_54CB, 0x4004_54CC, 0x4004_54D0)
"""TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETOFFLOAD: for files that are open already."""
_IOCTL_INTERFACE: Final = tuple(range(0x8912, 0x8928))
"""The SIOC requests of interfaces and their addresses (netdevice(7))."""
_FCNTL: Final = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1033, 1034)
"""Not F_SETOWN and F_SETSIG: they send any signal to anybody."""
_PRCTL: Final = (3, 15, 16, 23, 39, 0x5356_4D41)
"""Dumpable and name, bounding set and no_new_privs read, names of mappings. Not PDEATHSIG."""
_CLONE_THREAD: Final = 0x0001_0000
_CLONE_ANYTHING_NEW: Final = 0x7E02_0080
_AF_UNIX, _SOCK_STREAM, _SOL_SOCKET, _SO_SNDBUF, _SO_RCVBUF = 1, 1, 1, 7, 8
_OWN: Final = Argument(0, (0,))
_COMPARED: Final[dict[str, Conditions]] = {
    "ioctl": (Argument(1, _IOCTL),),
    "fcntl": (Argument(1, _FCNTL),),
    "prctl": (Argument(0, _PRCTL),),
    "prlimit64": (_OWN, Argument(2, (0,), wide=True)),
    "sched_getaffinity": (_OWN,),
}


def starting_rules(declared: Confinement) -> dict[str, Conditions]:
    """Return what is allowed until the server has started."""
    rules = dict.fromkeys((*_ORDINARY, *_STARTING), _ALWAYS)
    rules |= _COMPARED
    rules["prlimit64"] = (_OWN,)
    rules["prctl"] = (Argument(0, (*_PRCTL, 38, 47)),)
    rules["setsockopt"] = (Argument(1, (_SOL_SOCKET,)), Argument(2, (_SO_SNDBUF, _SO_RCVBUF)))
    rules["socketpair"] = (Argument(0, (_AF_UNIX,)), Argument(1, (_SOCK_STREAM,), mask=0xF))
    if declared.network:
        rules |= dict.fromkeys(_NETWORK, _ALWAYS)
        rules["ioctl"] = (Argument(1, (*_IOCTL, *_IOCTL_DEVICE, *_IOCTL_INTERFACE)),)
    if declared.threads or declared.network:  # a network is entered by a thread
        rules["clone"] = (Argument(0, (_CLONE_THREAD,), _CLONE_THREAD | _CLONE_ANYTHING_NEW),)
    return rules


def settled_rules(declared: Confinement, *, listened: bool) -> dict[str, Conditions]:
    """Return what is allowed from then on.

    Args:
        listened: the kernel hears of all else; it opens code itself, and counts threads.
    """
    rules = dict.fromkeys(_ORDINARY, _ALWAYS) | _COMPARED
    if declared.network:
        rules["ioctl"] = (Argument(1, (*_IOCTL, *_IOCTL_DEVICE)),)
    if not listened:  # landlock alone guards the files; nobody hears of what is refused
        rules["openat"] = (Argument(2, (0,), mask=0o20001103),)
        rules |= dict.fromkeys(("stat", "lstat", "newfstatat", "memfd_create"), _ALWAYS)
    return rules


def code_directories() -> list[str]:
    """Return the directories that loaded code came from, as sys.path has them."""
    places = sorted(
        {os.path.normpath(entry) for entry in sys.path if entry[:1] == "/"}, key=len, reverse=True
    )
    used: set[str] = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            used.update([place for place in places if file.startswith(f"{place}/")][:1])
    return sorted(used)


class Confiner:
    """What all tasks of a zygote have in common, made once; it is forked with them."""

    def __init__(self) -> None:
        self.code = code_directories()
        self._inherited = _highest_descriptor() + 1
        self._code_rules = -1
        self._filters: dict[tuple[str, bool, bool], bytes] = {}
        if landlock.version():
            self._code_rules = landlock.rule_set(self.code)
        self._filters_calls = seccomp.is_there()
        if self._filters_calls:
            for network in ("", "own"):
                declared = Confinement(network=network)
                self._starting_filter(declared)
                self._settled_filter(declared, listened=True)

    def close(self) -> None:
        """Close what this holds of the host; nobody is confined any more."""
        if self._code_rules >= 0:
            os.close(self._code_rules)
            self._code_rules = -1

    def _starting_filter(self, declared: Confinement) -> bytes:
        key = ("starting", declared.network != "", declared.threads > 0)
        if key not in self._filters:
            self._filters[key] = seccomp.assemble(starting_rules(declared), seccomp.REPORT)
        return self._filters[key]

    def _settled_filter(self, declared: Confinement, *, listened: bool) -> bytes:
        key = ("settled", declared.network != "", listened)
        if key not in self._filters:
            otherwise = seccomp.REPORT if listened else seccomp.ERRNO | errno.EPERM
            rules = settled_rules(declared, listened=listened)
            self._filters[key] = seccomp.assemble(rules, otherwise)
        return self._filters[key]

    def confine(self, declared: Confinement) -> Settle:
        """Take the first step in this process, and return the second one.

        Raises:
            OSError: the host refuses something that it has.
        """
        _lead_nowhere()
        sys.dont_write_bytecode = True
        _limit(declared, self._inherited)
        seccomp.forbid_new_privileges()
        if self._code_rules >= 0:
            self._restrict(declared)
        capabilities.keep_only(capabilities.mask_of(declared.capabilities))
        if self._filters_calls:
            seccomp.install(self._starting_filter(declared))
        return lambda: self._settle(declared)

    def _restrict(self, declared: Confinement) -> None:
        """Give up all files but what is declared, and code to be read."""
        if not declared.reads and not declared.writes:
            landlock.restrict(self._code_rules)
            self.close()
            return
        number = landlock.rule_set([*self.code, *declared.reads], declared.writes)
        landlock.restrict(number)
        os.close(number)

    def rehearse(self) -> None:
        """Do what `confine` does, to no effect; see `core.userlib.serving.rehearse`."""
        _lead_nowhere(())
        _limit(Confinement(), self._inherited, apply=False)
        if self._code_rules >= 0:
            os.close(landlock.rule_set(self.code[:1]))
        capabilities.keep_only(-1)
        seccomp.is_there()

    def _settle(self, declared: Confinement) -> int:
        if threading.active_count() > 1:
            raise OSError(errno.EBUSY, "start() left a thread, which nothing would confine")
        if self._code_rules >= 0:
            landlock.restrict(self._code_rules)
            self.close()
        capabilities.keep_only(0)
        if not self._filters_calls:
            return -1
        try:
            return seccomp.install(self._settled_filter(declared, listened=True), listen=True)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EINVAL):
                raise
            seccomp.install(self._settled_filter(declared, listened=False))
            return -1


def lacks() -> list[str]:
    """Return what this host does not have of what confines a task, in words."""
    found = []
    if not landlock.version():
        found.append("landlock: only the filter of system calls guards the host's files")
    if not seccomp.is_there():
        found.append("seccomp: system calls are not filtered")
    return found


def _virtual_size() -> int:
    """Return the octets of this process' address space."""
    number = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    pages = int(os.read(number, 64).split()[0])
    os.close(number)
    return pages * resource.getpagesize()


def _lead_nowhere(numbers: tuple[int, ...] = (0, 1, 2)) -> None:
    """Put /dev/null in the place of standard input, output and error."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in numbers:
        os.dup2(null, number)
    os.close(null)


def _highest_descriptor() -> int:
    """Return the highest number of a descriptor that is open in this process."""
    return max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers only


def _limit(declared: Confinement, inherited: int, *, apply: bool = True) -> None:
    """Set the limits of this process, soft and hard; without `apply`, look only.

    Args:
        inherited: numbers of descriptors below this one do not count, because the host limits the
            numbers: who started the system may have had many open, which lead nowhere here.
    """
    limits = {
        resource.RLIMIT_AS: _virtual_size() + (declared.memory_mib << 20),
        resource.RLIMIT_NOFILE: inherited + declared.descriptors,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if declared.file_mib:
        limits[resource.RLIMIT_FSIZE] = declared.file_mib << 20
    for number, wanted in limits.items():
        hard = resource.getrlimit(number)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if not apply:
            continue
        resource.setrlimit(number, (value, value))
