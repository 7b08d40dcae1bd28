"""Which senders are taken out of firings."""

from dataclasses import replace
from ipaddress import ip_network

import pytest
from firings import firing

from scentd.core.allocate import plan
from scentd.core.allocate.actions.quarantine import QuarantineAction
from scentd.core.allocate.actions.webhook import WebhookAction
from scentd.core.allocate.refuse import TOLD_AGAIN, TOLD_MAX, Refuser
from scentd.model import Desired, PeerPrefix
from scentd.prefix import prefixes

QUARANTINE = QuarantineAction(timeout=60.0)
NODE, OTHER = ip_network("192.0.2.7/32"), ip_network("10.0.0.7/32")


def refuser(*protected):
    return Refuser(prefixes(protected or ("192.0.2.0/24", "2001:db8::/64")))


@pytest.mark.parametrize(
    ("target", "by"),
    [
        ("192.0.2.7", "192.0.2.0/24"),  # a node inside
        ("192.0.2.128/25", "192.0.2.0/24"),  # a network inside
        ("192.0.0.0/16", "192.0.2.0/24"),  # a network around it
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::/32", "2001:db8::/64"),
        ("192.0.3.7", ""),
        ("192.0.3.0/24", ""),
        ("2001:db8:0:1::/64", ""),
        ("::c000:207", ""),  # the number of a protected IPv4 address
    ],
)
def test_what_overlaps_a_protected_prefix_is_refused(target, by):
    prefix = ip_network(target)
    for sender in (prefix, PeerPrefix(prefix, "a")):  # also where only packets with the peer's key would be dropped
        left, decisions = refuser().sift([firing(QUARANTINE, targets=(sender,))])
        assert [d.after for d in decisions] == ([f"refused: protected by {by}"] if by else [])
        assert [f.targets for f in left] == ([] if by else [(sender,)])


def test_the_other_targets_of_a_firing_are_left():
    (left,), (decision,) = refuser().sift([firing(QUARANTINE, targets=(NODE, OTHER))])
    assert left.targets == (OTHER,)
    assert (decision.action, decision.target, decision.before) == ("quarantine", "192.0.2.7", "free")
    assert (decision.peer, decision.policy, decision.reason) == ("a", "p", "cpu > 0.8 [cpu=0.9]")


def test_actions_without_targets_are_left():
    one = firing(WebhookAction(url="http://127.0.0.1/"))
    assert refuser("0.0.0.0/0").sift([one]) == ([one], [])


def test_a_refusal_is_told_once_while_it_stands_and_for_each_new_sender():
    made = refuser()
    near = tuple(ip_network(f"192.0.2.{i}") for i in range(3))

    def told(at, *targets):
        return [d.target for d in made.sift([firing(QUARANTINE, at, targets)])[1]]

    assert told(0.0, *near) == ["192.0.2.0 and 2 more"]
    assert told(5.0, *near) == []
    assert told(10.0, *near, NODE) == ["192.0.2.7"]
    assert told(TOLD_AGAIN - 0.1, NODE) == []
    assert told(TOLD_AGAIN, NODE) == ["192.0.2.7"]
    assert told(1.0, NODE) == ["192.0.2.7"]  # the clock was set back


def test_what_is_remembered_is_bounded():
    made = refuser("0.0.0.0/0")
    for i in range(20):
        targets = tuple(ip_network((1000 * i + j, 32)) for j in range(1000))
        (decision,) = made.sift([firing(QUARANTINE, float(i), targets)])[1]
        assert decision.target.endswith(" and 999 more")
        assert all(len(told.senders) <= TOLD_MAX + 1000 for told in made._told.values())


def test_what_becomes_protected_is_released():
    held = plan.plan(Desired(), [firing(QUARANTINE, 0.0, (NODE, OTHER))]).desired
    made = refuser("198.51.100.0/24")
    made.reload(prefixes(["192.0.2.0/24"]))
    after = plan.release_where(held, lambda sender, _: made.protects(sender), 1.0)
    assert list(after.desired.of("quarantine")) == [OTHER]
    (decision,) = after.decisions
    assert (decision.action, decision.target, decision.after) == ("release", "192.0.2.7", "free")
    assert decision.reason == "protected by 192.0.2.0/24"


def test_policies_and_peers_are_told_apart():
    made = refuser()
    one = firing(QUARANTINE, 0.0, (NODE,))
    assert len(made.sift([one, replace(one, peer="b"), firing(QUARANTINE, 0.0, (NODE,), name="q")])[1]) == 3
