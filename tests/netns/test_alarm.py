"""From a sensor's alert at one end to a quarantine at the other, and back to normal.

tenants ---- gateway (a) ---- b       a's own address is the node that is attacked
"""

from __future__ import annotations

import time

import pytest
from hosts import Node, acquainted, answered, pair, start, until

pytestmark = pytest.mark.netns

QUARANTINE = {"kind": "quarantine", "timeout": "2s"}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with pair("al", tmp_path_factory.mktemp("al")) as (a, b):
        a.network["interval"] = "6s"
        a.network["source"][1]["hold"] = "3s"
        b.sections["policy"] = [{"name": "isolate", "when": "threat >= 0.5", "do": QUARANTINE}]
        start(a, b)
        yield a, b


def test_beacons_complete_a_profile_of_a_silent_network(nodes):
    """The tenant sends nothing at all; 0.6 of the interval after the epoch its beacons are there."""
    a, b = nodes
    acquainted(b, a)
    until(lambda: b.status()["beacons"]["received"] >= 10, "b counts the beacons")
    assert a.status()["beacons"]["sent"] >= 10
    assert a.status()["beacons"]["failed"] == 0


def test_an_alarm_just_after_an_epoch_does_not_wait_for_its_second(nodes):
    """50 ms after it; the alarm's epoch is accepted before its second begins, and packets before it are, too."""
    a, b = nodes
    with a.socket(4) as sender, b.socket(4) as receiver:
        refused = b.status()["rejected"].get("replayed-epoch", 0)
        for _ in range(8):  # an epoch that was issued late in its second leaves nothing to see
            epoch = new_epoch(a)
            assert answered(sender, receiver)
            time.sleep(0.05)
            if time.time() % 1 < 0.4:
                break
        assert highest_epoch(b) == epoch
        a.alarm(a.host.ipv6)  # the traffic is of the other family, and is not quarantined
        until(lambda: answered(sender, receiver) and highest_epoch(b) > epoch, "b accepts the alarm's epoch")
        accepted = time.time()
        until(lambda: b.profile(a)["epoch"] == epoch + 1, "and has its profile")
        assert highest_epoch(b) == epoch + 1
        assert accepted < epoch + 1, "whose second had not begun"
        assert b.profile(a)["levels"]["threat"] >= 0.5
        assert new_epoch(a) > epoch + 1
        until(lambda: highest_epoch(b) > epoch + 1, "the next regular one is accepted")
        assert b.status()["rejected"].get("replayed-epoch", 0) == refused
    until(lambda: not b.resources("quarantine") and b.profile(a)["levels"]["threat"] == 0, "the alarm is over", 30)


def test_alarm_to_quarantine_to_release(nodes):
    """An alert makes an epoch at once; its profile quarantines the node at b; when the time is over it is released."""
    a, b = nodes
    with a.socket(4) as sender, b.socket(4) as receiver:
        assert answered(sender, receiver)
        issued = count_issued(a)
        until(lambda: count_issued(a) > issued, "the beginning of an interval")
        before, issued = b.profile(a)["epoch"], count_issued(a)
        a.alarm(a.host.ipv4)
        until(lambda: count_issued(a) > issued, "a new epoch long before the interval is over", 4)
        until(lambda: b.resources("quarantine"), "b quarantines", 5)
        assert b.profile(a)["epoch"] > before
        assert b.profile(a)["affected"] == [a.host.ipv4]
        assert [r["resource"] for r in b.resources("quarantine")] == [a.host.ipv4]
        until(lambda: not answered(sender, receiver, seconds=0.1), "the node is cut off", 5)
        until(lambda: answered(sender, receiver, seconds=0.1), "the node is released", 20)
    until(lambda: not b.resources("quarantine"), "the plan forgets it")
    decisions = b.cli("explain", a.name, "--json").stdout
    assert '"isolate"' in decisions
    assert '"quarantine"' in decisions
    (policy,) = b.status()["allocation"]["policies"]
    assert policy["outcomes"]["fired"] >= 1
    delays = {d["name"]: d for d in b.status()["allocation"]["delays"]}
    applied = [delays[f"{cause}_applied"]["count"] for cause in ("alarm", "profile")]
    assert sum(applied) >= 1, "from what was accepted to what the kernel has"


def new_epoch(a: Node) -> int:
    """The epoch of the next profile, as soon as there is one."""
    issued = count_issued(a)
    until(lambda: count_issued(a) > issued, "a new epoch")
    return a.status()["networks"][0]["epoch"]


def highest_epoch(b: Node) -> int:
    return b.status()["peers"][0]["highest_epoch"]


def count_issued(a: Node) -> int:
    return a.status()["networks"][0]["issued"]
