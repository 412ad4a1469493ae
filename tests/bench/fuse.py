"""What a mount costs: latency of single requests and throughput of bulk, for any mounted directory.

    python -m tests.bench.fuse                    # the front end over memory, and its yardstick
    python -m tests.bench.fuse DIR...             # directories that are mounted already

Rounds of all peers are interleaved and medians reported, because the machine's mood changes within
seconds. `pinned` runs client and server on one CPU; `unpinned` leaves them to the scheduler, where
the wake-up of an idle CPU dominates. The client's own cost (the loop, ctypes, the system call) is
part of every figure and the same for all peers; the row `client alone` shows it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import mmap
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

AT_EMPTY_PATH: Final = 0x1000
AT_STATX_FORCE_SYNC: Final = 0x2000
AT_STATX_DONT_SYNC: Final = 0x4000
STATX_BASIC_STATS: Final = 0x7FF
MIB: Final = 1 << 20
LIBC: Final = ctypes.CDLL(None, use_errno=True)

Peers = dict[str, Sequence[str]]
"""Commands by name; the mount point takes the place of PLACE. No command: the name is one."""
PLACE: Final = "{place}"


def _statx(descriptor: int, count: int, flags: int) -> float:
    buffer = ctypes.create_string_buffer(256)
    statx, empty = LIBC.statx, ctypes.c_char_p(b"")
    wanted, mask = ctypes.c_int(AT_EMPTY_PATH | flags), ctypes.c_uint(STATX_BASIC_STATS)
    began = time.perf_counter()
    for _ in range(count):
        if statx(descriptor, empty, wanted, mask, buffer):
            raise OSError(ctypes.get_errno(), "statx")
    return (time.perf_counter() - began) / count * 1e6


def client_alone_us(directory: Path, count: int = 2000) -> float:
    """Return what the client's side of `getattr_us` costs without a request."""
    descriptor = os.open(directory / "stat", os.O_CREAT | os.O_RDWR)
    try:
        os.fstat(descriptor)
        return _statx(descriptor, count, AT_STATX_DONT_SYNC)
    finally:
        os.close(descriptor)


def getattr_us(directory: Path, count: int = 2000) -> float:
    """Return microseconds for the attributes of an open file, asked of the server every time."""
    descriptor = os.open(directory / "stat", os.O_CREAT | os.O_RDWR)
    try:
        return _statx(descriptor, count, AT_STATX_FORCE_SYNC)
    finally:
        os.close(descriptor)


def lookup_us(directory: Path, count: int = 1000) -> float:
    """Return microseconds for a look-up of a name that is missing, another one every time."""
    names = [str(directory / f"missing-{time.perf_counter_ns()}-{index}") for index in range(count)]
    access, exists = os.access, os.F_OK
    began = time.perf_counter()
    for name in names:
        access(name, exists)
    return (time.perf_counter() - began) / count * 1e6


def create_us(directory: Path, count: int = 400) -> float:
    """Return microseconds for making an empty file: look-up, create and release."""
    names = [str(directory / f"new-{index}") for index in range(count)]
    began = time.perf_counter()
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    return (time.perf_counter() - began) / count * 1e6


def unlink_us(directory: Path, count: int = 400) -> float:
    """Return microseconds for removing the files that `create_us` made."""
    names = [str(directory / f"new-{index}") for index in range(count)]
    began = time.perf_counter()
    for name in names:
        Path(name).unlink()
    return (time.perf_counter() - began) / count * 1e6


def _direct(directory: Path, count: int, call: Callable[..., int]) -> float:
    path = directory / "direct"
    path.write_bytes(bytes(64 * 4096))
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as page:
            began = time.perf_counter()
            for index in range(count):
                call(descriptor, [page], index % 64 * 4096)
            return (time.perf_counter() - began) / count * 1e6
    finally:
        os.close(descriptor)


def read4k_us(directory: Path, count: int = 1000) -> float:
    """Return microseconds for reading 4 KiB past the host's cache."""
    return _direct(directory, count, os.preadv)


def write4k_us(directory: Path, count: int = 1000) -> float:
    """Return microseconds for writing 4 KiB past the host's cache."""
    return _direct(directory, count, os.pwritev)


def append4k_us(directory: Path, count: int = 1000) -> float:
    """Return microseconds for a plain write(2) of 4 KiB at a file's end."""
    descriptor = os.open(directory / "grown", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    block = bytes(4096)
    try:
        began = time.perf_counter()
        for _ in range(count):
            os.write(descriptor, block)
        return (time.perf_counter() - began) / count * 1e6
    finally:
        os.close(descriptor)


def write_mb_s(directory: Path, size: int = 64 * MIB) -> float:
    """Return MB/s of a sequential write in pieces of 1 MiB, with fsync."""
    descriptor = os.open(directory / "bulk", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    piece = os.urandom(MIB)
    try:
        began = time.perf_counter()
        for _ in range(size // MIB):
            os.write(descriptor, piece)
        os.fsync(descriptor)
        return size / 1e6 / (time.perf_counter() - began)
    finally:
        os.close(descriptor)


def read_mb_s(directory: Path) -> float:
    """Return MB/s of a sequential read of what `write_mb_s` wrote, not cached by the host."""
    descriptor = os.open(directory / "bulk", os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size = 0
        began = time.perf_counter()
        while piece := os.read(descriptor, MIB):
            size += len(piece)
        return size / 1e6 / (time.perf_counter() - began)
    finally:
        os.close(descriptor)


def tar_s(directory: Path, files: int = 1000) -> float:
    """Return seconds for tar(1) to unpack so many files of 1 KiB."""
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as made:
            for number in range(files):
                entry = tarfile.TarInfo(f"unpacked-{number}")
                entry.size = 1024
                made.addfile(entry, io.BytesIO(bytes(1024)))
        archive.seek(0)
        began = time.perf_counter()
        subprocess.run(["tar", "-x", "-C", str(directory)], stdin=archive, check=True)
        return time.perf_counter() - began


WORKLOADS: Final = {
    "client alone µs": client_alone_us,
    "getattr µs": getattr_us,
    "lookup µs": lookup_us,
    "create µs": create_us,
    "unlink µs": unlink_us,
    "read 4k µs": read4k_us,
    "write 4k µs": write4k_us,
    "append 4k µs": append4k_us,
    "write MB/s": write_mb_s,
    "read MB/s": read_mb_s,
    "tar x, s": tar_s,
}
"""In the order of running: some use what an earlier one left."""


def run_workloads(directory: Path) -> dict[str, float]:
    """Run every workload once in a directory; what fails there is left out, with a remark."""
    results = {}
    for name, workload in WORKLOADS.items():
        try:
            results[name] = workload(directory)
        except OSError as error:
            print(f"{directory}: {name}: {error}", file=sys.stderr)
    return results


def measure(directory: Path, *, pinned: bool) -> dict[str, float]:
    """Run every workload once, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.fuse", "--client", str(directory)]
    pin = ["taskset", "-c", "0"] if pinned else []
    done = subprocess.run([*pin, *command], check=True, stdout=subprocess.PIPE, text=True)
    return {name: float(value) for name, value in json.loads(done.stdout).items()}


@contextlib.contextmanager
def mounted_peer(command: Sequence[str], *, pinned: bool) -> Iterator[Path]:
    """Start a peer that says "ready" when it is mounted, and ends with its standard input."""
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as place:
        pin = ["taskset", "-c", "0"] if pinned else []
        words = [place if word == PLACE else word for word in command]
        peer = subprocess.Popen(
            [*pin, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert peer.stdin is not None
        assert peer.stdout is not None
        try:
            if peer.stdout.readline().strip() != "ready":
                raise RuntimeError(f"{command}: did not start")
            yield Path(place)
        finally:
            peer.stdin.close()
            peer.wait(timeout=30)
            peer.stdout.close()


def compare(peers: Peers, *, pinned: bool, rounds: int) -> dict[str, dict[str, float]]:
    """Return the medians of each workload for each peer, over interleaved rounds."""
    found: dict[str, dict[str, list[float]]] = {peer: {} for peer in peers}
    for _ in range(rounds):
        for peer, command in peers.items():
            plain = contextlib.nullcontext(Path(peer))
            place = mounted_peer(command, pinned=pinned) if command else plain
            with place as directory:
                for name, value in measure(directory, pinned=pinned).items():
                    found[peer].setdefault(name, []).append(value)
    return {
        peer: {name: statistics.median(values) for name, values in results.items()}
        for peer, results in found.items()
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Return results as text, a row for each workload and a column for each peer."""
    width = max(len(peer) for peer in results) + 2
    lines = [" " * 18 + "".join(peer.rjust(width) for peer in results)]
    for name in WORKLOADS:
        values = [results[peer].get(name) for peer in results]
        cells = ("-" if value is None else f"{value:.{1 + (value < 10)}f}" for value in values)
        lines.append(name.ljust(18) + "".join(cell.rjust(width) for cell in cells))
    return "\n".join(lines)


def python(*words: str) -> Sequence[str]:
    """Return the command that runs a module of this project."""
    return (sys.executable, "-m", *words)


MEMORY_PEERS: Final[Peers] = {
    "bare, stock": python("tests.bench.bare_fuse", PLACE),
    "front end": python("tests.support.memory_mount", PLACE),
    "its stock wait": python("tests.support.memory_mount", "stock", PLACE),
}


def main(*words: str) -> None:
    """Print the tables, or, as `--client`, one run's results as JSON."""
    if words[:1] == ("--client",):
        print(json.dumps(run_workloads(Path(words[1]))))
        return
    peers: Peers = dict.fromkeys(words, ()) or MEMORY_PEERS
    for pinned in (True, False):
        print("pinned to one CPU" if pinned else "unpinned")
        print(table(compare(peers, pinned=pinned, rounds=5)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
