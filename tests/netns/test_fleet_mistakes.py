"""What goes wrong in a fleet although every program runs: profilers that share no lease, clocks that are wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleet import INTERVAL, Fleet, lease, network, profile, running
from hosts import Node, start, until
from steady import steady
from wall_clock import WallClock

pytestmark = pytest.mark.netns

WRONG = 600  # seconds


@pytest.fixture
def fleet(tmp_path) -> Iterator[Fleet]:
    with running("fm", tmp_path) as fleet:
        until(lambda: profile(fleet), "the verifier has a profile")
        yield fleet


def counted(node: Node, name: str) -> int:
    return node.status()["bus"]["counters"].get(name, 0)


def goes_on(fleet: Fleet) -> None:
    epoch = profile(fleet)["epoch"]
    until(lambda: profile(fleet)["epoch"] > epoch + INTERVAL, "epochs go on")


def refused(fleet: Fleet) -> tuple[int, int]:
    status = fleet.v.status()
    return status["absent"], sum(status["rejected"].values())


def test_two_profilers_of_one_name_with_two_buckets(tmp_path):
    """Each has a lease; the older one yields and says why. Gateways take one's epochs, and no packet is refused."""
    with running("fb", tmp_path, site=("p2",), site_keeps=True) as fleet:
        p1, p2 = fleet.profilers
        until(lambda: profile(fleet), "the verifier has a profile")
        with steady(fleet.g1, fleet.v, 4) as one, steady(fleet.g2, fleet.v, 6) as other:
            start(p2)
            until(lambda: counted(p1, "second_profiler"), "the first hears the second")
            until(lambda: lease(p2)["active"], "which issues")
            assert counted(p2, "second_profiler") == 0
            assert "does not share our lease; this one yields" in p1.log.read_text()
            assert "one NATS account and one bucket SCENTD" in p1.log.read_text()
            goes_on(fleet)
            issued = network(p2)["issued"]
            until(lambda: network(p2)["issued"] > issued + 2, "the second goes on")
            # As the log says: one bucket.
            p2.sections["bus"] = p1.sections["bus"]
            p2.restart()
            until(lambda: lease(p2), "it looks for a lease")
            until(lambda: lease(p1)["active"] != lease(p2)["active"], "now one of them is active")
            told = counted(p1, "second_profiler"), counted(p2, "second_profiler")
            goes_on(fleet)
            assert (counted(p1, "second_profiler"), counted(p2, "second_profiler")) == told
        assert not one.lost
        assert not other.lost
        assert refused(fleet) == (0, 0)


def test_a_profiler_whose_clock_is_wrong(fleet):
    """Ten minutes ahead: gateways take none of it and go on with the last profile; a standby is not led astray."""
    start(fleet.p2)
    clock = WallClock(fleet.p1)
    fleet.p1.restart()
    until(lambda: lease(fleet.p2)["active"], "the standby has taken over")
    fleet.p2.restart()
    until(lambda: lease(fleet.p1)["active"], "and gives it back")
    goes_on(fleet)
    with steady(fleet.g1, fleet.v, 4) as one, steady(fleet.g2, fleet.v, 6) as other:
        clock.set(WRONG)
        until(lambda: all(counted(g, "wrong_clock") >= 2 for g in fleet.gateways), "gateways refuse what it sends")
        until(lambda: counted(fleet.p1, "wrong_clock") >= 2, "and it refuses samples")
        clock.set(0)
        goes_on(fleet)
        assert network(fleet.p1)["voided"] >= 1
        clock.set(WRONG)
        wrong = counted(fleet.g1, "wrong_clock")
        until(lambda: counted(fleet.g1, "wrong_clock") > wrong, "it is wrong again")
        fleet.p1.stop()
        until(lambda: lease(fleet.p2)["active"], "the standby takes over")
        goes_on(fleet)
    assert not one.lost
    assert not other.lost
    assert refused(fleet) == (0, 0)


def test_a_collector_whose_clock_is_wrong(fleet):
    """Its samples do not count, its node is stale, profiles go on without it; and all is well when it is right."""
    (collector,) = fleet.collectors
    clock = WallClock(collector)
    collector.restart()
    for wrong in (WRONG, -WRONG):
        until(lambda: network(fleet.p1)["node_states"] == {"fresh": 1}, "its samples count", 30)
        before = counted(fleet.p1, "wrong_clock")
        clock.set(wrong)
        until(lambda b=before: counted(fleet.p1, "wrong_clock") > b, "they are refused")
        until(lambda: network(fleet.p1)["node_states"] == {"stale": 1}, "the node is stale", 30)
        goes_on(fleet)
        clock.set(0)
    until(lambda: network(fleet.p1)["node_states"] == {"fresh": 1}, "its samples count again", 30)
    assert refused(fleet) == (0, 0)


def test_a_gateway_whose_clock_is_wrong(fleet):
    """It takes no profile and has none to send; the other one's packets are accepted, and its own are afterwards."""
    clock = WallClock(fleet.g1)
    fleet.g1.restart()
    until(lambda: counted(fleet.g1, "taken"), "it takes profiles")
    with steady(fleet.g2, fleet.v, 6) as other:
        clock.set(WRONG)
        until(lambda: counted(fleet.g1, "wrong_clock") >= 2, "it refuses them")
        goes_on(fleet)
        taken = counted(fleet.g1, "taken")
        clock.set(0)
        until(lambda: counted(fleet.g1, "taken") > taken, "it takes them again")
        goes_on(fleet)
        with steady(fleet.g1, fleet.v, 4) as one:
            goes_on(fleet)
    assert not one.lost
    assert not other.lost
    assert sum(fleet.v.status()["rejected"].values()) == 0
