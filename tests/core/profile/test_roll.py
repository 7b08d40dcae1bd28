"""The roll: what collectors say, bounded, and how each node does."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.collect.memory import MemorySource
from scentd.config.node import Node
from scentd.config.sections import Network
from scentd.core.profile import roll, score
from scentd.core.profile.roll import Roll
from scentd.model import Sample, Samples, SecurityEvent

NOW = 1_800_000_000.0
SPAN = 15.0  # three intervals


def network(*names, **changes):
    listed = [Node(name=name) for name in names]
    return Network(**{"name": "a", "key_file": "k", "node": listed, **changes})


def sample(value, node="", at=NOW, **changes):
    return Sample(**{"metric": "cpu", "value": value, "at": at, "node": node, **changes})


def said(*samples, collector="one", at=NOW, **changes):
    return Samples("a", collector, at, samples, **changes)


def event(severity, until=NOW + 60, **changes):
    return SecurityEvent(**{"kind": "intrusion", "severity": severity, "at": NOW, "until": until, **changes})


def heard(made):
    return {(e.sample.metric, e.sample.node, e.sample.role): e.sample.value for e in made.entries()}


def states(made, now=NOW):
    return {node.name: node.state for node in made.nodes(now)}


def counted(made):
    return {name: count for name, count in made.counters.items() if count}


def level(made, shape, now=NOW):
    return score.statement(shape, [e.sample for e in made.entries()], made.events(), now, made.watched(now)).levels


def test_a_sample_stays_until_a_newer_one_or_its_age():
    shape = network()
    made = Roll(shape, NOW)
    assert made.take(said(sample(0.2, "n1"), sample(0.4, "n2")), NOW)
    made.take(said(sample(0.6, "n1", NOW + 5), at=NOW + 5), NOW + 5)  # of n2 nothing came this time
    assert level(made, shape, NOW + 5) == {"cpu": 0.5}
    assert level(made, shape, NOW + SPAN + 1) == {"cpu": 0.6}
    made.prune(NOW + SPAN + 6)
    assert states(made, NOW + SPAN + 6) == {"n1": "stale", "n2": "stale"}
    assert "silent for 21 s" in made.nodes(NOW + 21)[1].reason
    made.prune(NOW + 1000)
    assert made.nodes(NOW + 1000) == []


def test_who_names_no_node_speaks_of_the_collectors_host():
    made = Roll(network(), NOW)
    made.take(said(sample(0.2), collector="host-1"), NOW)
    made.take(said(sample(0.6), collector="host-2"), NOW)
    made.take(said(sample(0.8), collector=""), NOW)
    assert {node for _, node, _ in heard(made)} == {"host-1", "host-2", ""}


def test_strangers_leave_nothing_but_a_count():
    shape = network("n1", source=[MemorySource(node="guest")])
    made = Roll(shape, NOW)
    assert not made.take(said(sample(1.0, "x"), sample(1.0, "y"), collector="foreign"), NOW)
    assert made.collectors(NOW) == set()
    assert made.take(
        said(sample(0.2, "n1"), sample(0.4, "guest"), sample(1.0, "x"), sample(1.0, "n1", metric="?")), NOW
    )
    assert {node for _, node, _ in heard(made)} == {"n1", "guest"}
    assert counted(made) == {"unknown_node": 3, "unknown_metric": 1}


def test_an_expected_node_is_named_from_the_start_and_the_list_says_its_role_and_addresses():
    shape = network(node=[Node(name="db-1", addresses=["10.0.0.5"], role="db"), Node(name="db-2")])
    made = Roll(shape, NOW)
    made.take(said(sample(0.5, "10.0.0.5", role="web"), sample(0.5, "db-2", role="web")), NOW)
    assert set(heard(made)) == {("cpu", "db-1", "db"), ("cpu", "db-2", "web")}
    assert [(n.name, n.roles, n.expected) for n in made.nodes(NOW)] == [
        ("db-1", ("db",), True),
        ("db-2", ("web",), True),
    ]
    silent = Roll(shape, NOW)
    assert states(silent, NOW + 20) == {"db-1": "stale", "db-2": "stale"}
    assert silent.nodes(NOW + 20)[0].reason == "nothing has come in 20 s"
    silent.prune(NOW + 10_000)
    assert set(states(silent, NOW + 10_000)) == {"db-1", "db-2"}


@pytest.mark.parametrize(
    ("value", "counter", "reason"),
    [
        (math.nan, "not_finite", "not a number"),
        (math.inf, "not_finite", "not a number"),
        (37.0, "out_of_range", "37 is out of 0 to 1"),
        (-1.0, "out_of_range", "-1 is out of 0 to 1"),
        (10**400, "not_finite", "not a number"),
    ],
)
def test_a_node_that_lies_is_suspect_and_the_reason_says_how(value, counter, reason):
    made = Roll(network(), NOW)
    made.take(said(sample(0.5, "good"), sample(value, "bad")), NOW)
    assert states(made) == {"good": "fresh", "bad": "suspect"}
    assert reason in made.nodes(NOW)[1].reason
    assert counted(made) == {counter: 1}
    made.take(said(sample(0.5, "bad", NOW + 5), at=NOW + 5), NOW + 5)
    assert states(made, NOW + 5)["bad"] == "fresh"


def test_ten_times_everybody_else_is_suspect_by_name():
    made = Roll(network(), NOW)
    made.take(said(*(sample(0.01, f"n{i}") for i in range(5)), sample(0.9, "hog")), NOW)
    assert states(made) == dict.fromkeys((f"n{i}" for i in range(5)), "fresh") | {"hog": "suspect"}
    assert "counts as 0.50" in made.nodes(NOW)[5].reason


@pytest.mark.parametrize("clock", [5.0, NOW - 3600, NOW + 3600, NOW + 1e9])
def test_a_node_with_a_wrong_clock_is_suspect_and_heals_with_its_first_right_sample(clock):
    """An empty clock is 1970. Neither the future nor the past stands in the way of what follows."""
    shape = network()
    made = Roll(shape, NOW)
    made.take(said(sample(0.9, "n", clock), sample(0.1, "m"), at=clock), NOW)
    assert states(made) == {"n": "suspect", "m": "fresh"}
    assert "its clock is" in made.nodes(NOW)[0].reason
    assert counted(made) == {"wrong_clock": 1}
    assert level(made, shape) == {"cpu": 0.1}
    assert made.take(said(sample(0.3, "n", NOW + 5), at=NOW + 5), NOW + 5)
    assert states(made, NOW + 5)["n"] == "fresh"
    assert level(made, shape, NOW + 5) == {"cpu": 0.2}


def test_a_node_that_restarts_without_a_clock_is_stale_then_suspect_then_fresh():
    made = Roll(network(), NOW)
    made.take(said(sample(0.3, "n")), NOW)
    assert made.take(said(sample(0.9, "n", 7.0), at=7.0), NOW + 5)
    assert counted(made) == {"wrong_clock": 1}
    assert heard(made) == {("cpu", "n", ""): 0.3}
    assert made.take(said(sample(0.9, "n", 22.0), at=22.0), NOW + SPAN + 5)
    assert states(made, NOW + SPAN + 5) == {"n": "suspect"}
    assert made.take(said(sample(0.4, "n", NOW + 25), at=NOW + 25), NOW + 25)
    assert states(made, NOW + 25) == {"n": "fresh"}


def test_what_is_older_than_what_is_here_changes_nothing_and_a_wrong_clock_does_not_stay_the_newest():
    made = Roll(network(), NOW)
    made.take(said(sample(0.3, "n"), collector="one"), NOW)
    made.take(said(sample(0.9, "n", NOW - 1), collector="two"), NOW)  # a slow source of another collector
    assert heard(made) == {("cpu", "n", ""): 0.3}
    assert not made.take(said(sample(0.9, "n"), at=NOW - 2), NOW)
    assert counted(made) == {"late": 1}


@pytest.mark.parametrize("values", [(0.2, 0.7), (0.7, 0.2), (math.nan, 0.7), (0.7, math.nan)])
def test_of_the_same_twice_in_one_reading_the_highest_counts(values):
    made = Roll(network(), NOW)
    made.take(said(*(sample(value, "n") for value in values)), NOW)
    assert heard(made) == {("cpu", "n", ""): 0.7}
    assert made.counters["duplicate"] == 1


def test_an_alarm_that_repeats_the_samples_at_hand_counts_nothing_twice():
    made = Roll(network(), NOW)
    wrong = sample(9.0, "n")
    made.take(said(wrong), NOW)
    made.take(said(wrong, at=NOW + 1, alarm=True, events=(event(0.9),)), NOW + 1)
    assert counted(made) == {"out_of_range": 1}


def test_state_is_bounded(monkeypatch):
    for name, value in (
        ("MAX_NODES", 5),
        ("MAX_SERIES", 3),
        ("MAX_COLLECTORS", 4),
        ("MAX_EVENTS", 6),
        ("MAX_SAMPLES", 20),
    ):
        monkeypatch.setattr(roll, name, value)
    made = Roll(network(), NOW)
    made.take(said(*(sample(0.5, f"n{i}") for i in range(30))), NOW)
    made.take(said(*(sample(0.5, "n0", role=f"r{i}") for i in range(10)), collector="two"), NOW)
    for i in range(10):
        made.take(said(collector=f"c{i}"), NOW)
    made.take(said(events=tuple(event(i / 100, node=f"e{i}") for i in range(50)), at=NOW + 1), NOW)
    assert len(made.entries()) == 5 + 2
    assert counted(made) == {
        "too_many_samples": 10,
        "too_many_nodes": 15,
        "too_many_series": 8,
        "too_many_collectors": 8,
        "too_many_events": 44,
    }
    assert {e.node for e in made.events()} == {f"e{i}" for i in range(44, 50)}, "the worst stay"


def test_an_event_outlives_its_collector_and_ends_by_our_clock():
    shape = network()
    made = Roll(shape, NOW)
    made.take(said(events=(event(0.9),), watched=True), NOW)
    made.prune(NOW + 40)
    assert not made.watched(NOW + 40)
    assert level(made, shape, NOW + 40) == {"threat": 0.9}
    made.prune(NOW + 61)
    assert level(made, shape, NOW + 61) == {}
    assert made.events() == []


@pytest.mark.parametrize("clock", [5.0, NOW - 3600, NOW + 1e9])
def test_the_events_of_a_wrong_clock_are_a_threat_for_as_long_as_they_say(clock):
    shape = network()
    made = Roll(shape, NOW)
    made.take(said(events=(event(0.9, until=clock + 60),), at=clock), NOW)
    assert level(made, shape, NOW + 59) == {"threat": 0.9}
    assert level(made, shape, NOW + 61) == {}


def test_a_wrong_clock_adds_a_threat_at_once_and_takes_none_away():
    """A node that begins again with an empty clock may be under attack; a message of an hour ago may be quiet."""
    shape = network()
    made = Roll(shape, NOW)
    made.take(said(events=(event(0.5, node="n1"),), watched=True), NOW)
    for i in range(3):
        made.take(said(events=(event(0.5, until=70.0, node="n2"),), at=5.0 + i), NOW + 1 + i)
    made.take(said(at=NOW - 3600), NOW + 4)
    assert level(made, shape, NOW + 4) == {"threat": 0.76}  # 1 - 0.5 x 0.5, half a step up
    assert len(made.events()) == 2
    made.take(said(at=NOW + 5), NOW + 5)  # a right clock says what is so
    assert made.events() == []


def test_a_dead_collector_is_not_waited_for_until_its_samples_are_stale():
    made = Roll(network(stale_after=600.0), NOW)
    made.take(said(sample(0.5, "n")), NOW)
    assert made.collectors(NOW + 14) == {"one"}
    assert made.collectors(NOW + 16) == set()
    assert states(made, NOW + 16) == {"n": "fresh"}


@pytest.mark.parametrize("until", [math.inf, math.nan, 1e300])
def test_no_event_lasts_for_ever_and_none_is_lost(until):
    shape = network()
    made = Roll(shape, NOW)
    made.take(said(events=(event(0.9, until=until),)), NOW)
    assert level(made, shape, NOW + 1) == {"threat": 0.9}
    made.prune(NOW + roll.HOLD_MAX + 1)
    assert made.events() == []


def test_a_reload_keeps_what_was_heard_of_nodes_and_metrics_that_stay():
    old = Roll(network(metrics={"queue": 16}), NOW)
    old.take(said(sample(0.1, "n1"), sample(0.2, "n2"), sample(0.3, "n1", metric="queue"), events=(event(0.5),)), NOW)
    new = Roll(network("n1"), NOW + 5)
    new.adopt(old)
    assert heard(new) == {("cpu", "n1", ""): 0.1}
    assert new.events() == old.events()


numbers = st.one_of(st.floats(), st.integers(-(10**400), 10**400), st.sampled_from([NOW, NOW + 5, 0.5, 1.0]))
names = st.sampled_from(["", "n1", "n2", "10.0.0.1", "\udcff"])
samples_ = st.builds(Sample, st.sampled_from(["cpu", "threat", "?"]), numbers, numbers, names, names)
events_ = st.builds(SecurityEvent, names, numbers, numbers, numbers, names)
messages = st.builds(
    Samples,
    st.just("a"),
    names,
    numbers,
    st.lists(samples_, max_size=8).map(tuple),
    st.lists(events_, max_size=4).map(tuple),
    st.booleans(),
)


@given(st.lists(messages, max_size=8), st.booleans())
def test_no_message_raises(said_, listed):
    shape = network("n1") if listed else network()
    made = Roll(shape, NOW)
    for i, message in enumerate(said_):
        made.take(message, NOW + i)
        made.prune(NOW + i)
        assert {node.state for node in made.nodes(NOW + i)} <= {"fresh", "stale", "suspect"}
        level(made, shape, NOW + i)
        if listed:
            assert {e.sample.node for e in made.entries()} <= {"n1"}
    assert set(made.counters) == set(roll.COUNTERS)
