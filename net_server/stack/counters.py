"""Counts of everything that happened, under the names of the MIBs (RFC 2863, 4293, 4113).

Where the MIBs have no name for something that can be dropped here, a name in their style is added,
so that no frame disappears uncounted.
"""

from __future__ import annotations

import dataclasses
from typing import Final


@dataclasses.dataclass(slots=True)
class Counters:
    """One int for each name; they only grow. `statistics` gives the MIBs' spelling."""

    if_in_octets: int = 0
    if_in_ucast_pkts: int = 0
    if_in_n_ucast_pkts: int = 0
    if_in_discards: int = 0
    if_in_errors: int = 0
    if_in_unknown_protos: int = 0
    if_out_octets: int = 0
    if_out_pkts: int = 0
    if_out_discards: int = 0
    if_out_errors: int = 0

    arp_in_requests: int = 0
    arp_in_replies: int = 0
    arp_in_errors: int = 0
    arp_in_conflicts: int = 0
    arp_out_requests: int = 0
    arp_out_replies: int = 0
    arp_failures: int = 0
    arp_pending_discards: int = 0

    ip_in_receives: int = 0
    ip_in_hdr_errors: int = 0
    ip_in_addr_errors: int = 0
    ip_in_unknown_protos: int = 0
    ip_in_discards: int = 0
    ip_in_delivers: int = 0
    ip_out_requests: int = 0
    ip_out_discards: int = 0
    ip_out_no_routes: int = 0
    ip_reasm_reqds: int = 0
    ip_reasm_oks: int = 0
    ip_reasm_fails: int = 0
    ip_frag_oks: int = 0
    ip_frag_fails: int = 0
    ip_frag_creates: int = 0

    icmp_in_msgs: int = 0
    icmp_in_errors: int = 0
    icmp_in_dest_unreachs: int = 0
    icmp_in_time_excds: int = 0
    icmp_in_parm_probs: int = 0
    icmp_in_src_quenchs: int = 0
    icmp_in_redirects: int = 0
    icmp_in_echos: int = 0
    icmp_in_echo_reps: int = 0
    icmp_out_msgs: int = 0
    icmp_out_rate_limited: int = 0
    icmp_out_dest_unreachs: int = 0
    icmp_out_time_excds: int = 0
    icmp_out_echos: int = 0
    icmp_out_echo_reps: int = 0

    udp_in_datagrams: int = 0
    udp_no_ports: int = 0
    udp_in_errors: int = 0
    udp_in_overflows: int = 0
    udp_out_datagrams: int = 0

    quick_echoes: int = 0
    """Echo requests answered in one step; each counts under every name of `_ECHO_COUNTS`."""

    def statistics(self) -> dict[str, int]:
        """Return every count under its MIB name, `ipInReceives` and so on."""
        counts = {name: getattr(self, field) for field, name in _MIB_NAMES.items()}
        for name in _ECHO_COUNTS:
            counts[name] += self.quick_echoes
        return counts


def _mib_name(field: str) -> str:
    first, *rest = field.split("_")
    return (first + "".join(word.capitalize() for word in rest)).replace("Oks", "OKs")


_MIB_NAMES: Final = {
    field.name: _mib_name(field.name)
    for field in dataclasses.fields(Counters)
    if field.name != "quick_echoes"
}
_ECHO_COUNTS: Final = (
    "ifInUcastPkts",
    "ipInReceives",
    "ipInDelivers",
    "icmpInMsgs",
    "icmpInEchos",
    "icmpOutMsgs",
    "icmpOutEchoReps",
    "ipOutRequests",
)
