"""The TAP driver's interface: it owns a link, lends it to one client, and lets it change hands.

The kernel's part is the right: who may ask for the link is whom the system description gives a
right with the operation `take_over`, and who may borrow a free one needs `lend`. The holder's part
is its answer. The host's part is that it lets nobody else attach to the device while one
descriptor of it is open anywhere.

What happens to a link that a holder has, when another client asks for it with `take_over`:

| event | the holder | the asker | the link is |
|---|---|---|---|
| the holder yields | has let go; its link is down | its call returns | the asker's |
| it refuses | goes on undisturbed | EBUSY, and the reason | the holder's |
| it does not answer in time | goes on; a late yes is void | ETIMEDOUT | the holder's |
| it says yes and keeps its descriptor | keeps what it has | EBUSY | the holder's |
| its process ends, asked or not | its next incarnation goes on | waits on | the holder's |
| its task is given up | is no more | its call returns | the asker's, or free |
| the asker's process ends before the yes | goes on; a late yes is void | - | the holder's |
| the asker's process ends after the yes | its link is down | - | its next incarnation's |
| its task is given up after the yes | its link is down | is no more | free |
| the driver's process ends | waits | waits | as recorded; what had begun is done |

A restart is no consent: a link stays with a task, not with one of its processes. Frames that the
host had queued for a holder that yields and that it has not read are lost, as on a wire.
"""

from __future__ import annotations

import msgspec

from core.userlib.interface import Descriptor, Interface, operation


class LinkInfo(msgspec.Struct, frozen=True, array_like=True):
    """What the borrower of a link has to know of it."""

    name: str
    """The host's name for the device."""
    mtu: int
    """Octets in one packet."""
    device_header: bool
    """Every frame has a virtio header of 10 octets before it."""
    checksum_offload: bool
    """The device takes and gives frames whose transport checksum is not finished."""
    udp_segmentation: bool
    """The device takes and gives UDP frames that stand for several datagrams."""
    host_address: str
    """The host's own IPv4 address on the link, with prefix length."""


class PendingAsk(msgspec.Struct, frozen=True, array_like=True):
    """Somebody wants the link: what the holder has to answer."""

    number: int
    asker: int
    """The badge of the asker's right."""
    remaining_s: float
    """Until the ask ends without an answer."""


class EndedAsk(msgspec.Struct, frozen=True, array_like=True):
    """How an ask ended."""

    asker: int
    holder: int
    """Badges; 0 for nobody."""
    outcome: str
    """A value of `net_server.consent.Outcome`."""
    reason: str


class LinkState(msgspec.Struct, frozen=True, array_like=True):
    """Who holds the link, and who wants it."""

    version: int
    """Changes whenever anything of this does."""
    name: str
    holder: int
    """The badge of the holder's right; 0: nobody holds the link."""
    mine: bool
    """The holder is whoever asked for this."""
    pending: PendingAsk | None
    last: EndedAsk | None


class Link(Interface):
    """A link between the host and the one network server that holds it. See the module head."""

    @operation(waits=True, idempotent=True)
    async def lend(self) -> tuple[LinkInfo, Descriptor]:
        """Return the link's descriptor; reading gives a frame, writing sends one.

        A link that nobody holds is the caller's from now on; the holder may repeat the call. A
        device that has been removed is made again. It waits while the link is changing hands.

        Raises:
            Refused: EBUSY, another client holds the link, or the host says that somebody still has
                it open.
        """

    @operation(waits=True, idempotent=True)
    async def take_over(self, timeout_ms: int) -> None:
        """Ask the holder for the link, and return when the caller is the holder: then `lend` it.

        Args:
            timeout_ms: how long the holder may take to answer, up to a minute.

        Raises:
            Refused: EBUSY, the holder declined or did not let go; ETIMEDOUT, it did not answer;
                EALREADY, somebody else is asking; EINVAL.
        """

    @operation(waits=True, idempotent=True)
    async def watch(self, version: int) -> LinkState:
        """Wait until the state has another version than this one, and return it.

        A holder keeps this call open: so it learns of those who ask.
        """

    @operation(waits=True, idempotent=True)
    async def answer(self, number: int, yields: bool, reason: str) -> bool:
        """Answer an ask; return whether the answer counts.

        A holder that yields has closed every descriptor of the link before it says so. If the
        answer does not count, because the ask has ended, the holder may borrow the link again.

        Raises:
            Refused: EPERM, the caller does not hold the link.
        """

    @operation(idempotent=True)
    async def describe(self) -> LinkInfo:
        """Return what the link is like, whoever holds it."""

    @operation(idempotent=True)
    async def namespace(self) -> Descriptor:
        """Return a descriptor of the network namespace that the host's side of the link is in.

        Raises:
            Refused: ENOENT, the link is in the host's own namespace.
        """
