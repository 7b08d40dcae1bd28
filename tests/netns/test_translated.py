"""The sending host's own NAT: a service address that leads to a peer. The tag is of what is really sent.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      each the other's strict peer; a translates its own packets' destinations
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from edges import strict_ends
from hosts import Node, exchange

pytestmark = pytest.mark.netns

SERVICE = {4: "10.9.9.9", 6: "fd00:9::9"}
PROGRAM = {4: "iptables", 6: "ip6tables"}


@pytest.fixture(scope="module", params=["queue", "offload"])
def nodes(request, tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    with strict_ends("tn", tmp_path_factory.mktemp("tn"), request.param == "offload") as (a, b):
        for version in (4, 6):
            target = b.address(version)
            a.host.ip(f"route add {SERVICE[version]} via {target}")
            rule = ("-A", "OUTPUT", "-d", SERVICE[version], "-j", "DNAT", "--to-destination", target)
            a.host.run(PROGRAM[version], "-w", "-t", "nat", *rule)
        yield a, b


@pytest.mark.parametrize("version", [4, 6])
def test_a_service_address(nodes, version):
    """Both ways, a strict receiver at each end: nothing unscented or wrongly tagged gets through."""
    a, b = nodes
    refused = sum(b.status()["rejected"].values()) + b.status()["absent"]
    with b.listener(version) as listening, a.socket(version) as sender, b.socket(version) as receiver:
        sender.sendto(b"hello", (SERVICE[version], receiver.getsockname()[1]))
        receiver.settimeout(5)
        assert receiver.recv(100) == b"hello"
        client = a.host.call(lambda: socket.create_connection((SERVICE[version], listening.getsockname()[1]), 5))
        with client, listening.accept()[0] as server:
            assert exchange(client, server, bytes(100_000)) == bytes(100_000)
    assert sum(b.status()["rejected"].values()) + b.status()["absent"] == refused
