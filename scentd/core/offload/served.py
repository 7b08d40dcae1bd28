"""What the BPF programs serve on this host's interfaces, and so what is left to the queue. Pure.

The rules leave packets to the stamper only where routes to peers lead; elsewhere it finds the queue's scents.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

Direction = Literal["ingress", "egress"]
Side = tuple[int, Direction]  # one side of the interface of this index


class Interface(NamedTuple):
    """One by which packets of this host come and go.

    `header`: bytes of link layer in front of IP, 14 or 0; None where we do not know what a program would see.
    `jumbograms`: sends of over 64 KB, which over IPv6 have a header that lets nothing stand behind it.
    """

    number: int
    name: str
    header: int | None
    vrf: bool = False
    jumbograms: bool = False


class Served(NamedTuple):
    """Names of interfaces: those to peers by which the program stamps; VRFs, where packets come by once more.

    `rule_free`: packets to peers leave by no other interface, and the host has no routing rules of its own: nothing
    has to be done in OUTPUT, and no `ip rule` is needed.
    """

    stamping: tuple[str, ...] = ()
    vrfs: tuple[str, ...] = ()
    rule_free: bool = False


def served(interfaces: Collection[Interface], attached: Collection[Side], leading: Collection[int]) -> Served:
    """What programs at these sides serve; `leading` are the indexes of interfaces to peers.

    A name that ends in "+" is a pattern to iptables.
    """
    stamping = (i.name for i in interfaces if (i.number, "egress") in attached and i.number in leading)
    return Served(
        tuple(sorted(name for name in stamping if not name.endswith("+"))),
        tuple(sorted(i.name for i in interfaces if i.vrf)),
        all((i.number, "egress") in attached for i in interfaces),
    )
