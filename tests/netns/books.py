"""Two daemons' books: what one has stamped the other has accepted, and both say what became of the rest.

Counters of a queue's worker come once a second, those of a program are read at once; so a balance is waited for.
"""

from __future__ import annotations

import socket
from collections import Counter
from ipaddress import ip_address
from typing import Any

from hosts import Capture, Node, until

from scentd.wire import ip, layout

NEIGHBOURS = range(133, 138)  # ICMPv6: never scented
REASON = "ipv6-fragment"


class Books:
    """Of the traffic between two nodes since their daemons' start.

    `least`, `unscented`, `copies` are by sender's name: packets that must have been stamped, IPv6 fragments that
    left without a scent, packets that the kernel made of stamped ones.
    """

    def __init__(self, a: Node, b: Node) -> None:
        self.nodes = a, b
        self.least: Counter[str] = Counter()
        self.unscented: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def balance(self) -> None:
        """Wait until they balance; nothing else may have happened to any packet."""
        try:
            until(self.balanced, "the books balance")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.pages()}") from None
        for page in self.pages():
            assert not any(page["rejected"].values()), page
            assert not any(n for reason, n in page["unstamped"].items() if reason != REASON), page
            faults = ("internal_errors", "link_overflow", "uncopyable", "events_lost", "nodes_lost")
            assert not any(page["other"][name] for name in faults), page
            assert not any(page["other"][f"offload_{name}"] for name in ("declined", "failed", "quarantined")), page

    def balanced(self) -> bool:
        a, b = self.pages()
        return self.agree(a, b, *self.nodes) and self.agree(b, a, *reversed(self.nodes))

    def agree(self, sender: dict[str, Any], receiver: dict[str, Any], one: Node, other: Node) -> bool:
        """Beacons bear a scent from their socket, and no stamper counts them.

        A queue takes IPv6 packets of several segments as they are, and cannot know how many segments it was.
        """
        sent = sender["stamped"] + self.copies[one.name]
        arrived = receiver["accepted"] - receiver["beacons"]["received"]
        same = sent == arrived if other.pin_dir else 0 <= arrived <= sent
        return sender["stamped"] >= self.least[one.name] and same and receiver["absent"] == self.unscented[one.name]

    def pages(self) -> list[dict[str, Any]]:
        names = ("stamped", "accepted", "absent", "unstamped", "rejected", "beacons", "other")
        return [{name: node.status()[name] for name in names} for node in self.nodes]


class Wire:
    """What a sender's packets look like where a capture sees them, beacons and neighbour discovery left out."""

    def __init__(self, capture: Capture, sender: Node) -> None:
        self.scented: list[bytes] = []
        self.bare: list[bytes] = []
        for packet in capture.packets():
            found = ip.parse(packet)
            if found.source in sources(sender) and not is_aside(packet, found):
                (self.scented if found.scent_at else self.bare).append(packet)


def sources(node: Node) -> set[bytes]:
    return {ip_address(address).packed for address in node.addresses}


def is_aside(packet: bytes, found: ip.Parsed) -> bool:
    if found.protocol == ip.UDP:
        return found.ports[2:] == layout.BEACON_PORT.to_bytes(2, "big")
    return found.protocol == socket.IPPROTO_ICMPV6 and not found.fragment and packet[found.transport_at] in NEIGHBOURS
