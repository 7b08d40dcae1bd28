"""network.regions: the regions of destinations, by prefixes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_network

from scentd.config.schema import NAME_PATTERN, check_prefixes
from scentd.prefix import PrefixMap

MAX_REGIONS = 24  # as many items has a profile at most (score.MAX_ITEMS)


def region_map(regions: Mapping[str, list[str]]) -> PrefixMap[str]:
    """The region of a packed address, by the longest prefix."""
    return PrefixMap((prefix, region) for region, prefixes in regions.items() for prefix in prefixes)


def check_regions(regions: Mapping[str, list[str]], path: str) -> list[str]:
    problems = []
    owners: dict[str, str] = {}
    for region, texts in regions.items():
        if not re.fullmatch(NAME_PATTERN, region):
            problems.append(f"{path}.{region}: write letters, digits, dots, dashes and _ alone: policies use the name")
        wrong = check_prefixes(texts, f"{path}.{region}")
        problems += wrong
        for prefix in {str(ip_network(text)) for text in texts} if not wrong else ():
            if owners.setdefault(prefix, region) != region:
                problems.append(f"{path}.{region}: {prefix} is of {owners[prefix]}, too; take it away from one of them")
    if len(regions) > MAX_REGIONS:
        problems.append(f"{path}: more than {MAX_REGIONS}; join some: a profile has room for {MAX_REGIONS} at most")
    return problems
