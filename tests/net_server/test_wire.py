"""Every codec against scapy, in both directions, and against octets that nobody meant."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.utils import checksum as scapy_checksum

from net_server.wire import ParseError, arp, checksum, ethernet, icmpv4, ipv4, udp, vnet

addresses = st.integers(0, 0xFFFF_FFFF)
words = st.integers(0, 0xFFFF)
octet = st.integers(0, 255)
links = st.binary(min_size=6, max_size=6)
payloads = st.binary(max_size=300)


def colons(octets: bytes) -> str:
    return octets.hex(":")


@given(payloads)
def test_checksum_agrees_with_scapy(octets: bytes) -> None:
    assert checksum.checksum(octets) == scapy_checksum(octets)


@given(payloads)
def test_octets_with_their_checksum_are_valid(octets: bytes) -> None:
    even = octets + bytes(len(octets) % 2)
    field = checksum.checksum(even).to_bytes(2, "big")
    assert checksum.is_valid(even + field)


@given(payloads.filter(lambda octets: len(octets) > 2), st.data())
def test_a_changed_bit_invalidates(octets: bytes, data: st.DataObject) -> None:
    even = bytearray(octets + bytes(len(octets) % 2))
    even += checksum.checksum(even).to_bytes(2, "big")
    bit = data.draw(st.integers(0, len(even) * 8 - 1))
    even[bit // 8] ^= 1 << bit % 8
    assert not checksum.is_valid(even)


@given(st.binary(min_size=4, max_size=100).filter(any), words)
def test_incremental_update_equals_a_new_checksum(octets: bytes, new: int) -> None:
    octets += bytes(len(octets) % 2)
    changed = new.to_bytes(2, "big") + octets[2:]
    old = int.from_bytes(octets[:2], "big")
    updated = checksum.update(checksum.checksum(octets), old, new)
    assert checksum.is_valid(changed + updated.to_bytes(2, "big"))


@given(links, links, words, payloads)
def test_ethernet_agrees_with_scapy(
    destination: bytes, source: bytes, kind: int, payload: bytes
) -> None:
    theirs = bytes(Ether(dst=colons(destination), src=colons(source), type=kind)) + payload
    assert ethernet.parse(theirs) == (destination, source, kind)
    assert ethernet.emit(destination, source, kind) + payload == theirs


@given(st.sampled_from([1, 2]), links, addresses, links, addresses, payloads)
def test_arp_agrees_with_scapy(
    operation: int, sender_link: bytes, sender: int, target_link: bytes, target: int, padding: bytes
) -> None:
    theirs = bytes(
        ARP(
            op=operation,
            hwsrc=colons(sender_link),
            psrc=ipv4.to_text(sender),
            hwdst=colons(target_link),
            pdst=ipv4.to_text(target),
        )
    )
    ours = arp.Packet(operation, sender_link, sender, target_link, target)
    assert arp.parse(theirs + padding) == ours
    assert arp.emit(ours) == theirs


@pytest.mark.parametrize(
    "fields", [{"hwtype": 6}, {"ptype": 0x86DD}, {"hwlen": 8}, {"plen": 16}, {"op": 3}, {"op": 0}]
)
def test_arp_of_another_kind_is_refused(fields: dict[str, int]) -> None:
    octets = bytearray(bytes(ARP()))
    places = {"hwtype": (0, 2), "ptype": (2, 2), "hwlen": (4, 1), "plen": (5, 1), "op": (6, 2)}
    for name, value in fields.items():
        place, size = places[name]
        octets[place : place + size] = value.to_bytes(size, "big")
    with pytest.raises(ParseError):
        arp.parse(octets)


@given(addresses, addresses, octet, octet, words, words, payloads)
def test_ipv4_emits_what_scapy_builds(
    source: int,
    destination: int,
    protocol: int,
    ttl: int,
    identification: int,
    flags: int,
    payload: bytes,
) -> None:
    theirs = IP(
        src=ipv4.to_text(source),
        dst=ipv4.to_text(destination),
        proto=protocol,
        ttl=ttl,
        id=identification,
        flags=flags >> 13,
        frag=flags & 0x1FFF,
        len=20 + len(payload),
    )
    ours = ipv4.emit(source, destination, protocol, len(payload), identification, flags, ttl)
    assert ours == bytes(theirs)[:20]
    header = ipv4.parse(ours + payload)
    assert (header.source, header.destination, header.protocol) == (source, destination, protocol)
    assert (header.ttl, header.identification, header.total_size) == (
        ttl,
        identification,
        20 + len(payload),
    )
    assert header.offset == (flags & 0x1FFF) * 8
    assert header.more_fragments == bool(flags & 0x2000)


@given(st.integers(0, 10), payloads)
def test_ipv4_options_are_skipped_by_their_length(option_words: int, payload: bytes) -> None:
    theirs = bytes(IP(src="1.2.3.4", dst="5.6.7.8", options=b"\x01" * (4 * option_words)) / payload)
    header = ipv4.parse(theirs)
    assert header.header_size == 20 + 4 * option_words
    assert theirs[header.header_size :] == payload


def _broken_headers() -> list[tuple[str, bytes]]:
    good = bytes(IP(src="1.2.3.4", dst="5.6.7.8") / b"12345678")
    return [
        ("empty", b""),
        ("short", good[:19]),
        ("version 6", bytes([0x65]) + good[1:]),
        ("header of 16 octets", bytes([0x44]) + good[1:]),
        ("header longer than the packet", bytes([0x4F]) + good[1:]),
        ("longer than what came", bytes(IP(src="1.2.3.4", len=60) / b"12345678")),
        ("shorter than its header", bytes(IP(src="1.2.3.4", len=19) / b"12345678")),
        ("wrong checksum", bytes(IP(src="1.2.3.4", chksum=1) / b"12345678")),
    ]


@pytest.mark.parametrize(("name", "octets"), _broken_headers())
def test_broken_ipv4_header_is_refused(name: str, octets: bytes) -> None:
    with pytest.raises(ParseError):
        ipv4.parse(octets)


@given(addresses)
def test_address_text_goes_there_and_back(address: int) -> None:
    assert ipv4.from_text(ipv4.to_text(address)) == address


@pytest.mark.parametrize(
    "text", ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.x", "1.2.3.-4", "1.2.3.٤"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        ipv4.from_text(text)


@given(words, words, payloads)
def test_echo_agrees_with_scapy(identifier: int, sequence: int, payload: bytes) -> None:
    request = bytes(ICMP(type=8, id=identifier, seq=sequence) / payload)
    rest = identifier << 16 | sequence
    assert icmpv4.emit(icmpv4.ECHO_REQUEST, 0, rest, payload) + payload == request
    message = icmpv4.parse(request)
    assert (message.type, message.code, message.rest) == (8, 0, rest)
    reply = icmpv4.emit_echo_reply(message, payload) + payload
    assert icmpv4.parse(reply)[:2] == (icmpv4.ECHO_REPLY, 0)
    assert ICMP(reply).id == identifier
    assert reply[8:] == payload


def test_reply_of_zeros_only_has_a_checksum_of_ones() -> None:
    # RFC 1624: the incremental form finds the other zero, which a receiver would not accept
    request = bytes(ICMP(type=8, id=0, seq=0) / bytes(4))
    reply = icmpv4.emit_echo_reply(icmpv4.parse(request), bytes(4))
    assert reply == bytes(ICMP(type=0, id=0, seq=0) / bytes(4))[:8]


@given(payloads.filter(lambda octets: len(octets) > 2), st.integers(0, 7))
def test_icmp_with_a_wrong_checksum_is_refused(payload: bytes, bit: int) -> None:
    octets = bytearray(bytes(ICMP() / payload))
    octets[9] ^= 1 << bit
    with pytest.raises(ParseError):
        icmpv4.parse(octets)


@given(addresses, words, addresses, words, payloads)
def test_udp_agrees_with_scapy(
    source: int, source_port: int, destination: int, port: int, payload: bytes
) -> None:
    addressed = IP(src=ipv4.to_text(source), dst=ipv4.to_text(destination))
    theirs = bytes(addressed / UDP(sport=source_port, dport=port) / payload)[20:]
    ours = udp.emit(source, source_port, destination, port, payload) + payload
    assert ours == theirs
    header = udp.parse(theirs)
    assert header[:3] == (source_port, port, len(theirs))
    assert udp.is_intact(theirs, source, destination)


@given(addresses, addresses, payloads)
def test_finishing_a_partial_checksum_gives_the_whole_one(
    source: int, destination: int, payload: bytes
) -> None:
    partial = udp.emit_partial(source, 5, destination, 6, len(payload)) + payload
    field = checksum.checksum(partial) or 0xFFFF
    whole = udp.emit(source, 5, destination, 6, payload) + payload
    assert partial[:6] + field.to_bytes(2, "big") + partial[8:] == whole


def test_computed_udp_checksum_of_zero_is_sent_as_ones() -> None:
    # the payload's two octets are chosen so that everything adds up to 0xFFFF
    sizes = 10
    rest = checksum.add(b"", checksum.pseudo_header(1, 2, 17, sizes) + 3 + 4 + sizes)
    payload = (0xFFFF - rest).to_bytes(2, "big")
    assert udp.parse(udp.emit(1, 3, 2, 4, payload) + payload).checksum == 0xFFFF


@pytest.mark.parametrize("size", [0, 7, 9, 65535])
def test_udp_size_that_is_not_true_is_refused(size: int) -> None:
    with pytest.raises(ParseError):
        udp.parse(bytes(4) + size.to_bytes(2, "big") + bytes(2))


@given(st.builds(vnet.Header, octet, st.integers(0, 127), words, words, words, words))
def test_device_header_goes_there_and_back(header: vnet.Header) -> None:
    assert vnet.parse(vnet.emit(header) + b"frame") == header


_PARSERS: list[Callable[[Any], object]] = [
    ethernet.parse,
    arp.parse,
    ipv4.parse,
    ipv4.parse_quoted,
    icmpv4.parse,
    udp.parse,
    vnet.parse,
]


@given(st.sampled_from(_PARSERS), st.binary(max_size=80))
def test_any_octets_are_parsed_or_refused(parse: Callable[[Any], object], octets: bytes) -> None:
    for form in (octets, bytearray(octets), memoryview(octets)):
        with contextlib.suppress(ParseError):
            parse(form)
