"""The neighbor table: who has which address on the link, kept by ARP (RFC 826, 1122, 5227).

Theory of operation. `lookup` gives the Ethernet header for a neighbor, or None; `hold` then keeps
what is to be sent until the answer comes. An entry is in one of three states:

    INCOMPLETE --answer--> REACHABLE --used after FRESH_S--> PROBE --answer--> REACHABLE
        |                                                      |
        +------------- ATTEMPTS requests without answer -------+--> gone, `failed` is called

A PROBE goes on using the address it has while it asks (unicast first, the last time broadcast),
as RFC 1122 section 2.3.2.1 (2) describes.

Invariants:
1. For one address at most one request goes out in `RETRY_S`: a failed entry goes only after the
   last wait, and a new one asks at once.
2. What a neighbor says creates an entry only if it asks *us* from an address of this link;
   anything else may only change an entry that is there. So chatter of others does not grow the
   table.
3. The table, its incomplete entries, and what each of those holds are bounded; the entry that was
   confirmed longest ago makes room, and of what is held, the oldest.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from net_server.wire import Octets, ParseError, arp, ethernet, vnet

from .counters import Counters
from .egress import Egress
from .routes import Prefix

FRESH_S: Final = 60.0
RETRY_S: Final = 1.0
ATTEMPTS: Final = 3
ENTRIES_LIMIT: Final = 1024
INCOMPLETE_LIMIT: Final = 256
HELD_LIMIT: Final = 16
"""Datagrams held for one neighbor."""
HELD_OCTETS_LIMIT: Final = 256 * 1024
"""Octets held for one neighbor; fragments of three of the largest datagrams fit."""
DEFENCE_INTERVAL_S: Final = 10.0
"""RFC 5227: a second conflict within it is not answered, so two hosts do not shout for ever."""


class Fragment(NamedTuple):
    """A packet that lacks only its Ethernet header."""

    device: bytes
    head: bytes
    body: Octets


Held = tuple[Fragment, ...]
"""One datagram, in as many packets as it needs."""


class State(enum.Enum):
    """What is known of a neighbor."""

    INCOMPLETE = "incomplete"
    REACHABLE = "reachable"
    PROBE = "probe"


class Neighbor:
    """An entry of the table. `header` is the Ethernet header of packets to it."""

    __slots__ = (
        "address", "attempts", "confirmed_at", "deadline",
        "header", "held", "held_octets", "link", "state",
    )  # fmt: skip

    def __init__(self, address: int) -> None:
        self.address = address
        self.state = State.INCOMPLETE
        self.link: bytes | None = None
        self.header: bytes | None = None
        self.confirmed_at = -math.inf
        self.deadline = math.inf
        self.attempts = 0
        self.held: deque[Held] = deque()
        self.held_octets = 0

    def age(self, now: float) -> float | None:
        """Return for how many seconds the link address has been known; None: it is not."""
        return None if self.link is None else now - self.confirmed_at


class Neighbors:
    """The table, and the ARP that keeps it."""

    def __init__(
        self,
        link: bytes,
        prefix: Prefix,
        counters: Counters,
        egress: Egress,
        failed: Callable[[Held], None],
    ) -> None:
        """Begin with an empty table.

        Args:
            link: this station's link address.
            prefix: its IPv4 address and the link's network.
            failed: called with each datagram whose neighbor does not answer.
        """
        self._link = link
        self._prefix = prefix
        self._address = prefix.address
        self._counters = counters
        self._egress = egress
        self._failed = failed
        self._table: dict[int, Neighbor] = {}  # confirmed longest ago first
        self._asking: dict[int, Neighbor] = {}  # those in INCOMPLETE or PROBE
        self._incomplete = 0
        self._defended_at = -math.inf

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Neighbor]:
        return iter(tuple(self._table.values()))

    @property
    def deadline(self) -> float:
        """When `handle_timers` has something to do; infinity if never."""
        if not self._asking:
            return math.inf
        return min(neighbor.deadline for neighbor in self._asking.values())

    def lookup(self, address: int, now: float) -> bytes | None:
        """Return the Ethernet header for a neighbor; None: pass what you have to `hold`."""
        neighbor = self._table.get(address)
        if neighbor is None:
            return None
        if now - neighbor.confirmed_at >= FRESH_S and neighbor.state is State.REACHABLE:
            self._ask(neighbor, State.PROBE, now)
        return neighbor.header

    def hold(self, address: int, datagram: Held, now: float) -> bool:
        """Keep a datagram until its neighbor answers; return False if there is no room for it."""
        neighbor = self._table.get(address)
        if neighbor is None:
            if self._incomplete >= INCOMPLETE_LIMIT or not self._make_room():
                self._counters.arp_pending_discards += 1
                return False
            neighbor = self._table[address] = Neighbor(address)
            self._incomplete += 1
            self._ask(neighbor, State.INCOMPLETE, now)
        neighbor.held.append(datagram)
        neighbor.held_octets += _octets(datagram)
        while len(neighbor.held) > HELD_LIMIT or (
            neighbor.held_octets > HELD_OCTETS_LIMIT and len(neighbor.held) > 1
        ):
            neighbor.held_octets -= _octets(neighbor.held.popleft())
            self._counters.arp_pending_discards += 1
        return True

    def _make_room(self) -> bool:
        if len(self._table) < ENTRIES_LIMIT:
            return True
        for neighbor in self._table.values():
            if neighbor.state is not State.INCOMPLETE:
                self._remove(neighbor)
                return True
        return False

    def _remove(self, neighbor: Neighbor) -> None:
        del self._table[neighbor.address]
        self._asking.pop(neighbor.address, None)
        if neighbor.state is State.INCOMPLETE:
            self._incomplete -= 1

    def _ask(self, neighbor: Neighbor, state: State, now: float) -> None:
        """Send a request to a neighbor, and wait for the answer in `state`."""
        neighbor.state = state
        neighbor.attempts += 1
        neighbor.deadline = now + RETRY_S
        self._asking[neighbor.address] = neighbor
        link = ethernet.BROADCAST
        if neighbor.link is not None and neighbor.attempts < ATTEMPTS:
            link = neighbor.link
        self._send(link, arp.request(self._link, self._address, neighbor.address))

    def _send(self, link: bytes, packet: arp.Packet) -> None:
        if packet.operation == arp.REQUEST:
            self._counters.arp_out_requests += 1
        else:
            self._counters.arp_out_replies += 1
        header = ethernet.emit(link, self._link, ethernet.TYPE_ARP)
        self._egress.send(vnet.PLAIN, header + arp.emit(packet), b"")

    def header_for(self, link: bytes) -> bytes:
        """Return the Ethernet header of packets to a link address that needs no asking."""
        return ethernet.emit(link, self._link, ethernet.TYPE_IPV4)

    def announce(self) -> None:
        """Tell the link that the address is ours, so that old entries are put right (RFC 5227)."""
        request = arp.request(self._link, self._address, self._address)
        self._send(ethernet.BROADCAST, request)

    def receive(self, octets: Octets, now: float) -> None:
        """Take an ARP packet from the link."""
        counters = self._counters
        try:
            packet = arp.parse(octets)
        except ParseError:
            counters.arp_in_errors += 1
            return
        asked = packet.operation == arp.REQUEST
        if asked:
            counters.arp_in_requests += 1
        else:
            counters.arp_in_replies += 1
        sender = packet.sender
        if not _is_station(packet.sender_link):
            counters.arp_in_errors += 1
        elif sender == self._address:
            self._conflict(packet.sender_link, now)
        else:
            neighbor = self._table.get(sender)
            if neighbor is None and asked and packet.target == self._address:
                neighbor = self._admit(sender)
            if neighbor is not None:
                self._confirm(neighbor, packet.sender_link, now)
            if asked and packet.target == self._address:
                link = packet.sender_link
                self._send(link, arp.Packet(arp.REPLY, self._link, self._address, link, sender))

    def _conflict(self, link: bytes, now: float) -> None:
        """Another station uses our address: defend it, unless we have done so just now."""
        if link == self._link:
            return
        self._counters.arp_in_conflicts += 1
        if now - self._defended_at >= DEFENCE_INTERVAL_S:
            self._defended_at = now
            self.announce()

    def _admit(self, address: int) -> Neighbor | None:
        """Make an entry for a station that asked us; None if it cannot be one of this link."""
        prefix = self._prefix
        if address not in prefix or address in {prefix.network, prefix.broadcast, 0}:
            return None
        if not self._make_room():
            return None
        neighbor = self._table[address] = Neighbor(address)
        self._incomplete += 1
        return neighbor

    def _confirm(self, neighbor: Neighbor, link: bytes, now: float) -> None:
        """Note what a neighbor said of itself, and send what was held for it."""
        if neighbor.state is State.INCOMPLETE:
            self._incomplete -= 1
        neighbor.state = State.REACHABLE
        neighbor.confirmed_at = now
        neighbor.attempts = 0
        if neighbor.link != link:
            neighbor.link = link
            neighbor.header = ethernet.emit(link, self._link, ethernet.TYPE_IPV4)
        address = neighbor.address
        self._asking.pop(address, None)
        self._table[address] = self._table.pop(address)  # now the one confirmed last
        assert neighbor.header is not None
        held, neighbor.held = neighbor.held, deque()
        neighbor.held_octets = 0
        for datagram in held:
            for device, head, body in datagram:
                self._egress.send(device, neighbor.header + head, body)

    def handle_timers(self, now: float) -> None:
        """Ask again, or give up, wherever an answer is overdue."""
        for neighbor in [n for n in self._asking.values() if n.deadline <= now]:
            if neighbor.attempts < ATTEMPTS:
                self._ask(neighbor, neighbor.state, now)
                continue
            self._remove(neighbor)
            self._counters.arp_failures += 1
            for datagram in neighbor.held:
                self._failed(datagram)


def _octets(datagram: Held) -> int:
    return sum(len(fragment.head) + len(fragment.body) for fragment in datagram)


def _is_station(link: bytes) -> bool:
    """Return whether a link address can be one station's."""
    return not ethernet.is_group(link) and link != bytes(6)
