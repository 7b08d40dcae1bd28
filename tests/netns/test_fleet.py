"""A fleet over NATS: samples of one host, epochs of another, packets of two gateways, and what is killed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fleet import Fleet
from hosts import start, until
from topology import Topology

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("ft")
    with ExitStack() as stack:
        fleet = Fleet(stack.enter_context(Topology("ft")), directory)
        stack.enter_context(fleet.cluster)
        for node in (fleet.c, *fleet.profilers, *fleet.gateways, fleet.v):
            stack.enter_context(node)
        start(fleet.c, fleet.p1, *fleet.gateways, fleet.v)
        yield fleet


def network(node) -> dict:
    return node.status()["networks"][0]


def profile(fleet) -> dict | None:
    return next(p["profile"] for p in fleet.v.status()["peers"] if p["name"] == "acme")


def test_samples_of_one_host_are_stamped_by_others(fleet):
    until(lambda: network(fleet.p1)["issued"] >= 2, "the profiler has samples, and issues")
    assert [n["name"] for n in network(fleet.p1)["nodes"]] == ["c"]
    until(lambda: profile(fleet), "the verifier has the profile by the gateways' beacons")
    assert profile(fleet)["levels"]["memory"] > 0
    for gateway in fleet.gateways:
        counters = gateway.status()["bus"]["counters"]
        assert counters["taken"] >= 1
        with gateway.socket(4) as end, fleet.v.socket(4) as other:
            end.sendto(b"x", other.getsockname())
            assert other.recv(10) == b"x"
