"""What `scentd explain --profile` tells is how the statement was made: the same numbers, from the same samples."""

import math
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.config.node import Node
from scentd.config.sections import Network
from scentd.core.profile import score
from scentd.core.profile.account import UNITS, Inputs, account
from scentd.core.profile.roll import Entry
from scentd.model import Sample, SecurityEvent
from scentd.wire import layout

NOW = 1_800_000_000.0


def network(**changes):
    return Network(**{"name": "a", "key_file": "k", **changes})


def entry(value, node, arrived=NOW, **changes):
    return Entry(Sample(**{"metric": "cpu", "value": value, "at": arrived, "node": node, **changes}), arrived)


def told(shape, *entries, events=(), watched=False):
    return account(shape, Inputs(NOW, entries, events, watched))


def level(made, metric):
    (one,) = [of for of in made.levels if of.metric == metric]
    return one


def test_each_level_has_its_samples_aggregation_weight_and_step():
    made = told(
        network(weights={"cpu": 2.0}, steps=10),
        entry(0.62, "n1", role="db"),
        entry(0.2, "n2"),
        entry(0.9, "n3", arrived=NOW - 20),
        entry(1.0, "n1", metric="bandwidth_in"),
    )
    cpu = level(made, "cpu")
    assert (cpu.aggregation, cpu.nodes, cpu.value, cpu.level, cpu.weight) == ("mean", 2, pytest.approx(0.41), 0.4, 2.0)
    assert [(s.node, s.value, s.counts, s.age, s.state) for s in cpu.samples] == [
        ("n2", 0.2, 0.2, 0.0, "fresh"),
        ("n3", 0.9, None, 20.0, "stale"),
        ("n1", 0.62, 0.62, 0.0, "fresh"),
    ]
    assert level(made, "bandwidth_in").aggregation == "max"
    assert made.overall == 0.6  # (2 x 0.41 + 1.0) / 3
    [group] = made.groups
    assert (group.role, group.metric, group.level, group.word, group.why_not) == ("db", "cpu", 0.6, "medium", "")


def test_what_does_not_count_as_it_is_says_so():
    quiet = [entry(0.01, f"n{i}", metric="bandwidth_in") for i in range(6)]
    made = told(
        network(),
        *quiet,
        entry(0.9, "hog", metric="bandwidth_in"),
        entry(37.0, "loud", metric="bandwidth_in"),
        entry(math.nan, "none", metric="bandwidth_in"),
    )
    counts = {s.node: (s.value, s.counts, s.state) for s in level(made, "bandwidth_in").samples}
    assert counts["hog"] == (0.9, 0.5, "suspect")
    assert counts["loud"] == (37.0, None, "suspect")
    assert counts["none"] == (None, None, "suspect")
    assert level(made, "bandwidth_in").nodes == 7
    mean = told(network(aggregate={"cpu": "mean"}), entry(0.2, "a"), entry(37.0, "b"))
    assert [s.counts for s in level(mean, "cpu").samples] == [0.2, 1.0]


def test_items_that_have_no_room_and_roles_that_are_not_sent_are_named_with_the_reason():
    many = [entry(0.5, "n", role=f"r{i:02}") for i in range(40)]
    made = told(network(), *many)
    assert len(made.items) == score.MAX_ITEMS
    assert len(made.left_out) == 41 - score.MAX_ITEMS
    assert set(made.left_out.values()) == {"no room beside 24 others"}
    few = told(network(min_nodes=2), entry(0.5, "n", role="db"), entry(0.5, "m", role="m"))
    assert [g.why_not for g in few.groups] == ["network.min_nodes is 2"] * 2
    host = told(network(), entry(0.5, "n", role="n"))
    assert [g.why_not for g in host.groups] == ["a role that is a node is not sent"]


def test_events_and_affected_nodes():
    event = SecurityEvent("intrusion", 0.7, NOW, NOW + 60, "db-1")
    listed = network(node=[Node(name="db-1", addresses=["10.0.0.5"])])
    made = told(listed, entry(0.5, "n", metric="threat"), events=[event], watched=True)
    threat = level(made, "threat")
    assert (threat.aggregation, threat.level) == ("joined", 0.86)  # 1 - 0.5 x 0.3, half a step up
    assert [(e.kind, e.node, e.severity) for e in made.events] == [("intrusion", "db-1", 0.7)]
    assert made.affected == ["10.0.0.5"]
    assert [s.counts for s in threat.samples] == [0.5]


def test_every_standard_metric_says_what_1_is():
    assert {*UNITS} == {*layout.METRICS.values()}


numbers = st.one_of(st.floats(), st.floats(0, 1), st.integers(-(10**400), 10**400))
times = st.sampled_from([NOW, NOW - 3, NOW - 60, NOW + 60, 5.0])
names = st.sampled_from(["", "n1", "n2", "n3", "n4", "n5", "db", "\udcff", "x;y"])
metrics = st.sampled_from(["cpu", "latency", "threat", "bandwidth_in", "?"])
samples = st.builds(Sample, metrics, numbers, times, names, names, st.sampled_from(["", "eu"]))
entries_ = st.dictionaries(st.tuples(metrics, names, names), st.tuples(samples, times)).map(
    lambda made: [Entry(Sample(m, s.value, s.at, n, r, s.region), arrived) for (m, n, r), (s, arrived) in made.items()]
)
events_ = st.lists(st.builds(SecurityEvent, names, numbers, numbers, numbers, names), max_size=5)


@given(entries_, events_, st.booleans(), st.integers(1, 3))
def test_the_account_is_of_the_statement_and_never_raises(entries, events, watched, k):
    shape = network(min_nodes=k, weights={"cpu": 3.0}, labels=["a=b"])
    made = account(shape, Inputs(NOW, entries, events, watched))
    stated = score.statement(shape, [e.sample for e in entries], events, NOW, watched)
    assert {of.metric: of.level for of in made.levels if of.level is not None} == stated.levels
    assert (made.overall, set(made.items)) == (stated.overall, stated.items)
    sent = {f"role={g.role};metric={g.metric};level={g.word}" for g in made.groups if g.role and not g.why_not}
    assert sent <= stated.items | set(made.left_out)
    for of in made.levels:
        counted = [s.counts for s in of.samples if s.counts is not None and not s.region]
        if of.aggregation == "max" and of.value is not None:
            assert of.value == max(counted)
    assert all(0.0 <= s.counts <= 1.0 for s in chain(*(of.samples for of in made.levels)) if s.counts is not None)
