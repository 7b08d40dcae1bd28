"""What a routing table tells a packet: routes, and in which order the kernel tries them. Pure.

A lookup is a table together with a rule's suppressors. It goes on to the next rule where the table has no route, where
the route is a `throw`, and where a suppressor does not accept the route.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from scentd.prefix import Address, Prefix

MAIN = 254  # its number in the kernel (linux/rtnetlink.h)
METRIC_MAX = 0xFFFFFFFF
Kind = Literal["unicast", "throw", "unreachable", "blackhole", "prohibit", "other"]
REFUSALS = ("unreachable", "blackhole", "prohibit")  # these end the lookup, and no suppressor concerns them


class Lookup(NamedTuple):
    """A rule's question to a table.

    `least`: suppress_prefixlength, a route of this length or less does not count; `group`: suppress_ifgroup.
    """

    version: int
    table: int
    least: int = -1
    group: int = -1


@dataclass(frozen=True, slots=True)
class Link:
    """An interface's MTU in bytes. Router advertisements may lower that of IPv6."""

    mtu: int
    mtu6: int
    group: int = 0

    def mtu_of(self, version: int) -> int:
        return self.mtu if version == 4 else min(self.mtu, self.mtu6)


@dataclass(frozen=True, slots=True)
class Nexthop:
    interface: int  # its index
    gateway: Address | None = None  # None: on-link. An IPv4 route may have an IPv6 gateway (RFC 5549)
    weight: int = 1
    realm: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """A route of one table. Only a `unicast` route has next hops."""

    prefix: Prefix
    kind: Kind = "unicast"
    nexthops: tuple[Nexthop, ...] = ()
    metric: int = 0
    tos: int = 0
    scope: int = 0
    source: Address | None = None  # preferred source address
    metrics: tuple[tuple[str, int | str], ...] = ()  # ("mtu", 1400) ..., sorted by name
    preference: int = 0  # of a router (RFC 4191), as in router advertisements
    nexthop_object: int = 0  # the number of the object that stands for the next hops
    unsupported: bool = False  # encapsulated, chosen by source prefix ...: our table cannot have a copy
    expires: int = field(default=0, compare=False)  # seconds until the route ends; 0: it does not

    @property
    def key(self) -> tuple[Prefix, int, int]:
        """The key of a route in the kernel: a table has at most one route of each key."""
        return self.prefix, self.tos, self.metric


class RouteIndex:
    """A table of one IP version. It finds the routes that cover a prefix, and the routes inside a prefix."""

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

    def inner_routes(self, prefix: Prefix) -> Iterator[list[Route]]:
        """The routes of each longer prefix inside this one."""
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        for i in range(bisect_left(self.keys, (first, 0)), len(self.keys)):
            address, length = self.keys[i]
            if address > last:
                return
            if length > prefix.prefixlen:
                yield self.by_prefix[address, length]


@dataclass(frozen=True, slots=True)
class Choice:
    """The routes that a table tries for one prefix, in the kernel's order, with metrics that keep this order.

    `lead` holds those of the longest prefix. `rest` serves only packets for which no interface of `lead` will do:
    they come from sockets that are bound to another interface, or the interface has no carrier.
    """

    lead: tuple[Route, ...]
    rest: tuple[Route, ...] = ()

    def all(self) -> tuple[Route, ...]:
        return self.lead + self.rest


def choice(levels: Iterable[list[Route]], prefix: Prefix) -> Choice:
    """The routes of these levels, longest prefix first, as routes of one table to `prefix`."""
    lead: list[Route] = []
    rest: list[Route] = []
    decided, highest = False, -1
    for level in levels:
        keys = set()
        for route in sorted(level, key=lambda r: (-r.tos, r.metric)):
            twin, behind = route.key in keys, decided or route.key in keys
            keys.add(route.key)
            metric = max(route.metric, highest + 1) if route.tos == 0 else route.metric
            # Of two routers that share a key the kernel chooses one. One table keeps only routes without TOS in the
            # order of their levels.
            ambiguous = twin and (prefix.version == 6 or route.prefix.prefixlen == 0)
            odd = ambiguous or metric > METRIC_MAX or (behind and route.tos != 0)
            copy = replace(route, prefix=prefix, metric=min(metric, METRIC_MAX), unsupported=route.unsupported or odd)
            if route.tos == 0:
                highest = metric
            (rest if decided or (twin and not ambiguous) else lead).append(copy)
        decided = decided or any(route.tos == 0 for route in level)
    return Choice(tuple(lead), tuple(rest))


def suppressed(route: Route, lookup: Lookup, links: Mapping[int, Link]) -> Route:
    """The route as the lookup takes it: a `throw` if a suppressor does not accept it.

    The kernel asks for the interface group of one of the next hops. If they differ, the lookup depends on the packet.
    """
    if route.kind != "unicast":
        return route
    groups = {links[hop.interface].group for hop in route.nexthops if hop.interface in links}
    if route.prefix.prefixlen <= lookup.least or groups == {lookup.group}:
        return as_throw(route)
    return replace(route, unsupported=True) if lookup.group in groups else route


def as_throw(route: Route) -> Route:
    """A route in the place of this one that sends the lookup on to the next rule."""
    return Route(route.prefix, "throw", metric=route.metric, tos=route.tos, scope=route.scope, expires=route.expires)
