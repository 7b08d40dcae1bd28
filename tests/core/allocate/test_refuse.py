"""Which senders are taken out of firings."""

from dataclasses import replace
from ipaddress import ip_network

import pytest
from firings import firing

from scentd.core.allocate import plan
from scentd.core.allocate.actions.quarantine import QuarantineAction
from scentd.core.allocate.actions.webhook import WebhookAction
from scentd.core.allocate.refuse import RELEASES_MAX, TOLD_AGAIN, TOLD_MAX, HandRelease, Refuser, selection
from scentd.errors import HostError
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


# -- released by hand --------------------------------------------------------


def test_the_same_policy_does_not_renew_what_was_released():
    made = refuser("198.51.100.0/24")
    made.release([HandRelease("p", "a", ip_network("192.0.2.0/24"), 100.0)])

    def quarantined(at, target, **more):
        return bool(made.sift([firing(QUARANTINE, at, (target,), **more)])[0])

    assert not quarantined(50.0, NODE)
    assert not quarantined(50.0, PeerPrefix(NODE, "a"))
    assert quarantined(50.0, OTHER)
    assert quarantined(50.0, ip_network("192.0.0.0/16"))  # more than was released
    assert quarantined(50.0, NODE, name="q")
    assert quarantined(50.0, NODE, peer="b")
    made.reload(())
    assert not quarantined(99.9, NODE)
    assert quarantined(100.0, NODE)


def test_a_release_of_a_peer_is_of_all_its_senders_and_can_be_longer():
    made = refuser("198.51.100.0/24")
    made.release([HandRelease("p", "a", None, 100.0)])
    made.release([HandRelease("p", "a", None, 200.0)])
    (release,) = made.releases(150.0)
    left, (decision,) = made.sift([firing(QUARANTINE, 150.0, (NODE, OTHER))])
    assert (left, release.until) == ([], 200.0)
    assert decision.after == "refused: released by hand until 1970-01-01T00:03:20.000Z"
    assert made.releases(200.0) == []


def test_so_many_releases_hold():
    made = refuser("198.51.100.0/24")
    made.release(HandRelease("p", "a", ip_network((i, 32)), 100.0) for i in range(RELEASES_MAX))
    with pytest.raises(HostError, match="releases hold already"):
        made.release([HandRelease("p", "a", OTHER, 100.0)])
    assert len(made.releases(0.0)) == RELEASES_MAX


def test_what_an_operator_may_name():
    assert selection("acme", ["acme"]).has(NODE, "acme")
    assert not selection("acme", ["acme"]).has(NODE, "b")
    assert selection("192.0.2.0/24", ["acme"]).has(NODE, "acme")
    assert selection("192.0.2.7", []).has(PeerPrefix(NODE, "a"), "a")
    assert not selection("192.0.2.8", []).has(NODE, "a")
    for wrong in ("nobody", "192.0.2.7/24", ""):
        with pytest.raises(HostError, match="no peer of that name"):
            selection(wrong, ["acme"])
