"""What bandwidth makes of firings."""

import pytest
from firings import EMPTY, firing, policies
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from scentd.core.allocate import plan
from scentd.core.allocate.actions.bandwidth import RATE_MIN, BandwidthAction, never_used, rate_text
from scentd.model import Desired


def bandwidth(step=10e6, floor=10e6, ceiling=25e6, start=None, interface="eth0"):
    return BandwidthAction(interface=interface, step=step, floor=floor, ceiling=ceiling, start=start)


def test_bandwidth_steps_within_its_bounds():
    state, seen = Desired({"bandwidth": {("a", "eth0"): 10e6}}), []
    for _ in range(3):
        made = plan.plan(state, [firing(bandwidth())], 0.0)
        state = made.desired
        seen.append((state.of("bandwidth")["a", "eth0"], [(d.before, d.after, d.target) for d in made.decisions]))
    assert seen == [
        (20e6, [("10mbit", "20mbit", "eth0")]),
        (25e6, [("20mbit", "25mbit", "eth0")]),
        (25e6, []),
    ]
    narrow = firing(bandwidth(step=-20e6))
    assert plan.plan(state, [narrow], 0.0).desired.of("bandwidth")["a", "eth0"] == 10e6
    assert plan.plan(EMPTY, [firing(bandwidth(start=12e6))], 0.0).desired.of("bandwidth")["a", "eth0"] == 22e6
    slow = bandwidth(-30e6, 0.0)
    assert plan.plan(EMPTY, [firing(slow)], 0.0).desired.of("bandwidth")["a", "eth0"] == RATE_MIN


def test_nothing_is_shaped_before_a_policy_lowers_a_rate():
    """Then it goes down from the ceiling; what has no rate cannot be raised."""
    widen, narrow = bandwidth(), bandwidth(-5e6)
    started = plan.reload(EMPTY, policies(widen, narrow), ["a", "b"], 0.0)
    assert (started.desired.of("bandwidth"), started.decisions) == ({}, ())
    raised = plan.plan(started.desired, [firing(widen)], 0.0)
    assert (raised.desired.of("bandwidth"), raised.decisions) == ({}, ())
    lowered = plan.plan(started.desired, [firing(narrow)], 0.0)
    assert lowered.desired.of("bandwidth") == {("a", "eth0"): 20e6}
    assert [(d.before, d.after) for d in lowered.decisions] == [("unshaped", "20mbit")]
    again = plan.reload(lowered.desired, policies(widen, narrow), ["a", "b"], 0.0)
    assert again.desired.of("bandwidth") == {("a", "eth0"): 20e6}


def test_policies_that_only_raise_what_nothing_sets():
    assert never_used(policies(bandwidth())) == ["p0"]
    assert never_used(policies(bandwidth(), bandwidth(-5e6))) == []
    assert never_used(policies(bandwidth(), bandwidth(start=12e6))) == []
    assert never_used(policies(bandwidth(), bandwidth(-5e6, interface="eth1"))) == ["p0"]
    (raise_a,), (lower_b,) = policies(bandwidth(), peer="a"), policies(bandwidth(-5e6), peer="b")
    assert never_used([raise_a, replace(lower_b, name="q")]) == ["p0"]
    assert never_used([*policies(bandwidth()), replace(lower_b, name="q")]) == []


@given(st.floats(-1e9, 1e9), st.floats(1e4, 1e9), st.floats(0, 1e9), st.floats(0, 2e9))
def test_bandwidth_never_leaves_its_bounds(step, floor, width, current):
    before = Desired({"bandwidth": {("a", "eth0"): current}})
    do = bandwidth(step, floor, floor + width)
    assert floor <= plan.plan(before, [firing(do)], 0.0).desired.of("bandwidth")["a", "eth0"] <= floor + width


def test_peers_begin_at_start():
    widen, narrow, other = bandwidth(), bandwidth(-5e6, start=15e6), bandwidth(interface="eth1", start=10e6)
    started = plan.reload(EMPTY, [*policies(widen, narrow), *policies(other, peer="b")], ["a", "b"], 0.0)
    assert started.desired.of("bandwidth") == {("a", "eth0"): 15e6, ("b", "eth0"): 15e6, ("b", "eth1"): 10e6}
    assert sorted((d.peer, d.target, d.after) for d in started.decisions) == [
        ("a", "eth0", "15mbit"),
        ("b", "eth0", "15mbit"),
        ("b", "eth1", "10mbit"),
    ]


@pytest.mark.parametrize(("rate", "text"), [(12.5e6, "12.5mbit"), (1e9, "1gbit"), (8000.0, "8kbit"), (10.0, "10bit")])
def test_rates_are_shown_as_the_configuration_reads_them(rate, text):
    assert rate_text(rate) == text
