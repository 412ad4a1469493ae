"""A mount of a file system in memory, as a program.

Run `python -m tests.support.memory_mount [WORD...] DIR`. Words: `stock` leaves pyfuse3's wait in
place; `sole` is the sole writer; `linger=MICROSECONDS`; `native` is the other front end. It says
"ready" when the mount can be used, and unmounts when its standard input ends.
"""

from __future__ import annotations

import sys
from functools import partial

import trio

from mount.fuse_session import serve
from mount.mount_options import MountOptions

from .memory_file_system import MemoryFileSystem


async def serve_until_input_ends(mountpoint: str, options: MountOptions) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, MemoryFileSystem(), mountpoint, options))
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


def main(*words: str) -> None:
    linger = next((int(word[7:]) for word in words if word.startswith("linger=")), 50)
    options = MountOptions(
        stock_wait="stock" in words,
        sole_writer="sole" in words,
        linger_s=linger / 1e6,
        front_end="native" if "native" in words else "pyfuse3",
    )
    trio.run(serve_until_input_ends, words[-1], options)


if __name__ == "__main__":
    main(*sys.argv[1:])
