"""A gateway that scents what it forwards, for hosts behind it that know nothing of scentd.

tenant ---- gateway (a) ---- b      10.7.0.0/24, fd00:7::/64 is the network's prefix; b drops what is unscented, and
sends nothing scented itself: b's SYN-ACKs, which the gateway lowers, and its ICMP tell the tenant of the smaller room
"""

from __future__ import annotations

import socket

import pytest
from hosts import PATIENCE, Node, acquainted, exchange, peer_of, start, told_too_long, until
from topology import Topology

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])
HEADERS, OVERHEAD = {4: 28, 6: 48}, {4: 36, 6: 40}
DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
DONT, DO = 0, 2


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fw")
    with Topology("fw") as net:
        tenant = net.host("t")
        a, b = Node(net.host("a", forward=True), directory), Node(net.host("b"), directory)
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        net.link(tenant, a.host, ipv4="10.7.0.0/24", ipv6="fd00:7::/64")
        tenant.ip("route add default via 10.7.0.2", "route add ::/0 via fd00:7::2")
        b.host.ip("route add default via 10.1.0.1", "route add ::/0 via fd00:1::1")
        prefixes = ["10.7.0.0/24", "fd00:7::/64"]
        a.network |= {"addresses": prefixes, "beacon_source": ["10.7.0.2", "fd00:7::2"]}
        a.sections["stamp"] = {"forwarded": True}
        a.peers = [peer_of(b)]
        b.peers = [{**peer_of(a, absent="drop", stamp=False), "addresses": prefixes}]
        with a, b:
            start(a, b)
            acquainted(b, a)
            yield Node(tenant, directory / "tenant"), a, b


@BOTH
def test_tcp_both_ways(hosts, version):
    """Invariant 5: full-size TCP of a host that knows nothing of the scent: b's SYN-ACK tells it what fits."""
    tenant, a, b = hosts
    too_big = a.status()["unstamped"]["too-big"]
    tenant.host.run("ip", "route", "flush", "cache")
    with b.listener(version) as listening, tenant.socket(version, socket.SOCK_STREAM) as end:
        end.settimeout(PATIENCE)
        end.connect(listening.getsockname()[:2])
        other, _ = listening.accept()
        data = bytes(range(256)) * 8192
        with other, b.capture() as wire:
            assert exchange(end, other, data) == data
            assert 1500 - OVERHEAD[version] < max(map(len, wire.packets())) <= 1500
            assert exchange(other, end, data) == data
    assert a.status()["unstamped"]["too-big"] == too_big


@BOTH
def test_udp_that_fits_and_that_does_not(hosts, version):
    """A datagram with DF that does not fit: the tenant's socket is told the size that does, and that arrives."""
    tenant, a, b = hosts
    sent = a.status()["other"]["icmp_too_big_sent"]
    tenant.host.run("ip", "route", "flush", "cache")
    with tenant.socket(version) as one, b.socket(version) as other:
        one.setsockopt(*DISCOVER[version], DO)
        fits = 1500 - OVERHEAD[version] - HEADERS[version]
        assert until(lambda: told_too_long(one, other, bytes(fits + 1)), "the tenant is told")
        one.sendto(b"y" * fits, other.getsockname()[:2])
        while True:
            got = other.recv(70000)
            if got == b"y" * fits:
                break
    until(lambda: a.status()["other"]["icmp_too_big_sent"] > sent, "the gateway counts its ICMP errors")


def test_ipv4_datagrams_that_are_fragmented(hosts):
    """Without DF the gateway fragments what has grown, and fragments that come from the tenant are scented each."""
    tenant, _, b = hosts
    with tenant.socket(4) as one, b.socket(4) as other:
        one.setsockopt(*DISCOVER[4], DONT)
        for size in (1400, 1470, 1472, 3000, 8000):
            data = bytes((size & 255,)) * size
            one.sendto(data, other.getsockname()[:2])
            assert other.recv(70000) == data


def test_what_is_not_of_the_network_is_not_scented(hosts):
    """The gateway's own packets come from an address that is not the network's: unscented, and not b's peer."""
    _, a, b = hosts
    stamped = a.count("stamped")
    with a.socket(4) as one, b.socket(4) as other:
        for n in range(20):
            one.sendto(b"%d" % n, other.getsockname()[:2])
            assert other.recv(100) == b"%d" % n
    assert a.count("stamped") == stamped
