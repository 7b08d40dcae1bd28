"""Longest-prefix match over IPv4 and IPv6 prefixes."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Generic, TypeVar

T = TypeVar("T")


class PrefixMap(Generic[T]):
    """Values by prefix; the longest that covers an address wins, the last of two equal prefixes.

    A dict for each length in use: a lookup costs as many probes as there are
    different lengths, however many prefixes there are.
    """

    def __init__(self, entries: Iterable[tuple[str, T]] = ()) -> None:
        tables: dict[int, dict[int, dict[int, T]]] = {4: {}, 16: {}}
        for text, value in entries:
            network = ip_network(text)
            size = network.max_prefixlen // 8
            shift = network.max_prefixlen - network.prefixlen
            tables[size].setdefault(shift, {})[int(network.network_address) >> shift] = value
        self._tables = {size: sorted(by_shift.items()) for size, by_shift in tables.items()}

    def get(self, address: bytes) -> T | None:
        """The value for a packed address (4 or 16 bytes), or None."""
        number = int.from_bytes(address, "big")
        for shift, table in self._tables.get(len(address), ()):
            value = table.get(number >> shift)
            if value is not None:
                return value
        return None


def overlaps(entries: Iterable[tuple[int, str]]) -> list[tuple[int, str, int, str]]:
    """(owner, prefix, other owner, prefix around it) where two owners overlap; what is no prefix is skipped.

    One sweep over the sorted prefixes; a prefix is told once, with the farthest-reaching one that covers it.
    """
    ranges = []
    for owner, text in entries:
        try:
            network = ip_network(text)
        except ValueError:
            continue
        first = int(network.network_address)
        ranges.append((network.version, first, -(first + network.num_addresses - 1), owner, text))
    found = []
    reach: dict[int, tuple[int, int, str]] = {}  # by version: the farthest end so far, its owner, its prefix
    for version, first, negative_end, owner, text in sorted(ranges):
        end, other, around = reach.get(version, (-1, owner, ""))
        if first <= end and owner != other:
            found.append((owner, text, other, around))
        if -negative_end > end:
            reach[version] = -negative_end, owner, text
    return found
