"""Addresses and prefixes: types, longest-prefix match, nesting. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Generic, TypeVar

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
NumericPrefix = tuple[int, int, int]  # IP version, first address as a number, length in bits
T = TypeVar("T")

BITS = {4: 32, 6: 128}


def prefixes(addresses: Iterable[str]) -> tuple[Prefix, ...]:
    return tuple(ip_network(a) for a in addresses)


def first_owners(peers: Mapping[str, Sequence[Prefix]]) -> dict[str, list[Prefix]]:
    """Each peer with the prefixes that no peer before it has, for what a prefix can belong to once."""
    seen: set[Prefix] = set()
    owned: dict[str, list[Prefix]] = {}
    for peer, own in peers.items():
        owned[peer] = [prefix for prefix in dict.fromkeys(own) if prefix not in seen]
        seen.update(own)
    return owned


def is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def within(inner: Prefix, outer: Prefix) -> bool:
    if isinstance(inner, IPv6Network):
        return isinstance(outer, IPv6Network) and inner.subnet_of(outer)
    return not isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def prefix_text(prefix: Prefix) -> str:
    """The prefix as text; a single address without its length: 10.0.0.7, not 10.0.0.7/32."""
    return str(prefix.network_address) if prefix.prefixlen == prefix.max_prefixlen else str(prefix)


class PrefixMap(Generic[T]):
    """Values by prefix. The longest prefix that covers an address decides; of two equal prefixes the last one counts.

    There is a dict for each prefix length: a lookup costs one probe for each length, however many prefixes there are.
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
    """(owner, prefix, other owner, the prefix around it) for each prefix inside another owner's prefix.

    One sweep over the sorted prefixes reports a prefix once, with the farthest-reaching prefix that covers it. It skips
    texts that are no prefix.
    """
    ranges = []
    for owner, text in entries:
        try:
            network = ip_network(text)
        except ValueError:
            continue
        first = int(network.network_address)
        ranges.append((network.version, first, -(first + network.num_addresses - 1), owner, text))
    overlapping = []
    reach: dict[int, tuple[int, int, str]] = {}  # by version: the farthest end so far, its owner, its prefix
    for version, first, negative_end, owner, text in sorted(ranges):
        end, other, outer = reach.get(version, (-1, owner, ""))
        if first <= end and owner != other:
            overlapping.append((owner, text, other, outer))
        if -negative_end > end:
            reach[version] = -negative_end, owner, text
    return overlapping


# -- as numbers: for 100,000 prefixes in one sorted sweep -----------------


def numeric(text: str) -> NumericPrefix:
    network = IPv6Network(text) if ":" in text else IPv4Network(text)
    return network.version, int(network.network_address), network.prefixlen


def to_prefix(numbers: NumericPrefix) -> Prefix:
    version, address, length = numbers
    return IPv4Network((address, length)) if version == 4 else IPv6Network((address, length))


def by_numeric(entries: Iterable[tuple[str, T]]) -> dict[NumericPrefix, T]:
    return {numeric(text): value for text, value in entries}


def nesting(prefixes: Iterable[NumericPrefix]) -> Iterator[tuple[NumericPrefix, NumericPrefix | None]]:
    """Each prefix with the longest other prefix that covers it. A prefix comes before the prefixes that it covers."""
    stack: list[NumericPrefix] = []  # the prefixes that cover the current one, shortest first
    for prefix in sorted(prefixes):
        while stack and not covers(stack[-1], prefix):
            stack.pop()
        yield prefix, stack[-1] if stack else None
        stack.append(prefix)


def owners(addresses: Sequence[Iterable[str]]) -> Iterator[tuple[NumericPrefix, frozenset[int]]]:
    """Each prefix of these lists, and the indexes of the lists that have its addresses. Shorter prefixes come first."""
    own: dict[NumericPrefix, frozenset[int]] = {}
    for i, texts in enumerate(addresses):
        for prefix in map(numeric, texts):
            own[prefix] = own.get(prefix, frozenset()) | {i}
    found: dict[NumericPrefix, frozenset[int]] = {}
    for prefix, outer in nesting(own):
        found[prefix] = own[prefix] if outer is None else own[prefix] | found[outer]
        yield prefix, found[prefix]


def covers(outer: NumericPrefix, inner: NumericPrefix) -> bool:
    """Whether a prefix covers another one, which must not be shorter."""
    shift = BITS[outer[0]] - outer[2]
    return outer[0] == inner[0] and outer[1] >> shift == inner[1] >> shift


def remove_covered(prefixes: Iterable[NumericPrefix], others: Collection[NumericPrefix]) -> list[NumericPrefix]:
    """The prefixes that none of the others covers."""
    chosen = set(prefixes)
    covered: set[NumericPrefix | None] = set()
    for prefix, outer in nesting(chosen.union(others)):
        if prefix in others or outer in covered:
            covered.add(prefix)
    return sorted(chosen - covered)
