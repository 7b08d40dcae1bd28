"""The alert rules, by promtool: each fires when it should, and is quiet otherwise; each has its row in the runbook."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from documents import status
from hosts import ROOT
from prometheus_client.parser import text_string_to_metric_families

from scentd.show import prometheus

RULES = ROOT / "systemd" / "alerts.yml"
RUNBOOK = (ROOT / "systemd" / "README.md").read_text().split("## Alerts")[1].split("\n## ")[0]
# alert -> its series, values that fire it, values that do not (promtool's notation, one a minute)
CASES = {
    "ScentdDown": ("scentd_up", "0x40", "1x40"),
    "ScentdRulesNotInPlace": ("scentd_rules_in_place", "0x40", "1x40"),
    "ScentdNoOffload": ("scentd_offload_in_place", "0x40", "1x40"),
    "ScentdNoGuard": ("scentd_guard_connected", "0x40", "1x40"),
    "ScentdEpochLag": ('scentd_epoch_lag_intervals{network="acme"}', "3x40", "1x40"),
    "ScentdNodeNotFresh": ('scentd_nodes{network="acme",state="stale"}', "1x40", "0x40"),
    "ScentdSourceNotFresh": ('scentd_source_state{network="acme",source="cpu",state="failing"}', "1x40", "0x40"),
    "ScentdBusLost": ("scentd_bus_connected", "0x40", "1x40"),
    "ScentdNoActiveProfiler": ('scentd_bus_active{instance="p1"}', "0x40", "1x40"),
    "ScentdNoActiveAllocator": ('scentd_bus_allocator_active{instance="a1"}', "0x40", "1x40"),
    "ScentdPeerRejected": ('scentd_peer_rejected_total{peer="b",reason="stale"}', "0+9x40", "7x40"),
    "ScentdPeerAbsent": ('scentd_peer_absent_total{peer="b",treatment="drop"}', "0+9x40", "7x40"),
    "ScentdPeerUnstamped": ('scentd_peer_unstamped_total{peer="b",reason="no-room"}', "0+9x40", "7x40"),
    "ScentdPeerClock": ('scentd_peer_clock_offset_seconds{peer="b"}', "-9x40", "4x40"),
    "ScentdProfileOld": ('scentd_profile_age_seconds{peer="b"}', "90x40", "5x40"),
    "ScentdProfileMissing": ('scentd_peer_without_profile{peer="b"}', "1x40", "0x40"),
    "ScentdProfileWrong": ('scentd_profile_errors_total{reason="signature"}', "0+1x40", "7x40"),
    "ScentdOverload": ('scentd_other_total{name="overload_verify"}', "0+9x40", "7x40"),
    "ScentdWorkersEnd": ("scentd_worker_restarts_total", "0+1x40", "7x40"),
    "ScentdPolicyFails": ('scentd_other_total{name="policy_errors"}', "0+1x40", "7x40"),
    "ScentdActionFails": ('scentd_actuator{name="replicas_failures"}', "0+1x40", "7x40"),
    "ScentdResourceNotGiven": ('scentd_resource_failing{kind="k",resource="r",peer="b"}', "1x40", "0x40"),
    "ScentdOscillation": ('scentd_decisions_total{action="oscillation"}', "0+1x40", "3x40"),
}


# What else the host says, by alert
BESIDE = {
    "ScentdNoOffload": ("scentd_offload_wanted", "1x40"),
    "ScentdProfileOld": ('scentd_profile_interval_seconds{peer="b"}', "5x40"),
}
# (alert, its series, values, whether it fires): what CASES does not show
MORE_CASES = [
    ("ScentdDown", 'up{job="scentd"}', "0x40", True),
    ("ScentdDown", 'up{job="another"}', "0x40", False),
    ("ScentdNodeNotFresh", 'scentd_nodes{network="acme",state="fresh"}', "3x40", False),
    ("ScentdSourceNotFresh", 'scentd_source_state{network="acme",source="cpu",state="fresh"}', "1x40", False),
    ("ScentdNoActiveProfiler", 'scentd_bus_active{instance="p2"}', "0x20 1x40", False),
    ("ScentdPeerRejected", 'scentd_peer_rejected_total{peer="(strangers)",reason="unknown-key"}', "0+9x40", False),
    ("ScentdPeerAbsent", 'scentd_peer_absent_total{peer="(strangers)",treatment="drop"}', "0+9x40", False),
    ("ScentdPeerAbsent", 'scentd_peer_absent_total{peer="b",treatment="pass"}', "0+9x40", False),
    ("ScentdProfileOld", 'scentd_profile_age_seconds{peer="b"}', "14x40", False),
    ("ScentdProfileOld", 'scentd_profile_age_seconds{peer="b"}', "16x40", True),
    ("ScentdPolicyFails", 'scentd_policy_outcomes_total{policy="p",outcome="error"}', "0+1x40", True),
    ("ScentdPolicyFails", 'scentd_policy_outcomes_total{policy="p",outcome="false"}', "0+1x40", False),
    ("ScentdActionFails", 'scentd_actuator{name="quarantine_changes"}', "0+1x40", False),
]


def firing(alert: str, name: str, values: str, directory) -> str:
    """What promtool says of a test that expects this alert to be quiet at 30 minutes."""
    said = [(name, values), *([BESIDE[alert]] if alert in BESIDE else [])]
    series = [{"series": n, "values": v} for n, v in said]
    case = {"interval": "1m", "input_series": series}
    case["alert_rule_test"] = [{"eval_time": "30m", "alertname": alert, "exp_alerts": []}]
    path = directory / "case.yml"  # JSON is YAML
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_promtool_takes_the_rules():
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should(alert, tmp_path):
    name, bad, good = CASES[alert]
    assert firing(alert, name, good, tmp_path) == ""
    assert named_by(firing(alert, name, bad, tmp_path), alert)


def named_by(said: str, alert: str) -> bool:
    return f"alertname:{alert}" in re.sub(r"[\s\"]", "", said).replace("=", ":")


@pytest.mark.parametrize(("alert", "name", "values", "fires"), MORE_CASES)
def test_what_else_an_alert_looks_at(alert, name, values, fires, tmp_path):
    said = firing(alert, name, values, tmp_path)
    assert named_by(said, alert) if fires else said == ""


def test_each_names_its_runbook():
    """Where README.md installs it."""
    installed = re.search(r"systemd/README\.md (/\S+)", (ROOT / "README.md").read_text())
    rules = RULES.read_text()
    assert rules.count(f"runbook_url: file://{installed[1]}#alerts\n") == rules.count("- alert:")


def test_each_has_a_case_and_a_row_in_the_runbook():
    named = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert named == list(CASES)
    assert re.findall(r"^\| `(\w+)` \|", RUNBOOK, re.M) == sorted(named, key=named.index)


def test_the_metrics_exist():
    samples = {s.name for f in text_string_to_metric_families(prometheus.exposition(status())) for s in f.samples}
    assert set(re.findall(r"\bscentd_\w+", RULES.read_text())) <= samples
