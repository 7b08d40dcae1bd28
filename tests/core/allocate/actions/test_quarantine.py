"""What quarantine makes of firings."""

from ipaddress import ip_address, ip_network

from firings import EMPTY, firing

from scentd.core.allocate import plan
from scentd.core.allocate.actions import ACTIONS
from scentd.core.allocate.actions.quarantine import (
    LISTED_MAX,
    OF_PEER_MAX,
    QUARANTINED_MAX,
    QuarantineAction,
    QuarantineEntry,
    seconds_left,
)
from scentd.model import Desired, PeerPrefix, View

NODE, OTHER = ip_network("10.0.0.7/32"), ip_network("fd00::7/128")
QUARANTINE = QuarantineAction(timeout=60.0)


def test_quarantine_is_extended_and_released_at_its_time():
    first = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (NODE, OTHER))])
    assert {p: c.until for p, c in first.desired.of("quarantine").items()} == {NODE: 60.0, OTHER: 60.0}
    second = plan.plan(first.desired, [firing(QUARANTINE, 10.0, (NODE,), epoch=105)])
    assert second.desired.of("quarantine")[NODE].until == 70.0
    (decision,) = second.decisions
    assert decision.before == "quarantined until 1970-01-01T00:01:00.000Z"
    assert decision.after == "quarantined until 1970-01-01T00:01:10.000Z"
    third = plan.release(second.desired, 60.0)
    assert list(third.desired.of("quarantine")) == [NODE]
    (release,) = third.decisions
    assert (release.action, release.target, release.after, release.policy) == ("release", "fd00::7", "free", "p")
    assert plan.release(third.desired, 70.0).desired == EMPTY


def test_a_decision_says_who_and_why():
    (decision,) = plan.plan(EMPTY, [firing(QUARANTINE, 1.0, (NODE,))]).decisions
    assert (decision.at, decision.peer, decision.policy, decision.epoch) == (1.0, "a", "p", 100)
    assert (decision.action, decision.target, decision.before) == ("quarantine", "10.0.0.7", "free")
    assert decision.reason == "cpu > 0.8 [cpu=0.9]"


def test_renewed_at_the_last_moment_leaves_no_gap():
    held = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (NODE,))]).desired
    renewed = plan.plan(held, [firing(QUARANTINE, 60.0, (NODE,))])
    assert [d.action for d in renewed.decisions] == ["quarantine"]


def test_a_shorter_policy_does_not_shorten():
    held = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (NODE,))]).desired
    same = plan.plan(held, [firing(QuarantineAction(timeout=5.0), 1.0, (NODE,))])
    assert same.desired == held
    assert same.decisions == ()


def test_a_clock_set_back_does_not_lengthen():
    held = plan.plan(EMPTY, [firing(QUARANTINE, 10_000.0, (NODE,))]).desired
    back = plan.release(held, 1000.0).desired
    assert back.of("quarantine")[NODE].until == 1060.0


def test_every_address_and_too_many_are_refused():
    everything = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (ip_network("::/0"),))])
    assert everything.desired == EMPTY
    assert "refused" in everything.decisions[0].after
    held = QuarantineEntry(60.0, 60.0, "b", "p", 1)
    full = Desired({"quarantine": {ip_network((i, 32)): held for i in range(QUARANTINED_MAX)}})
    more = plan.plan(full, [firing(QUARANTINE, 0.0, (NODE, OTHER))])
    assert len(more.desired.of("quarantine")) == QUARANTINED_MAX
    assert ["refused" in d.after for d in more.decisions] == [True]


def test_where_others_have_the_address_only_packets_of_the_key_are_meant():
    """Each of the two who share it is quarantined by itself, and nftables gets neither."""
    shared = (ip_network("10.0.0.0/24"),)
    kind, network = ACTIONS["quarantine"], QuarantineAction(target="network", timeout=60.0)
    prefixes = (ip_network("10.0.0.0/16"), ip_network("192.0.2.1/32"))
    view = View("a", (), 0.0, prefixes=prefixes, affected=frozenset((ip_address("10.0.0.7"),)), shared=shared)
    assert kind.targets(network, view) == (PeerPrefix(prefixes[0], "a"), prefixes[1])
    assert kind.targets(QUARANTINE, view) == (PeerPrefix(NODE, "a"),)
    both = [firing(QUARANTINE, 0.0, (PeerPrefix(NODE, peer),), peer=peer) for peer in ("a", "b")]
    made = plan.plan(EMPTY, both)
    (decision, _) = made.decisions
    assert decision.target == "10.0.0.7 of a"
    assert decision.after.endswith("packets with its key alone: other peers share the address")
    resources = made.desired.of("quarantine")
    assert seconds_left(resources, 0.0) == {}
    assert kind.barred_senders(resources) == {PeerPrefix(NODE, "a"): 60.0, PeerPrefix(NODE, "b"): 60.0}
    assert [r.resource for r in kind.describe(resources)] == ["10.0.0.7 of a", "10.0.0.7 of b"]
    everybody = firing(QUARANTINE, 0.0, (PeerPrefix(ip_network("0.0.0.0/0"), "a"),))
    assert len(plan.plan(EMPTY, [everybody]).desired.of("quarantine")) == 1


def test_an_address_that_others_have_by_now_is_released():
    """The policy fires again, and then for the peer alone."""
    quarantined = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (NODE,))]).desired
    policies = [firing(QUARANTINE).policy]
    assert plan.reload(quarantined, policies, {"a": ()}, 1.0).desired == quarantined
    released = plan.reload(quarantined, policies, {"a": (ip_network("10.0.0.0/8"),)}, 1.0)
    assert released.desired == EMPTY
    assert [d.action for d in released.decisions] == ["release"]
    narrowed = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (PeerPrefix(NODE, "a"),))]).desired
    assert plan.reload(narrowed, policies, {"a": ()}, 1.0).desired == narrowed


def test_one_peer_cannot_take_all_the_room():
    """It gets a sixteenth; another peer still gets its own. What is refused is one decision."""
    many = tuple(ip_network((i, 32)) for i in range(OF_PEER_MAX + 37))
    first = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, many)])
    assert len(first.desired.of("quarantine")) == OF_PEER_MAX
    (refused,) = (d for d in first.decisions if "refused" in d.after)
    assert (refused.target, refused.after) == (
        "37 senders",
        f"refused: {OF_PEER_MAX} of this peer are quarantined already",
    )
    other = plan.plan(first.desired, [firing(QUARANTINE, 1.0, (OTHER,), peer="b")])
    assert OTHER in other.desired.of("quarantine")
    again = plan.plan(first.desired, [firing(QUARANTINE, 5.0, many, epoch=105)])
    assert len(again.desired.of("quarantine")) == OF_PEER_MAX
    assert all(entry.until == 65.0 for entry in again.desired.of("quarantine").values())
    assert len(again.decisions) == LISTED_MAX + 2
    assert again.decisions[-1].target == f"{OF_PEER_MAX - LISTED_MAX} senders more"
