"""The status document as Prometheus text: every reason is there before it happens."""

from prometheus_client.parser import text_string_to_metric_families

from scentd.show import prometheus
from scentd.wire import layout

REASONS = [name for name in layout.VERDICTS.values() if name not in ("accepted", "absent")]
STATUS = {
    "stamped": 10,
    "accepted": 9,
    "absent": 8,
    "profiles": 7,
    "worker_restarts": 1,
    "rejected": dict.fromkeys(REASONS, 0) | {"bad-tag": 5},
    "unstamped": dict.fromkeys(layout.UNSTAMPED.values(), 0) | {"too-big": 3},
    "profile_errors": dict.fromkeys(layout.PROFILE_ERRORS.values(), 0),
    "reloads": {"applied": 2, "refused": 1},
    "beacons": {"sent": 20, "failed": 0, "received": 10},
    "other": {"internal_errors": 0},
    "actuators": {"decision_log_written": 4},
    "networks": [{"name": "acme", "collectors": {"eve_lines": 6}, "levels": {"cpu": 0.5}, "overall": 0.25}],
    "peers": [
        {"name": "svc", "profile": {"levels": {"threat": 1.0}, "overall": None, "age": 2.5}},
        {"name": "new", "profile": None},
    ],
}


def samples(text: str) -> dict:
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_everything_is_there():
    found = samples(prometheus.exposition(STATUS))
    assert found["scentd_up",] == 1
    assert found["scentd_stamped_packets_total",] == 10
    assert found["scentd_rejected_packets_total", "bad-tag"] == 5
    assert found["scentd_unstamped_packets_total", "too-big"] == 3
    assert found["scentd_reloads_total", "refused"] == 1
    assert found["scentd_level", "acme", "cpu", "issued"] == 0.5
    assert found["scentd_level", "acme", "issued", "overall"] == 0.25
    assert found["scentd_level", "received", "svc", "threat"] == 1.0
    assert found["scentd_profile_age_seconds", "svc"] == 2.5
    assert ("scentd_profile_age_seconds", "new") not in found
    for reason in REASONS:
        assert ("scentd_rejected_packets_total", reason) in found
    for reason in layout.UNSTAMPED.values():
        assert ("scentd_unstamped_packets_total", reason) in found


def test_names_and_help_are_right():
    families = list(text_string_to_metric_families(prometheus.exposition(STATUS)))
    assert len({f.name for f in families}) == len(families)
    assert all(f.name.startswith("scentd_") and f.documentation for f in families)


def test_no_daemon_is_down_and_nothing_else():
    (up,) = prometheus.StatusCollector(lambda: None).collect()
    assert [s.value for s in up.samples] == [0.0]


def test_odd_names_are_escaped():
    odd = STATUS | {"networks": [{"name": 'a"b\\c', "collectors": {}, "levels": {"cpu": 1.0}}]}
    assert ("scentd_level", 'a"b\\c', "cpu", "issued") in samples(prometheus.exposition(odd))
