"""A machine was cloned with its key: two live hosts, one identity, one peer that hears both.

one, two ---- bridge, 10.1.0.0/24, fd00:1::/64 ---- srv
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from compiled import bpffs
from edges import offloaded
from hosts import Node, peer_of, start, until
from topology import Topology

pytestmark = pytest.mark.netns


@pytest.fixture(params=["queue", "offload"])
def nodes(request, tmp_path) -> Iterator[tuple[Node, Node, Node]]:
    with ExitStack() as stack:
        net = stack.enter_context(Topology("ck"))
        one, two, service = (stack.enter_context(Node(net.host(name), tmp_path)) for name in ("one", "two", "srv"))
        net.bridge([one.host, two.host, service.host], ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        two.key_file.write_text(one.key_file.read_text())
        for node in (one, two):
            node.network = {**node.network, "name": "acme", "interval": "1s"}
            node.peers = [peer_of(service)]
        service.peers = [{**peer_of(one), "addresses": [*one.addresses, *two.addresses]}]
        if request.param == "offload":
            offloaded(stack.enter_context(bpffs(tmp_path / "bpf")), one, two, service)
        start(one, two, service)
        yield one, two, service


def test_the_peer_notices_and_says_whose_key_it_is(nodes):
    """The clone has an alarm, so that the two do not say the same; both talk all the time."""
    one, two, service = nodes

    def noticed() -> bool:
        two.alarm(two.host.ipv4)
        for version in (4, 6):
            for node in (one, two):
                with node.socket(version) as sender, service.socket(version) as receiver:
                    for _ in range(5):
                        sender.sendto(b"?", receiver.getsockname())
        return service.status()["other"]["duplicate_issuer"] > 0

    until(noticed, "it is counted", 30)
    until(
        lambda: "a second machine with its key (a clone, a restored snapshot)" in service.log.read_text(), "it is told"
    )
    assert "peer one: " in next(line for line in service.log.read_text().splitlines() if "a second machine" in line)
