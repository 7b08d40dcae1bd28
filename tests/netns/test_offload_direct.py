"""Where the programs alone stamp, the host keeps its routing as the kernel begins with it, and OUTPUT empty.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b        each the other's peer, both drop what has no scent
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from edges import offloaded_pair, strict, switch
from flows import Flows
from hosts import Node, start, until

pytestmark = pytest.mark.netns

PROTOCOL = "83"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    with offloaded_pair("od", tmp_path_factory.mktemp("od")) as (a, b):
        a.peers, b.peers = [strict(b)], [strict(a)]
        start(a, b)
        until(lambda: is_direct(a) and is_direct(b), "the programs alone stamp")
        yield a, b


def queueing(node: Node) -> list[str]:
    """What leads packets of the host's own to the queue."""
    lines = (node.host.out(p, "-w", "-t", "mangle", "-S") for p in ("iptables", "ip6tables"))
    return [
        line for text in lines for line in text.splitlines() if line.startswith("-A OUTPUT") or "SCENTD-OUT" in line
    ]


def rules(node: Node) -> list[str]:
    return [
        line
        for f in ("-4", "-6")
        for line in node.host.out("ip", f, "rule").splitlines()
        if f"proto {PROTOCOL}" in line
    ]


def lowered(node: Node, table: str) -> list[str]:
    """Our routes in a table, which need not be there."""
    argv = ("route", "show", "table", table, "proto", PROTOCOL)
    return [line for f in ("-4", "-6") for line in node.host.run("ip", f, *argv, check=False).stdout.splitlines()]


def is_direct(node: Node) -> bool:
    return not queueing(node) and not rules(node) and len(lowered(node, "local")) == 2 and not lowered(node, "22600")


def is_ruled(node: Node) -> bool:
    return (
        bool(queueing(node))
        and len(rules(node)) == 7
        and len(lowered(node, "22600")) == 2
        and not lowered(node, "local")
    )


def forwarding(node: Node, on: bool) -> None:
    node.host.sysctl(net_ipv4_ip__forward=int(on))


def forwarding_ipv6_of_one(node: Node, on: bool) -> None:
    node.host.sysctl(**{f"net_ipv6_conf_{node.host.interfaces[0]}_forwarding": int(on)})


def rule_of_the_host(node: Node, on: bool) -> None:
    node.host.ip(f"rule {'add' if on else 'del'} pref 100 fwmark 0x77 lookup main")


def device_without_checksums(node: Node, on: bool) -> None:
    switch(node.host, node.host.interfaces[0], tx=not on)


REASONS = (forwarding, forwarding_ipv6_of_one, rule_of_the_host, device_without_checksums)


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__.replace("_", " "))
def test_to_the_rules_and_back_under_load(nodes, reason: Callable[[Node, bool], None]):
    """Not a packet is lost or unscented when a host becomes such that the table `local` will not do, and back."""
    a, b = nodes
    with Flows(a, b):
        reason(a, True)
        until(lambda: is_ruled(a), "rules and a table of our own")
        reason(a, False)
        until(lambda: is_direct(a), "the programs alone stamp")


@pytest.mark.parametrize("destination", ["ipv4", "ipv6"])
def test_sockets_see_the_lowered_mtu(nodes, destination):
    a, b = nodes
    found = a.host.out("ip", "route", "get", getattr(b.host, destination))
    assert f"mtu {1464 if destination == 'ipv4' else 1460} " in found + " "


def test_what_somebody_takes_away_comes_back(nodes):
    a, _ = nodes
    for route in lowered(a, "local"):
        a.host.run(
            "ip", "-6" if ":" in route.split()[0] else "-4", "route", "del", *route.split()[:3], "table", "local"
        )
    until(lambda: is_direct(a), "the routes are there again")


def test_a_stop_leaves_the_kernels_table_as_it_was(nodes):
    a, _ = nodes
    a.stop()
    assert lowered(a, "local") == []
    a.start()
    until(lambda: is_direct(a), "the programs alone stamp")
