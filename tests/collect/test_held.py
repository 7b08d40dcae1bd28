"""Security events until they end: bounded, and no threat is lost."""

from hypothesis import given
from hypothesis import strategies as st

from scentd.collect.held import MAX_HELD, HeldEvents
from scentd.core.profile.score import threat
from scentd.model import SecurityEvent


def event(severity=1.0, node="10.0.0.7", at=1000.0, hold=60.0, kind="intrusion"):
    return SecurityEvent(kind, severity, at, at + hold, node)


def test_events_end_by_either_clock():
    held = HeldEvents()
    assert held.hold(event(), 5.0)
    assert held.active(1059.0, 64.0) == [event()]
    assert not held.active(1060.0, 6.0)
    assert not held.active(0.0, 65.0)  # the wall clock was set back


def test_a_repeated_event_lasts_longer_and_begins_once():
    held = HeldEvents()
    assert held.hold(event(), 5.0)
    assert not held.hold(event(at=1030.0), 35.0)
    assert [e.until for e in held.active(1030.0, 35.0)] == [1090.0]
    assert not held.hold(event(at=1031.0, hold=1.0), 36.0)
    assert [e.until for e in held.active(1040.0, 45.0)] == [1090.0], "a short one does not cut a long one short"
    assert held.hold(event(at=1200.0), 205.0)  # it had ended


def test_a_mild_event_does_not_keep_a_severe_one_up():
    held = HeldEvents()
    held.hold(event(1.0), 5.0)
    held.hold(event(0.4, at=1050.0), 55.0)
    assert [e.severity for e in held.active(1070.0, 75.0)] == [0.4]


def test_room_is_bounded_and_names_go_to_the_severe():
    held = HeldEvents()
    nodes = [f"10.0.{i // 250}.{i % 250}" for i in range(MAX_HELD)]
    for i, node in enumerate(nodes):
        assert held.hold(event((0.7, 0.4)[i % 2], node), 0.0)
    assert held.hold(event(0.4, "10.1.1.1"), 0.0), "summed up: the first one begins"
    assert not held.hold(event(0.4, "10.1.1.2"), 0.0)
    assert held.hold(event(1.0, "10.1.1.1"), 0.0)
    active = held.active(1000.0, 0.0)
    assert len(active) == MAX_HELD + 1
    assert held.summed == 3
    assert nodes[1] not in {e.node for e in active}  # the oldest of the mildest lost its name
    assert event(0.4, "") in active
    assert held.hold(event(0.4, "10.1.1.2", at=1061.0), 61.0)  # the others have ended
    assert len(held.active(1061.0, 61.0)) == 1


def test_adopted_events_go_on():
    old, new = HeldEvents(), HeldEvents()
    old.hold(event(), 0.0)
    new.adopt(old)
    assert new.active(1001.0, 1.0) == [event()]
    assert not new.hold(event(at=1001.0), 1.0)
    for i in range(MAX_HELD):
        new.hold(event(node=f"10.1.{i // 250}.{i % 250}"), 1.0)
    assert len(new.active(1002.0, 61.5)) <= MAX_HELD + 1


SEVERITIES = st.integers(1, 100).map(lambda s: s / 100)


@given(st.lists(st.tuples(SEVERITIES, st.integers(0, 2000), st.floats(0.1, 9.0)), max_size=300), st.integers(0, 1100))
def test_of_a_flood_the_worst_is_always_held(floods, before):
    """However many come, the threat is that of the most severe one at least, and what is kept is bounded."""
    held = HeldEvents()
    for i in range(before):
        held.hold(event(0.3, f"10.2.{i // 250}.{i % 250}", hold=100.0), 0.0)
    for severity, node, hold in floods:
        held.hold(event(severity, f"10.1.{node // 250}.{node % 250}", hold=hold), 0.0)
    active = held.active(1000.05, 0.05)
    assert len(active) <= MAX_HELD + 101
    worst = max([severity for severity, _, _ in floods], default=0.0)
    assert (
        threat({(e.kind, e.node): e.severity for e in sorted(active, key=lambda e: e.severity)}.values(), 0.0)
        >= worst - 1e-9
    )
