"""The prefixes of peers, as few as possible that give every address the same overhead. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from scentd.prefix import BITS, NumericPrefix, Prefix, nesting, to_prefix


def merge_prefixes(peers: Iterable[tuple[Prefix, int]], version: int) -> list[tuple[Prefix, int]]:
    """The prefixes of one IP version, shortest first: as few as possible that give every address the same overhead.

    Two halves of a prefix are merged only if their overheads are equal. If a prefix has two overheads, the larger
    counts, because it serves both.
    """
    overheads: dict[NumericPrefix, int] = {}
    for prefix, overhead in peers:
        if prefix.version == version:
            key = version, int(prefix.network_address), prefix.prefixlen
            overheads[key] = max(overhead, overheads.get(key, 0))
    kept = {
        prefix: overheads[prefix]
        for prefix, outer in nesting(overheads)
        if outer is None or overheads[outer] != overheads[prefix]
    }
    merge_halves(kept)
    ordered = sorted(kept.items(), key=lambda entry: (entry[0][2], entry[0][1]))
    return [(to_prefix(numbers), overhead) for numbers, overhead in ordered]


def merge_halves(overheads: dict[NumericPrefix, int]) -> None:
    """Replace the two halves of a prefix by the prefix, if both have the same overhead and the prefix has none yet."""
    for prefix in sorted(overheads, key=lambda p: -p[2]):
        while prefix[2] and prefix in overheads:
            version, address, length = prefix
            bit = 1 << BITS[version] - length
            neighbour, whole = (version, address ^ bit, length), (version, address & ~bit, length - 1)
            if overheads.get(neighbour) != overheads[prefix] or whole in overheads:
                break
            overheads[whole] = overheads.pop(prefix)
            del overheads[neighbour]
            prefix = whole
