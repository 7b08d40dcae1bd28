"""One amount of what all policies wish: precedence, bounds, steps, budgets, oscillation, holding, what survives."""

import math

import pytest

from scentd.config.budget import Budget
from scentd.config.resource import Resource
from scentd.core.allocate.amounts import Amounts
from scentd.core.allocate.entry import PAUSE, Wish
from scentd.model import PriorWish


class Rate(Resource, tag_field="kind", tag="rate"):
    """A toy kind whose amounts are no whole numbers."""

    whole = False
    unit = "bit/s"


class Watch(Resource, tag_field="kind", tag="watch"):
    """A toy kind of which more is safer."""

    stricter = "more"


def made(resource=None, budgets=(), peers=("a",), observed=2.0, **more):
    resource = resource or Resource(name="r", minimum=0.0, maximum=10.0, **more)
    amounts = Amounts([resource], list(budgets), peers)
    amounts.observe(resource.name, dict.fromkeys(peers, observed), (), 0.0)
    amounts.take_changes()
    return amounts


def wish(amounts, policy, amount, purpose=None, until=math.inf, peer="a"):
    amounts.wish(policy, "r", peer, Wish(amount, purpose, until, 100, f"because of {policy}"))


def desired(amounts, peer="a"):
    return next(entry.desired for (_, p), entry in amounts.entries() if p == peer)


def settled(amounts, now=1000.0, peer="a"):
    amounts.settle(now)
    return desired(amounts, peer)


def test_what_is_there_is_taken_over_within_the_bounds():
    amounts = Amounts([Resource(name="r", minimum=1.0, maximum=5.0, normal=2.0)], [], ["a", "b", "c"])
    assert amounts.take_changes() == {}
    amounts.observe("r", {"a": 4.0, "b": 9.0}, (), 0.0)
    assert amounts.take_changes() == {"r": {"a": 4.0, "b": 5.0, "c": 2.0}}


def test_growth_before_saving_and_safety_before_all():
    amounts = made(observed=3.0)
    wish(amounts, "save", 1.0)
    assert settled(amounts) == 1.0
    wish(amounts, "grow", 6.0)
    assert settled(amounts) == 6.0
    wish(amounts, "more", 8.0)
    assert settled(amounts) == 8.0
    wish(amounts, "narrow", 2.0, "safety")
    wish(amounts, "narrower", 1.0, "safety")
    assert settled(amounts) == 1.0
    amounts.withdraw("narrower", "r", "a")
    amounts.withdraw("narrow", "r", "a")
    assert settled(amounts) == 8.0
    amounts.withdraw("more", "r", "a")
    assert settled(amounts) == 6.0, "no wish keeps more than that"
    amounts.withdraw("grow", "r", "a")
    assert settled(amounts) == 1.0
    amounts.withdraw("save", "r", "a")
    assert settled(amounts) == 1.0, "without a wish the amount stays"


def test_more_is_stricter_for_some_kinds():
    amounts = made(Watch(name="r", minimum=0.0, maximum=3.0), observed=0.0)
    wish(amounts, "one", 1.0, "safety")
    wish(amounts, "two", 3.0, "safety")
    assert settled(amounts) == 3.0


def test_a_decision_names_the_policy_that_counts():
    amounts = made()
    wish(amounts, "small", 4.0)
    wish(amounts, "large", 7.0)
    (decision,) = amounts.settle(5.0)
    assert (decision.policy, decision.peer, decision.target, decision.epoch) == ("large", "a", "r", 100)
    assert (decision.before, decision.after, decision.reason) == ("2", "7", "because of large")
    assert amounts.settle(6.0) == []
    assert amounts.take_changes() == {"r": {"a": 7.0}}
    assert amounts.take_changes() == {}


def test_a_wish_with_a_timeout_ends_and_the_amount_is_normal_again():
    amounts = made(normal=3.0, observed=3.0)
    wish(amounts, "p", 9.0, until=60.0)
    assert settled(amounts, 10.0) == 9.0
    amounts.withdraw("p", "r", "a")
    assert settled(amounts, 59.9) == 9.0, "that the policy holds no longer does not end it"
    (decision,) = amounts.settle(60.0)
    assert (desired(amounts), decision.reason) == (3.0, "the wish of p ended")


def test_bounds_whole_numbers_and_steps():
    amounts = made(observed=2.0, step=2.0)
    wish(amounts, "p", 99.0)
    assert settled(amounts) == 4.0
    assert settled(amounts, 1001.0) == 4.0, "the next step waits until the first is there"
    amounts.observe("r", {"a": 4.0}, (), 1002.0)
    assert settled(amounts, 1002.0) == 6.0
    amounts.observe("r", {}, (), 1003.0)
    assert settled(amounts, 1003.0) == 6.0, "what fails is no reason to want less"
    wish(amounts, "s", 0.2, "safety")
    assert settled(amounts, 1004.0) == 1.0, "safety takes any step; whole numbers are rounded up"


def test_amounts_of_some_kinds_are_not_whole():
    amounts = made(Rate(name="r", minimum=0.0, maximum=1e9), observed=1e6)
    wish(amounts, "p", 1.5e6 + 0.25)
    assert settled(amounts) == 1.5e6 + 0.25


def test_nothing_is_taken_back_while_an_addition_takes_effect():
    amounts = made(provide=30.0)
    wish(amounts, "up", 5.0)
    assert settled(amounts, 100.0) == 5.0
    amounts.withdraw("up", "r", "a")
    wish(amounts, "down", 1.0)
    assert settled(amounts, 110.0) == 5.0
    assert settled(amounts, 129.9) == 5.0
    assert settled(amounts, 130.0) == 1.0, "it is looked at again by itself"


def test_one_thing_after_the_other_is_taken_back():
    amounts = made(observed=5.0, take_back=30.0, step=1.0)
    wish(amounts, "down", 0.0)
    assert settled(amounts, 100.0) == 4.0
    amounts.observe("r", {"a": 4.0}, (), 101.0)
    assert settled(amounts, 101.0) == 4.0
    assert settled(amounts, 130.0) == 3.0


def test_what_is_protected_is_never_taken_back():
    amounts = made(protected=True)
    wish(amounts, "down", 0.0)
    assert settled(amounts) == 2.0
    wish(amounts, "up", 5.0)
    assert settled(amounts) == 5.0
    wish(amounts, "narrow", 0.0, "safety")
    assert settled(amounts) == 0.0


def test_an_oscillation_is_named_and_stops_taking_back():
    amounts, said = made(), []
    for i in range(8):
        now = 100.0 + 10 * i
        amounts.withdraw("down" if i % 2 == 0 else "up", "r", "a")
        wish(amounts, *(("up", 5.0) if i % 2 == 0 else ("down", 1.0)))
        said += amounts.settle(now)
    (named,) = [d for d in said if d.action == "oscillation"]
    assert "down and up" in named.reason
    assert (named.peer, named.target) == ("a", "r")
    assert desired(amounts) == 5.0
    wish(amounts, "up", 6.0)
    assert settled(amounts, 181.0) == 6.0, "it is still raised"
    amounts.withdraw("up", "r", "a")
    wish(amounts, "down", 1.0)
    assert settled(amounts, 182.0) == 6.0
    assert settled(amounts, 182.0 + PAUSE) == 1.0


# --- others, and silence


@pytest.mark.parametrize(("drift", "after"), [("correct", 4.0), ("report", 1.0)])
def test_a_change_by_hand_is_told_and_corrected_or_taken_over(drift, after):
    amounts = made(observed=4.0, drift=drift)
    (decision,) = amounts.observe("r", {"a": 1.0}, ("a",), 9.0)
    assert (decision.action, decision.peer, decision.target) == ("drift", "a", "r")
    assert desired(amounts) == after
    assert amounts.bounds("r", "a")["current"] == 1.0


def test_a_silent_peer_gets_the_fallback_once():
    amounts = made(fallback=6.0, fallback_after=60.0)
    wish(amounts, "p", 3.0)
    assert settled(amounts, 10.0) == 3.0
    assert amounts.silent("a", 0.0, 60.0) == []
    (decision,) = amounts.silent("a", 0.0, 61.0)
    assert (desired(amounts), decision.reason) == (6.0, "no profile for 60 s: fallback")
    assert amounts.silent("a", 0.0, 62.0) == []
    wish(amounts, "p", 3.0)
    assert settled(amounts, 100.0) == 3.0


def test_what_is_held_stays_until_it_is_resumed():
    amounts = made(peers=("a", "b"))
    for names in (["a"], ["r"], ["*"]):
        amounts.hold(names)
        wish(amounts, "p", 7.0)
        assert settled(amounts) == 2.0
    wish(amounts, "p", 7.0, peer="b")
    amounts.hold(["a"])
    assert settled(amounts, peer="b") == 7.0
    amounts.hold([])
    assert settled(amounts) == 7.0


# --- budgets


def test_a_short_budget_is_shared_fairly():
    peers = [f"n{i}" for i in range(1000)]
    amounts = made(budgets=[Budget(name="east", resources=["r"], total=2500.0)], peers=peers)
    for peer in peers:
        wish(amounts, "p", 10.0, peer=peer)
    decisions = amounts.settle(1.0, share_all=False)
    assert decisions == [], "a short budget waits for the next second"
    decisions = amounts.settle(2.0)
    got = [entry.desired for _, entry in amounts.entries()]
    assert sum(got) == 2500
    assert set(got) == {2.0, 3.0}
    assert "budget east: 10 asked, a fair share of 2500" in decisions[0].reason
    for peer in peers[:900]:
        amounts.withdraw("p", "r", peer)
        wish(amounts, "q", 0.0, peer=peer)
    amounts.settle(3.0)
    assert {entry.desired for (_, peer), entry in amounts.entries() if peer in peers[900:]} == {10.0}


def test_a_budget_that_is_enough_delays_nothing():
    amounts = made(budgets=[Budget(name="east", resources=["r"], total=20.0)], peers=("a", "b"))
    wish(amounts, "p", 9.0)
    amounts.settle(1.0, share_all=False)
    assert desired(amounts) == 9.0


# --- restart


def test_what_was_decided_survives_and_bounds_are_kept():
    amounts = made(observed=2.0)
    wish(amounts, "kept", 5.0)
    wish(amounts, "gone", 8.0)
    amounts.settle(10.0)
    again = Amounts([Resource(name="r", minimum=0.0, maximum=6.0)], [], ["a"])
    again.adopt(amounts.entries(), {"kept"}, 11.0)
    assert again.take_changes() == {"r": {"a": 6.0}}
    assert settled(again, 12.0) == 5.0, "the policy that wanted 8 is gone"
    assert again.take_unsaved().keys() == {("r", "a")}


def test_what_a_host_was_told_counts_for_more_than_what_there_is():
    amounts = Amounts([Resource(name="r", minimum=0.0, maximum=10.0)], [], ["a", "b"])
    amounts.observe("r", {"a": 1.0, "b": 2.0}, (), 0.0, {"a": PriorWish(6.0, policy="p", since=50.0)})
    assert (desired(amounts), desired(amounts, "b")) == (6.0, 2.0)
    entry = amounts.entry("r", "a")
    assert (entry.changed_by, entry.changed_at, entry.grown_at) == ("p", 50.0, 50.0)


def test_who_follows_has_what_the_other_wants_and_no_wishes():
    amounts = made(observed=2.0)
    wish(amounts, "grow", 9.0)
    amounts.follow("r", {"a": 3.0}, {"a": PriorWish(4.0)})
    assert settled(amounts) == 4.0
    amounts.follow("r", {"a": 5.0}, {})
    assert settled(amounts) == 5.0
    amounts.follow("other", {"a": 5.0}, {})


def test_a_wish_of_the_other_ends_at_its_time():
    amounts = made(observed=2.0, normal=1.0)
    amounts.purposes = {"cut": "safety"}
    amounts.follow("r", {"a": 0.0}, {"a": PriorWish(0.0, 2000.0, "cut", 900.0)})
    wish(amounts, "grow", 9.0)
    assert settled(amounts, 1999.0) == 0.0, "safety before all"
    amounts.withdraw("grow", "r", "a")
    assert settled(amounts, 2001.0) == 1.0


def test_which_wishes_stand_for_longer():
    amounts = made(observed=2.0)
    wish(amounts, "p", 5.0)
    amounts.settle(1000.0)
    assert amounts.take_renewed() == set()
    wish(amounts, "q", 6.0, until=2000.0)
    amounts.settle(1000.0)
    wish(amounts, "q", 6.0, until=2005.0)
    amounts.settle(1005.0)
    assert amounts.take_renewed() == {("r", "a")}
    assert amounts.take_renewed() == set()


def test_what_is_begun_anew_is_taken_over_as_at_first():
    amounts = made(observed=2.0)
    wish(amounts, "p", 5.0)
    amounts.begin_anew(["r"])
    amounts.observe("r", {"a": 7.0}, (), 0.0)
    assert settled(amounts) == 7.0


def test_what_is_followed_is_taken_once_and_again_after_this_one_has_decided():
    amounts = made(observed=2.0)
    amounts.follow("r", {"a": 3.0}, {"a": PriorWish(4.0)})
    amounts.take_unsaved()
    amounts.follow("r", {"a": 3.5}, {"a": PriorWish(4.0)})
    assert (amounts.take_unsaved(), amounts.entry("r", "a").observed) == ({}, 3.5)
    amounts.observe("r", {"a": 4.0}, (), 1000.0)
    wish(amounts, "grow", 9.0)
    assert settled(amounts) == 9.0
    amounts.follow("r", {"a": 4.0}, {"a": PriorWish(4.0)})
    assert settled(amounts) == 4.0
