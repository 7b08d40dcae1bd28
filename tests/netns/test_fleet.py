"""A fleet over NATS: samples of one host, epochs of another, packets of two gateways, and what is killed meanwhile."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fleet import Fleet
from hosts import start, until
from steady import steady
from topology import Topology

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("ft")
    with ExitStack() as stack:
        fleet = Fleet(stack.enter_context(Topology("ft")), directory)
        stack.enter_context(fleet.cluster)
        for node in fleet.nodes:
            stack.enter_context(node)
        high = {"name": "high", "when": "memory > 0.0", "do": {"kind": "command", "argv": ["/bin/true"]}}
        fleet.alloc.sections["policy"] = [high]
        start(fleet.c, fleet.p1, *fleet.gateways, fleet.v, fleet.alloc)
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


def test_what_a_verifier_has_verified_decides_elsewhere(fleet):
    policies = lambda: fleet.alloc.status()["allocation"]["policies"]  # noqa: E731
    until(lambda: policies()[0]["fired_at"], "the allocator acts")
    told = json.loads(fleet.alloc.cli("explain", "acme", "--json").stdout)
    assert "memory=" in told["policies"][0]["reason"]


@pytest.fixture
def cluster(tmp_path) -> Iterator[Fleet]:
    """Three servers, and both profilers."""
    with ExitStack() as stack:
        fleet = Fleet(stack.enter_context(Topology("fc")), tmp_path, servers=3)
        stack.enter_context(fleet.cluster)
        for node in fleet.nodes:
            stack.enter_context(node)
        start(fleet.c, fleet.p1, *fleet.gateways, fleet.v)
        until(lambda: profile(fleet), "the verifier has a profile", 40)
        start(fleet.p2)
        yield fleet


def lease(node) -> dict:
    return node.status()["bus"]["lease"]


def test_a_broker_and_the_active_profiler_die(cluster):
    fleet = cluster
    until(lambda: (lease(fleet.p2) or {}).get("holder"), "the standby has read the lease")
    assert lease(fleet.p1)["active"]
    assert not lease(fleet.p2)["active"]
    assert network(fleet.p2)["issued"] == 0
    epochs: list[int] = []
    gaps: list[float] = []

    def watch(seconds: float) -> None:
        end = time.monotonic() + seconds
        last = time.monotonic()
        while time.monotonic() < end:
            newest = profile(fleet)["epoch"]
            if not epochs or newest != epochs[-1]:
                epochs.append(newest)
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
            time.sleep(0.1)

    with steady(fleet.g1, fleet.v, 4) as one, steady(fleet.g2, fleet.v, 6) as other:
        watch(5)
        fleet.cluster.stop(fleet.brokers[0])
        watch(15)
        fleet.p1.end(signal.SIGKILL)
        watch(15)
        assert lease(fleet.p2)["active"]
        assert network(fleet.p2)["issued"] >= 3
    assert not one.lost
    assert not other.lost
    assert epochs == sorted(set(epochs)), "no epoch twice"
    interval = 2
    assert max(gaps) <= 2 * interval + 9, gaps
    status = fleet.v.status()
    assert not any(status["rejected"].values()), status["rejected"]
