"""Three nodes in trouble, each in another way, in the profile that the verifier decodes, while a broker and then the
active profiler are killed: nothing is lost, refused or issued twice."""

from __future__ import annotations

import pytest
from hosts import until
from troubled_fleet import GAP_MAX, TROUBLE, Epochs, TroubledFleet, fired

from scentd.collect.cgroup import UNIFIED, mounted

pytestmark = [
    pytest.mark.netns,
    pytest.mark.alone,  # seven daemons, three brokers, PostgreSQL
    pytest.mark.skipif(UNIFIED not in mounted(), reason="needs a mounted cgroup v2, whose cgroups have programs"),
]


def test_what_is_killed_costs_nothing(tmp_path):
    with TroubledFleet(tmp_path) as troubled:
        fleet, epochs = troubled.fleet, Epochs()
        until(lambda: not lease(fleet.p2)["active"] and lease(fleet.p2)["holder"], "a standby stands by")
        assert network(fleet.p2)["issued"] == 0
        assert not fired(fleet.v), "all is quiet"
        with troubled.streams() as streams:
            epochs.watch(fleet, 3)
            with troubled.trouble():
                for node in (fleet.v, fleet.alloc):
                    until(lambda node=node: fired(node) == TROUBLE.keys(), f"{node.name} acts on all", 40)
                assert {n["name"] for n in network(fleet.p1)["nodes"]} == {"db1", "web1", "login"}
                troubled.kill_a_broker()
                epochs.watch(fleet, 15)
                troubled.kill_the_active_profiler()
                epochs.watch(fleet, 15)
        assert lease(fleet.p2)["active"]
        assert network(fleet.p2)["issued"] >= 3
        assert not any(stream.lost for stream in streams)
        assert epochs.seen == sorted(set(epochs.seen)), "no epoch twice, and none older"
        assert max(epochs.gaps) <= GAP_MAX
        status = fleet.v.status()
        assert not any(status["rejected"].values()), status["rejected"]
        assert status["absent"] == 0


def network(node) -> dict:
    return node.status()["networks"][0]


def lease(node) -> dict:
    return node.status()["bus"]["lease"] or {"active": False, "holder": ""}
