"""What a ping costs: the round trip through Atoll's stack, beside the least that can answer one.

    python -m tests.bench.ping [DESCRIPTION PLACEMENT...]

Every peer answers on a TAP device of its own, in a network namespace of its own. Rounds are
interleaved, and the medians of the rounds' medians are shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator

import trio

from core.system.boot import Prepared, booted
from core.system.description import parse_description
from net_server import host_device, namespaces
from net_server.host_device import HostDevice
from net_server.link import Link
from net_server.stack.routes import Prefix, station_address
from tests.net_server.support import _DESCRIPTION, ATOLL

ROUNDS = 5
PINGS = 300
_TIME = re.compile(rb"time=([0-9.]+) ms")


def ping_us(namespace: str) -> float:
    """Return the median round trip, in microseconds, of pings from within a namespace."""
    done = subprocess.run(
        [
            "nsenter",
            f"--net={namespace}",
            "ping",
            "-i",
            "0.002",
            "-c",
            str(PINGS),
            "-W",
            "1",
            ATOLL,
        ],
        check=False,
        capture_output=True,
    )
    times = [float(time) * 1000 for time in _TIME.findall(done.stdout)]
    if len(times) < PINGS * 0.9:
        raise RuntimeError(f"only {len(times)} of {PINGS} answered: {done.stderr.decode()}")
    return statistics.median(times)


@contextlib.contextmanager
def bare_responder() -> Iterator[str]:
    """Yield the namespace of a link whose pings twenty lines of trio answer."""
    namespace = namespaces.create()
    prefix = Prefix.from_text("10.90.0.1/24")
    wanted = HostDevice("bare0", 1500, prefix, station_address("", prefix))
    device = namespaces.run_inside(namespace, lambda: host_device.open_device(wanted, header=False))
    host_device.set_offloads(device, wanted=False)
    responder = subprocess.Popen(
        [sys.executable, "-m", "tests.net_server.bare_responder", str(device)], pass_fds=[device]
    )
    os.close(device)
    try:
        yield f"/proc/{os.getpid()}/fd/{namespace}"
    finally:
        responder.kill()
        responder.wait()
        os.close(namespace)


@contextlib.contextmanager
def atoll(placement: str) -> Iterator[str]:
    """Yield the namespace of the link of a system whose servers have this placement."""
    system = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.ping", "--serve", placement],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert system.stdout is not None
    assert system.stdin is not None
    try:
        yield system.stdout.readline().strip()
    finally:
        system.stdin.close()
        system.wait()


def serve(placement: str) -> None:
    """Be a system with a link, say where its namespace is, and end with standard input."""
    text = _DESCRIPTION.format(placement=placement, offload="true")
    prepared = Prepared(parse_description(text, "bench"))

    async def main() -> None:
        async with booted(prepared) as system:
            link: Link = system.connect(Link, "tap")
            namespace = await link.namespace()
            print(f"/proc/{os.getpid()}/fd/{namespace.fileno()}", flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)

    trio.run(main)


def run() -> dict[str, float]:
    """Return the medians by peer, in microseconds."""
    with bare_responder() as bare, atoll("colocated") as promoted, atoll("process") as isolated:
        peers = {"bare trio responder": bare, "co-located": promoted, "isolated": isolated}
        rounds = [{name: ping_us(where) for name, where in peers.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(row[name] for row in rounds) for name in peers}


def main(*words: str) -> None:
    """Print the table, or serve."""
    if words[:1] == ("--serve",):
        serve(words[1])
        return
    results = run()
    bare = results["bare trio responder"]
    for name, median in results.items():
        print(f"{name:24} {median:8.1f} us {median / bare:6.2f} x")


if __name__ == "__main__":
    main(*sys.argv[1:])
