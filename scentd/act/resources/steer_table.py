"""The nftables table that steers new connections of prefixes from a cache's origin to an edge, as text, and what a
listing of it says. Pure.

A connection's first packet decides (DNAT), so that established ones are never cut. The source's prefix is looked up in
one map for each length of prefix, the longest first; whoever is in none goes to the origin. Connections of the edges
themselves are left alone: an edge that fetches from the origin through this host would come back to itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from scentd.act.resources.monitor_table import Lengths, masked
from scentd.prefix import Address, Prefix

FAMILY = "inet"
NAME = "scentd_steer_"  # with the resource's name behind it
PRIORITY = -110  # before other destination NAT (-100): the first that translates a connection decides


class End(NamedTuple):
    """Where a server listens."""

    address: Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


class SteerState(NamedTuple):
    """`marks`: the comment of each rule; `ends`: by prefix where its connections are led."""

    marks: Sequence[str]
    ends: Mapping[Prefix, End]


def parse_end(text: str) -> End:
    """ "10.0.0.1:80" or "[fd00::1]:80". Raises ValueError, also for addresses to which no packet can be led."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    address = ip_address(host[1:-1] if bracketed else host)
    if not colon or bracketed != (address.version == 6) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no address with a port")
    if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local:
        raise ValueError(f"{address} cannot be reached from a network")
    return End(address, int(port))


def map_of(version: int, length: int) -> str:
    return f"ipv{version}_{length}"


def table(name: str, lengths: Lengths, origins: Sequence[End], edges: Iterable[End]) -> tuple[str, str, int]:
    """(text without elements, mark in each rule, number of rules)."""
    word = {4: "ip", 6: "ip6"}
    maps = [f"map {map_of(v, n)} {{ type ipv{v}_addr : ipv{v}_addr . inet_service; }}" for v, n in lengths]
    rules = [
        f"{word[address.version]} saddr {address} return"
        for address in sorted({edge.address for edge in edges}, key=lambda a: (a.version, a))
    ] + [
        f"{word[v]} daddr {origin.address} tcp dport {origin.port} "
        f"dnat {word[v]} to {masked(v, n, 'saddr')} map @{map_of(v, n)}"
        for origin in origins
        for v, n in lengths
        if v == origin.address.version
    ]
    mark = "scentd " + hashlib.sha256("\n".join((name, *rules)).encode()).hexdigest()[:16]
    body = [
        *maps,
        f"chain from_peers {{ type nat hook prerouting priority {PRIORITY}; policy accept",
        *(f'{rule} comment "{mark}"' for rule in rules),
        "}",
    ]
    return "\n".join((f"table {FAMILY} {name} {{", *body, "}")), mark, len(rules)


def replacement(name: str, text: str, ends: Mapping[Prefix, End]) -> str:
    """Commands: the table anew, whether it was there or not."""
    elements = "\n".join(added(name, ends))
    return f"add table {FAMILY} {name}\ndelete table {FAMILY} {name}\n{text}\n{elements}\n"


def difference(name: str, there: Mapping[Prefix, End], wanted: Mapping[Prefix, End]) -> list[str]:
    """Commands that bring the maps from the one to the other."""
    gone = [prefix for prefix, end in there.items() if wanted.get(prefix) != end]
    new = {prefix: end for prefix, end in wanted.items() if there.get(prefix) != end}
    deleted = [f"delete element {where(name, prefix)} {{ {prefix.network_address} }}" for prefix in gone]
    return [*deleted, *added(name, new)]


def kept(known: Iterable[Prefix], led: Mapping[Prefix, End], origins: Mapping[int, End]) -> dict[Prefix, End]:
    """The known prefixes inside of led ones that are not led themselves, with their origins: other networks' parts."""
    lengths = {(prefix.version, prefix.prefixlen) for prefix in led}
    return {
        prefix: origins[prefix.version]
        for prefix in known
        if prefix not in led
        and any(
            v == prefix.version and n < prefix.prefixlen and prefix.supernet(new_prefix=n) in led for v, n in lengths
        )
    }


def added(name: str, ends: Mapping[Prefix, End]) -> Iterator[str]:
    for prefix, end in ends.items():
        yield f"add element {where(name, prefix)} {{ {prefix.network_address} : {end.address} . {end.port} }}"


def where(name: str, prefix: Prefix) -> str:
    return f"{FAMILY} {name} {map_of(prefix.version, prefix.prefixlen)}"


def read(listing: Sequence[dict[str, Any]] | None) -> SteerState:
    marks = [item["rule"].get("comment", "") for item in listing or () if "rule" in item]
    return SteerState(marks, {p: end for item in listing or () if "map" in item for p, end in members(item["map"])})


def members(one: Mapping[str, Any]) -> Iterator[tuple[Prefix, End]]:
    _, _, length = one["name"].partition("_")
    for key, value in one.get("elem", ()) if length.isdecimal() else ():
        address, port = value["concat"]
        yield ip_network(f"{key}/{length}"), End(ip_address(address), int(port))
