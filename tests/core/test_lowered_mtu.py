"""Which routes our table should hold. Interfaces: 1 has 1500 bytes, 2 has 1400, 3 has 9000 but 1300 for IPv6."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.core import lowered_mtu
from scentd.core.route_tables import MAIN, Link, Lookup, Nexthop, Route
from scentd.prefix import PrefixMap

OVERHEAD = {4: 36, 6: 40}
LINKS = {1: Link(1500, 1500), 2: Link(1400, 1400), 3: Link(9000, 1300)}


def route(prefix: str, via: str = "", dev: int = 1, **more) -> Route:
    network = ip_network(prefix)
    hop = Nexthop(dev, ip_address(via) if via else None)
    return Route(network, **{"nexthops": (hop,), "metric": 1024 if network.version == 6 else 0, **more})


def plan(main: list[Route], *peers: str) -> lowered_mtu.RoutePlan:
    return plan_for(main, [(p, OVERHEAD[p.version]) for p in map(ip_network, peers)])


def plan_for(main: list[Route], peers) -> lowered_mtu.RoutePlan:
    """Of a host without rules of its own."""
    return lowered_mtu.plan({Lookup(version, MAIN): main for version in (4, 6)}, LINKS, peers)


def full_mtu(made: lowered_mtu.RoutePlan, address) -> int | None:
    """Toward an address, as the packet path looks it up; None where no main route leads to a peer."""
    return PrefixMap(made.limits()).get(address.packed)


def table(made: lowered_mtu.RoutePlan) -> dict[str, int | str]:
    """prefix -> lowered mtu, or the route's kind."""
    return {str(r.prefix): dict(r.metrics).get("mtu", r.kind) for r in made.routes}


def test_the_covering_route_is_narrowed_to_the_peer_and_lowered():
    main = [route("0.0.0.0/0", "10.0.0.1"), route("10.0.0.0/24"), route("::/0", "fe80::1"), route("fd00:9::/32", dev=2)]
    made = plan(main, "192.0.2.0/24", "10.0.0.7", "2001:db8::/32", "fd00:9::1")
    assert table(made) == {
        "10.0.0.7/32": 1464,
        "192.0.2.0/24": 1464,
        "2001:db8::/32": 1460,
        "fd00:9::1/128": 1360,
    }
    assert made.routes[1].nexthops == main[0].nexthops
    assert full_mtu(made, ip_address("192.0.2.9")) == 1500
    assert full_mtu(made, ip_address("fd00:9::1")) == 1400
    assert full_mtu(made, ip_address("198.51.100.1")) is None
    assert ("fd00:9::1/128", 1400) in made.limits()


def test_more_specific_main_routes_inside_a_peer_prefix_are_copied_with_their_own_mtu():
    main = [route("0.0.0.0/0", "10.0.0.1"), route("10.1.0.0/16", dev=2), route("10.1.2.0/24", metrics=(("mtu", 800),))]
    assert table(plan(main, "10.0.0.0/8")) == {"10.1.2.0/24": 764, "10.1.0.0/16": 1364, "10.0.0.0/8": 1464}


def test_everything_of_a_route_is_kept_but_its_mtu():
    hops = (Nexthop(1, ip_address("10.0.0.1"), weight=3), Nexthop(2, ip_address("10.0.1.1")))
    source = ip_address("10.0.0.5")
    main = route("0.0.0.0/0", nexthops=hops, metric=50, source=source, metrics=(("advmss", 1000), ("lock", 4)))
    made = plan([main], "192.0.2.1").routes[0]
    assert (made.nexthops, made.metric, made.source) == (hops, 50, source)
    assert dict(made.metrics) == {"advmss": 1000, "lock": 4, "mtu": 1364}  # the narrowest of the two


def test_a_routes_own_mtu_never_exceeds_its_interface():
    assert table(plan([route("0.0.0.0/0", metrics=(("mtu", 60000),))], "192.0.2.1")) == {"192.0.2.1/32": 1464}


@pytest.mark.parametrize(("mtu", "then"), [(1319, 1319), (1320, 1280)])
def test_ipv6_is_never_lowered_below_1280(mtu, then):
    made = plan([route("::/0", metrics=(("mtu", mtu),))], "2001:db8::1")
    assert table(made) == {"2001:db8::1/128": then}
    assert made.mtus == (lowered_mtu.PathMtu(ip_network("2001:db8::1"), mtu),)


def test_the_ipv6_mtu_of_an_interface_counts_for_ipv6_only():
    assert plan([route("0.0.0.0/0", dev=3), route("::/0", dev=3)], "192.0.2.1", "2001:db8::1").limits() == (
        ("192.0.2.1/32", 9000),
        ("2001:db8::1/128", 1300),
    )


@pytest.mark.parametrize(
    "inner",
    [
        route("10.1.0.0/16", kind="unreachable", nexthops=()),
        route("10.1.0.0/16", kind="other", nexthops=()),
        route("10.1.0.0/16", unsupported=True),
        route("10.1.0.0/16", dev=99),
    ],
)
def test_what_cannot_be_copied_is_left_to_the_main_table(inner):
    main = [route("10.0.0.0/8"), inner]
    assert table(plan(main, "10.0.0.0/8")) == {"10.1.0.0/16": "throw", "10.0.0.0/8": 1464}
    assert table(plan(main, "10.1.2.3")) == {}


def test_routes_by_tos_and_metric_keep_their_order():
    main = [route("10.0.0.0/8"), route("10.0.0.0/8", dev=2, metric=5), route("10.0.0.0/8", dev=2, tos=16)]
    made = plan(main, "10.1.0.0/16")
    assert [(r.tos, r.metric, dict(r.metrics)["mtu"]) for r in made.routes] == [
        (0, 0, 1364),  # one limit for the prefix, so one that all routes can carry
        (0, 5, 1364),
        (16, 0, 1364),
    ]
    assert full_mtu(made, ip_address("10.1.0.1")) == 1400


def test_a_longer_route_for_one_tos_does_not_hide_the_shorter_one_for_the_rest():
    made = plan([route("0.0.0.0/0"), route("10.0.0.0/8", dev=2, tos=16)], "10.1.0.0/16")
    assert [(str(r.prefix), r.tos) for r in made.routes] == [("10.1.0.0/16", 0), ("10.1.0.0/16", 16)]


def test_two_equal_ipv6_routers_are_left_to_the_kernel():
    routers = [route("::/0", "fe80::1"), route("::/0", "fe80::2")]
    made = plan(routers, "2001:db8::1")
    assert made.routes == ()
    assert made.mtus == (lowered_mtu.PathMtu(ip_network("2001:db8::1"), 1500),)


def test_one_odd_ipv6_route_leaves_its_peer_prefix_alone_but_no_other():
    main = [route("::/0", "fe80::1"), route("fd00:1::/32", unsupported=True)]
    made = plan(main, "fd00::/16", "2001:db8::1")
    assert table(made) == {"2001:db8::1/128": 1460}
    assert not any(route.prefix.network_address in ip_network("fd00::/16") for route in made.routes)


def test_unreachable_ipv6_is_thrown_inside_a_peer():
    main = [route("::/0", "fe80::1"), route("fd00:1::/32", kind="unreachable", nexthops=())]
    assert table(plan(main, "fd00::/16")) == {"fd00:1::/32": "throw", "fd00::/16": 1460}


def test_link_local_and_multicast_are_never_lowered():
    main = [route("::/0", "fe80::1"), route("fe80::/64"), route("0.0.0.0/0", "10.0.0.1")]
    made = table(plan(main, "::/0", "0.0.0.0/0"))
    assert made == {"::/0": 1460, "0.0.0.0/0": 1464, "224.0.0.0/3": "throw"}
    assert table(plan(main, "fe80::1", "ff02::1", "224.0.0.5")) == {}


@pytest.mark.parametrize(
    ("peer", "may"),
    [
        ("192.0.2.0/24", True),
        ("2001:db8::/32", True),
        ("0.0.0.0/0", False),  # multicast is thrown
        ("10.9.0.0/16", False),  # so is what leads nowhere
        ("::/0", False),  # link-local is in it
    ],
)
def test_only_what_hides_nothing_may_be_asked_before_all_rules(peer, may):
    main = [route("0.0.0.0/0", "10.0.0.1"), route("::/0", "fe80::1"), route("10.9.1.0/24", nexthops=(), kind="other")]
    made = plan(main, peer)
    assert made.routes
    assert lowered_mtu.may_precede_rules(made.routes, []) is may


@pytest.mark.parametrize(
    ("there", "may"),
    [("192.0.2.7/32", False), ("192.0.2.0/24", False), ("0.0.0.0/1", True), ("192.0.2.8/32", True), ("::/0", True)],
)
def test_what_is_there_for_the_host_itself_stays_first(there, may):
    """A peer that is, by mistake, one of our own addresses must not take it away."""
    made = plan([route("0.0.0.0/0", "10.0.0.1")], "192.0.2.7")
    assert lowered_mtu.may_precede_rules(made.routes, [ip_network(there)]) is may


def test_without_a_route_there_is_nothing():
    assert plan([route("10.0.0.0/8")], "192.0.2.1") == lowered_mtu.EMPTY


def test_diff_replaces_what_differs_and_deletes_what_is_not_wanted():
    old, kept, new = route("10.1.0.0/16"), route("10.2.0.0/16"), route("10.3.0.0/16")
    changed = lowered_mtu.with_mtu(old, 1000)
    assert lowered_mtu.diff([old, kept], [changed, kept, new]) == ([], [changed, new])
    assert lowered_mtu.diff([old, kept], [kept]) == ([old], [])
    assert lowered_mtu.diff([kept], [kept]) == ([], [])


IPV4 = st.builds(
    lambda number, length: ip_network((number >> (32 - length) << (32 - length), length)),
    st.integers(0x0A000000, 0x0A0000FF),
    st.integers(0, 32),
)


def lookup(routes, address):
    """The kernel's choice in a table without tos and metrics; a throw is none."""
    holding = [r for r in routes if address in r.prefix]
    return max(holding, key=lambda r: r.prefix.prefixlen, default=None)


@given(st.lists(IPV4, unique=True, max_size=8), st.lists(IPV4, max_size=6), st.integers(0x0A000000, 0x0A0000FF))
def test_our_table_never_sends_a_packet_another_way(mains, peers, number):
    main = [route(str(p), dev=i % 3 + 1) for i, p in enumerate(mains)]
    made = plan_for(main, [(p, 36) for p in peers])
    address = ip_address(number)
    ours, theirs = lookup(made.routes, address), lookup(main, address)
    if any(address in p for p in peers) and theirs:
        assert ours is not None
        assert ours.nexthops == theirs.nexthops
        assert full_mtu(made, address) == LINKS[theirs.nexthops[0].interface].mtu
    else:
        assert ours is None or ours.kind == "throw"


def test_neighbours_are_merged_only_where_their_overheads_agree():
    main, halves = [route("0.0.0.0/0")], (ip_network("192.0.2.0/25"), ip_network("192.0.2.128/25"))
    assert table(plan_for(main, [(p, 36) for p in halves])) == {"192.0.2.0/24": 1464}
    apart = plan_for(main, [(halves[0], 36), (halves[1], 60)])
    assert table(apart) == {"192.0.2.0/25": 1464, "192.0.2.128/25": 1440}
    assert apart.limits() == (("192.0.2.0/25", 1500), ("192.0.2.128/25", 1500))


def test_of_one_prefix_with_two_overheads_the_larger_has_room():
    """Two peers behind one NAT."""
    both = [(ip_network("192.0.2.1"), 60), (ip_network("192.0.2.1"), 36)]
    assert table(plan_for([route("0.0.0.0/0")], both)) == {"192.0.2.1/32": 1440}


@given(
    st.lists(IPV4, unique=True, max_size=6),
    st.lists(st.tuples(IPV4, st.sampled_from([36, 60])), max_size=6),
    st.integers(0x0A000000, 0x0A0000FF),
)
def test_the_longest_peer_around_an_address_decides_how_much_room_there_is(mains, peers, number):
    main = [route(str(p), dev=i % 2 + 1) for i, p in enumerate(mains)]
    made = plan_for(main, peers)
    address = ip_address(number)
    ours, theirs = lookup(made.routes, address), lookup(main, address)
    around = [(prefix.prefixlen, overhead) for prefix, overhead in peers if address in prefix]
    if around and theirs:
        assert ours is not None
        assert ours.nexthops == theirs.nexthops
        room = LINKS[theirs.nexthops[0].interface].mtu - dict(ours.metrics)["mtu"]
        assert room == max(around)[1]
