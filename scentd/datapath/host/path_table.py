"""Writes, compares and removes the nftables table that selection.py describes. Every function may raise HostError.

Rules carry a digest of all of them as their comment, so that a look at the table tells whether they are as wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from scentd.core.closed import Range
from scentd.datapath.host import selection
from scentd.datapath.host.rewritten import COUNTED
from scentd.datapath.host.selection import NAME, Selection
from scentd.system import nft
from scentd.system.nft import Nftables


class Found(NamedTuple):
    """What the kernel has."""

    digests: tuple[str, ...]  # of each rule
    sets: dict[str, tuple[Range, ...]]

    def lacks(self, want: Selection) -> bool:
        return self.digests != (want.digest,) * len(want.rules)

    def different_sets(self, want: Selection) -> dict[str, tuple[Range, ...]]:
        return {name: ranges for name, ranges in want.sets.items() if self.sets.get(name) != ranges}


def apply(want: Selection) -> bool:
    """Make the table so, in one transaction that changes only what differs. Return whether anything did."""
    with closing(Nftables()) as tables:
        found = read(tables)
        commands = selection.set_commands(found.different_sets(want))
        if found.lacks(want):
            commands += selection.rule_commands(want)
        if commands:
            tables.run_text("\n".join((f"add table inet {NAME}", *commands)))
        return bool(commands)


def is_applied(want: Selection) -> bool:
    with closing(Nftables()) as tables:
        found = read(tables)
    return not found.lacks(want) and not found.different_sets(want)


def remove() -> bool:
    """Remove the table, and with it packets that wait in queues of this namespace. Return whether there was one."""
    if not nft.available():
        return False
    with closing(Nftables()) as tables:
        if tables.table(NAME) is None:
            return False
        tables.run_text(f"delete table inet {NAME}")
    return True


def show() -> str:
    """The table as nft(8) prints it, "" without one."""
    if not nft.available():
        return ""
    with closing(Nftables()) as tables:
        return tables.text(NAME)


def read(tables: Nftables) -> Found:
    listing = tables.table(NAME) or ()
    rules = [item["rule"] for item in listing if "rule" in item]
    found = (item["set"] for item in listing if "set" in item)
    sets = {item["name"]: tuple(sorted(elements(item))) for item in found if item["name"] not in COUNTED}
    return Found(tuple(rule.get("comment", "") for rule in rules), sets)


def elements(found: Mapping[str, Any]) -> Iterator[Range]:
    """The elements of a set, as libnftables-json(5) has them."""
    for element in found.get("elem", ()):
        if isinstance(element, str):
            first = last = ip_address(element)
        elif "prefix" in element:
            network = ip_network(f"{element['prefix']['addr']}/{element['prefix']['len']}")
            first, last = network[0], network[-1]
        else:
            first, last = map(ip_address, element["range"])
        yield first.version, int(first), int(last)
