"""Policies that ask for amounts, when policies are looked at again, and what a restart knows."""

from dataclasses import replace
from ipaddress import ip_network

import pytest
from allocating import COMMAND, amounts_of, decider_of, fires, outcome, policy, profile, view

from scentd.config.resource import Resource
from scentd.core.allocate.actions.amount import AmountAction
from scentd.core.allocate.actions.quarantine import QuarantineAction
from scentd.core.allocate.amounts import Amounts

WIDEN = AmountAction(resource="rate", by=10)


def test_an_amount_takes_one_step_for_a_statement():
    amounts = amounts_of()
    decider = decider_of([policy(do=WIDEN)], amounts)
    assert [fires(decider, view(), t) for t in (0.0, 1.0, 2.0)] == [1, 0, 0]
    amounts.observe("rate", {"a": 20.0}, (), 3.0)
    assert not fires(decider, view(), 3.0), "the statement is the same"
    assert not fires(decider, view(profile(105, cpu=0.9), at=5.0), 5.0), "it was measured while there were ten"
    (firing,) = decider.decide(view(profile(110, cpu=0.9), at=10.0), 10.0)
    assert firing.asked == 30.0


def test_a_change_is_not_counted_twice():
    """Two thirds more serve; the next profile was measured before, and the one after it has the effect."""
    amounts = amounts_of(3.0)
    rule = policy(do=AmountAction(resource="rate", to="ceil(current * cpu / 0.6)"), expression="cpu > 0.0")
    decider = decider_of([rule], amounts)
    assert [f.asked for f in decider.decide(view(profile(100, cpu=0.9)), 0.0)] == [5.0]
    amounts.observe("rate", {"a": 5.0}, (), 3.0)
    assert not fires(decider, view(profile(105, cpu=0.9), at=5.0), 5.0)
    assert not fires(decider, view(profile(110, cpu=0.55), at=10.0), 10.0), "5 of 0.55 are as many as 5"


def test_an_amount_that_was_asked_for_is_not_asked_for_again():
    decider = decider_of([policy(do=AmountAction(resource="rate", to=25.0))])
    assert [f.asked for f in decider.decide(view(), 0.0)] == [25.0]
    for epoch in (105, 110):
        later = view(profile(epoch, cpu=0.9), at=epoch)
        assert outcome(decider, later, epoch) == "already"
        assert not fires(decider, later, epoch)


@pytest.mark.parametrize(
    ("to", "asked"),
    [
        ("ceil(current * cpu / 0.7)", 13.0),
        ("maximum * 2.0", 50.0),
        ("minimum - 5.0", 0.0),
        ("cpu > 0.8 ? 3 : 4", 3.0),
        ("current / (cpu - cpu)", None),
        ("current * memory", None),
    ],
)
def test_amounts_by_expression(to, asked):
    """By 10 that there are and a cpu of 0.9; within the resource's bounds; without a number nothing is asked for."""
    decider = decider_of([policy(do=AmountAction(resource="rate", to=to))])
    firings = decider.decide(view(), 0.0)
    assert [f.asked for f in firings] == ([asked] if asked is not None else [])
    assert asked is not None or outcome(decider, view()) == "no-amount"


def test_a_wish_is_withdrawn_when_its_policy_holds_no_longer():
    amounts = amounts_of()
    decider = decider_of([policy(do=AmountAction(resource="rate", to=25.0))], amounts)
    decider.decide(view(), 0.0)
    assert set(amounts.bounds("rate", "a")) == {"current", "minimum", "maximum"}
    assert wishes(amounts) == {"p"}
    decider.decide(view(profile(105, cpu=0.1), at=5.0), 5.0)
    assert wishes(amounts) == set()


def wishes(amounts):
    return {policy for _, entry in amounts.entries() for policy in entry.wishes}


def test_a_policy_for_all_asks_for_a_resource_of_one_peer_for_that_one():
    amounts = Amounts([Resource(name="rate", peer="b", minimum=0.0, maximum=9.0)], [], ["a", "b"])
    decider = decider_of([policy(do=WIDEN)], amounts)
    assert decider.explain(view(), 0.0) == []
    assert not fires(decider, view())
    assert [f.asked for f in decider.decide(replace(view(), peer="b"), 0.0)] == [9.0]


def test_a_dry_run_wishes_nothing():
    amounts = amounts_of()
    decider = decider_of([policy(do=WIDEN, dry_run=True)], amounts)
    assert [f.asked for f in decider.decide(view(), 0.0)] == [20.0]
    assert wishes(amounts) == set()


# --- when to look again


def test_waiting_and_stale_policies_are_due_at_their_time():
    decider = decider_of([policy(hold=7.0)])
    assert not fires(decider, view(), 0.0)
    assert decider.due(6.9) == []
    assert decider.due(7.0) == ["a"]
    assert fires(decider, view(), 7.0)
    assert decider.due(15.0) == []
    assert decider.due(15.1) == ["a"], "three intervals after the profile it is stale"
    assert outcome(decider, view(), 15.1) == "stale"


def test_a_policy_in_its_pause_is_due_after_it():
    decider = decider_of([policy(cooldown=4.0)])
    fires(decider, view(), 0.0)
    decider.decide(view(profile(105, cpu=0.9), at=1.0), 1.0)
    assert decider.due(4.0) == ["a"]


def test_expressions_of_age_are_due_every_second():
    decider = decider_of([policy("age > 2.5")])
    assert [fires(decider, view(), now) for now in (0.0, 1.0, 2.0)] == [0, 0, 0]
    assert decider.due(3.0) == ["a"]
    assert fires(decider, view(), 3.0)


def test_a_policy_that_is_false_is_never_due():
    decider = decider_of([policy("cpu > 0.95")])
    fires(decider, view(), 0.0)
    assert decider.due(1e9) == []


def test_states_survive_a_restart():
    decider = decider_of([policy(cooldown=60.0), policy(name="gone")])
    fires(decider, view(), 0.0)
    kept = decider.take_unsaved()
    assert decider.take_unsaved() == {}
    again = decider_of([policy(cooldown=60.0)])
    again.restore(kept)
    later = view(profile(105, cpu=0.9), at=5.0)
    assert outcome(again, later, 5.0) == "cooling"
    assert [s.true_now for s in again.standings()] == [1]


def test_what_several_allocators_do_each_for_itself_is_what_it_keeps_on_its_host():
    kept = policy(name="kept", do=QuarantineAction(target="network"))
    decider = decider_of([policy(do=WIDEN), policy(name="told", do=COMMAND), kept])
    seen = view(prefixes=(ip_network("10.0.0.0/24"),))
    assert [f.policy.name for f in decider.decide(seen, 0.0, only_here=True)] == ["kept"]
    assert [f.policy.name for f in decider.decide(seen, 0.0)] == ["p", "told"]


def test_who_decides_again_asks_again():
    decider = decider_of([policy(do=AmountAction(resource="rate", to=25.0))])
    assert fires(decider, view(), 0.0)
    decider.ask_again()
    assert [f.asked for f in decider.decide(view(), 1.0)] == [25.0]
    assert not fires(decider, view(), 2.0)


def test_what_another_allocator_has_fired_is_not_fired_again_for_the_statement():
    decider = decider_of([policy(do=WIDEN)])
    decider.fired_elsewhere("p", "a", 1.0, 100)
    assert not fires(decider, view(), 2.0)
    assert fires(decider, view(profile(105, cpu=0.9), at=5.0), 5.0)
    decider.fired_elsewhere("gone", "a", 1.0, 100)


def test_a_cooldown_runs_on_at_another_allocator():
    decider = decider_of([policy(do=WIDEN, cooldown=60.0)])
    decider.fired_elsewhere("p", "a", 10.0, None)
    assert outcome(decider, view(at=20.0), 20.0) == "cooling"
    assert fires(decider, view(profile(160, cpu=0.9), at=70.0), 70.0)
