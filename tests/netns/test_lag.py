"""Gateways of one network that get its epochs at different moments, towards a receiver that takes nothing unscented.

The fleet of fleet.py. One gateway is cut off from the bus for three intervals, and stamps what it had.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from compiled import bpffs
from edges import offloaded
from fleet import INTERVAL, LAG, Fleet
from hosts import start, until
from steady import steady
from topology import Topology

pytestmark = pytest.mark.netns


@pytest.fixture(params=["queue", "offload"])
def fleet(request, tmp_path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        fleet = Fleet(stack.enter_context(Topology("lg")), tmp_path)
        stack.enter_context(fleet.cluster)
        for node in fleet.nodes:
            stack.enter_context(node)
        if request.param == "offload":
            offloaded(stack.enter_context(bpffs(tmp_path / "bpf")), *fleet.gateways, fleet.v)
        start(*fleet.collectors, fleet.p1, *fleet.gateways, fleet.v)
        datapath = "nfqueue+ebpf" if request.param == "offload" else "nfqueue"
        assert {node.status()["datapath"] for node in (*fleet.gateways, fleet.v)} == {datapath}
        until(lambda: acme(fleet)["profile"], "the verifier has a profile", 40)
        assert acme(fleet)["lag"] == LAG
        yield fleet


def acme(fleet: Fleet) -> dict:
    return next(p for p in fleet.v.status()["peers"] if p["name"] == "acme")


def taken(gateway) -> int:
    """How many epochs it has had from the bus."""
    return gateway.status()["bus"]["counters"]["taken"]


def test_a_gateway_that_is_cut_off_for_three_intervals_loses_nothing(fleet):
    link = fleet.g2.host.interfaces[1]
    with (
        steady(fleet.g1, fleet.v, 4) as one,
        steady(fleet.g2, fleet.v, 4) as other4,
        steady(fleet.g2, fleet.v, 6) as other6,
    ):
        highest, before = acme(fleet)["highest_epoch"], taken(fleet.g2)
        fleet.g2.host.ip(f"link set {link} down")
        time.sleep(3 * INTERVAL)
        assert acme(fleet)["highest_epoch"] >= highest + 2 * INTERVAL, "the others go on meanwhile"
        assert taken(fleet.g2) <= before + 1
        fleet.g2.host.ip(f"link set {link} up")
        until(lambda: taken(fleet.g2) > before + 1, "it has new epochs again", LAG)
    assert [flow.lost for flow in (one, other4, other6)] == [[], [], []]
    status = fleet.v.status()
    assert not any(status["rejected"].values()), status["rejected"]
    assert status["other"]["duplicate_issuer"] == 0
