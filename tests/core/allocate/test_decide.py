from ipaddress import ip_address, ip_network

import pytest
from allocating import COMMAND, amounts_of, decider_of, fires, outcome, policy, profile, view
from hypothesis import example, given
from hypothesis import strategies as st

from scentd.core.allocate.actions.amount import AmountAction
from scentd.core.allocate.actions.quarantine import QuarantineAction
from scentd.core.allocate.decide import Standing
from scentd.model import View

WIDEN = AmountAction(resource="rate", by=10)
NODE = QuarantineAction()


# --- expressions


def test_a_firing_says_what_it_saw():
    (firing,) = decider_of([policy('cpu > 0.8 && has("region=eu-west")')]).decide(
        view(profile(cpu=0.84, items=["region=eu-west"])), 1.0
    )
    assert firing.values == {"cpu": 0.84, 'has("region=eu-west")': True}
    assert (firing.peer, firing.epoch, firing.at) == ("a", 100, 1.0)
    assert firing.reason == 'cpu > 0.8 && has("region=eu-west") [cpu=0.84, has("region=eu-west")=true]'


@pytest.mark.parametrize(
    "expression",
    [
        "overall == 0.5",
        "threat == 0.0",
        "load > 0.3 && load < 0.4",
        "age == 3.0",
        "interval == 5.0",
        "epoch == 100.0",
        'peer == "a"',
        "cpu > 0",
        "queue_depth == 0.7",
        'has("x=1")',
        "has ( r'x=1' )",
        '!has("y=1")',
        '!has("y=1") // has("x=1")\n && cpu > 0.8',
        'peer != "has(\\"x=1\\")"',
        "peer != 'has(\"x=1\")' && has('x=1')",
        '"""a " has("x=1")""" != peer',
        "'''a ' has(\"x=1\")''' != peer && has(\"x=1\")",
    ],
)
def test_variables_and_has(expression):
    seen = view(profile(cpu=0.9, queue_depth=0.7, items=["x=1"]), glance_load=1 / 3)
    assert fires(decider_of([policy(expression)]), seen, 3.0) == 1


# --- what is not known


@pytest.mark.parametrize(
    "expression", ["memory > 0.1", "!(memory > 0.1)", "memory != 0.5 && cpu > 0.8", "overall >= 0.0"]
)
def test_an_unknown_value_does_not_hold_and_is_named(expression):
    decider, seen = decider_of([policy(expression)]), view(profile(cpu=0.9, overall=None))
    assert decider.decide(seen, 0.0) == []
    (stands,) = decider.explain(seen, 0.0)
    assert (stands.outcome, stands.detail) == (
        "unknown",
        f"unknown: {'overall' if 'overall' in expression else 'memory'}",
    )
    assert decider.standings() == [Standing("p", {"unknown": 1}, 0, None)]


def test_what_is_known_may_decide_alone():
    assert fires(decider_of([policy("memory > 0.1 || cpu > 0.8")]), view()) == 1


def test_a_failing_expression_is_an_outcome():
    assert outcome(decider_of([policy("int(cpu * 0.1) / int(cpu * 0.1) == 1")]), view()) == "error"


def test_a_silent_network_makes_no_policy_hold_but_one_that_asks_for_age():
    seen, old = view(profile(cpu=0.9, interval=5)), 15.1
    assert fires(decider_of([policy()]), seen, 15.0) == 1
    assert outcome(decider_of([policy()]), seen, old) == "stale"
    assert fires(decider_of([policy("age > 15.0")]), seen, old) == 1
    assert fires(decider_of([policy()]), view(profile(cpu=0.9, interval=1)), 10.0) == 1


def test_the_glance_raises_threat_before_its_profile_is_here():
    decider = decider_of([policy("threat > 0.5")])
    calm, alarmed = profile(threat=0.1), profile(threat=0.9)
    assert outcome(decider, view(calm)) == "false"
    assert outcome(decider, view(calm, glance_threat=14 / 15)) == "fired"
    assert outcome(decider, view(alarmed, glance_threat=0.0)) == "fired"  # the all-clear has to be signed
    assert outcome(decider, view(profile(threat=0.48), glance_threat=8 / 15)) == "false"  # rounding, not news


def test_the_glance_speaks_for_the_newest_profile_only():
    decider = decider_of([policy("threat > 0.5", matches=2, profiles=2)])
    assert outcome(decider, view(profile(105), profile(100), glance_threat=1.0)) == "false"
    assert outcome(decider, view(profile(105), profile(100, threat=0.9), glance_threat=1.0)) == "fired"


# --- for, cooldown, k of n


def test_for_waits_and_starts_again_after_a_break():
    decider = decider_of([policy(hold=10.0)])
    low = view(profile(cpu=0.1), at=5.0)
    assert not fires(decider, view(), 0.0)
    assert not fires(decider, view(), 9.9)
    assert outcome(decider, view(), 10.0) == "fired"
    assert not fires(decider, low, 9.95)
    assert not fires(decider, view(at=10.0), 10.0)
    assert not fires(decider, view(at=19.0), 19.9)
    assert fires(decider, view(at=20.0), 20.0)


def test_a_clock_set_back_neither_fires_nor_wedges():
    decider = decider_of([policy(hold=10.0, cooldown=20.0)])
    assert not fires(decider, view(at=1000.0), 1000.0)
    assert not fires(decider, view(at=1000.0), 500.0)
    assert not fires(decider, view(at=500.0), 509.0)
    assert fires(decider, view(at=510.0), 510.0)
    assert not fires(decider, view(profile(200, cpu=0.9), at=100.0), 100.0)  # now cooling
    assert not fires(decider, view(profile(200, cpu=0.9), at=119.0), 119.0)
    assert fires(decider, view(profile(200, cpu=0.9), at=120.0), 120.0)


def test_cooldown_is_per_network():
    decider = decider_of([policy(cooldown=60.0)])
    other = View("b", (profile(cpu=0.9),), 0.0)
    assert fires(decider, view(), 0.0)
    assert fires(decider, other, 1.0)
    decider.decide(view(profile(cpu=0.1)), 2.0)
    assert outcome(decider, view(profile(105, cpu=0.9), at=3.0), 3.0) == "cooling"
    assert outcome(decider, view(profile(160, cpu=0.9), at=60.0), 60.0) == "fired"


def test_k_of_n_profiles():
    decider = decider_of([policy(matches=2, profiles=3)])
    high, low = {"cpu": 0.9}, {"cpu": 0.1}
    assert outcome(decider, view(profile(1, **high))) == "too-few-profiles"
    assert outcome(decider, view(profile(2, **low), profile(1, **high))) == "false"
    assert outcome(decider, view(profile(3, **low), profile(2, **high), profile(1, **high))) == "fired"
    assert (
        outcome(decider, view(profile(4, **low), profile(3, **low), profile(2, **high), profile(1, **high))) == "false"
    )
    (firing,) = decider.decide(view(profile(2, **high), profile(1, **high)), 0.0)
    assert firing.reason == "cpu > 0.8 [cpu=0.9], in 2 of the last 2 profiles"


def test_has_asks_each_profile_under_its_own_epoch():
    decider = decider_of([policy('has("x=1")', matches=2, profiles=2)])
    assert fires(decider, view(profile(2, items=["x=1"]), profile(1, items=["x=1"])))


# --- edge and level


def test_an_edge_action_runs_once_until_it_was_false():
    decider = decider_of([policy()])
    assert fires(decider, view())
    assert outcome(decider, view(), 1.0) == "already"
    assert not fires(decider, view(profile(105, cpu=0.9), at=5.0), 5.0)
    assert not fires(decider, view(profile(110, cpu=0.1), at=6.0), 6.0)
    assert fires(decider, view(profile(115, cpu=0.9), at=7.0), 7.0)


def test_an_edge_action_with_a_cooldown_runs_again_on_news():
    decider = decider_of([policy(cooldown=10.0)])
    assert fires(decider, view())
    assert not fires(decider, view(), 10.0)  # the same statement
    assert fires(decider, view(profile(110, cpu=0.9), at=10.0), 10.0)


def test_quarantine_of_nodes():
    decider = decider_of([policy("threat > 0.5", do=NODE)])
    alarmed = profile(threat=0.9)
    assert outcome(decider, view(alarmed)) == "nothing-affected"
    assert not fires(decider, view(alarmed))
    first, second = ip_address("10.0.0.7"), ip_address("fd00::7")
    (firing,) = decider.decide(view(alarmed, affected=frozenset([first])), 1.0)
    assert firing.targets == (ip_network("10.0.0.7/32"),)
    assert not fires(decider, view(alarmed, affected=frozenset([first])), 2.0)
    (firing,) = decider.decide(view(alarmed, affected=frozenset([second, first])), 3.0)  # one more in the same epoch
    assert firing.targets == (ip_network("10.0.0.7/32"), ip_network("fd00::7/128"))


def test_quarantine_of_a_network():
    prefixes = (ip_network("10.0.0.0/24"), ip_network("fd00::/64"))
    decider = decider_of([policy("threat > 0.5", do=QuarantineAction(target="network"))])
    (firing,) = decider.decide(view(profile(threat=0.9), prefixes=prefixes), 0.0)
    assert firing.targets == prefixes


# --- which policies, and what is remembered


def test_a_policy_of_another_network_is_not_asked():
    decider = decider_of([policy(peer="b"), policy(peer="a", name="mine"), policy(name="all")])
    assert [f.policy.name for f in decider.decide(view(), 0.0)] == ["mine", "all"]


def test_state_is_bounded():
    decider = decider_of([policy(cooldown=5.0)])
    for i in range(50):
        decider.decide(View(f"n{i}", (profile(cpu=0.9),), 0.0), 0.0)
    assert len(decider._states) == 50
    decider.retain({"n1", "n2", "n3"})
    assert len(decider._states) == 3
    decider.decide(View("n1", (profile(cpu=0.1),), 6.0), 6.0)  # false, and cooled down
    assert len(decider._states) == 2


def test_reload_keeps_what_did_not_change():
    decider = decider_of([policy(name="same"), policy(name="changed")])
    assert fires(decider, view()) == 2
    decider.reload([policy(name="same"), policy("cpu > 0.7", name="changed"), policy(name="new")], amounts_of())
    assert [f.policy.name for f in decider.decide(view(), 1.0)] == ["changed", "new"]
    with pytest.raises(ValueError, match="column"):
        decider.reload([policy("cpu >")], amounts_of())
    assert len(decider.explain(view(), 1.0)) == 3


def test_explain_changes_nothing():
    decider = decider_of([policy()])
    assert outcome(decider, view()) == outcome(decider, view()) == "fired"
    assert decider.standings() == [Standing("p", {}, 0, None)]
    assert fires(decider, view())


def test_a_clock_that_was_set_back_brings_a_pause_that_was_over_back_once():
    decider = decider_of([policy(do=COMMAND, cooldown=11.0)])

    def at(now, epoch, cpu):
        seen = view(profile(epoch, cpu=cpu), at=now)
        return outcome(decider, seen, now), fires(decider, seen, now)

    assert at(1000.0, 1, 0.9) == ("fired", 1)
    assert at(1020.0, 2, 0.1) == ("false", 0)
    assert at(990.0, 3, 0.9) == ("cooling", 0)
    assert at(1002.0, 4, 0.1) == ("false", 0), "the pause is over, though the clock is no later than it was"
    assert at(995.0, 5, 0.9) == ("fired", 1)


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.booleans(), st.integers(0, 3)), max_size=40),
    st.sampled_from([0.0, 7.0]),
    st.sampled_from([0.0, 11.0]),
    st.sampled_from([COMMAND, WIDEN]),
)
@example([(0.0, True, 0), (20.0, False, 1), (-30.0, True, 2)], 0.0, 11.0, COMMAND)
def test_never_fires_when_false_nor_within_cooldown(steps, hold, cooldown, do):
    """Whatever the clock does: set back behind the firing the pause begins anew; what was over once stays over."""
    decider, now, last = decider_of([policy(do=do, hold=hold, cooldown=cooldown)]), 1000.0, None
    latest = now  # since the last firing
    for delta, true, epoch in steps:
        now += delta
        latest = max(latest, now)
        if last is not None and now < last:
            last = latest = now
        fired = fires(decider, view(profile(epoch, cpu=0.9 if true else 0.1), at=now), now)
        assert not (fired and not true)
        if fired:
            assert last is None or latest - last >= cooldown
            last = latest = now
