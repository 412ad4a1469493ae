"""Recording a system's frames: `capture`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import BinaryIO, Final

from mount.obstacle import ObstacleError
from mount.run_directory import RunDirectory, find_system

from .output import complain
from .parser import Commands, count, seconds

_BATCH_SIZE: Final = 256 * 1024


def register(commands: Commands) -> None:
    """Describe this command to the parser."""
    parser = commands.add(
        "capture",
        capture,
        "record the frames of a system, in the pcapng format",
        "Ends with ^C, or when it has what was asked for.\n\n"
        "examples:\n  atoll capture --seconds 10 /tmp/x.pcapng\n"
        "  atoll capture - | tcpdump -r - -n",
    )
    parser.add_argument("file", help="where to write; -: standard output")
    parser.add_argument("--count", type=count, help="end after so many frames")
    parser.add_argument("--seconds", type=seconds, help="end after so many seconds")
    parser.add_argument("--snaplen", type=count, default=0, help="octets to keep of each frame")


class _Recording:
    """What was recorded so far, and where it goes."""

    def __init__(self, file: BinaryIO, limit: int | None) -> None:
        self.file = file
        self.limit = limit
        self.frames = 0
        self.dropped = 0

    async def follow(self, run: RunDirectory, snaplen: int) -> None:
        """Record until there are enough frames."""
        from core.userlib.joined import joined
        from net_server import pcap
        from net_server.capture import records
        from net_server.network import Network

        async with joined(run.control_path) as task:
            right = await task.connect(Network, "net").capture_start(snaplen)
            frames = task.connect(Network, right)
            self.file.write(pcap.header("atoll", snaplen))
            self.file.flush()
            while self.limit is None or self.frames < self.limit:
                batch, octets = await frames.capture_next(_BATCH_SIZE)
                self.dropped = batch.dropped
                if batch.interrupted:
                    complain("the TCP/IP server was restarted; frames are missing here")
                for record in records(octets):
                    if self.limit is None or self.frames < self.limit:
                        self.file.write(pcap.packet(record))
                        self.frames += 1
                self.file.flush()


def capture(arguments: argparse.Namespace) -> int:
    """Run `atoll capture`."""
    import trio

    from net_server import pcap

    run = find_system(arguments.name)
    with contextlib.ExitStack() as stack:
        recording = _Recording(_open(arguments.file, stack), arguments.count)

        async def record() -> None:
            with trio.move_on_after(arguments.seconds or float("inf")):
                await recording.follow(run, arguments.snaplen)

        try:
            trio.run(record)
        except* (KeyboardInterrupt, BrokenPipeError):
            pass  # the user, or who reads the frames, has enough
        with contextlib.suppress(BrokenPipeError):
            recording.file.write(pcap.statistics(time.time_ns(), recording.dropped))
            recording.file.flush()
    complain(f"{recording.frames} frames recorded, {recording.dropped} dropped")
    return 0


def _open(name: str, stack: contextlib.ExitStack) -> BinaryIO:
    if name == "-":
        if sys.stdout.isatty():
            remedy = "name a file, or pipe it: atoll capture - | tcpdump -r -"
            raise ObstacleError("capture", "a terminal cannot show frames", remedy)
        return sys.stdout.buffer
    try:
        return stack.enter_context(Path(name).open("wb"))
    except OSError as error:
        raise ObstacleError(name, error.strerror or "", "name another file") from None
