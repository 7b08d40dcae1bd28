"""The interfaces of this host on which the BPF programs do the work; the queue does the rest. Pure.

The rules leave packets to the BPF stamper only on interfaces to peers. On others the queue has stamped the packets
before the program sees them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

Direction = Literal["ingress", "egress"]
Side = tuple[int, Direction]  # one side of the interface of this index


class Interface(NamedTuple):
    """An interface by which packets of this host come and go.

    `header`: bytes of link layer in front of IP, 14 or 0; None if scentd does not know them.
    `jumbograms`: it takes sends of over 64 KB, which in IPv6 have a header behind which no other header may follow.
    """

    number: int
    name: str
    header: int | None
    vrf: bool = False
    jumbograms: bool = False


class Coverage(NamedTuple):
    """The names of the interfaces to peers on which the program stamps, and of VRFs, by which packets pass once more.

    `rule_free`: packets to peers leave by no other interface, and the host has no routing rules of its own. So scentd
    needs no rule in OUTPUT and no `ip rule`.
    """

    stamping: tuple[str, ...] = ()
    vrfs: tuple[str, ...] = ()
    rule_free: bool = False


def coverage(interfaces: Collection[Interface], attached: Collection[Side], to_peers: Collection[int]) -> Coverage:
    """The coverage of programs at the `attached` sides; `to_peers` are the indexes of interfaces to peers.

    A name that ends in "+" is left out: iptables takes it for a pattern.
    """
    stamping = (i.name for i in interfaces if (i.number, "egress") in attached and i.number in to_peers)
    return Coverage(
        tuple(sorted(name for name in stamping if not name.endswith("+"))),
        tuple(sorted(i.name for i in interfaces if i.vrf)),
        all((i.number, "egress") in attached for i in interfaces),
    )
