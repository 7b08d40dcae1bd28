"""Routes to peers with a lowered MTU, so that packets of this host's sockets still fit the path with a scent.

If the programs alone stamp (`rule_free`), the lowered routes are in the table `local`, which the kernel asks first. tc
comes after the MTU check, so the routes need no rule. That matters: the first rule that is not the kernel's own makes
every look-up of this host slower, until the host restarts. A host with rules of its own is never rule-free.

Otherwise the lowered routes are in tables of our own, from datapath.route_table on: one for each lookup of the host's
rules that finds routes to peers. Rules of ours lead there (core/mirrored_rules.py). Ours are the routes and rules with
our PROTOCOL. Nothing else is deleted, and no table of the host is written.

Two threads write: one follows the host's routes and rules at once, the other does everything else. pyroute2's sync
sockets do not work inside a running asyncio loop: call from a thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from pyroute2 import IPRoute

from scentd.config.sections import Config, stamped_peers
from scentd.core import lowered_mtu, mirrored_rules
from scentd.core.interest import spans
from scentd.core.lowered_mtu import RoutePlan
from scentd.core.mirrored_rules import LOCAL, Block, Place, RoutingRule, Settings
from scentd.core.pairs import overhead
from scentd.core.route_tables import MAIN, Lookup, Route
from scentd.datapath.family import families
from scentd.datapath.host.ip_rules import BlockWriter, RuleSocket, rule_socket
from scentd.datapath.host.route_messages import LinkReader, read_ours, read_routes, routing_socket, write_routes
from scentd.prefix import Prefix, prefixes

log = logging.getLogger(__name__)

FORWARDING = ("forwarding", "force_forwarding")  # the second: IPv6, since Linux 6.17
QUIET = 3  # seconds
TABLES = 16  # of ours at most, for each family

writing = threading.Lock()
told: dict[int, str] = {}  # the problems that the log has, by IP version
applied: list[tuple[Config, bool, bool]] = []  # the arguments of the last apply(), for follow()
written: dict[int, Block] = {}  # our rules, by IP version
quiet: dict[int, float] = {}  # by IP version: until when there are no mirrored rules (time.monotonic())


class HostRouting(NamedTuple):
    """What a look at the host tells, and the plan for it. Rules, places and problems are by IP version."""

    plan: RoutePlan
    rules: Mapping[int, list[RoutingRule]]  # the host's own
    ours: Mapping[int, list[RoutingRule]]
    places: Mapping[int, Place | None]
    problems: Mapping[int, str]  # why a family has no lowered routes

    def is_plain(self) -> bool:
        """Whether the host has no rules of its own, and packets to peers are routed by `main` alone."""
        asked = {(lookup.table, lookup.least, lookup.group) for lookup in self.plan.tables}
        return asked <= {(MAIN, -1, -1)} and all(map(mirrored_rules.are_kernels, self.rules.values()))


def peer_prefixes(config: Config) -> list[tuple[Prefix, int]]:
    """The prefixes that stamped packets go to, each with the overhead in bytes."""
    return [(p, overhead(peer, p.version)) for peer in stamped_peers(config) for p in prefixes(peer.addresses)]


def apply(config: Config, forwarded: bool = False, rule_free: bool = False) -> RoutePlan:
    """Make the routes and rules that the host's routing and the configuration require. Raises HostError.

    `forwarded`: the lowered MTU is for forwarded packets, too, and the kernel tells their sources.
    `rule_free`: make no rules; if the host has got rules of its own meanwhile, there are no lowered routes.
    If the kernel refuses a route because the host has changed meanwhile, the refusal is logged and the family has no
    lowered routes. Until the next call, its packets that are too big leave unstamped.
    """
    with writing:
        applied[:] = [(config, forwarded, rule_free)]
        return apply_again()


def follow() -> float | None:
    """As the last apply(), right after a change of the host; after remove() nothing. Return after how many seconds it
    is to be called again without a change: a route ends then, or the quiet time. Raises HostError.
    """
    with writing:
        if not applied:
            return None
        plan, now = apply_again(follows=True), time.monotonic()
        moments = [float(route.expires) for route in plan.routes if route.expires]
        return min(moments + [end - now for end in quiet.values() if end > now], default=None)


def apply_again(follows: bool = False) -> RoutePlan:
    ((config, forwarded, rule_free),) = applied
    with routing_socket() as ip, rule_socket() as rules:
        host = look(ip, rules, config)
        if follows:
            notice_deletions(host.ours)
        if rule_free and not may_precede_rules(host):
            host = host._replace(plan=host.plan.without_routes())
        for version in families():
            write(ip, rules, config, host, version, forwarded, rule_free)
    tell(host.problems)
    return host.plan


def notice_deletions(ours: Mapping[int, list[RoutingRule]]) -> None:
    """If somebody has deleted a mirrored rule, begin a quiet time.

    It was perhaps an `ip rule del` that was meant for the host's own rule. A second one shall find that.
    """
    for version, block in written.items():
        missing = [rule for rule in block.mirrored if rule not in ours[version]]
        if missing:
            quiet[version] = time.monotonic() + QUIET
            log.warning(
                "IPv%d: somebody has deleted our `ip rule` of priority %d; if it was meant for a rule of the host's "
                "own, delete that by its table or priority; no lowered routes for %d s",
                *(version, missing[0].priority, QUIET),
            )


def tell(problems: Mapping[int, str]) -> None:
    """Log each problem once, until it is over."""
    for version, problem in problems.items():
        if told.get(version) != problem:
            log.warning("IPv%d: no lowered routes: %s", version, problem)
    told.clear()
    told.update(problems)


def read_plan(config: Config) -> RoutePlan:
    """The plan that apply() would carry out now; changes nothing. Raises HostError."""
    return read_host(config).plan


def read_host(config: Config) -> HostRouting:
    """What apply() sees; changes nothing. Raises HostError."""
    with routing_socket() as ip, rule_socket() as rules:
        return look(ip, rules, config)


def look(ip: IPRoute, rules: RuleSocket, config: Config) -> HostRouting:
    read = {version: rules.read(version) for version in families()}
    theirs, ours = ({version: pair[i] for version, pair in read.items()} for i in (0, 1))
    places = {version: mirrored_rules.place(r, config.datapath.rule_priority) for version, r in theirs.items()}
    peers = peer_prefixes(config)
    if not peers:
        return HostRouting(lowered_mtu.EMPTY, theirs, ours, places, {})
    asked = {lookup: None for version, r in theirs.items() for rule in r if (lookup := rule.lookup(version))}
    # The table `local` is asked before our block, and decides there.
    ranges = spans(prefix for prefix, _ in peers)
    content = {key: read_routes(*key, ranges) for key in {(a.version, a.table) for a in asked if a.table != LOCAL}}
    tables = {lookup: content[lookup.version, lookup.table] for lookup in asked if lookup.table != LOCAL}
    order = [
        lookup
        for version, place in places.items()
        if place
        for lookup in mirrored_rules.lookups(mirrored_rules.behind(theirs[version], place), version)
    ]
    links = LinkReader(ip)
    unconditional = {a for version, r in theirs.items() for a in mirrored_rules.unconditional(r, version)}
    plan = lowered_mtu.plan(tables, links, peers, order, unconditional)
    problems = {version: "there is no gap for our `ip rule`s" for version, place in places.items() if place is None}
    for version in places:
        used = sum(lookup.version == version for lookup in plan.tables)
        if used > TABLES:
            problems[version] = f"the host's `ip rule`s look up {used} tables with routes to peers, more than {TABLES}"
    if problems:
        plan = lowered_mtu.plan(tables, links, peers, [a for a in order if a.version not in problems], unconditional)
    return HostRouting(plan, theirs, ours, places, problems)


def write(
    ip: IPRoute,
    rules: RuleSocket,
    config: Config,
    host: HostRouting,
    version: int,
    forwarded: bool,
    rule_free: bool,
) -> None:
    """Make one family's routes and rules as planned."""
    written.pop(version, None)
    routes = {lookup: rows for lookup, rows in host.plan.tables.items() if lookup.version == version}
    numbers = {lookup: LOCAL if rule_free else config.datapath.route_table + i for i, lookup in enumerate(routes)}
    block = Block() if rule_free else make_block(config, host, version, numbers, forwarded)
    have, want = read_ours(ip, version), {numbers[lookup]: rows for lookup, rows in routes.items()}
    tables = {table: (have.get(table, ()), want.get(table, ())) for table in {**have, **want}}
    changing = [table for table, (before, after) in tables.items() if any(lowered_mtu.diff(before, after))]
    # The table `local` gets its routes before the rules go, and loses them after the rules have come. But if the host
    # has rules of its own, these routes are wrong.
    last = [LOCAL] if not rule_free and host.is_plain() else []
    if LOCAL in changing and not last and not write_routes(ip, version, LOCAL, *tables[LOCAL]):
        write_routes(ip, version, LOCAL, read_ours(ip, version).get(LOCAL, ()), ())
    if quiet.get(version, 0.0) > time.monotonic():
        block = block._replace(mirrored=())
    writer = BlockWriter(rules, version, host.ours[version], block)
    writer.retreat(changing)
    results = [write_routes(ip, version, table, *tables[table]) for table in changing if table != LOCAL]
    whole = all(results)
    writer.advance(whole)
    written[version] = block if whole else block._replace(mirrored=())
    if LOCAL in changing and last:
        write_routes(ip, version, LOCAL, *tables[LOCAL])


def make_block(
    config: Config, host: HostRouting, version: int, numbers: Mapping[Lookup, int], forwarded: bool
) -> Block:
    place = host.places[version]
    if place is None or not peer_prefixes(config):
        return Block()
    several = any(len(r.nexthops) > 1 for lookup in numbers for r in host.plan.tables[lookup])
    settings = Settings(config.datapath.mark_stamped, forwarded, several)
    return mirrored_rules.block(version, mirrored_rules.behind(host.rules[version], place), place, numbers, settings)


def may_be_rule_free(config: Config) -> bool:
    """Whether the lowered routes may be in `local`: the kernel asks it before all rules, for forwarded packets, too.

    Raises HostError.
    """
    if forwards() and not config.stamp.forwarded:
        return False
    with routing_socket() as ip, rule_socket() as rules:
        return may_precede_rules(look(ip, rules, config))


def may_precede_rules(host: HostRouting) -> bool:
    ranges = spans(route.prefix for route in host.plan.routes)
    others = (route.prefix for version in families() for route in read_routes(version, LOCAL, ranges))
    return host.is_plain() and lowered_mtu.may_precede_rules(host.plan.routes, others)


def forwards() -> bool:
    """Whether this host forwards packets by any of its interfaces, of either family."""
    folders = [f"/proc/sys/net/ipv{version}/conf" for version in families()]
    return any(
        is_on(f"{folder}/{interface}/{name}")
        for folder in folders
        for interface in os.listdir(folder)
        for name in FORWARDING
    )


def is_on(switch: str) -> bool:
    try:
        with open(switch, "rb") as file:
            return file.read().strip() != b"0"
    except FileNotFoundError:  # the interface disappeared, or has no such switch
        return False


def read_own() -> list[tuple[int, Route]]:
    """(table, route) of our routes, both families. Raises HostError."""
    with routing_socket() as ip:
        tables = (entry for version in families() for entry in read_ours(ip, version).items())
        return [(table, route) for table, routes in tables for route in routes]


def remove() -> None:
    """Remove our rules and routes; having none is no error. Raises HostError."""
    with writing, routing_socket() as ip, rule_socket() as rules:
        applied.clear()
        written.clear()
        for version in families():
            BlockWriter(rules, version, rules.read(version)[1], Block()).retreat(())
            for table, routes in read_ours(ip, version).items():
                write_routes(ip, version, table, routes, ())
