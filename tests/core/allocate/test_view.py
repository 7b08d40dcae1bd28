"""What is known of a sending network at one moment."""

from ipaddress import ip_address

from scentd.core.allocate import view
from scentd.core.allocate.view import HISTORY, NODE_SECONDS, PeerView
from scentd.core.profile.issue import metric_slots
from scentd.wire import bloom, layout, profile

KEY = bytes(range(16))
NODE, OTHER = ip_address("10.0.0.7"), ip_address("fd00::8")


def made(slots=None) -> PeerView:
    return PeerView("acme", (), metric_slots(slots or {}))


def body(epoch: int, items=(), **levels) -> profile.Body:
    slots = {slot: levels[name] for slot, name in layout.METRICS.items() if name in levels}
    return profile.Body(b"abcd", epoch, 5, 0.5, slots, bloom.make(frozenset(items), epoch))


def test_nothing_before_the_first_profile():
    one = made()
    one.take_glance(5, 1.0, 1.0, 1.0)
    one.take_nodes([NODE.packed], 1.0)
    assert one.view(1.0) is None


def test_profiles_newest_first_and_bounded():
    one = made()
    for epoch in range(100, 140):
        one.take_profile(body(epoch, cpu=0.4), KEY, float(epoch))
    seen = one.view(139.0)
    assert [p.epoch for p in seen.profiles] == list(range(139, 139 - HISTORY, -1))
    assert seen.received_at == 139.0
    assert seen.profile.levels == {"cpu": 0.4}


def test_private_slots_have_the_peers_names():
    one = made({"queue": 16})
    taken = one.take_profile(profile.Body(b"abcd", 1, 5, None, {16: 0.3, 17: 0.9}, bytes(32)), KEY, 1.0)
    assert taken.levels == {"queue": 0.3}


def test_a_glance_counts_when_it_says_something_new():
    one = made()
    assert one.take_glance(10, 0.2, 0.0, 1.0)
    assert not one.take_glance(10, 0.2, 0.0, 1.0)
    assert one.take_glance(11, 0.2, 0.8, 2.0)
    assert not one.take_glance(10, 0.9, 0.0, 3.0), "an older epoch's"
    one.take_profile(body(11), KEY, 1.0)
    assert (one.view(1.0).glance_load, one.view(1.0).glance_threat) == (0.2, 0.8)


def test_an_alarm_is_as_old_as_the_last_rise_of_the_threat():
    one = made()
    one.take_profile(body(11), KEY, 1.0)
    for epoch, threat, at, alarm_at in (
        (11, 0.4, 1.0, 0.0),  # too little for an alarm
        (11, 0.8, 2.0, 2.0),
        (12, 0.8, 3.0, 2.0),
        (13, 0.6, 4.0, 2.0),  # less, and still the same alarm
        (14, 1.0, 5.0, 5.0),
        (15, 0.0, 6.0, 0.0),
        (16, 0.6, 7.0, 7.0),
    ):
        one.take_glance(epoch, 0.2, threat, at)
        assert one.view(at).alarm_at == alarm_at


def test_a_profile_that_comes_after_a_newer_one_changes_nothing():
    """The packet path keeps order; a bus promises none."""
    one = made()
    one.take_profile(body(10, cpu=0.4), KEY, 1.0)
    assert one.take_profile(body(9, cpu=0.9), KEY, 2.0) is None
    assert one.take_profile(body(10, cpu=0.9), KEY, 2.0) is None
    assert (one.view(2.0).profile.levels, one.view(2.0).received_at) == ({"cpu": 0.4}, 1.0)


def test_nodes_come_and_go():
    """The clock is a value here: it may jump."""
    one = made()
    one.take_profile(body(1), KEY, 0.0)
    one.take_nodes([NODE.packed], 0.0)
    one.take_nodes([OTHER.packed], NODE_SECONDS)
    assert one.view(NODE_SECONDS).nodes == {NODE, OTHER}
    assert one.view(NODE_SECONDS + 1).nodes == {OTHER}
    assert one.view(-1e9).nodes == {NODE, OTHER}


def test_nodes_are_bounded(monkeypatch):
    """Invariant 4."""
    monkeypatch.setattr(view, "MAX_NODES", 100)
    one = made()
    one.take_profile(body(1), KEY, 0.0)
    for n in range(1000):
        one.take_nodes([n.to_bytes(4, "big")], float(n))
    assert len(one.view(999.0).nodes) <= 100
    one.take_nodes([b"\x7f\0\0\1"], 5000.0)
    assert ip_address("127.0.0.1") in one.view(5000.0).nodes, "old ones make room"


def test_affected_nodes_are_found_by_their_pseudonym():
    one = made()
    one.take_nodes([NODE.packed, OTHER.packed], 1.0)
    one.take_profile(body(7, profile.event_items(KEY, (NODE,)), threat=0.8), KEY, 1.0)
    assert one.view(1.0).affected == {NODE}
    one.take_profile(body(8, profile.event_items(KEY, (NODE,)), threat=0.0), KEY, 2.0)
    assert one.view(2.0).affected == frozenset(), "no threat, no hunt"


def test_a_foreign_pseudonym_is_nobody():
    one = made()
    one.take_nodes([NODE.packed], 1.0)
    one.take_profile(body(7, profile.event_items(bytes(16), (NODE,)), threat=0.8), KEY, 1.0)
    assert one.view(1.0).affected == frozenset()


def test_a_pseudonym_is_of_the_keys_of_its_profile():
    """A new key names the same nodes otherwise."""
    one, new = made(), bytes(16)
    one.take_nodes([NODE.packed, OTHER.packed], 1.0)
    for epoch, key, node in ((7, KEY, NODE), (8, new, NODE), (9, new, OTHER), (10, KEY, NODE)):
        one.take_profile(body(epoch, profile.event_items(key, (node,)), threat=0.8), key, 1.0)
        assert one.view(1.0).affected == {node}
