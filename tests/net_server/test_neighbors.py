"""The neighbor table: what is learnt from whom, when is asked, and what is held meanwhile."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from net_server.stack import neighbors
from tests.net_server.peer import (
    BROADCAST_LINK,
    ELSEWHERE,
    OTHER,
    OUR_LINK,
    OURS,
    THEIR_LINK,
    THEIRS,
    Peer,
    number,
)

NOBODY = "00:00:00:00:00:00"
STRANGER = "02:00:00:00:00:99"


def table(peer: Peer) -> dict[str, str]:
    return {
        ".".join(str(octet) for octet in n.address.to_bytes(4, "big")): n.link.hex(":")
        for n in peer.stack.neighbors
        if n.link is not None
    }


def reply(source: str = THEIRS, sender_link: str = THEIR_LINK) -> Packet:
    return Ether(src=sender_link, dst=OUR_LINK) / ARP(
        op=2, hwsrc=sender_link, psrc=source, hwdst=OUR_LINK, pdst=OURS
    )


def ping(peer: Peer, destination: str = THEIRS, size: int = 8) -> None:
    assert peer.stack.icmp.send_echo(number(destination), 1, 1, bytes(size), peer.now)


def test_request_for_our_address_is_answered() -> None:
    peer = Peer(known=False)
    (answer,) = peer.send(Ether(src=THEIR_LINK, dst=BROADCAST_LINK) / peer.request())
    assert answer.dst == THEIR_LINK
    assert (answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (2, OUR_LINK, OURS)
    assert (answer[ARP].hwdst, answer[ARP].pdst) == (THEIR_LINK, THEIRS)
    assert table(peer) == {THEIRS: THEIR_LINK}


def test_request_for_another_address_is_not_answered_and_teaches_nothing() -> None:
    peer = Peer(known=False)
    request = Ether(src=THEIR_LINK, dst=BROADCAST_LINK) / peer.request(target=OTHER)
    assert peer.send(request) == []
    assert table(peer) == {}


def test_probe_without_sender_address_is_answered_and_teaches_nothing() -> None:
    peer = Peer(known=False)
    (answer,) = peer.send(Ether(src=THEIR_LINK, dst=BROADCAST_LINK) / peer.request("0.0.0.0"))
    assert answer[ARP].op == 2
    assert table(peer) == {}


def test_unasked_reply_teaches_nothing() -> None:
    peer = Peer(known=False)
    assert peer.send(reply()) == []
    assert table(peer) == {}


def test_gratuitous_request_changes_what_is_known() -> None:
    peer = Peer()
    frame = Ether(src=STRANGER, dst=BROADCAST_LINK)
    peer.send(frame / peer.request(THEIRS, STRANGER, target=THEIRS))
    assert table(peer) == {THEIRS: STRANGER}


@pytest.mark.parametrize("source", [ELSEWHERE, "10.90.0.0", "10.90.0.255", "255.255.255.255"])
def test_sender_that_cannot_be_on_the_link_is_not_learnt(source: str) -> None:
    peer = Peer(known=False)
    peer.send(Ether(src=THEIR_LINK, dst=OUR_LINK) / peer.request(source))
    assert table(peer) == {}


@pytest.mark.parametrize("sender_link", [BROADCAST_LINK, NOBODY, "01:00:5e:00:00:01"])
def test_sender_link_that_is_no_station_is_an_error(sender_link: str) -> None:
    peer = Peer(known=False)
    assert peer.send(Ether(src=THEIR_LINK, dst=OUR_LINK) / peer.request(THEIRS, sender_link)) == []
    assert table(peer) == {}
    assert peer.count("arpInErrors") == 1


def test_conflict_is_defended_once_in_an_interval() -> None:
    peer = Peer()
    frame = Ether(src=STRANGER, dst=BROADCAST_LINK) / peer.request(OURS, STRANGER)
    (defence,) = peer.send(frame)
    assert (defence[ARP].psrc, defence[ARP].pdst, defence[ARP].hwsrc) == (OURS, OURS, OUR_LINK)
    assert defence.dst == BROADCAST_LINK
    assert peer.send(frame) == []
    peer.pass_time(neighbors.DEFENCE_INTERVAL_S)
    assert len(peer.send(frame)) == 1
    assert peer.count("arpInConflicts") == 3
    assert OURS not in table(peer)


def test_packet_waits_for_the_answer_and_then_goes() -> None:
    peer = Peer(known=False)
    ping(peer)
    (question,) = peer.sent()
    assert question.dst == BROADCAST_LINK
    assert (question[ARP].op, question[ARP].psrc, question[ARP].pdst) == (1, OURS, THEIRS)
    (packet,) = peer.send(reply())
    assert packet.dst == THEIR_LINK
    assert packet[IP].dst == THEIRS


def test_question_is_repeated_once_a_second_and_given_up() -> None:
    peer = Peer(known=False)
    ping(peer)
    assert len(peer.sent()) == 1
    assert peer.pass_time(0.99) == []
    assert len(peer.pass_time(0.02)) == 1
    assert len(peer.pass_time(60)) == neighbors.ATTEMPTS - 2
    assert len(peer.stack.neighbors) == 0
    assert peer.count("arpFailures") == 1


def test_many_packets_set_off_one_question() -> None:
    peer = Peer(known=False)
    for _ in range(100):
        ping(peer)
    assert len(peer.sent()) == 1
    assert len(peer.send(reply())) == neighbors.HELD_LIMIT
    assert peer.count("arpPendingDiscards") == 100 - neighbors.HELD_LIMIT


def test_newest_packets_are_the_ones_held() -> None:
    peer = Peer(known=False)
    for sequence in range(30):
        peer.stack.icmp.send_echo(number(THEIRS), 1, sequence, b"", peer.now)
    peer.sent()
    sent = [frame[ICMP].seq for frame in peer.send(reply())]
    assert sent == list(range(30 - neighbors.HELD_LIMIT, 30))


def test_fragments_of_a_large_datagram_are_held_together() -> None:
    peer = Peer(known=False)
    ping(peer, size=65_507)
    peer.sent()
    frames = peer.send(reply())
    assert sum(len(frame[IP].payload) for frame in frames) == 65_515


def test_held_octets_are_bounded() -> None:
    peer = Peer(known=False)
    for _ in range(8):
        ping(peer, size=65_507)
    held = next(iter(peer.stack.neighbors)).held_octets
    assert 65_507 < held <= neighbors.HELD_OCTETS_LIMIT


def test_old_entry_is_used_while_it_is_asked_again() -> None:
    peer = Peer()
    peer.pass_time(neighbors.FRESH_S)
    ping(peer)
    question, packet = peer.sent()
    assert (question[ARP].op, question.dst) == (1, THEIR_LINK)
    assert packet[IP].dst == THEIRS
    peer.send(reply())
    ping(peer)
    assert len(peer.sent()) == 1


def test_old_entry_that_does_not_answer_goes() -> None:
    peer = Peer()
    peer.pass_time(neighbors.FRESH_S)
    ping(peer)
    assert len(peer.sent()) == 2
    questions = peer.pass_time(10)
    assert [question.dst for question in questions] == [THEIR_LINK, BROADCAST_LINK]
    assert len(peer.stack.neighbors) == 0


def test_packets_for_elsewhere_go_to_the_gateway() -> None:
    peer = Peer(gateway=THEIRS)
    ping(peer, ELSEWHERE)
    (packet,) = peer.sent()
    assert (packet.dst, packet[IP].dst) == (THEIR_LINK, ELSEWHERE)


def test_without_a_gateway_there_is_no_route_elsewhere() -> None:
    peer = Peer()
    assert not peer.stack.icmp.send_echo(number(ELSEWHERE), 1, 1, b"", peer.now)
    assert peer.count("ipOutNoRoutes") == 1


def test_every_station_of_the_link_may_be_known_and_no_other() -> None:
    peer = Peer(known=False)
    frame = Ether(src=STRANGER, dst=OUR_LINK)
    for host in range(256):
        request = peer.request(f"10.90.0.{host}", STRANGER)
        peer.stack.receive_frame(memoryview(bytes(frame / request)), peer.now)
    assert len(peer.stack.neighbors) == 253


def test_table_never_exceeds_its_limit() -> None:
    peer = Peer(gateway=None)
    peer.stack.neighbors._prefix = type(peer.stack.configuration.prefix)(number(OURS), 8)
    for index in range(neighbors.ENTRIES_LIMIT + 500):
        source = f"10.{index // 60_000}.{index // 250}.{index % 250 + 1}"
        peer.stack.neighbors.receive(bytes(peer.request(source, STRANGER)), peer.now)
    assert len(peer.stack.neighbors) == neighbors.ENTRIES_LIMIT
    assert THEIRS not in table(peer)


def test_incomplete_entries_are_bounded() -> None:
    peer = Peer(known=False)
    table_ = peer.stack.neighbors
    for address in range(neighbors.INCOMPLETE_LIMIT + 50):
        table_.hold(address, (neighbors.Fragment(b"", b"", b""),), peer.now)
    assert len(table_) == neighbors.INCOMPLETE_LIMIT
