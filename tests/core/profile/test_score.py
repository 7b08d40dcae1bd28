import itertools
import math
import time
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.collect.eve import EveSource
from scentd.config.node import Node
from scentd.config.sections import Network
from scentd.core.profile import score
from scentd.core.profile.aggregate import STANDARD_METRICS
from scentd.model import Sample, SecurityEvent
from scentd.wire import bloom, profile

NOW = 1_000_000.0


def network(**changes):
    return Network(**{"name": "a", "key_file": "k", **changes})


def sample(metric, value, **changes):
    return Sample(**{"metric": metric, "value": value, "at": NOW, **changes})


def event(severity, **changes):
    return SecurityEvent(**{"kind": "intrusion", "severity": severity, "at": NOW, "until": NOW + 60, **changes})


def test_level_is_the_mean_of_the_newest_sample_of_each_node():
    made = score.statement(
        network(),
        [
            sample("cpu", 0.9, node="n1", at=NOW - 10),
            sample("cpu", 0.2, node="n1"),
            sample("cpu", 0.6, node="n2"),
            sample("cpu", 1.0, node="n2", at=NOW - 5),
        ],
        [],
        NOW,
    )
    assert made.levels == {"cpu": 0.4}
    assert made.overall == 0.4
    assert made.interval == 5


def test_roles_count_each_in_the_mean_and_have_items_of_their_own():
    made = score.statement(network(), [sample("cpu", 0.9, role="db"), sample("cpu", 0.1, role="web")], [], NOW)
    assert made.levels == {"cpu": 0.5}
    assert made.items == {"metric=cpu;level=medium", "role=db;metric=cpu;level=high", "role=web;metric=cpu;level=low"}


def test_overall_is_weighted_and_leaves_out_what_is_unknown_or_weighs_nothing():
    samples = [sample("cpu", 1.0), sample("memory", 0.0), sample("latency", 1.0)]
    weights = {"cpu": 3.0, "latency": 0.0, "jitter": 100.0}
    assert score.statement(network(weights=weights), samples, [], NOW).overall == 0.76  # 0.75, half a step up
    assert score.statement(network(weights={"cpu": 0.0}), samples[:1], [], NOW).overall is None
    assert score.statement(network(), [], [], NOW).overall is None


@pytest.mark.parametrize("weight", [math.inf, 1.7e308])
def test_absurd_weights_do_not_leave_the_range(weight):
    made = score.statement(
        network(weights={"cpu": weight, "memory": weight}), [sample("cpu", 1.0), sample("memory", 1.0)], [], NOW
    )
    assert made.overall in (None, 1.0)


def test_metrics_that_the_network_does_not_have_are_left_out():
    samples = [sample("queue", 0.5), sample("cpu", 0.5)]
    assert score.statement(network(), samples, [], NOW).levels == {"cpu": 0.5}
    assert score.statement(network(metrics={"queue": 16}), samples, [], NOW).levels == {"cpu": 0.5, "queue": 0.5}


def test_threat_joins_events_of_different_kind_or_node():
    one = event(0.5, node="10.0.0.1")
    made = score.statement(network(), [], [one, one, event(0.4, node="10.0.0.1"), event(0.5, node="10.0.0.2")], NOW)
    assert made.levels == {"threat": 0.76}  # 1 - 0.5 * 0.5, half a step up
    assert made.threat == 0.76
    assert made.affected == {ip_address("10.0.0.1"), ip_address("10.0.0.2")}
    assert made.items == {"event=intrusion", "metric=threat;level=medium"}


def test_past_events_do_not_count():
    assert score.statement(network(), [], [event(1.0, until=NOW)], NOW).levels == {}


def test_threat_is_zero_and_known_when_somebody_watches_and_all_is_quiet():
    assert score.statement(network(), [], [], NOW).levels == {}
    assert score.statement(network(), [], [], NOW, watched=True).levels == {"threat": 0.0}


def test_a_sample_has_an_age_after_which_it_does_not_count():
    """A dead node's last sample must not count for ever."""
    last, late = NOW - 3 * network().interval, sample("cpu", 0.2, node="b")
    old = sample("cpu", 0.9, node="a", at=last)
    assert score.statement(network(), [old, late], [], NOW).levels == {"cpu": 0.2}
    assert score.statement(network(), [sample("cpu", 0.9, node="a", at=last + 0.1), late], [], NOW).levels["cpu"] > 0.5


def test_a_threat_from_another_source_is_one_more_sign():
    assert score.statement(network(), [sample("threat", 0.5)], [], NOW).threat == 0.5
    assert score.statement(network(), [sample("threat", 0.5)], [event(0.6)], NOW).threat == 0.8


def test_a_threat_that_nodes_measure_is_joined_and_never_averaged():
    """One attacked node of ten is an attacked network."""
    ten = [sample("threat", 0.9 if i == 3 else 0.0, node=f"n{i}") for i in range(10)]
    assert score.statement(network(), ten, [], NOW).threat == 0.9
    assert score.statement(network(), [*ten, sample("threat", 7.0, node="x")], [], NOW).threat == 1.0


def test_a_flood_of_events_is_bounded_and_stays_a_threat():
    flood = [event(0.01, node=f"10.{i >> 8}.{i & 255}.1") for i in range(20_000)]
    worst = event(0.9, node="10.200.0.9")
    made = score.active_events([*flood, worst], NOW)
    assert len(made) <= score.MAX_EVENTS + 1
    assert made["intrusion", "10.200.0.9"] == 0.9
    assert made[score.JOINED] > 0.99, "what has no room is summed"
    assert made == score.active_events([worst, *flood[::-1]], NOW)
    assert score.statement(network(), [], [*flood, worst], NOW).threat == 1.0


def test_what_is_joined_adds_to_what_is_of_no_node():
    flood = [event(0.0001, node=f"n{i}") for i in range(score.MAX_EVENTS + 10)]
    made = score.active_events([*flood, event(0.5, kind="anomaly")], NOW)
    assert made[score.JOINED] == pytest.approx(1 - 0.5 * (1 - 0.0001) ** 11)


def test_the_last_bit_does_not_depend_on_an_order():
    severities = itertools.permutations((0.1, 0.2, 0.4))
    assert len({score.threat(order, 0.0) for order in severities}) == 1
    levels = {"cpu": 0.1, "memory": 0.2, "jitter": 0.3, "latency": 0.7}
    weights = {"cpu": 0.1, "memory": 0.7, "jitter": 0.3}
    orders = itertools.permutations(levels.items())
    assert len({score.weighted_mean(dict(order), weights) for order in orders}) == 1


def test_listed_nodes_may_be_named_in_events():
    listed = network(node=[Node(name="db-1", addresses=["10.0.0.5", "fd00::5"])])
    made = score.statement(listed, [], [event(1.0, node="db-1"), event(1.0, node="db-2")], NOW)
    assert made.affected == {ip_address("10.0.0.5"), ip_address("fd00::5")}


def test_a_characteristic_names_a_role_and_never_a_host():
    samples = [sample("cpu", 0.9, node="db-1", role=role) for role in ("db", "db-1", "10.0.0.5", "a;b=c", "x" * 65)]
    items = score.statement(network(), samples, [event(1.0, kind="x;role=db")], NOW).items
    assert {item for item in items if "role=" in item} == {"role=db;metric=cpu;level=high"}
    assert not any(item.startswith("event=") for item in items)


def test_the_path_to_a_region_is_an_item_and_no_level():
    samples = [sample("latency", 0.9, region="eu"), sample("latency", 0.1)]
    made = score.statement(network(), samples, [], NOW)
    assert made.levels == {"latency": 0.1}
    assert made.items == {"metric=latency;level=low", "region=eu;metric=latency;level=high"}


def test_names_that_are_no_addresses_are_not_affected():
    made = score.statement(network(), [], [event(1.0, node=n) for n in ("", "db-1", "fd00::7", "1.2.3.4.5")], NOW)
    assert made.affected == {ip_address("fd00::7")}


@pytest.mark.parametrize(
    ("value", "steps", "level"),
    [(0.01, 50, 0.02), (0.0099, 50, 0.0), (0.25, 2, 0.5), (0.5, 5, 0.6), (0.002, 250, 0.004)],
)
def test_quantise_rounds_half_up(value, steps, level):
    assert score.quantise(value, steps) == level
    assert score.statement(network(steps=steps), [sample("cpu", value)], [], NOW).levels == {"cpu": level}


def test_items_name_labels_and_what_is_high():
    made = score.statement(
        network(labels=["region=eu-west", "tier=gold"], high=0.7, low=0.2),
        [sample("cpu", 0.7, role="db"), sample("memory", 0.18)],
        [],
        NOW,
    )
    assert made.items == {
        "region=eu-west",
        "tier=gold",
        "metric=cpu;level=high",
        "role=db;metric=cpu;level=high",
        "metric=memory;level=low",
    }


def test_a_region_with_a_metric_is_the_far_end_of_a_path_and_no_part_of_the_networks_level():
    made = score.statement(
        network(labels=["region=eu-west"], min_nodes=2),
        [
            sample("latency", 0.1),
            *(sample("latency", value, region="us-east", node=f"n{value}") for value in (0.9, 0.8)),
            *(sample("latency", 0.2, region="eu-west", role="web", node=node) for node in ("a", "b")),
            sample("latency", 1.0, region="one-node-alone"),
        ],
        [],
        NOW,
    )
    assert made.levels == {"latency": 0.1}
    assert made.items == {
        "region=eu-west",
        "metric=latency;level=low",
        "region=us-east;metric=latency;level=high",
        "region=eu-west;metric=latency;level=low",
    }


def test_items_are_bounded_and_keep_events_and_highs():
    roles = [f"r{i:03}" for i in range(100)]
    samples = [sample("memory", 0.1, role=r) for r in roles] + [sample("cpu", 1.0, role=r) for r in roles[:15]]
    events = [event(1.0, kind=k) for k in ("policy", "malware")]
    first = score.statement(network(labels=["a=b"]), samples, events, NOW).items
    again = score.statement(network(labels=["a=b"]), samples[::-1], events[::-1], NOW).items
    assert len(first) == score.MAX_ITEMS
    assert first == again
    assert {"event=policy", "event=malware", "metric=cpu;level=high", "a=b"} <= first
    assert {f"role={r};metric=cpu;level=high" for r in roles[:15]} <= first


def test_a_role_of_few_nodes_is_not_told():
    """Invariant 9: characteristics that fewer than k nodes share are suppressed."""
    few = [sample("cpu", 1.0, role="db", node=f"n{i}") for i in range(2)]
    many = [sample("cpu", 1.0, role="web", node=f"n{i}") for i in range(3)]
    repeated = [sample("cpu", 1.0, role="db", node="n0", at=NOW - i) for i in range(5)]
    made = score.statement(network(min_nodes=3), [*few, *many, *repeated], [], NOW)
    assert "role=web;metric=cpu;level=high" in made.items
    assert not any("role=db" in item for item in made.items)
    assert made.levels["cpu"] == 1.0
    assert "role=db;metric=cpu;level=high" in score.statement(network(min_nodes=2), few, [], NOW).items


def test_nodes_take_the_room_of_other_items():
    """At most eight nodes, the most severe events first, and twelve other items: an innocent one is not marked."""
    samples = [sample("cpu", 1.0, role=f"r{i}") for i in range(50)]
    quiet = [event(0.2, node=f"10.0.1.{i}") for i in range(100)]
    made = score.statement(network(), samples, [*quiet, event(0.9, node="10.0.0.9")], NOW)
    assert len(made.affected) == score.MAX_AFFECTED
    assert ip_address("10.0.0.9") in made.affected
    assert len(made.items) == score.MAX_ITEMS_BESIDE_NODES
    assert "event=intrusion" in made.items
    marks = profile.event_items(bytes(16), made.affected)
    innocent = [ip_address(f"10.7.{i >> 8}.{i & 255}") for i in range(3000)]
    filters = {epoch: bloom.to_bits(bloom.make([*made.items, *marks], epoch)) for epoch in range(5)}
    wrong = sum(
        all(bloom.has_item(bits, epoch, item) for item in profile.event_items(bytes(16), (node,)))
        for epoch, bits in filters.items()
        for node in innocent
    )
    assert wrong <= 15  # of 15,000; with one item a node and no bound on nodes nearly all


def test_a_full_set_of_items_leaves_the_filter_useful():
    items = [f"role=r{i};metric=cpu;level=high" for i in range(score.MAX_ITEMS)]
    wrong = sum(
        bloom.contains(bloom.make(items, epoch), epoch, f"x={epoch}.{i}") for epoch in range(20) for i in range(50)
    )
    assert wrong < 100  # of 1000; 48 expected


numbers = st.one_of(
    st.floats(),
    st.integers(-(10**400), 10**400),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1.0, 1.0000000000000002, 5e-324, 1.7e308]),
)
names = st.sampled_from(["", "db", "10.0.0.1", "fd00::1", "x;y=z", "\udcff"])
samples_ = st.builds(
    Sample, st.sampled_from(["cpu", "memory", "threat", "latency", "q", "?"]), numbers, numbers, names, names, names
)
events_ = st.builds(SecurityEvent, names, numbers, numbers, numbers, names)


@given(
    st.lists(samples_, max_size=60),
    st.lists(events_, max_size=20),
    st.dictionaries(st.sampled_from(["cpu", "memory", "threat", "q"]), st.floats(0, math.inf)),
    st.sampled_from([2, 5, 10, 25, 50, 125, 250]),
)
def test_no_input_makes_score_raise_or_leave_the_range(samples, events, weights, steps):
    shape = network(weights=weights, steps=steps, metrics={"q": 16}, labels=["region=x"])
    made = score.statement(shape, samples, events, NOW)
    values = [*made.levels.values(), *([] if made.overall is None else [made.overall])]
    grid = {i / steps for i in range(steps + 1)}
    assert set(values) <= grid
    assert "?" not in made.levels
    assert len(made.items) <= score.MAX_ITEMS
    # The order of samples and events changes nothing, nor does saying something twice.
    assert made == score.statement(shape, samples[::-1], events[::-1], NOW)
    assert made == score.statement(shape, samples + samples, events + events, NOW)


def test_it_is_quick_enough_for_the_profiler():
    shape = network(labels=["region=eu-west"], source=[EveSource(socket="s")])
    ten = [sample(m, i / 10, role="db") for i, m in enumerate(sorted(STANDARD_METRICS - {"threat"}))]
    best = math.inf
    for _ in range(50):
        began = time.perf_counter()
        for _ in range(20):
            score.statement(shape, ten, [], NOW)
        best = min(best, (time.perf_counter() - began) / 20)
    print(f"{best * 1e6:.1f} us")
    assert best < 100e-6  # about 15 us; the bound only catches a slip of an order
