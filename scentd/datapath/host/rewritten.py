"""Rules about packets whose addresses or ports this host rewrites behind the queue: source NAT. Pure.

The kernel translates sources at POSTROUTING (priority 100), and destinations of answers back there. What it does to a
connection is decided by the connection's first packet, there and not before. So the queue has stamped that packet
when its tag becomes wrong. No queue comes later: `nft queue` is missing in many kernels, and a packet that grows
behind the kernel's check of its length may be lost. So a connection that is known to be translated is not queued, and
the scent of its first packet is made void where it leaves: the receiver takes that packet as one without a scent.

A scent that binds the sender alone (`bind = "sender"`) survives NAT, so such peers are not in the sets `bound`.

Both are counted in a set, by the peer's address, and so is IPv6 that goes into a tunnel of IPsec (selection.py). Any
rule that looks at `ct` makes the kernel track connections, so these rules exist only where NAT does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from scentd.wire import layout

PROTOCOL = {4: "ip", 6: "ip6"}
TRANSLATED, TUNNELLED = "translated", "tunnelled"  # sets, and the reasons of layout.UNSTAMPED
COUNTED_MAX = 4096  # addresses; packets to more are not counted
COUNTED = {
    f"{reason}{version}": (reason, version) for reason, version in ((TRANSLATED, 4), (TRANSLATED, 6), (TUNNELLED, 6))
}
# Direction of a packet, and the status of a connection of which the kernel rewrites the source in this direction.
REWRITES_SOURCE = (("original", "snat"), ("reply", "dnat"))
# A scent right behind the fixed header: its first four bytes, type to magic (wire/README.md section 5).
_MAGIC = f"{layout.MAGIC:04x}"
SCENTED = {
    4: f"@nh,160,32 0x{layout.IPV4_OPTION_TYPE:02x}{layout.IPV4_OPTION_LEN:02x}{_MAGIC}",
    6: f"ip6 nexthdr 60 @nh,336,32 0x{layout.IPV6_OPTION_TYPE:02x}{layout.LEN:02x}{_MAGIC}",
}
# The IPv4 header's checksum stays right, because what the type loses the magic gains; 94 is 30 without the copy bit, as
# experimental as 158, and unknown to all. An IPv6 header has no checksum.
_MOVED = 0x40
VOID = {
    4: f"@nh,160,8 set {layout.IPV4_OPTION_TYPE - _MOVED} @nh,176,8 set {(layout.MAGIC >> 8) + _MOVED}",
    6: "@nh,352,16 set 0",
}


class Rewrites(NamedTuple):
    """What rewrites packets on this host behind the queue."""

    nat: bool = False
    ipsec: bool = False  # it has policies for what leaves


def set_commands() -> list[str]:
    """The commands that make the sets that count; those that are there keep their counts."""
    return [
        f"{name} {{ type ipv{version}_addr; flags dynamic; size {COUNTED_MAX}; }}"
        for name, (_, version) in COUNTED.items()
    ]


def known_rules() -> Iterator[str]:
    """For what goes to the queue: leave out connections of which the kernel rewrites the source.

    Behind Hop-by-Hop a scent has another place, at which void_rules() do not look.
    """
    for version in PROTOCOL:
        for match in rewrites_source():
            yield f"{to_bound(version)} {match} {count(version)} accept"
    yield f"{to_bound(6)} ip6 nexthdr 0 {count(6)} accept"


def void_rules(prefixes_only: bool) -> Iterator[str]:
    """Behind source NAT: make the scents void that the queue gave first packets of connections.

    `prefixes_only`: ours are only packets from the set `local`; who was it before NAT?
    """
    for version, name in PROTOCOL.items():
        for (direction, _), match in zip(REWRITES_SOURCE, rewrites_source(), strict=True):
            ours = f"ct {direction} {name} saddr @local{version}" if prefixes_only else ""
            yield f"{to_bound(version)} {SCENTED[version]} {match} {ours} {VOID[version]} {count(version)}"


def beacon_rule(marked: str) -> str:
    """Beacons leave as they were made: their tag is of the socket's addresses. `marked` matches what scentd sends."""
    return f"{marked} udp dport {layout.BEACON_PORT} notrack"


def rewrites_source() -> Iterator[str]:
    return (f"ct direction {direction} ct status {status}" for direction, status in REWRITES_SOURCE)


def to_bound(version: int) -> str:
    return f"{PROTOCOL[version]} daddr @bound{version}"


def count(version: int, reason: str = TRANSLATED) -> str:
    return f"update @{reason}{version} {{ {PROTOCOL[version]} daddr counter }}"
