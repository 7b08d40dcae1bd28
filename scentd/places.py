"""Prefixes as numbers, and which lies in which. Pure; for 100,000 of them in one sorted sweep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

T = TypeVar("T")
Place = tuple[int, int, int]  # of a prefix: IP version, first address as a number, length in bits

BITS = {4: 32, 6: 128}


def place(text: str) -> Place:
    network = IPv6Network(text) if ":" in text else IPv4Network(text)
    return network.version, int(network.network_address), network.prefixlen


def placed(entries: Iterable[tuple[str, T]]) -> dict[Place, T]:
    return {place(text): value for text, value in entries}


def nested(prefixes: Iterable[Place]) -> Iterator[tuple[Place, Place | None]]:
    """Each with the longest other one that covers it; what covers comes before what is covered."""
    around: list[Place] = []
    for prefix in sorted(prefixes):
        while around and not covers(around[-1], prefix):
            around.pop()
        yield prefix, around[-1] if around else None
        around.append(prefix)


def covers(outer: Place, inner: Place) -> bool:
    """Whether a prefix holds another that is not shorter."""
    shift = BITS[outer[0]] - outer[2]
    return outer[0] == inner[0] and outer[1] >> shift == inner[1] >> shift


def outside(prefixes: Iterable[Place], others: Collection[Place]) -> list[Place]:
    """Those that none of the others covers."""
    chosen = set(prefixes)
    covered: set[Place | None] = set()
    for prefix, around in nested(chosen.union(others)):
        if prefix in others or around in covered:
            covered.add(prefix)
    return sorted(chosen - covered)
