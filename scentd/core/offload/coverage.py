"""The interfaces of this host on which the BPF programs do the work; the queue does the rest. Pure.

The rules leave packets to the BPF stamper only on interfaces to peers. On others the queue has stamped the packets
before the program sees them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from scentd.prefix import BITS, numeric

# By "ingress" and "egress" this host's packets come and go, "bridged" are those that a bridge's port sends to guests.
Direction = Literal["ingress", "egress", "bridged"]
Side = tuple[int, Direction]  # one side of the interface of this index


class Interface(NamedTuple):
    """An interface by which packets of this host come and go.

    `header`: bytes of link layer in front of IP, 14 or 0; None if scentd does not know them.
    `port`: it is the port of a bridge whose packets no queue sees, and the bridge has this host's own.
    `jumbograms`: it takes sends of over 64 KB, which in IPv6 have a header behind which no other header may follow.
    """

    number: int
    name: str
    header: int | None
    jumbograms: bool = False
    port: bool = False


class Coverage(NamedTuple):
    """The names of the interfaces to peers on which the program stamps.

    `rule_free`: packets to peers leave by no other interface, and the host has no routing rules of its own. So scentd
    needs no rule in OUTPUT and no `ip rule`.
    """

    stamping: tuple[str, ...] = ()
    rule_free: bool = False


def coverage(interfaces: Collection[Interface], attached: Collection[Side], to_peers: Collection[int]) -> Coverage:
    """The coverage of programs at the `attached` sides; `to_peers` are the indexes of interfaces to peers."""
    own = [i for i in interfaces if not i.port]
    stamping = (i.name for i in own if (i.number, "egress") in attached and i.number in to_peers)
    return Coverage(
        tuple(sorted(stamping)),
        all((i.number, "egress") in attached for i in own),
    )


def may_have_guests(prefixes: Sequence[str], own: Collection[str]) -> bool:
    """Whether networks of these prefixes have addresses that are not this host's own: nodes behind it, or guests."""
    addresses = set(map(numeric, own))
    return any(p[2] < BITS[p[0]] or p not in addresses for p in map(numeric, prefixes))
