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
    log = alerts()
    event = log.event(line(severity), 1000.0, 5.0)
    assert (event.severity, event.kind, event.node) == (score, "intrusion", "10.0.0.7")
    assert (event.at, event.until) == (1000.0, 1060.0)
    assert "\n" not in event.detail


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
    assert alerts().event(line(category=category), 0.0, 0.0).kind == kind


@pytest.mark.parametrize(("severity", "score"), [(1, 0.7), (2, 0.4), (3, 0.2), (4, 0.2)])
def test_what_was_blocked_is_milder(severity, score):
    """An intrusion that was kept out is less than one that was let in."""
    assert alerts().event(line(severity, action="blocked"), 0.0, 0.0).severity == score


def test_the_decoder_s_alerts_do_not_count():
    """Each scented packet makes one: the sensor does not know our option. Nobody is attacked."""
    log = alerts()
    for category in ("Generic Protocol Command Decode", "generic protocol command decode "):
        assert log.event(line(3, category=category), 0.0, 0.0) is None
    assert (log.counters["decoder"], log.counters["alerts"]) == (2, 0)
    told = eve.Alerts(EveSource(socket="unused", decoder=True), OWN)
    assert told.event(line(3, category="Generic Protocol Command Decode"), 0.0, 0.0).kind == "anomaly"


def test_the_affected_node_is_the_own_end():
    log = alerts()
    assert log.event(line(source="10.0.0.8", destination="192.0.2.1"), 0.0, 0.0).node == "10.0.0.8"
    assert log.event(line(source="10.0.0.8", destination="10.0.0.9"), 0.0, 0.0).node == "10.0.0.9"
    assert log.event(line(source="2001:db8::1", destination="fd00::5"), 0.0, 0.0).node == "fd00::5"
    assert log.event(line(source=None, destination=None), 0.0, 0.0).node == ""
    assert log.event(line(source="192.0.2.1", destination="no address"), 0.0, 0.0) is None
    assert log.counters["not_ours"] == 1


def test_with_source_only_a_sender_is_affected():
    """A stranger who sets off a rule about a node raises the threat, and has nobody quarantined."""
    only = eve.Alerts(EveSource(socket="/x", affected="source"), OWN)
    assert only.event(line(), 100.0, 0.0).node == ""
    assert only.event(line(source="10.0.0.7", destination="192.0.2.9"), 100.0, 0.0).node == "10.0.0.7"
    assert only.event(line(source="192.0.2.8", destination="192.0.2.9"), 100.0, 0.0) is None
    assert only.counters["not_ours"] == 1


def test_without_own_prefixes_it_is_the_destination():
    assert alerts(own=()).event(line(destination="198.51.100.1"), 0.0, 0.0).node == "198.51.100.1"


@pytest.mark.parametrize(
    ("text", "counter"),
    [
        (b"{", "bad_json"),
        (b"hello", "bad_json"),
        (b'{"x":' + b"[" * 60000, "bad_json"),
        (b'{"event_type":"\xff"}', "not_utf8"),
        (b"[]", "wrong_type"),
        (b'{"event_type":7}', "wrong_type"),
        (b'{"event_type":"alert"}', "wrong_type"),
        (b'{"event_type":"alert","alert":[]}', "wrong_type"),
        (b'{"event_type":"alert","alert":{"severity":"1"}}', "wrong_type"),
        (b'{"event_type":"alert","alert":{"severity":0}}', "wrong_type"),
        (b'{"event_type":"alert","alert":{"severity":1},"src_ip":1}', "wrong_type"),
    ],
)
def test_what_is_no_alert_is_counted_by_reason(text, counter):
    log = alerts()
    assert log.event(text, 0.0, 0.0) is None
    assert {k for k, v in log.counters.items() if v} == {"lines", counter}


@pytest.mark.parametrize("places", [{}, {"socket": "/run/a", "file": "/var/b"}])
def test_it_is_either_a_socket_or_a_file(places):
    (problem,) = EveSource(**places).mistakes("network[0].source[0]")
    assert problem.startswith("network[0].source[0].socket: write either this")


def test_other_records_are_only_counted():
    log = alerts()
    assert log.event(b'{"event_type":"flow","src_ip":"10.0.0.1"}', 0.0, 0.0) is None
    assert {k: v for k, v in log.counters.items() if v} == {"lines": 1}


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: repr(v).encode())
)
def test_no_line_raises(text):
    log = alerts()
    log.event(text, 0.0, 0.0)
    log.event(b'{"event_type":"alert","alert":' + text + b"}", 0.0, 0.0)
    assert log.counters["lines"] == 2
