"""Where the programs alone stamp, the host keeps its routing as the kernel begins with it, and OUTPUT empty.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b        each the other's peer, both drop what has no scent
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from edges import grown, offloaded_pair, queueing, strict, switch, totals
from flows import Flows
from hosts import Node, start, transfer, until

pytestmark = pytest.mark.netns

PROTOCOL = "83"
SIZE = 20 << 20
RTM_NEWLINK, NLM_F_REQUEST, NLM_F_ACK = 16, 1, 4


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    with offloaded_pair("od", tmp_path_factory.mktemp("od")) as (a, b):
        a.peers, b.peers = [strict(b)], [strict(a)]
        start(a, b)
        until(lambda: is_rule_free(a) and is_rule_free(b), "the programs alone stamp")
        yield a, b


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


def is_rule_free(node: Node) -> bool:
    return not queueing(node) and not rules(node) and len(lowered(node, "local")) == 2 and not lowered(node, "22600")


def is_ruled(node: Node) -> bool:
    return (
        bool(queueing(node))
        and len(rules(node)) >= 9  # more if the host has rules, too
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


def sends_of_over_64_kb(node: Node, on: bool) -> None:
    """BIG TCP. The size of IPv4 has an attribute of its own, which Debian's ip does not know yet."""
    size = 131072 if on else 65536
    node.host.ip(f"link set {node.host.interfaces[0]} gso_max_size {size}")
    node.host.call(set_gso_ipv4_max_size, node.host.interfaces[0], size)


def set_gso_ipv4_max_size(interface: str, size: int) -> None:
    """IFLA_GSO_IPV4_MAX_SIZE of linux/if_link.h."""
    body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(interface), 0, 0) + struct.pack("=HHI", 8, 63, size)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as end:
        end.send(struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body)
        code = struct.unpack_from("=i", end.recv(4096), 16)[0]
    assert code == 0, f"the kernel says {code}"


REASONS = (forwarding, forwarding_ipv6_of_one, rule_of_the_host, device_without_checksums, sends_of_over_64_kb)


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__.replace("_", " "))
def test_to_the_rules_and_back_under_load(nodes, reason: Callable[[Node, bool], None]):
    """Not a packet is lost or unscented when a host becomes such that the table `local` will not do, and back."""
    a, b = nodes
    with Flows(a, b):
        reason(a, True)
        until(lambda: is_ruled(a), "rules and a table of our own")
        reason(a, False)
        until(lambda: is_rule_free(a), "the programs alone stamp")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("jumbograms", [False, True])
def test_sends_of_over_64_kb_are_scented(nodes, version, jumbograms):
    """Of IPv4 by the program, of IPv6 by the queue, whose segments the kernel makes."""
    a, b = nodes
    if jumbograms:
        sends_of_over_64_kb(a, True)
        until(lambda: is_ruled(a), "rules and a table of our own")
    else:
        a.host.call(set_gso_ipv4_max_size, a.host.interfaces[0], 131072)
    before = totals(a), totals(b)
    transfer(a, b, version, SIZE)
    sends_of_over_64_kb(a, False)
    until(lambda: is_rule_free(a), "the programs alone stamp")
    until(lambda: grown(a, before[0]).get("stamped", 0) > SIZE / 1460, "all segments are counted as stamped")
    assert not {name for name in grown(a, before[0]) if name.startswith("unstamped")}
    assert not {name for name in grown(b, before[1]) if name.startswith(("rejected", "absent"))}


@pytest.mark.parametrize("size", [65000, 65460, 65500, 70000])
def test_sends_about_64_kb(nodes, size):
    """What is longer than a length field tells once it has grown is not left unscented: its segments are short."""
    a, b = nodes
    a.host.call(set_gso_ipv4_max_size, a.host.interfaces[0], 131072)
    before = totals(a)
    with b.listener(4) as listening, a.socket(4, socket.SOCK_STREAM) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.connect(listening.getsockname()[:2])
        other, _ = listening.accept()
        with other:
            other.settimeout(5)
            for length in (*[120000] * 30, *[size] * 20):  # the window has to open first
                end.sendall(bytes(length))
                got = 0
                while got < length:
                    got += len(other.recv(1 << 20))
    sends_of_over_64_kb(a, False)
    assert not {name for name in grown(a, before) if name.startswith("unstamped")}


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
    until(lambda: is_rule_free(a), "the routes are there again")


def test_a_stop_leaves_the_kernels_table_as_it_was(nodes):
    a, _ = nodes
    a.stop()
    assert lowered(a, "local") == []
    a.start()
    until(lambda: is_rule_free(a), "the programs alone stamp")
