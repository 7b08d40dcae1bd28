"""Our rules among the host's, in a model of the kernel's routing (tests/kernel_routing.py).

Interfaces: 1 and 2 have 1500 bytes, 3 has 1400 and is in group 7.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_routing import VRF_TABLE, Packet, Way, address, way

from scentd.config.sections import Datapath
from scentd.core import lowered_mtu, mirrored_rules
from scentd.core.mirrored_rules import (
    FRA_FWMARK,
    FRA_FWMASK,
    FRA_IIFNAME,
    FRA_L3MDEV,
    FRA_SRC,
    FRA_UID_RANGE,
    GOTO,
    INVERT,
    KERNELS_RULES,
    LOCAL,
    NOP,
    NUMBER,
    TO_TABLE,
    Match,
    Place,
    RoutingRule,
    Settings,
)
from scentd.core.route_tables import MAIN, Link, Nexthop, Route

LINKS = {1: Link(1500, 1500), 2: Link(1500, 1500), 3: Link(1400, 1400, group=7)}
OVERHEAD = {4: 36, 6: 40}
S = Datapath().mark_stamped  # the mark of stamped packets
OURS = Datapath().rule_priority
PROHIBIT = 8


def kernels() -> list[RoutingRule]:
    return sorted(KERNELS_RULES, key=lambda rule: rule.priority)


def mark(value: int, mask: int = 0xFFFFFFFF) -> tuple[tuple[int, bytes], ...]:
    return (FRA_FWMARK, NUMBER.pack(value)), (FRA_FWMASK, NUMBER.pack(mask))


def sources(version: int, number: int, length: int = 0) -> Match:
    bits = length or address(version, 0).max_prefixlen
    return Match(src_len=bits, attributes=((FRA_SRC, address(version, number).packed),))


class Host:
    """A host's rules and tables, with and without ours."""

    def __init__(
        self, version: int, rules: list[RoutingRule], tables: dict[int, list[Route]], *peers: object, **more
    ) -> None:
        self.rules = sorted([*kernels(), *rules], key=lambda rule: rule.priority)
        self.tables = tables
        self.place = mirrored_rules.place(self.rules, OURS)
        self.mirrored = mirrored_rules.behind(self.rules, self.place) if self.place else []
        asked = {a: tables.get(a.table, []) for rule in self.rules if (a := rule.lookup(version)) and a.table != LOCAL}
        order = mirrored_rules.lookups(self.mirrored, version)
        wanted = [(ip_network(p), OVERHEAD[version]) for p in peers]
        unconditional = mirrored_rules.unconditional(self.rules, version)
        self.plan = lowered_mtu.plan(asked, LINKS, wanted, order, unconditional)
        numbers = {lookup: OURS + i for i, lookup in enumerate(self.plan.tables)}
        block = mirrored_rules.Block()
        if self.place:
            block = mirrored_rules.block(version, self.mirrored, self.place, numbers, Settings(S, **more))
        self.ours = [*block.frame, *block.mirrored]
        self.all_rules = sorted([*self.rules, *self.ours], key=lambda rule: rule.priority)
        self.all_tables = {**tables, **{numbers[lookup]: routes for lookup, routes in self.plan.tables.items()}}

    def alone(self, packet: Packet) -> Way | None:
        return way(packet, self.rules, self.tables, LINKS)

    def with_us(self, packet: Packet) -> Way | None:
        return way(packet, self.all_rules, self.all_tables, LINKS)

    def mtu(self, packet: Packet) -> object:
        """The lowered MTU, or None; the way must be the host's."""
        ours, theirs = self.with_us(packet), self.alone(packet)
        assert (ours and ours.same()) == (theirs and theirs.same())
        return ours.mtu() if ours else None


def route(version: int, number: int = 0, length: int = 0, *interfaces: int, **more) -> Route:
    network = ip_network((int(address(version, number)), length), strict=False) if length else default(version)
    hops = tuple(Nexthop(i) for i in interfaces or (1,))
    kind = more.get("kind", "unicast")
    return Route(network, **{"nexthops": hops if kind == "unicast" else (), "metric": 1024, **more})


def default(version: int):
    return ip_network("0.0.0.0/0" if version == 4 else "::/0")


def all_bits(version: int) -> int:
    return 32 if version == 4 else 128


def both(function):
    return pytest.mark.parametrize("version", [4, 6])(function)


@both
def test_a_full_tunnel_vpn_keeps_its_packets(version):
    """As wg-quick sets it up. The tunnel's own packets (SO_MARK 0xca6c) stay outside when they have S in their mark."""
    rules = [
        RoutingRule(32764, TO_TABLE, table=MAIN, least=0),
        RoutingRule(32765, TO_TABLE, Match(INVERT, attributes=mark(0xCA6C)), table=51820),
    ]
    bits = all_bits(version)
    tables = {MAIN: [route(version), route(version, 8, bits - 3, 2)], 51820: [route(version, 0, 0, 3)]}
    host = Host(version, rules, tables, address(version, 1), address(version, 9))
    source = address(version, 7)
    for number, value, mtu in ((1, 0, 1400), (1, 0xCA6C, 1400), (9, 0, 1500), (9, 0xCA6C, 1500)):
        packet = Packet(address(version, number), source, value)
        assert host.mtu(packet) == mtu - OVERHEAD[version]
        theirs, stamped = host.alone(packet), host.with_us(packet._replace(mark=value | S))
        assert stamped.same() == theirs.same()
        assert stamped.mtu() is None
    assert host.mtu(Packet(address(version, 2), source)) is None


@both
def test_routing_by_source_keeps_its_link(version):
    rules = [RoutingRule(32765, TO_TABLE, sources(version, 7), table=100)]
    tables = {MAIN: [route(version)], 100: [route(version, 0, 0, 2)]}
    host = Host(version, rules, tables, address(version, 1))
    for source in (7, 8):
        packet = Packet(address(version, 1), address(version, source))
        assert host.mtu(packet) == 1500 - OVERHEAD[version]
        assert host.with_us(packet).route.nexthops == (Nexthop(3 - 1 if source == 7 else 1),)


@both
def test_what_is_refused_stays_refused_and_the_rest_has_room(version):
    rules = [
        RoutingRule(100, PROHIBIT, sources(version, 7)),
        RoutingRule(101, TO_TABLE, Match(attributes=((FRA_L3MDEV, b"\1"),))),
        RoutingRule(200, TO_TABLE, sources(version, 6), table=100),
    ]
    tables = {MAIN: [route(version)], 100: [route(version, kind="unreachable")], VRF_TABLE: [route(version, 0, 0, 3)]}
    host = Host(version, rules, tables, address(version, 1))
    packet = Packet(address(version, 1), address(version, 8))
    assert host.mtu(packet) == 1500 - OVERHEAD[version]
    assert host.mtu(packet._replace(vrf=True)) is None
    assert host.with_us(packet._replace(vrf=True)).hops == (Nexthop(3),)
    assert host.with_us(packet._replace(source=address(version, 7))).kind == f"action {PROHIBIT}"
    assert host.with_us(packet._replace(source=address(version, 6))).kind == "unreachable"
    assert host.place.end == 99


@both
def test_a_suppressed_group_goes_on_to_the_next_rule(version):
    rules = [RoutingRule(32764, TO_TABLE, table=100, group=7)]
    bits = all_bits(version)
    tables = {MAIN: [route(version)], 100: [route(version, 0, bits - 2, 3), route(version, 0, 0, 2)]}
    host = Host(version, rules, tables, address(version, 1), address(version, 9))
    for number, interface in ((1, 1), (9, 2)):
        packet = Packet(address(version, number), address(version, 7))
        assert host.mtu(packet) == 1500 - OVERHEAD[version]
        assert host.with_us(packet).hops == (Nexthop(interface),)


@both
def test_a_selector_that_nobody_knows_ends_our_part(version):
    odd = RoutingRule(150, TO_TABLE, Match(attributes=((99, b"?"),)), table=100)
    host = Host(version, [odd], {MAIN: [route(version)]}, address(version, 1))
    assert host.ours == []


def test_the_block_stands_in_front_of_the_hosts_rules_where_there_is_room():
    free = Place(OURS, OURS + 15)
    assert mirrored_rules.place(kernels(), OURS) == free

    def among(*priorities: int) -> Place | None:
        rules = [*kernels(), *(RoutingRule(p, TO_TABLE, table=100) for p in priorities)]
        return mirrored_rules.place(sorted(rules, key=lambda rule: rule.priority), OURS)

    assert among(32765) == free
    assert among(22610) == Place(22594, 22609)
    assert among(22600, 22599) == Place(22583, 22598)
    assert among(OURS + 16) == free
    assert among(5, 100) == Place(84, 99)
    assert among(5, 10, 20000, *range(20050, 20065)) == Place(19968, 19999)  # more rules take more room
    assert among(*range(1, 32766)) is None
    assert mirrored_rules.place([RoutingRule(0, TO_TABLE, table=MAIN)], OURS) is None
    moved = [
        RoutingRule(9, TO_TABLE, table=7),
        RoutingRule(100, TO_TABLE, table=LOCAL),
        RoutingRule(32766, TO_TABLE, table=MAIN),
    ]
    assert mirrored_rules.place(moved, OURS) == free


def test_what_the_kernels_rules_are():
    assert mirrored_rules.are_kernels(kernels())
    assert mirrored_rules.are_kernels(kernels()[:2])  # IPv6
    assert not mirrored_rules.are_kernels(kernels()[1:])
    assert not mirrored_rules.are_kernels(kernels()[:1])
    assert not mirrored_rules.are_kernels([*kernels(), RoutingRule(32766, TO_TABLE, sources(4, 7), table=MAIN)])
    assert not mirrored_rules.are_kernels([replace(rule, least=0) for rule in kernels()])


LENGTHS = st.sampled_from([0, -3, -2, -1, 0, -4])
NUMBERS = st.integers(0, 15)


@st.composite
def routes_of(draw, version: int) -> list[Route]:
    routes: dict[object, Route] = {}
    for _ in range(draw(st.integers(0, 4))):
        length = draw(st.sampled_from([0, all_bits(version) - 4, all_bits(version) - 2, all_bits(version)]))
        kind = draw(st.sampled_from(["unicast"] * 6 + ["throw", "unreachable", "blackhole", "other"]))
        made = route(
            version,
            draw(NUMBERS),
            length,
            *draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=2)),
            metric=draw(st.sampled_from([1024, 1024, 5, 1025])),
            tos=draw(st.sampled_from([0, 0, 0, 16])) if version == 4 else 0,
            kind=kind,
            unsupported=draw(st.sampled_from([False] * 9 + [True])),
        )
        routes.setdefault(made.key, made)
    return list(routes.values())


@st.composite
def matches_of(draw, version: int) -> Match:
    attributes = []
    src_len = 0
    if draw(st.booleans()):
        src_len = all_bits(version) - draw(st.integers(0, 3))
        attributes.append((FRA_SRC, address(version, draw(NUMBERS)).packed))
        network = ip_network((attributes[-1][1], src_len), strict=False)
        attributes[-1] = (FRA_SRC, network.network_address.packed)
    if draw(st.booleans()):
        attributes += mark(*draw(st.sampled_from([(1, 0xFFFFFFFF), (0, S), (S, S), (S | 1, 0xFFF), (1, 1), (0, 3)])))
    if draw(st.sampled_from([False, False, True])):
        attributes.append((FRA_IIFNAME, b"lo\0"))
    if draw(st.sampled_from([False, False, False, True])):
        attributes.append((FRA_UID_RANGE, bytes(8)))
    if draw(st.sampled_from([False] * 7 + [True])):
        attributes.append((FRA_L3MDEV, b"\1"))
    return Match(draw(st.sampled_from([0, 0, INVERT])), 0, src_len, 0, tuple(sorted(attributes)))


@st.composite
def rules_of(draw, version: int) -> list[RoutingRule]:
    rules = []
    for _ in range(draw(st.integers(0, 5))):
        priority = draw(st.sampled_from([3, 22590, 22605, 32760, 32761, 32762, 32763, 32764, 32765]))
        match = draw(matches_of(version))
        action = draw(st.sampled_from([TO_TABLE] * 6 + [GOTO, NOP, PROHIBIT]))
        if any(kind == FRA_L3MDEV for kind, _ in match.attributes) and action == TO_TABLE:
            rules.append(RoutingRule(priority, TO_TABLE, match))
            continue
        rules.append(
            RoutingRule(
                priority,
                action,
                match,
                draw(st.sampled_from([MAIN, 100, 101])) if action == TO_TABLE else 0,
                draw(st.sampled_from([priority + 1, 32765, 32766, 32000])) if action == GOTO else 0,
                draw(st.sampled_from([-1, -1, 0, all_bits(version) - 4])) if action == TO_TABLE else -1,
                draw(st.sampled_from([-1, -1, 7])) if action == TO_TABLE else -1,
                draw(st.sampled_from([0, 5])),
            )
        )
    return rules


@st.composite
def hosts(draw) -> tuple[Host, Packet]:
    version = draw(st.sampled_from([4, 6]))
    tables = {table: draw(routes_of(version)) for table in (MAIN, 100, 101, VRF_TABLE)}
    peers = draw(st.lists(st.tuples(NUMBERS, st.sampled_from([0, 1, 2, 4, all_bits(version)])), min_size=1, max_size=3))
    prefixes = [ip_network((address(version, n).packed, all_bits(version) - up), strict=False) for n, up in peers]
    host = Host(version, draw(rules_of(version)), tables, *prefixes, forwarded=draw(st.booleans()))
    packet = Packet(
        address(version, draw(NUMBERS)),
        address(version, draw(NUMBERS)),
        draw(st.sampled_from([0, 0, 1, 2, 3])),
        draw(st.sampled_from([0, 16])),
        draw(st.sampled_from([0, 0, 1, 2, 3])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
    )
    return host, packet


@settings(max_examples=200)
@given(hosts())
def test_no_packet_takes_another_way_because_of_us(made):
    host, packet = made
    ours, theirs = host.with_us(packet), host.alone(packet)
    assert (ours and ours.same()) == (theirs and theirs.same())


@settings(max_examples=200)
@given(hosts())
def test_no_stamped_packet_takes_another_way_and_it_has_the_full_mtu(made):
    """A rule of the host in front of our block sees the mark; nothing can be done about that."""
    host, packet = made
    before = [rule for rule in host.rules if rule not in host.mirrored]
    if any(rule.match.number(FRA_FWMASK) & S for rule in before) or host.place is None:
        return
    theirs, ours = host.alone(packet), host.with_us(packet._replace(mark=packet.mark | S))
    assert (ours and ours.same()) == (theirs and theirs.same())
    assert ours is None or ours.mtu() is None


@settings(max_examples=200)
@given(hosts())
def test_there_is_room_wherever_it_can_be(made):
    """Nothing odd on the host: then each route that the kernel chooses for a local packet to a peer is lowered."""
    host, packet = made
    odd = any(r.action != TO_TABLE or not r.table for r in host.rules)
    unsupported = any(r.unsupported or r.kind == "other" or r.tos for rows in host.tables.values() for r in rows)
    mixed = any(len({LINKS[h.interface].group for h in r.nexthops}) > 1 for rows in host.tables.values() for r in rows)
    if odd or unsupported or mixed or host.place is None or packet.bound or not packet.local:
        return
    theirs, ours = host.alone(packet), host.with_us(packet)
    if theirs is None or theirs.kind != "unicast" or theirs.rule not in host.mirrored:
        return
    limits = [(ip_network(p), mtu) for p, mtu in host.plan.limits() if packet.to in ip_network(p)]
    assert bool(limits) == (ours.mtu() is not None)
    if limits:
        limit = max(limits, key=lambda entry: entry[0].prefixlen)[1]
        assert ours.mtu() + OVERHEAD[packet.to.version] <= min(LINKS[h.interface].mtu for h in ours.hops)
        assert limit <= min(LINKS[h.interface].mtu for h in ours.hops)
