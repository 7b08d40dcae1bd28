"""Lowered MTUs: which routes to peers need one, so that a scent finds room, and how much fits the path.

A packet grows by the scent after the kernel chose its size, so sockets must see a route whose
MTU is lower by the overhead of the peer's carrier. Pure: plan() takes the main table's routes and answers what
our own table should hold; datapath/host/routes.py reads the one and writes the other.

No packet may take another way because of us. Without MTU to spare a route is copied as it is. What
cannot be copied (unreachable, encapsulated, chosen by source) is a `throw`: the lookup goes on in the main
table. IPv6 has its throws on interface lo, where a socket bound to an interface passes them by, so there a
peer prefix with such a route in it gets no routes of ours at all (unreachable ones are on lo in the main table,
too). Full-size packets leave unstamped then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Literal

from scentd.prefix import BITS, Address, NumericPrefix, Prefix, as_prefix, nested, within

# Every link carries this much: RFC 8200 section 5; 576 is what every IPv4 host accepts (RFC 791).
LOWEST_MTU = {4: 576, 6: 1280}
IPV6_METRIC = 1024  # the kernel's, where none is given

# Never lowered, though a peer prefix like ::/0 may hold them: link-local IPv6 is routed by interface,
# multicast and broadcast serve more than peers. IPv6 multicast is in the table `local`, which is asked first;
# datapath/host/routes.py has a rule for link-local, because a throw does not stop lookups for one interface.
EXCLUDED: dict[int, tuple[Prefix, ...]] = {
    4: (ip_network("224.0.0.0/3"),),
    6: (ip_network("fe80::/10"), ip_network("ff00::/8")),
}


@dataclass(frozen=True, slots=True)
class Link:
    """An interface's MTU in bytes; IPv6 has its own (router advertisements lower it)."""

    mtu: int
    mtu6: int

    def mtu_of(self, version: int) -> int:
        return self.mtu if version == 4 else min(self.mtu, self.mtu6)


@dataclass(frozen=True, slots=True)
class Nexthop:
    interface: int  # its index
    gateway: Address | None = None  # None: on-link. May be IPv6 for an IPv4 route (RFC 5549)
    weight: int = 1
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A route of one table. Everything but `unicast` has no next hops."""

    prefix: Prefix
    kind: Literal["unicast", "throw", "other"] = "unicast"
    nexthops: tuple[Nexthop, ...] = ()
    metric: int = 0
    tos: int = 0
    scope: int = 0
    source: Address | None = None  # preferred source address
    metrics: tuple[tuple[str, int | str], ...] = ()  # ("mtu", 1400) ..., sorted by name
    odd: bool = False  # chosen by source prefix or encapsulating: not to be copied

    @property
    def key(self) -> tuple[Prefix, int, int]:
        """What the kernel tells routes of one table apart by."""
        return self.prefix, self.tos, self.metric


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The full MTU in bytes toward a prefix."""

    prefix: Prefix
    full_mtu: int


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """What our table should hold, shortest prefix last, and the full MTUs of the routes copied."""

    routes: tuple[Route, ...] = ()
    mtus: tuple[PathMtu, ...] = ()

    def limits(self) -> tuple[tuple[str, int], ...]:
        """(prefix, full MTU), as tables.StampTable takes them."""
        return tuple((str(path.prefix), path.full_mtu) for path in self.mtus)

    def interfaces(self) -> frozenset[int]:
        """The indexes of those that packets to peers leave through."""
        return frozenset(hop.interface for route in self.routes for hop in route.nexthops)


class RouteIndex:
    """The main table of one family, for two questions: what covers a prefix, what lies inside it."""

    def __init__(self, routes: Iterable[Route], version: int) -> None:
        self.version = version
        self.bits = 32 if version == 4 else 128
        self.by_prefix: dict[tuple[int, int], list[Route]] = {}
        for route in routes:
            if route.prefix.version == version:
                key = int(route.prefix.network_address), route.prefix.prefixlen
                self.by_prefix.setdefault(key, []).append(route)
        self.keys = sorted(self.by_prefix)

    def covering(self, prefix: Prefix) -> Iterator[list[Route]]:
        """The routes of each prefix that holds the whole of this one, longest first."""
        address = int(prefix.network_address)
        for length in range(prefix.prefixlen, -1, -1):
            shift = self.bits - length
            routes = self.by_prefix.get((address >> shift << shift, length))
            if routes:
                yield routes

    def inside(self, prefix: Prefix) -> Iterator[Route]:
        """The routes to parts of this prefix."""
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        for i in range(bisect_left(self.keys, (first, 0)), len(self.keys)):
            address, length = self.keys[i]
            if address > last:
                return
            if length > prefix.prefixlen:
                yield from self.by_prefix[address, length]


def plan(main: Iterable[Route], links: Mapping[int, Link], peers: Iterable[tuple[Prefix, int]]) -> RoutePlan:
    """What our table should hold, given the main table, the interfaces by index, and the stamped peers' prefixes,
    each with the overhead of its pairs in bytes.

    Where peers of different overheads overlap, the longer prefix decides for what lies in it.
    """
    main, peers = list(main), list(peers)
    routes: dict[tuple[Prefix, int, int], Route] = {}
    mtus: dict[Prefix, PathMtu] = {}
    for version in (4, 6):
        index = RouteIndex(main, version)
        for peer, overhead in collapsed(peers, version):
            if not any(within(peer, excluded) for excluded in EXCLUDED[version]):
                made = plan_peer(index, links, peer, overhead)
                routes |= {route.key: route for route in made.routes}
                mtus |= {path.prefix: path for path in made.mtus}
    # On-link routes first: the kernel checks a gateway against what the table already holds.
    order = sorted(
        routes.values(),
        key=lambda r: (r.prefix.version, -r.prefix.prefixlen, int(r.prefix.network_address), r.tos, r.metric),
    )
    return RoutePlan(tuple(order), tuple(mtus.values()))


def plan_peer(index: RouteIndex, links: Mapping[int, Link], peer: Prefix, overhead: int) -> RoutePlan:
    serving_peer: dict[tuple[Prefix, int, int], Route] = {}
    for route in serving(index, peer):
        known = route.kind != "unicast" or all(hop.interface in links for hop in route.nexthops)
        serving_peer.setdefault(route.key, route if known else replace(route, odd=True))
    groups = by_prefix(serving_peer.values())
    mtus = tuple(PathMtu(prefix, mtu) for prefix, group in groups.items() if (mtu := group_mtu(group, links)))
    if index.version == 6 and any(route.odd for route in serving_peer.values()):
        return RoutePlan((), mtus)
    copies = {prefix: lower(group, links, overhead) for prefix, group in groups.items()}
    if index.version == 4:
        copies |= {excluded: [thrown(excluded)] for excluded in EXCLUDED[4] if groups and within(excluded, peer)}
    return RoutePlan(tuple(route for group in copies.values() for route in group), mtus)


def serving(index: RouteIndex, peer: Prefix) -> Iterator[Route]:
    """The main routes that packets to this peer take, the covering ones narrowed down to the peer's prefix."""
    for routes in index.covering(peer):
        for route in unambiguous(routes):
            yield replace(route, prefix=peer)
        if any(route.tos == 0 for route in routes):
            break  # shorter ones are never asked
    for prefix, routes in by_prefix(index.inside(peer)).items():
        if not any(within(prefix, excluded) for excluded in EXCLUDED[index.version]):
            yield from unambiguous(routes)


def unambiguous(routes: list[Route]) -> list[Route]:
    """Routes of one prefix; two equal routers of IPv6, told apart by the kernel's own knowledge of them, are odd."""
    first = {route.key: route for route in reversed(routes)}
    if len(first) == len(routes) or routes[0].prefix.version == 4:
        return list(first.values())
    return [replace(route, odd=True) for route in first.values()]


def group_mtu(routes: list[Route], links: Mapping[int, Link]) -> int | None:
    """The lowest full MTU of one prefix's routes; None if none of them leads anywhere."""
    return min((mtu for route in routes if (mtu := full_mtu(route, links))), default=None)


def lower(routes: list[Route], links: Mapping[int, Link], overhead: int) -> list[Route]:
    """The copies of one prefix's routes. All are lowered or none."""
    prefix = routes[0].prefix
    if any(route.odd for route in routes):
        return [thrown(prefix)]
    mtu = group_mtu(routes, links)
    enough = mtu is not None and mtu - overhead >= LOWEST_MTU[prefix.version]
    copies = []
    for route in routes:
        full = full_mtu(route, links)
        if full is None:
            copies.append(replace(thrown(prefix), tos=route.tos, metric=route.metric))
        else:
            copies.append(with_mtu(route, full - overhead) if enough else route)
    return copies


def full_mtu(route: Route, links: Mapping[int, Link]) -> int | None:
    """What the route carries: its own mtu or its narrowest interface's. None if it leads to no known interface."""
    if route.kind != "unicast" or not route.nexthops or any(hop.interface not in links for hop in route.nexthops):
        return None
    narrowest = min(links[hop.interface].mtu_of(route.prefix.version) for hop in route.nexthops)
    given = dict(route.metrics).get("mtu", 0)
    return min(narrowest, given) if isinstance(given, int) and given else narrowest


def with_mtu(route: Route, mtu: int) -> Route:
    return replace(route, metrics=tuple(sorted({**dict(route.metrics), "mtu": mtu}.items())))


def thrown(prefix: Prefix) -> Route:
    """A route that sends the lookup on to the next rule."""
    return Route(prefix, "throw", metric=IPV6_METRIC if prefix.version == 6 else 0)


def collapsed(peers: Iterable[tuple[Prefix, int]], version: int) -> list[tuple[Prefix, int]]:
    """Those of one family, shortest first, with as few prefixes as give every address the same overhead.

    Neighbours are merged only where their overheads agree. Of one prefix with two overheads the larger counts, which
    serves both.
    """
    overheads: dict[NumericPrefix, int] = {}
    for prefix, overhead in peers:
        if prefix.version == version:
            key = version, int(prefix.network_address), prefix.prefixlen
            overheads[key] = max(overhead, overheads.get(key, 0))
    kept = {
        prefix: overheads[prefix]
        for prefix, around in nested(overheads)
        if around is None or overheads[around] != overheads[prefix]
    }
    merge_neighbours(kept)
    ordered = sorted(kept.items(), key=lambda entry: (entry[0][2], entry[0][1]))
    return [(as_prefix(numbers), overhead) for numbers, overhead in ordered]


def merge_neighbours(overheads: dict[NumericPrefix, int]) -> None:
    """Put one prefix in the place of the two halves of it, where both have its overhead and it has none of its own."""
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


def may_be_first(routes: Iterable[Route], first: Iterable[Prefix]) -> bool:
    """Whether these may be in a table that is asked before all rules, with all that is there still found.

    `first` are the prefixes of others' routes in that table. None of ours may be one of them, or a part of one: it
    would take what is meant for this host itself. Not a throw: IPv4 has the tables `local` and `main` as one where
    there are no rules, and would look no further (net/ipv4/fib_trie.c). Not what holds link-local addresses.
    """
    excluded, taken = EXCLUDED[6][0], set(first)
    lengths = {(prefix.version, prefix.prefixlen) for prefix in taken}

    def is_free(prefix: Prefix) -> bool:
        shorter = (length for version, length in lengths if version == prefix.version and length <= prefix.prefixlen)
        return not any(prefix.supernet(new_prefix=length) in taken for length in shorter)

    return all(r.kind == "unicast" and not within(excluded, r.prefix) and is_free(r.prefix) for r in routes)


def diff(have: Iterable[Route], want: Iterable[Route]) -> tuple[list[Route], list[Route]]:
    """What to delete and what to add or replace, in order, so that a table holds what is wanted."""
    before = {route.key: route for route in have}
    after = {route.key: route for route in want}
    return (
        [route for key, route in before.items() if key not in after],
        [route for key, route in after.items() if before.get(key) != route],
    )
