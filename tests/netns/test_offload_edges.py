"""The offload where paths are narrow and hosts forward. The queue path has the same in test_mtu.py, test_forwarding.py.

a ---- r ---- s ---- b                 1400 bytes between r and s, which only routers know of
tenant ---- gateway (a) ---- b         10.7.0.0/24, fd00:7::/64 is the network of a, which scents what it forwards
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from compiled import bpffs
from edges import DISCOVER, DO, DONT, HEADERS, OVERHEAD, grown, is_scented, offloaded, strict, switch, totals
from hosts import Node, acquainted, answered, start, told_too_long, transfer, until
from topology import Topology

from scentd.datapath.host import selection

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])


# -- a narrow path -------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    directory = tmp_path_factory.mktemp("en")
    with bpffs(directory / "bpf") as bpf, Topology("en") as net:
        a, b = Node(net.host("a"), directory), Node(net.host("b"), directory)
        r, s = net.host("r", forward=True), net.host("s", forward=True)
        net.link(a.host, r, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        net.link(r, s, ipv4="10.2.0.0/24", ipv6="fd00:2::/64", mtu=1400)
        net.link(b.host, s, ipv4="10.3.0.0/24", ipv6="fd00:3::/64")
        for router, interface in ((r, a.name + "0"), (s, b.name + "2")):
            switch(router, interface, tso=False, gso=False)  # packets arrive as a wire would bring them
        a.host.ip("route add default via 10.1.0.2", "route add ::/0 via fd00:1::2")
        b.host.ip("route add default via 10.3.0.2", "route add ::/0 via fd00:3::2")
        r.ip("route add 10.3.0.0/24 via 10.2.0.2", "route add fd00:3::/64 via fd00:2::2")
        s.ip("route add 10.1.0.0/24 via 10.2.0.1", "route add fd00:1::/64 via fd00:2::1")
        for end in (a, b):
            # What is learned of a path is kept by address, and each test begins with a path of which nothing is known.
            network = end.host.ipv4.rpartition(".")[0], end.host.ipv6.rpartition("::")[0]
            for n in (9, 10, 11, 12):
                at = f"dev {end.host.interfaces[0]}"
                end.host.ip(f"addr add {network[0]}.{n}/24 {at}", f"addr add {network[1]}::{n}/64 {at}")
            end.network["addresses"] = [f"{network[0]}.0/24", f"{network[1]}::/64"]
        for one, other in ((a, b), (b, a)):
            one.peers = [strict(other, endpoint=other.addresses) | {"addresses": other.network["addresses"]}]
        offloaded(bpf, a, b)
        with a, b:
            start(a, b)
            acquainted(b, a)
            acquainted(a, b)
            yield a, b


@BOTH
@pytest.mark.parametrize("direction", ["there", "back"])
def test_tcp_through_a_smaller_link(narrow, version, direction, monkeypatch):
    """Invariant 5: a router's error about a scented packet reaches the sender as one about its own; TCP goes on."""
    one, other = narrow if direction == "there" else narrow[::-1]
    for node in narrow:
        number = 9 if direction == "there" else 10
        monkeypatch.setattr(node.host, f"ipv{version}", other_address(node, version, number))
    before = totals(one)
    with other.capture() as wire:
        transfer(one, other, version, 2 << 20)
        assert 1400 - OVERHEAD[version] < max(map(len, wire.packets())) <= 1400
    until(lambda: grown(one, before).get("other:icmp_unquoted"), "the error is counted")
    counted = grown(one, before)
    assert not any(name.startswith(("unstamped", "rejected")) for name in counted), counted


@BOTH
def test_udp_learns_a_smaller_link(narrow, version):
    """A datagram with DF that is too long is lost and its socket told; what fits arrives from then on."""
    a, b = narrow
    fits = 1400 - OVERHEAD[version] - HEADERS[version]
    with a.socket(version) as one, b.socket(version, bind=False) as other:
        other.bind((other_address(b, version, 11), 0))
        one.setsockopt(*DISCOVER[version], DO)
        assert not told_too_long(one, other, bytes(fits + 1)), "nobody knows of the link yet"
        assert until(lambda: told_too_long(one, other, bytes(fits + 1)), "the socket is told")
        one.sendto(b"y" * fits, other.getsockname()[:2])
        assert other.recv(70000) == b"y" * fits


def test_ipv4_that_a_router_fragments(narrow):
    """Without DF: what was a fragment already, or the stamper cuts, arrives; what only a router cuts is refused.

    README.md of the wire, section 5.3: such a packet's ports are in the tag, and its fragments have none.
    """
    a, b = narrow
    before = totals(b)
    with a.socket(4) as one, b.socket(4, bind=False) as other:
        other.bind((other_address(b, 4, 12), 0))
        one.setsockopt(*DISCOVER[4], DONT)
        for size in (1300, 1364, 1465, 3000, 9000):
            data = os.urandom(size - HEADERS[4])
            one.sendto(data, other.getsockname()[:2])
            assert other.recv(70000) == data, size
        assert not any(name.startswith("rejected") for name in grown(b, before)), grown(b, before)
        one.sendto(bytes(1400 - HEADERS[4]), other.getsockname()[:2])
        until(lambda: grown(b, before).get("rejected:wrong-binding") == 2, "both fragments are counted")


def other_address(node: Node, version: int, number: int) -> str:
    return f"{node.host.ipv4.rpartition('.')[0]}.{number}" if version == 4 else f"{node.host.ipv6[:-1]}{number}"


# -- a gateway -----------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("eg")
    with bpffs(directory / "bpf") as bpf, Topology("eg") as net:
        tenant = net.host("t")
        a, b = Node(net.host("a", forward=True), directory), Node(net.host("b"), directory)
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        net.link(tenant, a.host, ipv4="10.7.0.0/24", ipv6="fd00:7::/64")
        switch(a.host, a.host.interfaces[0], tso=False, gso=False)  # packets leave as a wire would have them
        tenant.ip("route add default via 10.7.0.2", "route add ::/0 via fd00:7::2")
        b.host.ip("route add default via 10.1.0.1", "route add ::/0 via fd00:1::1")
        prefixes = ["10.7.0.0/24", "fd00:7::/64"]
        a.network |= {"addresses": prefixes, "beacon_source": ["10.7.0.2", "fd00:7::2"]}
        a.sections["stamp"] = {"forwarded": True}
        a.peers = [strict(b)]
        b.peers = [strict(a) | {"addresses": prefixes, "endpoint": ["10.7.0.2", "fd00:7::2"]}]
        offloaded(bpf, a, b)
        with a, b:
            start(a, b)
            acquainted(b, a)
            acquainted(a, b)
            yield Node(tenant, directory / "tenant"), a, b


@BOTH
def test_gateway_tcp_both_ways(gateway, version):
    """The gateway's kernel tells the tenant what fits; both directions are scented, and verified at the other end."""
    tenant, a, b = gateway
    tenant.host.run("ip", f"-{version}", "route", "flush", "cache")
    before = totals(a), totals(b)
    with b.capture() as wire:
        transfer(tenant, b, version, 4 << 20)
        assert 1500 - OVERHEAD[version] < max(map(len, wire.packets())) <= 1500
    with tenant.capture() as wire:
        transfer(b, tenant, version, 4 << 20)
        assert not any(is_scented(packet) for packet in wire.packets()), "taken off at the gateway"
    for node, was in zip((a, b), before, strict=True):
        counted = grown(node, was)
        assert counted["stamped"] > 500
        assert counted["accepted"] > 500
        assert not any(name.startswith(("unstamped", "rejected")) for name in counted), counted
        assert "other:icmp_too_big_sent" not in counted, "the kernel tells, not the queue"


@BOTH
def test_gateway_udp_that_fits_and_that_does_not(gateway, version):
    """With DF the tenant's socket is told the size that fits at the first datagram that does not."""
    tenant, a, b = gateway
    tenant.host.run("ip", f"-{version}", "route", "flush", "cache")
    before = totals(a)
    fits = 1500 - OVERHEAD[version] - HEADERS[version]
    with tenant.socket(version) as one, b.socket(version) as other:
        one.setsockopt(*DISCOVER[version], DO)
        assert not told_too_long(one, other, bytes(fits + 1)), "the tenant's own link has room"
        assert until(lambda: told_too_long(one, other, bytes(fits + 1)), "the tenant is told")
        one.sendto(b"y" * fits, other.getsockname()[:2])
        assert other.recv(70000) == b"y" * fits
    assert "unstamped:too-big" not in grown(a, before)


def test_gateway_ipv4_fragments(gateway):
    """Without DF the gateway's kernel fragments for the smaller room, and the tenant's own fragments are scented."""
    tenant, _, b = gateway
    with tenant.socket(4) as one, b.socket(4) as other:
        one.setsockopt(*DISCOVER[4], DONT)
        for size in (1400, 1464, 1465, 1500, 1501, 3000, 8000):
            data = os.urandom(size - HEADERS[4])
            one.sendto(data, other.getsockname()[:2])
            assert other.recv(70000) == data, size


def test_gateway_leaves_its_own_packets_alone(gateway):
    """The gateway's own address is not the network's: unscented, and unscented it is no peer of b."""
    _, a, b = gateway
    before = totals(a)
    with a.socket(4) as one, b.socket(4) as other:
        for n in range(20):
            one.sendto(b"%d" % n, other.getsockname()[:2])
            assert other.recv(100) == b"%d" % n
    assert grown(a, before).get("stamped", 0) <= 10, "beacons at most"


@BOTH
def test_gateway_packets_that_meet_no_rule_of_ours(gateway, version):
    """As with a flow table, whose packets meet no rule at all: the program decides by the source."""
    tenant, a, b = gateway
    with past_forward(a, version), tenant.socket(version) as one, b.socket(version) as other:
        assert answered(one, other, seconds=5)
        assert answered(other, one, seconds=5)


@BOTH
def test_gateway_that_masquerades_under_an_address_of_the_network(gateway, version):
    """Our rule has seen whose the packet was. Where it has not, the packet is nobody's, and counted."""
    tenant, a, b = gateway
    own = {4: "10.7.0.2", 6: "fd00:7::2"}[version]
    program, out = {4: "iptables", 6: "ip6tables"}[version], a.host.interfaces[0]
    rule = f"POSTROUTING -o {out} -s {tenant.address(version)} -j SNAT --to-source {own}".split()
    before = totals(a)
    a.host.run(program, "-w", "-t", "nat", "-A", *rule)
    try:
        with tenant.socket(version) as one, b.socket(version) as other:
            assert answered(one, other, seconds=5)
            assert "unstamped:masqueraded" not in grown(a, before)
            with past_forward(a, version):
                assert not answered(one, other)
                until(lambda: grown(a, before).get("unstamped:masqueraded"), "it is counted")
    finally:
        a.host.run(program, "-w", "-t", "nat", "-D", *rule)
    until(lambda: "masqueraded" in a.log.read_text(), "the log tells")


@contextmanager
def past_forward(node: Node, version: int) -> Iterator[None]:
    """What is forwarded meets no rule of ours, as with a flow table; until the daemon puts the table back."""
    family = {4: "ipv4", 6: "ipv6"}[version]
    node.host.run("nft", "insert", "rule", "inet", selection.NAME, "across", "meta", "nfproto", family, "accept")
    try:
        yield
    finally:
        assert node.cli("rules", "apply").returncode == 0
