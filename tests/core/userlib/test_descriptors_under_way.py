"""The host refuses to send descriptors while too many of the same user are under way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import os, resource, socket, sys, threading, time
sys.path[:] = PATHS
from core.abi import Kind
from core.userlib.line import Line, Region, new_region

os.setgroups([]); os.setgid(4242); os.setuid(4242)      # nobody else's descriptors count
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 1024))
many, reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
null = os.open(os.devnull, os.O_RDONLY)
for _ in range(17):
    socket.send_fds(many, [b"x"], [null])
try:
    socket.send_fds(many, [b"x"], [null])
except OSError as error:
    print(error.strerror, flush=True)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
line = Line(ours, Region(new_region()))
begun = threading.Event()

def receive():
    begun.wait()
    for _ in range(17):
        os.close(socket.recv_fds(reader, 1, 1)[1][0])

threading.Thread(target=receive).start()
begun.set()
line.send(Kind.READY, descriptors=(null,))
print(len(socket.recv_fds(theirs, 100, 1)[1]), "received")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes on another user's id")
def test_a_descriptor_is_sent_as_soon_as_others_were_received() -> None:
    program = _PROGRAM.replace("PATHS", repr(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout == "Too many references: cannot splice\n1 received\n", done.stderr
