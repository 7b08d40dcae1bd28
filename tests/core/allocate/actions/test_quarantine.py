"""What quarantine makes of firings."""

from ipaddress import ip_network

from firings import EMPTY, firing

from scentd.core.allocate import plan
from scentd.core.allocate.actions.quarantine import QUARANTINED_MAX, QuarantineAction, QuarantineEntry
from scentd.model import Desired

NODE, OTHER = ip_network("10.0.0.7/32"), ip_network("fd00::7/128")
QUARANTINE = QuarantineAction(timeout=60.0)


def test_quarantine_is_extended_and_released_at_its_time():
    first = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (NODE, OTHER))], 0.0)
    assert {p: c.until for p, c in first.desired.of("quarantine").items()} == {NODE: 60.0, OTHER: 60.0}
    second = plan.plan(first.desired, [firing(QUARANTINE, 10.0, (NODE,), epoch=105)], 10.0)
    assert second.desired.of("quarantine")[NODE].until == 70.0
    (decision,) = second.decisions
    assert decision.before == "quarantined until 1970-01-01T00:01:00.000Z"
    assert decision.after == "quarantined until 1970-01-01T00:01:10.000Z"
    third = plan.plan(second.desired, [], 60.0)
    assert list(third.desired.of("quarantine")) == [NODE]
    (release,) = third.decisions
    assert (release.action, release.target, release.after, release.policy) == ("release", "fd00::7", "free", "p")
    assert plan.plan(third.desired, [], 70.0).desired == EMPTY


def test_a_decision_says_who_and_why():
    (decision,) = plan.plan(EMPTY, [firing(QUARANTINE, 1.0, (NODE,))], 1.0).decisions
    assert (decision.at, decision.peer, decision.policy, decision.epoch) == (1.0, "a", "p", 100)
    assert (decision.action, decision.target, decision.before) == ("quarantine", "10.0.0.7", "free")
    assert decision.reason == "cpu > 0.8 [cpu=0.9]"


def test_renewed_at_the_last_moment_leaves_no_gap():
    held = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (NODE,))], 0.0).desired
    renewed = plan.plan(held, [firing(QUARANTINE, 60.0, (NODE,))], 60.0)
    assert [d.action for d in renewed.decisions] == ["quarantine"]


def test_a_shorter_policy_does_not_shorten():
    held = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (NODE,))], 0.0).desired
    same = plan.plan(held, [firing(QuarantineAction(timeout=5.0), 1.0, (NODE,))], 1.0)
    assert same.desired == held
    assert same.decisions == ()


def test_a_clock_set_back_does_not_lengthen():
    held = plan.plan(EMPTY, [firing(QUARANTINE, 10_000.0, (NODE,))], 10_000.0).desired
    back = plan.plan(held, [], 1000.0).desired
    assert back.of("quarantine")[NODE].until == 1060.0


def test_every_address_and_too_many_are_refused():
    everything = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (ip_network("::/0"),))], 0.0)
    assert everything.desired == EMPTY
    assert "refused" in everything.decisions[0].after
    held = QuarantineEntry(60.0, 60.0, "a", "p", 1)
    full = Desired({"quarantine": {ip_network((i, 32)): held for i in range(QUARANTINED_MAX)}})
    more = plan.plan(full, [firing(QUARANTINE, 0.0, (NODE, OTHER))], 0.0)
    assert len(more.desired.of("quarantine")) == QUARANTINED_MAX
    assert ["refused" in d.after for d in more.decisions] == [True]
