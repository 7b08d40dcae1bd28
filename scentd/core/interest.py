"""Which changes of the host's routes, addresses and interfaces can change what we have on the host. Pure.

A container host changes all the time, and nearly nothing of it concerns peers. What is told apart here costs
microseconds; a new plan of the routes costs a reading of them all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from scentd.prefix import BITS, Address, Prefix

# By IP version the first and the last addresses of disjoint ranges, sorted.
Spans = Mapping[int, tuple[list[int], list[int]]]


class Interest(NamedTuple):
    """What matters, as of the last plan of the routes."""

    spans: Spans  # addresses of peers
    interfaces: Collection[int]  # indexes of those to peers
    sources: Collection[Address]  # preferred sources of the routes to peers: with the address such a route goes
    forwards: bool | None  # some interface of this host forwards; None: that does not matter

    def has_address(self, address: Address, interface: int, is_new: bool) -> bool:
        """Whether an address of this host that comes or goes is a peer's, or may take a route to peers with it."""
        if overlaps(self.spans, address.version, int(address), BITS[address.version]):
            return True
        return not is_new and (interface in self.interfaces or address in self.sources)


def spans(prefixes: Iterable[Prefix]) -> Spans:
    """The addresses of prefixes."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for version, first, last in sorted((p.version, int(p[0]), int(p[-1])) for p in prefixes):
        firsts, lasts = found.setdefault(version, ([], []))
        if lasts and first <= lasts[-1]:
            lasts[-1] = max(last, lasts[-1])
        else:
            firsts.append(first)
            lasts.append(last)
    return found


def overlaps(ranges: Spans, version: int, address: int, length: int) -> bool:
    """Whether a prefix has an address of these ranges."""
    firsts, lasts = ranges.get(version, ([], []))
    at = bisect_right(firsts, address | (1 << BITS[version] - length) - 1) - 1
    return at >= 0 and lasts[at] >= address
