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
    "ScentdPeerRejected": ('scentd_peer_rejected_total{peer="b",reason="stale"}', "0+9x40", "7x40"),
    "ScentdPeerAbsent": ('scentd_peer_absent_total{peer="b",treatment="drop"}', "0+9x40", "7x40"),
    "ScentdPeerUnstamped": ('scentd_peer_unstamped_total{peer="b",reason="no-room"}', "0+9x40", "7x40"),
    "ScentdPeerClock": ('scentd_peer_clock_offset_seconds{peer="b"}', "-9x40", "4x40"),
    "ScentdProfileOld": ('scentd_profile_age_seconds{peer="b"}', "90x40", "5x40"),
    "ScentdProfileWrong": ('scentd_profile_errors_total{reason="signature"}', "0+1x40", "7x40"),
    "ScentdOverload": ('scentd_other_total{name="overload_verify"}', "0+9x40", "7x40"),
    "ScentdWorkersEnd": ("scentd_worker_restarts_total", "0+1x40", "7x40"),
    "ScentdPolicyFails": ('scentd_other_total{name="policy_errors"}', "0+1x40", "7x40"),
}


def firing(alert: str, values: str, directory) -> str:
    """What promtool says of a test that expects this alert to be quiet at 30 minutes."""
    series = [{"series": CASES[alert][0], "values": values}]
    if alert == "ScentdNoOffload":
        series.append({"series": "scentd_offload_wanted", "values": "1x40"})
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
    _, bad, good = CASES[alert]
    assert firing(alert, good, tmp_path) == ""
    assert f"alertname:{alert}" in re.sub(r"[\s\"]", "", firing(alert, bad, tmp_path)).replace("=", ":")


def test_each_has_a_case_and_a_row_in_the_runbook():
    named = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert named == list(CASES)
    assert re.findall(r"^\| `(\w+)` \|", RUNBOOK, re.M) == sorted(named, key=named.index)


def test_the_metrics_exist():
    samples = {s.name for f in text_string_to_metric_families(prometheus.exposition(status())) for s in f.samples}
    assert set(re.findall(r"scentd_\w+", RULES.read_text())) <= samples
