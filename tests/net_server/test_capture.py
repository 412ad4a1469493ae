"""Captures: what they keep, what they drop, and files that scapy and tshark read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapNgReader

from net_server import pcap
from net_server.capture import (
    INBOUND,
    OUTBOUND,
    RING_OCTETS_LIMIT,
    SNAPLEN_LIMIT,
    Capture,
    Captures,
    Record,
    finish,
    records,
)
from net_server.wire import udp, vnet

frames_drawn = st.lists(
    st.tuples(st.integers(0, 2**63), st.sampled_from([INBOUND, OUTBOUND]), st.binary(max_size=200))
)


@given(frames_drawn, st.integers(64, 2000))
def test_what_passes_comes_out_in_order(frames: list[tuple[int, int, bytes]], size: int) -> None:
    capture = Capture(SNAPLEN_LIMIT)
    for time_ns, direction, frame in frames:
        capture.put(time_ns, direction, frame)
    out: list[Record] = []
    while capture:
        batch = capture.take(size)
        assert 0 < len(batch) <= size
        out += records(batch)
    assert [(r.time_ns, r.direction, r.size) for r in out] == [(t, d, len(f)) for t, d, f in frames]
    for record, (_, _, frame) in zip(out, frames, strict=True):
        assert frame.startswith(record.octets)
        assert record.octets == frame or len(record.octets) == size - 20


def test_snaplen_cuts_but_the_size_is_told() -> None:
    capture = Capture(10)
    capture.put(5, INBOUND, bytes(range(100)))
    assert list(records(capture.take(1000))) == [Record(5, INBOUND, 100, bytes(range(10)))]


def test_full_ring_drops_and_counts() -> None:
    capture = Capture(SNAPLEN_LIMIT)
    for _ in range(100):
        capture.put(0, INBOUND, bytes(60_000))
    kept = len(capture)
    assert kept == RING_OCTETS_LIMIT // 60_020
    assert capture.dropped == 100 - kept
    capture.take(64)
    capture.put(0, INBOUND, bytes(60_000))
    assert capture.dropped == 100 - kept


def test_capture_is_notified_when_it_ceases_to_be_empty() -> None:
    capture = Capture(100)
    told: list[int] = []
    capture.notify = lambda: told.append(len(capture))
    for _ in range(3):
        capture.put(0, INBOUND, b"frame")
    assert told == [1]


def test_every_capture_sees_every_frame_while_it_is_there() -> None:
    captures = Captures(1_000)
    assert not captures
    first, second = Capture(100), Capture(3)
    captures.add(first)
    captures.record(INBOUND, 2.0, b"", b"one")
    captures.add(second)
    captures.record_buffers(OUTBOUND, 3.0, (vnet.PLAIN, b"two", b"!"), header=True)
    captures.remove(first)
    captures.record_buffers(OUTBOUND, 4.0, (b"three", b""), header=False)
    assert [r.octets for r in records(first.take(999))] == [b"one", b"two!"]
    assert list(records(second.take(999))) == [
        Record(3_000_001_000, OUTBOUND, 4, b"two"),
        Record(4_000_001_000, OUTBOUND, 5, b"thr"),
    ]
    captures.remove(second)
    assert not captures


@given(st.binary(max_size=200))
def test_checksum_left_to_the_device_is_finished(data: bytes) -> None:
    whole = bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5, dport=6) / data)
    partial = whole[:34] + udp.emit_partial(0x0A000001, 5, 0x0A000002, 6, len(data)) + data
    device = vnet.emit(vnet.Header(vnet.NEEDS_CHECKSUM, 0, 0, 0, 34, 6))
    assert finish(device, partial) == whole
    assert finish(b"", partial) == finish(vnet.PLAIN, partial) == partial


@given(st.binary(min_size=10, max_size=10), st.binary(max_size=60))
def test_no_device_header_can_make_finishing_raise(device: bytes, frame: bytes) -> None:
    assert len(finish(device, frame)) == len(frame)


def written(path: Path) -> list[Record]:
    """Write a file with two frames and return them."""
    ping = bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(id=1, seq=2) / b"ab")
    pong = bytes(Ether() / IP(src="10.0.0.2", dst="10.0.0.1") / ICMP(type=0, id=1, seq=2) / b"ab")
    frames = [
        Record(1_700_000_000_123_456_789, INBOUND, len(ping), ping),
        Record(1_700_000_000_123_556_789, OUTBOUND, len(pong) + 9, pong),
    ]
    blocks = [pcap.header("atoll0", 65_549), *map(pcap.packet, frames)]
    path.write_bytes(b"".join([*blocks, pcap.statistics(1_700_000_001_000_000_000, 3)]))
    return frames


def test_scapy_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "frames.pcapng"
    frames = written(path)
    reader = RawPcapNgReader(str(path))
    read: list[tuple[bytes, int, int]] = []
    for octets, meta in reader:
        time: Any = meta
        read.append((octets, (time.tshigh << 32) + time.tslow, time.wirelen))
    reader.close()
    assert read == [(frame.octets, frame.time_ns, frame.size) for frame in frames]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
@pytest.mark.slow
def test_tshark_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "frames.pcapng"
    written(path)
    fields = ["frame.time_epoch", "frame.len", "frame.interface_name", "icmp.type", "ip.src"]
    shown = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "fields", *(f"-e{field}" for field in fields)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split("\t") for line in shown.stdout.splitlines()] == [
        ["1700000000.123456789", "44", "atoll0", "8", "10.0.0.1"],
        ["1700000000.123556789", "53", "atoll0", "0", "10.0.0.2"],
    ]
