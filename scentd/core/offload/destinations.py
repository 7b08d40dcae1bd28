"""Where our networks' packets go: the prefixes of peers merged with those of path MTUs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from scentd.core.packet.mss import longest_segment
from scentd.core.packet.stamp import IP_MAX
from scentd.core.tables import StampTable
from scentd.prefix import NumericPrefix, by_numeric, nesting
from scentd.wire.carrier import CARRIERS


class Destination(NamedTuple):
    """A prefix that is a peer's or has a path MTU of its own; `outer` is the longest other prefix that covers it."""

    prefix: NumericPrefix
    outer: NumericPrefix | None
    peer: int | None
    mtu: int


def merge_destinations(peers: Mapping[NumericPrefix, int], limits: Mapping[NumericPrefix, int]) -> list[Destination]:
    """Merge the prefixes of peers and of path MTUs. A prefix comes before the prefixes that it covers."""
    merged: dict[NumericPrefix, Destination] = {}
    for prefix, outer in nesting(peers.keys() | limits.keys()):
        peer, mtu = (merged[outer].peer, merged[outer].mtu) if outer else (None, IP_MAX)
        if prefix in limits:
            mtu = min(limits[prefix] or IP_MAX, IP_MAX)
        merged[prefix] = Destination(prefix, outer, peers.get(prefix, peer), mtu)
    return list(merged.values())


def segments(table: StampTable) -> dict[NumericPrefix, int]:
    """By prefix the longest segment, in bytes, that fits the path with a scent; 0 where the peer has no pair.

    A prefix whose segment is that of the prefix around it is left out.
    """
    pairs = {pair.peer: pair for pair in table.pairs}
    found: dict[NumericPrefix | None, int] = {None: 0}
    kept = {}
    for prefix, outer, peer, mtu in merge_destinations(by_numeric(table.peers), by_numeric(table.limits)):
        pair = pairs.get(peer) if peer is not None else None
        version = prefix[0]
        room = 0 if pair is None else mtu - CARRIERS[pair.carrier(version)].overhead
        found[prefix] = 0 if pair is None else longest_segment(version, room)
        if found[prefix] != found[outer]:
            kept[prefix] = found[prefix]
    return kept
