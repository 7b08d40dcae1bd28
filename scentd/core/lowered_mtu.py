"""Lowered MTUs: which routes to peers need one, so that packets have room for a scent, and the full MTU of each path.

A packet grows by the scent after the kernel has chosen its size, so sockets must see a route whose MTU is lower by the
overhead of the peer's carrier. Pure: plan() takes the routes that the host's rules look up and returns a table of our
own for each lookup; datapath/host/routes.py reads and writes tables, core/mirrored_rules.py has the rules.

No packet may take another way because of our tables. A route whose MTU is too low to be lowered is copied as it is.

If one lookup alone finds routes inside a peer's prefix, its table needs no copy where the kernel would not use one: a
packet that finds nothing there, or a `throw`, has all of the host's own rules before it. So a `throw` stands for what
cannot be copied (unreachable; or unsupported: encapsulated, chosen by source). IPv6 keeps throws on interface lo, and a
socket bound to another interface does not see them; so an IPv6 peer prefix with an unsupported route in it gets no
routes of ours at all, and full-size packets to it leave unstamped. Unreachable IPv6 routes are on lo in the host's
table, too: a throw serves them.

If several lookups do, a packet that leaves one table of ours meets the next one. So each table has exactly the routes
of the host's: those of shorter prefixes behind the longest, for sockets bound to an interface, and those that refuse.
If this cannot be, the peer's prefix gets no routes of ours in any table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import ip_network

from scentd.core.peer_prefixes import merge_prefixes
from scentd.core.route_tables import REFUSALS, Choice, Link, Lookup, Route, RouteIndex, as_throw, choice, suppressed
from scentd.prefix import Prefix, within

# By IP version: every IPv4 host accepts 576 bytes (RFC 791); every IPv6 link carries 1280 (RFC 8200 section 5).
LOWEST_MTU = {4: 576, 6: 1280}
IPV6_METRIC = 1024  # the kernel's default

# Never lowered, though a peer prefix like ::/0 may hold them: link-local IPv6 is routed by interface, multicast and
# broadcast serve more than peers. IPv6 multicast is in the table `local`, which the kernel asks first.
# core/mirrored_rules.py has a rule for link-local, because a throw does not stop lookups for one interface.
EXCLUDED: dict[int, tuple[Prefix, ...]] = {
    4: (ip_network("224.0.0.0/3"),),
    6: (ip_network("fe80::/10"), ip_network("ff00::/8")),
}

Choices = dict[Prefix, Choice]  # what a lookup finds inside a peer's prefix


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The full MTU in bytes toward a prefix, by whichever lookup."""

    prefix: Prefix
    full_mtu: int


@dataclass(frozen=True)
class RoutePlan:
    """Our tables by the lookup that each stands for, longest prefix first; the full MTU of each prefix toward a peer.

    `exits`: see interfaces().
    """

    tables: Mapping[Lookup, tuple[Route, ...]]
    mtus: tuple[PathMtu, ...] = ()
    exits: frozenset[int] = frozenset()

    @cached_property
    def routes(self) -> tuple[Route, ...]:
        """The routes of all tables."""
        return tuple(route for routes in self.tables.values() for route in routes)

    def limits(self) -> tuple[tuple[str, int], ...]:
        """(prefix, full MTU), as tables.StampTable takes them."""
        return tuple((str(path.prefix), path.full_mtu) for path in self.mtus)

    def without_routes(self) -> RoutePlan:
        return replace(self, tables={})

    def interfaces(self) -> frozenset[int]:
        """The indexes of the interfaces through which packets to peers leave."""
        return self.exits


EMPTY = RoutePlan({})


def plan(
    tables: Mapping[Lookup, Iterable[Route]],
    links: Mapping[int, Link],
    peers: Iterable[tuple[Prefix, int]],
    order: Sequence[Lookup] | None = None,
    unconditional: Collection[Lookup] = (),
) -> RoutePlan:
    """Our tables. `tables`: what the host's rules look up, in their order; `links`: the interfaces by index; `peers`:
    the prefixes of the stamped peers, each with the overhead of its pairs in bytes; `order`: the lookups that our rules
    can have, in their order, a lookup perhaps twice; `unconditional`: the lookups that all packets come to that no
    lookup before them has decided. The full MTUs are those of all lookups that packets come to.

    Where the prefixes of peers with different overheads overlap, the longer prefix decides for its addresses.
    """
    peers, order = list(peers), tuple(tables) if order is None else order
    copies: dict[Lookup, dict[tuple[Prefix, int, int], Route]] = {lookup: {} for lookup in tables}
    mtus: list[PathMtu] = []
    exits: set[int] = set()
    for version in (4, 6):
        indexes = {asked: RouteIndex(rows, version) for asked, rows in tables.items() if asked.version == version}
        merged = [
            (peer, overhead, {lookup: find(index, links, peer, lookup) for lookup, index in indexes.items()})
            for peer, overhead in merge_prefixes(peers, version)
            if not any(within(peer, excluded) for excluded in EXCLUDED[version])
        ]
        limits = path_limits([reached(found, unconditional, peer) for peer, _, found in merged], links)
        mtus += [PathMtu(prefix, mtu) for prefix, mtu in limits.items()]
        for peer, overhead, found in merged:
            exits |= {number for choices in found.values() for number in exits_of(choices)}
            for lookup, routes in plan_peer(found, order, peer).items():
                lowered = (lower(route, links, limits.get(route.prefix), overhead) for route in routes)
                copies[lookup] |= {route.key: route for route in lowered}
    kept = {lookup: needed(routes.values()) for lookup, routes in copies.items()}
    return RoutePlan({lookup: rows for lookup, rows in kept.items() if rows}, tuple(mtus), frozenset(exits))


def exits_of(choices: Choices) -> set[int]:
    routes = (route for found in choices.values() for route in found.lead if not route.unsupported)
    return {hop.interface for route in routes for hop in route.nexthops}


def find(index: RouteIndex, links: Mapping[int, Link], peer: Prefix, lookup: Lookup) -> Choices:
    """The routes of packets to this peer. Routes that cover the peer's prefix are narrowed down to it."""

    def seen(level: list[Route]) -> list[Route]:
        return [suppressed(known(route, links), lookup, links) for route in level]

    choices = {peer: choice(map(seen, index.covering_routes(peer)), peer)}
    for level in index.inner_routes(peer):
        prefix = level[0].prefix
        if not any(within(prefix, excluded) for excluded in EXCLUDED[index.version]):
            choices[prefix] = choice([seen(level)], prefix)
    return {prefix: found for prefix, found in choices.items() if found.lead}


def known(route: Route, links: Mapping[int, Link]) -> Route:
    """The route; unsupported if it leads through an interface that is not known."""
    fits = route.kind != "unicast" or (route.nexthops and all(hop.interface in links for hop in route.nexthops))
    return route if fits and route.kind != "other" else replace(route, unsupported=True)


def reached(found: Mapping[Lookup, Choices], unconditional: Collection[Lookup], peer: Prefix) -> dict[Lookup, Choices]:
    """The lookups that packets to this peer come to, unless their socket is bound to an interface."""
    result = {}
    for lookup, choices in found.items():
        result[lookup] = choices
        lead = choices[peer].lead if peer in choices else ()
        if lookup in unconditional and lead and lead[-1].kind == "unicast" and not lead[-1].tos:
            break
    return result


def path_limits(found: Iterable[Mapping[Lookup, Choices]], links: Mapping[int, Link]) -> dict[Prefix, int]:
    """The lowest full MTU of each prefix, over all lookups. A lookup without this prefix counts by the next longest."""
    by_lookup: dict[Lookup, dict[Prefix, int]] = {}
    for choices_of in found:
        for lookup, choices in choices_of.items():
            limits = by_lookup.setdefault(lookup, {})
            for prefix, routes in choices.items():
                mtu = min((mtu for route in routes.lead if (mtu := full_mtu(route, links))), default=None)
                if mtu is not None:
                    limits[prefix] = mtu
    if len(by_lookup) < 2:
        return next(iter(by_lookup.values()), {})
    prefixes = dict.fromkeys(prefix for limits in by_lookup.values() for prefix in limits)
    lengths = sorted({prefix.prefixlen for prefix in prefixes}, reverse=True)

    def around(prefix: Prefix, limits: Mapping[Prefix, int]) -> int | None:
        shorter = (prefix.supernet(new_prefix=length) for length in lengths if length <= prefix.prefixlen)
        return next((limits[outer] for outer in shorter if outer in limits), None)

    return {p: min(mtu for limits in by_lookup.values() if (mtu := around(p, limits))) for p in prefixes}


def plan_peer(found: Mapping[Lookup, Choices], order: Sequence[Lookup], peer: Prefix) -> dict[Lookup, list[Route]]:
    """The routes of our tables inside one peer's prefix, at full MTU."""
    used = {lookup: choices for lookup, choices in found.items() if lookup in order and finds(choices)}
    alone = len(used) == 1
    copies = {}
    for lookup, choices in used.items():
        routes = [route for c in choices.values() for route in (c.lead if alone else c.all())]
        if any(route.unsupported for route in routes):
            if peer.version == 6 or not (alone or is_last(lookup, order, used)):
                return {}
            holes = {route.prefix for route in routes if route.unsupported}
            routes = [route for route in routes if route.prefix not in holes] + [throw_route(hole) for hole in holes]
        if alone:
            routes = [as_throw(r) if r.kind in REFUSALS else r for r in routes]
        if peer.version == 4:
            routes += [throw_route(excluded) for excluded in EXCLUDED[4] if within(excluded, peer)]
        copies[lookup] = routes
    return copies


def finds(choices: Choices) -> bool:
    """Whether the lookup ends here for some packet."""
    return any(route.kind != "throw" or route.unsupported for found in choices.values() for route in found.all())


def is_last(lookup: Lookup, order: Sequence[Lookup], used: Mapping[Lookup, Choices]) -> bool:
    """Whether a packet that finds no route in this lookup meets no other one that could have some."""
    return all(other == lookup or other not in used for other in order[order.index(lookup) :])


def lower(route: Route, links: Mapping[int, Link], limit: int | None, overhead: int) -> Route:
    """The route with room for a scent, in what all lookups can carry; as it is, if that is too little."""
    full = full_mtu(route, links)
    if full is None or limit is None:
        return route
    room = min(full, limit) - overhead
    return with_mtu(route, room) if room >= LOWEST_MTU[route.prefix.version] else route


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


def needed(routes: Iterable[Route]) -> tuple[Route, ...]:
    """These routes, longest prefix first, but for the throws where the table has no other route anyway.

    On-link routes come first: the kernel checks a gateway against the routes that the table already has.
    """
    by_prefix: dict[Prefix, list[Route]] = {}
    for route in routes:
        by_prefix.setdefault(route.prefix, []).append(route)
    kept: dict[Prefix, list[Route]] = {}
    lengths: set[int] = set()
    for prefix in sorted(by_prefix, key=lambda p: p.prefixlen):
        group = sorted(by_prefix[prefix], key=lambda r: (-r.tos, r.metric))
        if not any(prefix.supernet(new_prefix=length) in kept for length in lengths):
            while group and group[-1].kind == "throw":
                group.pop()
        if group:
            kept[prefix] = sorted(group, key=lambda r: (r.tos, r.metric))
            lengths.add(prefix.prefixlen)
    order = sorted(kept, key=lambda p: (p.version, -p.prefixlen, int(p.network_address)))
    return tuple(route for prefix in order for route in kept[prefix])


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
