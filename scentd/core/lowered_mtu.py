"""Lowered MTUs: which routes to peers need one, so that packets have room for a scent, and the full MTU of each path.

A packet grows by the scent after the kernel has chosen its size, so sockets must see a route whose MTU is lower by the
overhead of the peer's carrier. Pure: plan() takes the routes of the main table and returns the routes of our own table;
datapath/host/routes.py reads the main table and writes ours.

No packet may take another way because of our table. A route whose MTU is too low to be lowered is copied as it is. In
the place of a route that cannot be copied (unreachable; or unsupported: encapsulated, chosen by source) our table has a
`throw`: the lookup goes on in the main table. IPv6 keeps throws on interface lo, and a socket bound to another
interface does not see them. So an IPv6 peer prefix with an unsupported route in it gets no routes of ours at all, and
full-size packets to it leave unstamped. Unreachable IPv6 routes are on lo in the main table, too: a throw serves them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Literal

from scentd.prefix import BITS, Address, NumericPrefix, Prefix, nesting, to_prefix, within

# By IP version: every IPv4 host accepts 576 bytes (RFC 791); every IPv6 link carries 1280 (RFC 8200 section 5).
LOWEST_MTU = {4: 576, 6: 1280}
IPV6_METRIC = 1024  # the kernel's default

# Never lowered, though a peer prefix like ::/0 may hold them: link-local IPv6 is routed by interface, multicast and
# broadcast serve more than peers. IPv6 multicast is in the table `local`, which the kernel asks first.
# datapath/host/routes.py has a rule for link-local, because a throw does not stop lookups for one interface.
EXCLUDED: dict[int, tuple[Prefix, ...]] = {
    4: (ip_network("224.0.0.0/3"),),
    6: (ip_network("fe80::/10"), ip_network("ff00::/8")),
}


@dataclass(frozen=True, slots=True)
class Link:
    """An interface's MTU in bytes. Router advertisements may lower that of IPv6."""

    mtu: int
    mtu6: int

    def mtu_of(self, version: int) -> int:
        return self.mtu if version == 4 else min(self.mtu, self.mtu6)


@dataclass(frozen=True, slots=True)
class Nexthop:
    interface: int  # its index
    gateway: Address | None = None  # None: on-link. An IPv4 route may have an IPv6 gateway (RFC 5549)
    weight: int = 1
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A route of one table. Only a `unicast` route has next hops."""

    prefix: Prefix
    kind: Literal["unicast", "throw", "other"] = "unicast"
    nexthops: tuple[Nexthop, ...] = ()
    metric: int = 0
    tos: int = 0
    scope: int = 0
    source: Address | None = None  # preferred source address
    metrics: tuple[tuple[str, int | str], ...] = ()  # ("mtu", 1400) ..., sorted by name
    unsupported: bool = False  # encapsulated, or chosen by source prefix: our table cannot have a copy

    @property
    def key(self) -> tuple[Prefix, int, int]:
        """The key of a route in the kernel: a table has at most one route of each key."""
        return self.prefix, self.tos, self.metric


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The full MTU in bytes toward a prefix."""

    prefix: Prefix
    full_mtu: int


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """The routes of our table, longest prefix first, and the full MTU of each prefix toward a peer."""

    routes: tuple[Route, ...] = ()
    mtus: tuple[PathMtu, ...] = ()

    def limits(self) -> tuple[tuple[str, int], ...]:
        """(prefix, full MTU), as tables.StampTable takes them."""
        return tuple((str(path.prefix), path.full_mtu) for path in self.mtus)

    def interfaces(self) -> frozenset[int]:
        """The indexes of the interfaces through which packets to peers leave."""
        return frozenset(hop.interface for route in self.routes for hop in route.nexthops)


class RouteIndex:
    """The main table of one IP version. It finds the routes that cover a prefix, and the routes inside a prefix."""

    def __init__(self, routes: Iterable[Route], version: int) -> None:
        self.version = version
        self.bits = 32 if version == 4 else 128
        self.by_prefix: dict[tuple[int, int], list[Route]] = {}
        for route in routes:
            if route.prefix.version == version:
                key = int(route.prefix.network_address), route.prefix.prefixlen
                self.by_prefix.setdefault(key, []).append(route)
        self.keys = sorted(self.by_prefix)

    def covering_routes(self, prefix: Prefix) -> Iterator[list[Route]]:
        """The routes of each prefix that covers this one, longest first."""
        address = int(prefix.network_address)
        for length in range(prefix.prefixlen, -1, -1):
            shift = self.bits - length
            routes = self.by_prefix.get((address >> shift << shift, length))
            if routes:
                yield routes

    def inner_routes(self, prefix: Prefix) -> Iterator[Route]:
        """The routes to longer prefixes inside this one."""
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        for i in range(bisect_left(self.keys, (first, 0)), len(self.keys)):
            address, length = self.keys[i]
            if address > last:
                return
            if length > prefix.prefixlen:
                yield from self.by_prefix[address, length]


def plan(main: Iterable[Route], links: Mapping[int, Link], peers: Iterable[tuple[Prefix, int]]) -> RoutePlan:
    """The routes of our table. `main`: the main table; `links`: the interfaces by index; `peers`: the prefixes of the
    stamped peers, each with the overhead of its pairs in bytes.

    Where the prefixes of peers with different overheads overlap, the longer prefix decides for its addresses.
    """
    main, peers = list(main), list(peers)
    routes: dict[tuple[Prefix, int, int], Route] = {}
    mtus: dict[Prefix, PathMtu] = {}
    for version in (4, 6):
        index = RouteIndex(main, version)
        for peer, overhead in merge_prefixes(peers, version):
            if not any(within(peer, excluded) for excluded in EXCLUDED[version]):
                peer_plan = plan_peer(index, links, peer, overhead)
                routes |= {route.key: route for route in peer_plan.routes}
                mtus |= {path.prefix: path for path in peer_plan.mtus}
    # On-link routes first: the kernel checks a gateway against the routes that the table already has.
    order = sorted(
        routes.values(),
        key=lambda r: (r.prefix.version, -r.prefix.prefixlen, int(r.prefix.network_address), r.tos, r.metric),
    )
    return RoutePlan(tuple(order), tuple(mtus.values()))


def plan_peer(index: RouteIndex, links: Mapping[int, Link], peer: Prefix, overhead: int) -> RoutePlan:
    peer_routes: dict[tuple[Prefix, int, int], Route] = {}
    for route in routes_to_peer(index, peer):
        supported = route.kind != "unicast" or all(hop.interface in links for hop in route.nexthops)
        peer_routes.setdefault(route.key, route if supported else replace(route, unsupported=True))
    groups = by_prefix(peer_routes.values())
    mtus = tuple(PathMtu(prefix, mtu) for prefix, group in groups.items() if (mtu := group_mtu(group, links)))
    if index.version == 6 and any(route.unsupported for route in peer_routes.values()):
        return RoutePlan((), mtus)
    copies = {prefix: lower(group, links, overhead) for prefix, group in groups.items()}
    if index.version == 4:
        copies |= {excluded: [throw_route(excluded)] for excluded in EXCLUDED[4] if groups and within(excluded, peer)}
    return RoutePlan(tuple(route for group in copies.values() for route in group), mtus)


def routes_to_peer(index: RouteIndex, peer: Prefix) -> Iterator[Route]:
    """The main routes of packets to this peer. Routes that cover the peer's prefix are narrowed down to it."""
    for routes in index.covering_routes(peer):
        for route in mark_ambiguous(routes):
            yield replace(route, prefix=peer)
        if any(route.tos == 0 for route in routes):
            break  # the kernel never asks a shorter prefix
    for prefix, routes in by_prefix(index.inner_routes(peer)).items():
        if not any(within(prefix, excluded) for excluded in EXCLUDED[index.version]):
            yield from mark_ambiguous(routes)


def mark_ambiguous(routes: list[Route]) -> list[Route]:
    """One route for each key. If two IPv6 routers share a key, the kernel chooses between them: unsupported."""
    first = {route.key: route for route in reversed(routes)}
    if len(first) == len(routes) or routes[0].prefix.version == 4:
        return list(first.values())
    return [replace(route, unsupported=True) for route in first.values()]


def group_mtu(routes: list[Route], links: Mapping[int, Link]) -> int | None:
    """The lowest full MTU of one prefix's routes; None if no route has one."""
    return min((mtu for route in routes if (mtu := full_mtu(route, links))), default=None)


def lower(routes: list[Route], links: Mapping[int, Link], overhead: int) -> list[Route]:
    """The copies of one prefix's routes. Either all copies are lowered, or none is."""
    prefix = routes[0].prefix
    if any(route.unsupported for route in routes):
        return [throw_route(prefix)]
    mtu = group_mtu(routes, links)
    enough = mtu is not None and mtu - overhead >= LOWEST_MTU[prefix.version]
    copies = []
    for route in routes:
        full = full_mtu(route, links)
        if full is None:
            copies.append(replace(throw_route(prefix), tos=route.tos, metric=route.metric))
        else:
            copies.append(with_mtu(route, full - overhead) if enough else route)
    return copies


def full_mtu(route: Route, links: Mapping[int, Link]) -> int | None:
    """The route's own MTU or that of its narrowest interface, the lower. None if an interface is unknown, or none."""
    if route.kind != "unicast" or not route.nexthops or any(hop.interface not in links for hop in route.nexthops):
        return None
    narrowest = min(links[hop.interface].mtu_of(route.prefix.version) for hop in route.nexthops)
    metric = dict(route.metrics).get("mtu", 0)
    return min(narrowest, metric) if isinstance(metric, int) and metric else narrowest


def with_mtu(route: Route, mtu: int) -> Route:
    return replace(route, metrics=tuple(sorted({**dict(route.metrics), "mtu": mtu}.items())))


def throw_route(prefix: Prefix) -> Route:
    """A route that sends the lookup on to the next rule."""
    return Route(prefix, "throw", metric=IPV6_METRIC if prefix.version == 6 else 0)


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


def by_prefix(routes: Iterable[Route]) -> dict[Prefix, list[Route]]:
    groups: dict[Prefix, list[Route]] = {}
    for route in routes:
        groups.setdefault(route.prefix, []).append(route)
    return groups


def may_precede_rules(routes: Iterable[Route], others: Iterable[Prefix]) -> bool:
    """Whether our routes may be in a table that the kernel asks before all rules, and hide no other route of it.

    `others` are the prefixes of the other routes in that table. No route of ours may have one of these prefixes or a
    part of one: it would take packets that are meant for this host itself. A throw may not be there: where there are
    no rules, IPv4 keeps the tables `local` and `main` as one, and looks no further (net/ipv4/fib_trie.c). Nor may a
    prefix that holds link-local addresses.
    """
    excluded, taken = EXCLUDED[6][0], set(others)
    lengths = {(prefix.version, prefix.prefixlen) for prefix in taken}

    def is_free(prefix: Prefix) -> bool:
        shorter = (length for version, length in lengths if version == prefix.version and length <= prefix.prefixlen)
        return not any(prefix.supernet(new_prefix=length) in taken for length in shorter)

    return all(r.kind == "unicast" and not within(excluded, r.prefix) and is_free(r.prefix) for r in routes)


def diff(current: Iterable[Route], desired: Iterable[Route]) -> tuple[list[Route], list[Route]]:
    """(routes to delete, routes to add or replace), in order, so that a table gets the desired routes."""
    before = {route.key: route for route in current}
    after = {route.key: route for route in desired}
    return (
        [route for key, route in before.items() if key not in after],
        [route for key, route in after.items() if before.get(key) != route],
    )
