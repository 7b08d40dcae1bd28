"""A small model of the kernel's routing: rules, suppressors, tables, sockets that are bound to an interface.

After fib_rules_lookup() of net/core/fib_rules.c, fib_table_lookup() of net/ipv4/fib_trie.c and fib6_table_lookup() of
net/ipv6/route.c.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from scentd.core.mirrored_rules import (
    FRA_DST,
    FRA_FWMARK,
    FRA_FWMASK,
    FRA_IIFNAME,
    FRA_L3MDEV,
    FRA_SRC,
    FRA_UID_RANGE,
    GOTO,
    INVERT,
    NOP,
    TO_TABLE,
    RoutingRule,
)
from scentd.core.route_tables import Link, Route
from scentd.prefix import Address

VRF_TABLE = 900


class Packet(NamedTuple):
    to: Address
    source: Address
    mark: int = 0
    tos: int = 0
    bound: int = 0  # the interface to which its socket is bound
    local: bool = True  # not forwarded
    root: bool = True
    vrf: bool = False


class Way(NamedTuple):
    """Where a packet goes, and which rule says so."""

    rule: RoutingRule
    kind: str  # of the route; of the rule, if that refuses
    route: Route | None = None
    hops: tuple[object, ...] = ()

    def same(self) -> tuple[object, ...]:
        """All that must not depend on us."""
        route = self.route
        more = (route.source, route.scope, route.nexthop_object, route.preference) if route else ()
        return self.kind, self.hops, self.rule.realms, more

    def mtu(self) -> object:
        return dict(self.route.metrics).get("mtu") if self.route else None


Tables = Mapping[int, Iterable[Route]]


def way(packet: Packet, rules: Sequence[RoutingRule], tables: Tables, links: Mapping[int, Link]) -> Way | None:
    """None: no rule has a way."""
    ordered = sorted(rules, key=lambda rule: rule.priority)  # stable: as they were added
    i = 0
    while i < len(ordered):
        rule = ordered[i]
        i += 1
        if not matches(rule, packet):
            continue
        if rule.action == GOTO:
            target = next((k for k, other in enumerate(ordered) if other.priority == rule.goto), None)
            i = i if target is None else target
        elif rule.action == TO_TABLE:
            found = look_up(packet, tables.get(rule.table or VRF_TABLE, ()))
            if found and found.kind != "throw" and not is_suppressed(found, rule, links):
                return Way(rule, found.kind, found, hops(found, packet))
        elif rule.action != NOP:
            return Way(rule, f"action {rule.action}")
    return None


def matches(rule: RoutingRule, packet: Packet) -> bool:
    match = rule.match
    have = dict(match.attributes)
    inside = {
        FRA_SRC: lambda data: packet.source in ip_network((data, match.src_len)),
        FRA_DST: lambda data: packet.to in ip_network((data, match.dst_len)),
        FRA_IIFNAME: lambda data: (data == b"lo\0") == packet.local,
        FRA_FWMARK: lambda _: (packet.mark ^ match.number(FRA_FWMARK)) & match.number(FRA_FWMASK) == 0,
        FRA_FWMASK: lambda _: (packet.mark ^ match.number(FRA_FWMARK)) & match.number(FRA_FWMASK) == 0,
        FRA_UID_RANGE: lambda _: packet.root,
        FRA_L3MDEV: lambda _: packet.vrf,
    }
    all_match = all(inside[kind](data) for kind, data in have.items()) and match.tos in (0, packet.tos)
    return all_match != bool(match.flags & INVERT)


def look_up(packet: Packet, table: Iterable[Route]) -> Route | None:
    covering = [route for route in table if packet.to in route.prefix]
    for route in sorted(covering, key=lambda r: (-r.prefix.prefixlen, -r.tos, r.metric)):
        if route.tos in (0, packet.tos) and is_usable(route, packet):
            return route
    return None


def is_usable(route: Route, packet: Packet) -> bool:
    """IPv6 has routes that refuse, and throws, on `lo`."""
    if route.kind == "unicast":
        return bool(hops(route, packet))
    return route.prefix.version == 4 or not packet.bound


def hops(route: Route, packet: Packet) -> tuple[object, ...]:
    return tuple(hop for hop in route.nexthops if packet.bound in (0, hop.interface))


def is_suppressed(route: Route, rule: RoutingRule, links: Mapping[int, Link]) -> bool:
    if route.kind != "unicast":
        return False
    group = links[route.nexthops[0].interface].group
    return route.prefix.prefixlen <= rule.least or group == rule.group


def address(version: int, number: int) -> Address:
    return ip_address("10.0.0.0" if version == 4 else "fd00::") + number
