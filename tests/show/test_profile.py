"""How a profile came about, as people read it."""

import msgspec

from scentd.config.sections import Network
from scentd.control.status import Explanation, NodeState, ProfileExplanation
from scentd.core.profile.account import Inputs, account
from scentd.core.profile.roll import Entry
from scentd.model import Sample, SecurityEvent
from scentd.show import profile

NOW = 1_800_000_000.0


def told(*entries, events=(), nodes=(), **network):
    shape = Network(**{"name": "acme", "key_file": "k", **network})
    made = account(shape, Inputs(NOW, entries, events, False))
    return ProfileExplanation(
        network="acme", epoch=7, interval=5.0, profile=made, nodes=list(nodes), intake={"late": 2, "duplicate": 0}
    )


def entry(metric, value, node, age=0.0, **changes):
    return Entry(Sample(metric, value, NOW - age, node, **changes), NOW - age)


def test_every_level_with_its_samples():
    shown = profile.explanation(
        told(
            entry("cpu", 0.62, "n1", 2.0, role="db"),
            entry("cpu", 37.0, "n2"),
            entry("cpu", 0.2, "n3", 20.0),
            entry("cpu", float("nan"), ""),
            entry("latency", 0.5, "n1", region="eu"),
            events=[SecurityEvent("intrusion", 0.7, NOW, NOW + 9, "10.0.0.5")],
            nodes=[NodeState("n3", (), "stale", "silent for 20 s", 20.0, True)],
            weights={"cpu": 3.0},
            labels=["tier=gold"],
        )
    )
    for line in (
        "overall 0.78: the levels' mean by weight",
        "cpu 0.82: mean of 2 nodes 0.8100, 0 to 1 of all processors, weight 3 of 4",
        "    this host no number, 0.0 s ago, suspect, left out: cpu: not a number",
        "    n2 37, 0.0 s ago, suspect, counts as 1.00: cpu: 37 is out of 0 to 1",
        "    n3 0.2, 20.0 s ago, stale, left out: cpu: silent for 20 s",
        "    n1 (db) 0.62, 2.0 s ago, fresh",
        "latency unknown: no sample of the network counts",
        "    n1 to eu 0.5, 0.0 s ago, fresh",
        "threat 0.70: joined of 0 node(s) and 1 event(s) 0.7000, 0 to 1 certainly attacked, weight 1 of 4",
        "    event intrusion of 10.0.0.5, severity 0.70",
        "  region eu: latency 0.50 medium of 1 node(s)",
        "  role db: cpu 0.62 medium of 1 node(s)",
        "affected nodes, sent as pseudonyms: 10.0.0.5",
        "node n3: stale, silent for 20 s",
        "refused, clipped or noticed so far: late 2",
    ):
        assert line in shown.splitlines(), shown


def test_what_is_left_out_says_why():
    many = [entry("cpu", 0.5, "n", role=f"r{i:02}") for i in range(30)]
    shown = profile.explanation(told(*many, min_nodes=1))
    assert "  left out: role=r29;metric=cpu;level=medium: no room beside 24 others" in shown.splitlines()
    few = profile.explanation(told(many[0], min_nodes=2))
    assert "  role r00: cpu - of 1 node(s), left out: network.min_nodes is 2" in few.splitlines()
    assert "characteristics, 0 sent: none" in profile.explanation(told())


def test_both_explanations_are_told_apart():
    peer = Explanation(peer="p", policies=[], decisions=[])
    assert profile.explained(msgspec.to_builtins(peer)).startswith("peer p")
    assert profile.explained(msgspec.to_builtins(told())).startswith("network acme, epoch 7")
