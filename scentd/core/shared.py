"""Addresses that several peers have: tenants behind one gateway. Pure.

Their scented packets are told apart by key. Without a scent nothing tells them apart: the strictest treatment of those
who share an address holds there, and no peer is charged with such packets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from scentd.config.sections import Peer
from scentd.core.tables import Treatments
from scentd.prefix import Prefix, owners, to_prefix
from scentd.wire.layout import TREATMENTS
from scentd.wire.maps import NO_PAIR

STRICTNESS = {treatment: -number for number, treatment in TREATMENTS.items()}  # drop, reject, pass


def shared(peers: Sequence[Peer]) -> dict[str, tuple[Prefix, ...]]:
    """By each peer's name those of its addresses that other peers have, too."""
    found: dict[str, list[Prefix]] = {peer.name: [] for peer in peers}
    for prefix, those in owners([peer.addresses for peer in peers]):
        if len(those) > 1:
            for i in those:
                found[peers[i].name].append(to_prefix(prefix))
    return {name: tuple(prefixes) for name, prefixes in found.items()}


def treatments(peers: Sequence[Peer], numbers: Mapping[str, int]) -> Iterator[tuple[str, Treatments]]:
    """The treatments by prefix. `numbers`: any pair of each peer, by its name."""
    each = [
        Treatments(p.rejected, p.absent, p.absent_ipv6_fragments or p.absent, numbers.get(p.name, NO_PAIR))
        for p in peers
    ]
    for prefix, found in owners([p.addresses for p in peers]):
        yield str(to_prefix(prefix)), strictest([each[i] for i in found])


def strictest(found: Sequence[Treatments]) -> Treatments:
    """The strictest treatment of each kind of packet; of several peers it is nobody's."""
    if len(found) == 1:
        return found[0]
    return Treatments(
        rejected=max((t.rejected for t in found), key=STRICTNESS.__getitem__),
        absent=max((t.absent for t in found), key=STRICTNESS.__getitem__),
        absent_ipv6_fragment=max((t.absent_ipv6_fragment for t in found), key=STRICTNESS.__getitem__),
    )
