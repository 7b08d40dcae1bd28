"""A host whose interface to the peer belongs to a VRF: packets pass OUTPUT and PREROUTING twice, and count once.

a (VRF blue) ---- 10.1.0.0/24, fd00:1::/64 ---- b      each the other's strict peer
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from compiled import bpffs
from edges import grown, in_place, offloaded, strict, totals
from hosts import Node, acquainted, exchange, pair, start, until
from kernel_features import needs_link
from topology import Host

pytestmark = [pytest.mark.netns, needs_link("vrf", "table 100")]

BOTH = pytest.mark.parametrize("version", [4, 6])
DATAGRAMS = 40


@pytest.fixture(scope="module", params=["queue", "offload"])
def nodes(request, tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    directory = tmp_path_factory.mktemp("vr")
    with ExitStack() as stack:
        a, b = stack.enter_context(pair("vr", directory))
        enslave(a.host, "blue")
        if request.param == "offload":
            offloaded(stack.enter_context(bpffs(directory / "bpf")), a, b)
        for node, other in ((a, b), (b, a)):
            node.peers = [strict(other, rejected="drop", endpoint=[other.address(4)])]
        start(a, b)
        in_place(a, b)
        yield a, b


def enslave(host: Host, vrf: str) -> None:
    """A VRF takes IPv6 addresses away."""
    device = host.interfaces[0]
    host.ip(
        f"link add {vrf} type vrf table 100",
        f"link set {vrf} up",
        f"link set {device} master {vrf}",
        f"addr replace {host.ipv6}/64 dev {device} nodad",
    )


def bound(node: Node, version: int, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    """A socket of a program in the VRF."""
    end = node.socket(version, kind, bind=False)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"blue\0")
    end.bind((node.address(version), 0))
    return end


def test_beacons(nodes):
    """Nobody sends anything else, and each end's profile comes."""
    a, b = nodes
    acquainted(b, a)
    acquainted(a, b)
    assert a.status()["beacons"]["sent"] > 0
    assert a.status()["beacons"]["failed"] == 0


@BOTH
def test_datagrams_and_tcp(nodes, version):
    a, b = nodes
    before = totals(a)
    with bound(a, version) as one, b.socket(version) as other:
        for n in range(DATAGRAMS):
            one.sendto(b"%d" % n, other.getsockname()[:2])
            assert other.recv(100) == b"%d" % n
            other.sendto(b"%d" % n, one.getsockname()[:2])
            assert one.recv(100) == b"%d" % n
    with b.listener(version) as listening, bound(a, version, socket.SOCK_STREAM) as client:
        client.connect(listening.getsockname()[:2])
        with listening.accept()[0] as server:
            assert exchange(client, server, bytes(100_000)) == bytes(100_000)
            assert exchange(server, client, bytes(100_000)) == bytes(100_000)
    until(lambda: grown(a, before).get("stamped", 0) >= DATAGRAMS, "a counts them")
    assert "unstamped:already" not in grown(a, before), "no packet meets the stamper twice"
