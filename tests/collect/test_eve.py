import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.collect import eve
from scentd.collect.eve import EveSource
from scentd.prefix import prefixes

OWN = prefixes(["10.0.0.0/8", "fd00::/16"])
SOURCE = EveSource(socket="unused", hold=60.0)


def alerts(own=OWN):
    return eve.Alerts(SOURCE, own)


def line(
    severity=1,
    source="192.0.2.9",
    destination="10.0.0.7",
    category="Attempted Administrator Privilege Gain",
    action="allowed",
):
    record = {
        "timestamp": "2031-01-01T00:00:00.000000+0000",
        "event_type": "alert",
        "src_ip": source,
        "dest_ip": destination,
        "alert": {"action": action, "signature": "x\ny", "category": category, "severity": severity},
    }
    return json.dumps(record).encode()


@pytest.mark.parametrize(("severity", "score"), [(1, 1.0), (2, 0.7), (3, 0.4), (4, 0.2), (255, 0.2)])
def test_an_alert_is_an_event_of_its_severity(severity, score):
    held = alerts()
    event = held.line(line(severity), 1000.0, 5.0)
    assert (event.severity, event.kind, event.node) == (score, "intrusion", "10.0.0.7")
    assert (event.at, event.until) == (1000.0, 1060.0)
    assert "\n" not in event.detail
    assert held.active(1000.0, 5.0) == [event]


@pytest.mark.parametrize(
    ("category", "kind"),
    [
        ("A Network Trojan was detected", "malware"),
        ("Malware Command and Control Activity Detected", "malware"),
        ("Potential Corporate Privacy Violation", "policy"),
        ("Detection of a non-standard protocol or event", "anomaly"),
        ("Web Application Attack", "intrusion"),
        (None, "intrusion"),
    ],
)
def test_kind_follows_the_category(category, kind):
    assert alerts().line(line(category=category), 0.0, 0.0).kind == kind


@pytest.mark.parametrize(("severity", "score"), [(1, 0.7), (2, 0.4), (3, 0.2), (4, 0.2)])
def test_what_was_blocked_is_milder(severity, score):
    """An intrusion that was kept out is less than one that was let in."""
    assert alerts().line(line(severity, action="blocked"), 0.0, 0.0).severity == score


def test_the_decoder_s_alerts_do_not_count():
    """Each scented packet makes one: the sensor does not know our option. Nobody is attacked."""
    held = alerts()
    for category in ("Generic Protocol Command Decode", "generic protocol command decode "):
        assert held.line(line(3, category=category), 0.0, 0.0) is None
    assert held.active(0.0, 0.0) == []
    assert (held.counters["eve_decoder"], held.counters["eve_alerts"]) == (2, 0)
    told = eve.Alerts(EveSource(socket="unused", decoder=True), OWN)
    assert told.line(line(3, category="Generic Protocol Command Decode"), 0.0, 0.0).kind == "anomaly"


def test_the_affected_node_is_the_own_end():
    held = alerts()
    assert held.line(line(source="10.0.0.8", destination="192.0.2.1"), 0.0, 0.0).node == "10.0.0.8"
    assert held.line(line(source="10.0.0.8", destination="10.0.0.9"), 0.0, 0.0).node == "10.0.0.9"
    assert held.line(line(source="2001:db8::1", destination="fd00::5"), 0.0, 0.0).node == "fd00::5"
    assert held.line(line(source=None, destination=None), 0.0, 0.0).node == ""
    assert held.line(line(source="192.0.2.1", destination="no address"), 0.0, 0.0) is None
    assert held.counters["eve_not_ours"] == 1


def test_with_source_only_a_sender_is_affected():
    """A stranger who sets off a rule about a node raises the threat, and has nobody quarantined."""
    only = eve.Alerts(EveSource(socket="/x", affected="source"), OWN)
    assert only.line(line(), 100.0, 0.0).node == ""
    assert only.line(line(source="10.0.0.7", destination="192.0.2.9"), 100.0, 0.0).node == "10.0.0.7"
    assert only.line(line(source="192.0.2.8", destination="192.0.2.9"), 100.0, 0.0) is None
    assert only.counters["eve_not_ours"] == 1


def test_without_own_prefixes_it_is_the_destination():
    assert alerts(own=()).line(line(destination="198.51.100.1"), 0.0, 0.0).node == "198.51.100.1"


def test_events_end_by_either_clock():
    held = alerts()
    held.line(line(), 1000.0, 5.0)
    assert held.active(1059.0, 64.0)
    assert not held.active(1060.0, 6.0)
    assert not held.active(0.0, 65.0)  # the wall clock was set back


def test_a_repeated_alert_lasts_longer_and_is_told_once():
    held = alerts()
    assert held.line(line(), 1000.0, 5.0)
    assert held.line(line(), 1030.0, 35.0) is None
    assert [e.until for e in held.active(1030.0, 35.0)] == [1090.0]
    assert held.line(line(), 1200.0, 205.0)  # it had ended: told again


def test_a_mild_alert_does_not_keep_a_severe_one_up():
    held = alerts()
    held.line(line(1), 1000.0, 5.0)
    held.line(line(3), 1050.0, 55.0)
    assert [e.severity for e in held.active(1070.0, 75.0)] == [0.4]


def test_room_is_bounded_and_goes_to_the_severe():
    held = alerts()
    nodes = [f"10.0.{i // 250}.{i % 250}" for i in range(eve.MAX_HELD)]
    for i, node in enumerate(nodes):
        assert held.line(line(2 + i % 2, destination=node), 0.0, 0.0)
    assert held.line(line(3, destination="10.1.1.1"), 0.0, 0.0) is None
    assert held.line(line(1, destination="10.1.1.1"), 0.0, 0.0)
    active = held.active(0.0, 0.0)
    assert len(active) == eve.MAX_HELD
    assert held.counters["eve_dropped"] == 2
    assert nodes[1] not in {e.node for e in active}  # the oldest of the mildest went
    assert held.line(line(3, destination="10.1.1.2"), 61.0, 61.0)  # the others have ended
    assert len(held.active(61.0, 61.0)) == 1


def test_adopted_events_go_on():
    old, new = alerts(), alerts()
    event = old.line(line(), 0.0, 0.0)
    new.adopt(old)
    assert new.active(1.0, 1.0) == [event]
    assert new.line(line(), 1.0, 1.0) is None


@pytest.mark.parametrize(
    ("text", "counter"),
    [
        (b"{", "eve_bad_json"),
        (b"hello", "eve_bad_json"),
        (b'{"x":' + b"[" * 60000, "eve_bad_json"),
        (b'{"event_type":"\xff"}', "eve_not_utf8"),
        (b"[]", "eve_wrong_type"),
        (b'{"event_type":7}', "eve_wrong_type"),
        (b'{"event_type":"alert"}', "eve_wrong_type"),
        (b'{"event_type":"alert","alert":[]}', "eve_wrong_type"),
        (b'{"event_type":"alert","alert":{"severity":"1"}}', "eve_wrong_type"),
        (b'{"event_type":"alert","alert":{"severity":0}}', "eve_wrong_type"),
        (b'{"event_type":"alert","alert":{"severity":1},"src_ip":1}', "eve_wrong_type"),
    ],
)
def test_what_is_no_alert_is_counted_by_reason(text, counter):
    held = alerts()
    assert held.line(text, 0.0, 0.0) is None
    assert {k for k, v in held.counters.items() if v} == {"eve_lines", counter}


def test_other_records_are_only_counted():
    held = alerts()
    assert held.line(b'{"event_type":"flow","src_ip":"10.0.0.1"}', 0.0, 0.0) is None
    assert {k: v for k, v in held.counters.items() if v} == {"eve_lines": 1}


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: repr(v).encode())
)
def test_no_line_raises(text):
    held = alerts()
    held.line(text, 0.0, 0.0)
    held.line(b'{"event_type":"alert","alert":' + text + b"}", 0.0, 0.0)
    assert held.counters["eve_lines"] == 2
