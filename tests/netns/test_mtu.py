"""Full-size packets: nothing is lost because of a scent, and nothing that the kernel makes impossible is lost silently.

a ---- b                    one link, MTU 1500, 9000 or 1000
a -- r ---- s -- b          1400 or 1000 between the routers: path MTU discovery of a scented path
"""

from __future__ import annotations

import socket
from contextlib import contextmanager

import pytest
from hosts import Node, acquainted, pair, peer_of, start, told_too_long, transfer, until
from topology import Topology

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, WANT, DO, DONT = 10, 23, 1, 2, 0
HEADERS = {4: 28, 6: 48}
OVERHEAD = {4: 36, 6: 40}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with pair("mt", tmp_path_factory.mktemp("mt")) as (a, b):
        b.peers = [peer_of(a, absent="drop", absent_ipv6_fragments="pass")]
        a.peers = [peer_of(b, absent="drop", absent_ipv6_fragments="pass")]
        start(a, b)
        acquainted(b, a)
        acquainted(a, b)
        yield a, b


@contextmanager
def routed(tag, directory, mtu):
    """a -- r -- s -- b, the link in the middle with this MTU; both ends drop what is unscented."""
    with Topology(tag) as net:
        a, b = Node(net.host("a"), directory), Node(net.host("b"), directory)
        r, s = net.host("r", forward=True), net.host("s", forward=True)
        net.link(a.host, r, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        net.link(r, s, ipv4="10.2.0.0/24", ipv6="fd00:2::/64" if mtu >= 1280 else "", mtu=mtu)
        net.link(b.host, s, ipv4="10.3.0.0/24", ipv6="fd00:3::/64")
        a.host.ip("route add default via 10.1.0.2", "route add ::/0 via fd00:1::2")
        b.host.ip("route add default via 10.3.0.2", "route add ::/0 via fd00:3::2")
        r.ip("route add 10.3.0.0/24 via 10.2.0.2")
        s.ip("route add 10.1.0.0/24 via 10.2.0.1")
        if mtu >= 1280:  # else the kernel has taken IPv6 off the link
            r.ip("route add fd00:3::/64 via fd00:2::2")
            s.ip("route add fd00:1::/64 via fd00:2::1")
        b.host.ip(f"addr add 10.3.0.9/24 dev {s.name}2", f"addr add fd00:3::9/64 dev {s.name}2")
        b.network["addresses"] = ["10.3.0.0/24", "fd00:3::/64"]
        a.peers = [{**peer_of(b, absent="drop"), "addresses": b.network["addresses"], "endpoint": b.addresses}]
        b.peers = [peer_of(a, absent="drop")]
        with a, b:
            start(a, b)
            acquainted(b, a)
            acquainted(a, b)
            yield a, b


def udp(sender: Node, receiver: Node, version: int, discover: int) -> tuple[socket.socket, socket.socket]:
    one, other = sender.socket(version), receiver.socket(version)
    level, option = (socket.IPPROTO_IP, IP_MTU_DISCOVER) if version == 4 else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
    one.setsockopt(level, option, discover)
    return one, other


@BOTH
def test_tcp_at_full_size(nodes, version):
    """Invariant 5: TCP at full size, no MSS clamp; every packet is scented, or b would drop it."""
    a, b = nodes
    before = a.status()["unstamped"]
    with b.capture() as wire:
        transfer(a, b, version, 4 << 20)
        largest = max(map(len, wire.packets()))
    assert 1500 - OVERHEAD[version] < largest <= 1500
    after = a.status()["unstamped"]
    assert after["too-big"] == before["too-big"]
    assert after["no-room"] == before["no-room"]


@BOTH
def test_udp_of_every_size(nodes, version):
    """Invariants 2 and 5: every size around the MTU arrives, IPv6 datagrams in fragments unscented and counted."""
    a, b = nodes
    before = a.status()["unstamped"]["ipv6-fragment"]
    one, other = udp(a, b, version, DONT)
    fragmented = 0
    with one, other:
        for size in [*range(1380, 1521), 3000, 8000, 20000]:
            data = bytes((size & 255,)) * (size - HEADERS[version])
            one.sendto(data, other.getsockname()[:2])
            assert other.recv(70000) == data, size
            fragmented += size + OVERHEAD[version] > 1500
    if version == 6:
        until(lambda: a.status()["unstamped"]["ipv6-fragment"] - before >= fragmented, "all are counted")


@BOTH
def test_udp_that_may_not_be_fragmented(nodes, version):
    """Invariant 5: with DF a size arrives, or the socket is told that it is too long; the room is known beforehand."""
    a, b = nodes
    one, other = udp(a, b, version, DO)
    with one, other:
        for size in range(1380, 1521):
            data = bytes((size & 255,)) * (size - HEADERS[version])
            too_long = told_too_long(one, other, data)
            assert too_long == (size + OVERHEAD[version] > 1500), size
            assert too_long or other.recv(70000) == data


@BOTH
def test_ping_of_every_kind(nodes, version):
    a, b = nodes
    for size in (56, 1400, 1500, 3000, 9000):
        a.host.run("ping", "-c", "2", "-i", "0.02", "-W", "2", "-s", str(size), b.address(version))


def test_jumbo_packets_are_whole(tmp_path):
    """Packets longer than what netfilterqueue alone would read, on a link of 9000."""
    with pair("jm", tmp_path, mtu=9000) as (a, b):
        a.peers, b.peers = [peer_of(b, absent="drop")], [peer_of(a, absent="drop")]
        start(a, b)
        acquainted(b, a)
        acquainted(a, b)
        for version in (4, 6):
            with b.capture() as wire:
                transfer(a, b, version, 4 << 20)
                assert 9000 - OVERHEAD[version] < max(map(len, wire.packets())) <= 9000
            one, other = udp(a, b, version, DONT)
            with one, other:
                for size in (4000, 4017, 5000, 8000, 8900):
                    data = bytes((size & 255,)) * size
                    one.sendto(data, other.getsockname()[:2])
                    assert other.recv(70000) == data


def test_a_link_below_1280(tmp_path):
    """IPv4 on a link of 1000 bytes: the lowered route is far below the size from which packets used to be marked."""
    with pair("lo", tmp_path) as (a, b):
        for node in (a, b):
            node.host.ip(f"link set {node.host.interfaces[0]} mtu 1000")
            node.host.ipv6 = ""
        a.peers, b.peers = [peer_of(b, absent="drop")], [peer_of(a, absent="drop")]
        start(a, b)
        acquainted(b, a)
        acquainted(a, b)
        transfer(a, b, 4)
        one, other = udp(a, b, 4, DONT)
        with one, other:
            # Between 965 and 1244 bytes they need fragments, but a tag without ports is for what is above 1280.
            for size in [*range(900, 965), *range(1245, 1300), 3000]:
                data = bytes((size & 255,)) * (size - 28)
                one.sendto(data, other.getsockname()[:2])
                assert other.recv(70000) == data, size
            before = a.status()["unstamped"]["too-big"]
            one.sendto(bytes(972), other.getsockname()[:2])
            until(lambda: a.status()["unstamped"]["too-big"] == before + 1, "it is counted")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    with routed("nr", tmp_path_factory.mktemp("nr"), 1400) as found:
        yield found


@BOTH
def test_path_mtu_discovery(narrow, version):
    """Invariant 5: a router's "too big" about a scented packet is made as if it had none; TCP goes on."""
    a, b = narrow
    before = a.status()["other"]["icmp_unquoted"]
    with b.capture() as wire:
        transfer(a, b, version, 2 << 20)
        assert 1400 - OVERHEAD[version] < max(map(len, wire.packets())) <= 1400
    until(lambda: a.status()["other"]["icmp_unquoted"] > before, "the error is counted")


@BOTH
def test_udp_learns_the_path(narrow, version):
    """A datagram with DF that is too long is lost and its socket told; what fits arrives from then on.

    To another address of b: what TCP learned of the path is kept by address.
    """
    a, b = narrow
    one, other = udp(a, b, version, DO)
    fits = 1400 - OVERHEAD[version] - HEADERS[version]
    with one, other:
        other.close()
        other = b.socket(version, bind=False)
        other.bind(("10.3.0.9" if version == 4 else "fd00:3::9", 0))
        with other:
            assert until(lambda: told_too_long(one, other, bytes(fits + 1)), "the socket is told")
            one.sendto(b"y" * fits, other.getsockname()[:2])
            assert other.recv(70000) == b"y" * fits


def test_path_mtu_below_1280(tmp_path):
    """IPv4 through a link of 1000 bytes that only the router knows of."""
    with routed("n1", tmp_path, 1000) as (a, b):
        transfer(a, b, 4)
