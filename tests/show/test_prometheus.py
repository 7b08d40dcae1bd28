"""The status document as Prometheus text: every reason is there before it happens."""

from documents import BUS, PROFILE, REASONS, status
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from scentd.control.status import NetworkStatus, Omitted, PeerStatus, PeerTraffic
from scentd.show import prometheus
from scentd.wire import layout


def samples(text: str) -> dict:
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_everything_is_there():
    found = samples(prometheus.exposition(status()))
    assert found["scentd_up",] == 1
    assert found["scentd_stamped_packets_total",] == 10
    assert found["scentd_rejected_packets_total", "bad-tag"] == 5
    assert found["scentd_unstamped_packets_total", "too-big"] == 3
    assert found["scentd_reloads_total", "refused"] == 1
    assert found["scentd_beacons_total", "sent"] == 20
    assert found["scentd_collector_total", "acme", "eve_lines"] == 6
    assert found["scentd_nodes", "acme", "fresh"] == 1
    assert found["scentd_nodes", "acme", "stale"] == 0
    assert found["scentd_source_state", "acme", "cpu", "failing"] == 1
    assert found["scentd_source_state", "acme", "cpu", "fresh"] == 0
    assert found["scentd_intake_total", "acme", "late"] == 3
    assert found["scentd_level", "acme", "cpu"] == 0.5
    assert found["scentd_level", "acme", "overall"] == 0.25
    assert found["scentd_peer_level", "svc", "threat"] == 1.0
    assert found["scentd_profile_age_seconds", "svc"] == 2.5
    assert found["scentd_profile_interval_seconds", "svc"] == 5
    assert ("scentd_profile_age_seconds", "new") not in found
    assert found["scentd_peer_without_profile", "new"] == 1
    assert ("scentd_peer_without_profile", "svc") not in found
    assert found["scentd_policy_outcomes_total", "fired", "isolate"] == 2
    assert found["scentd_delay_seconds", "alarm_applied", "mean"] == 0.006
    assert found["scentd_delay_events_total", "alarm_applied"] == 2
    assert found["scentd_info", "1"] == 1
    assert found["scentd_offload_in_place",] == 0
    assert found["scentd_rules_in_place",] == found["scentd_guard_connected",] == 1
    assert found["scentd_epoch_lag_intervals", "acme"] > 2
    standby = replace(BUS, lease=replace(BUS.lease, active=False))
    assert "scentd_epoch_lag_intervals{" not in prometheus.exposition(status(bus=standby)), (
        "nobody expects epochs of it"
    )
    assert found["scentd_peer_accepted_total", "svc"] == 9
    assert found["scentd_peer_rejected_total", "future", "new"] == 5
    assert found["scentd_peer_rejected_total", "(strangers)", "unknown-key"] == 2
    assert found["scentd_peer_absent_total", "new", "pass"] == 8
    assert found["scentd_peer_unstamped_total", "new", "too-big"] == 3
    assert found["scentd_peer_let_in_total", "new"] == 8
    assert found["scentd_peer_clock_offset_seconds", "new"] == -600
    assert found["scentd_peer_accepted_at", "svc"] == 8
    for reason in REASONS:
        assert ("scentd_rejected_packets_total", reason) in found
    for reason in layout.UNSTAMPED.values():
        assert ("scentd_unstamped_packets_total", reason) in found


def test_no_profile_is_missed_of_a_peer_that_is_not_verified_or_whose_key_is_revoked():
    for revoked in ([], ["cd"]):
        quiet = PeerStatus(
            name="new", network="acme", key_id="cd", highest_epoch=0, verified=False, revoked=revoked, profile=None
        )
        assert ("scentd_peer_without_profile", "new") not in samples(prometheus.exposition(status(peers=[quiet])))


def test_rules_that_are_not_in_place():
    assert samples(prometheus.exposition(status(rules_why_not="iptables: locked")))["scentd_rules_in_place",] == 0


def test_peers_that_are_left_out_are_one_sum():
    rest = Omitted(peers=900, traffic=PeerTraffic(name="", accepted=70, rejected={"stale": 4}))
    found = samples(prometheus.exposition(status(omitted=rest)))
    assert found["scentd_peer_accepted_total", "(others)"] == 70
    assert found["scentd_peer_rejected_total", "(others)", "stale"] == 4


def test_a_peer_of_several_networks_is_one_series_of_its_newest_profile():
    profiles = {"a": None, "b": replace(PROFILE, age=9.0), "c": replace(PROFILE, age=1.0)}
    known = [
        PeerStatus(name="svc", network=network, key_id="ab", highest_epoch=1, profile=profile)
        for network, profile in profiles.items()
    ]
    text = prometheus.exposition(status(peers=known))
    assert samples(text)["scentd_profile_age_seconds", "svc"] == 1.0
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))


def test_names_and_help_are_right():
    families = list(text_string_to_metric_families(prometheus.exposition(status())))
    assert len({f.name for f in families}) == len(families)
    assert all(f.name.startswith("scentd_") and f.documentation for f in families)


def test_no_daemon_is_down_and_nothing_else():
    (up,) = prometheus.StatusMetrics(lambda: None).collect()
    assert [s.value for s in up.samples] == [0.0]


def test_odd_names_are_escaped():
    odd = NetworkStatus(name='a"b\\c', key_id="", signs=True, stamps=True, levels={"cpu": 1.0})
    assert ("scentd_level", 'a"b\\c', "cpu") in samples(prometheus.exposition(status(networks=[odd])))
