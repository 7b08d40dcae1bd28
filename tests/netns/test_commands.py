"""The commands that ask a running daemon, against real ones."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import jsonschema
import pytest
from hosts import PATIENCE, ROOT, acquainted, answered, environment, pair, start, until
from prometheus_client.parser import text_string_to_metric_families

from scentd.model import SCHEMA
from scentd.wire import keys, layout

pytestmark = pytest.mark.netns

SCHEMAS = json.loads((ROOT / "scentd" / "control" / "status.schema.json").read_text())
LATER = str(keys.identity(bytes(32)).public)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with pair("co", tmp_path_factory.mktemp("co")) as (a, b):
        b.sections["policy"] = [
            {"name": "isolate", "when": "threat >= 0.5", "do": {"kind": "quarantine", "timeout": "1s"}}
        ]
        start(a, b)
        acquainted(b, a)
        until(lambda: b.count("accepted"), "what was accepted is counted")
        yield a, b


def test_status(nodes):
    a, b = nodes
    text = b.cli("status").stdout
    for part in ("network b", "peer a", "stamped", "accepted", "rejected: none", "memory"):
        assert part in text
    data = json.loads(b.cli("status", "--json").stdout)
    jsonschema.validate(data, SCHEMAS)
    assert data["schema"] == SCHEMA
    assert set(data["rejected"]) == set(layout.VERDICTS.values()) - {"accepted", "absent"}
    assert set(data["unstamped"]) == set(layout.UNSTAMPED.values())
    for value in data["peers"][0]["profile"]["levels"].values():  # invariant 9: levels are quantised, in 50 steps
        assert value * 50 == pytest.approx(round(value * 50))
    assert str(a.identity.public) not in json.dumps(data)
    assert a.key_file.read_text().strip() not in json.dumps(data)
    assert (
        b.host.run(sys.executable, "-m", "scentd", "--config", str(b.config), env=environment()).stdout[:6] == text[:6]
    )


def test_metrics_parse_and_name_every_reason(nodes):
    _, b = nodes
    assert_metrics(b.cli("metrics").stdout)


def assert_metrics(text: str) -> None:
    families = {f.name: f for f in text_string_to_metric_families(text)}
    reasons = {s.labels["reason"] for s in families["scentd_rejected_packets"].samples}
    assert reasons == set(layout.VERDICTS.values()) - {"accepted", "absent"}
    assert families["scentd_up"].samples[0].value == 1
    assert families["scentd_accepted_packets"].samples[0].value > 0


def test_exporter_over_http(nodes):
    """On the address that it was told; when the daemon is gone, scentd_up is 0 and the rest is not there."""
    _, b = nodes
    argv = [sys.executable, "-m", "scentd", "exporter", "--config", str(b.config), "--listen", "127.0.0.1:19736"]
    exporter = subprocess.Popen(argv, env=environment())
    try:
        assert_metrics(until(lambda: page("http://127.0.0.1:19736/metrics"), "the exporter answers"))
    finally:
        exporter.terminate()
        exporter.wait()
    argv[argv.index("--config") :] = ["--socket", str(b.directory / "none"), "--listen", "127.0.0.1:19737"]
    exporter = subprocess.Popen(argv, env=environment())
    try:
        text = until(lambda: page("http://127.0.0.1:19737/metrics"), "the exporter answers")
        assert [f.name for f in text_string_to_metric_families(text)] == ["scentd_up"]
    finally:
        exporter.terminate()
        exporter.wait()


def page(url: str) -> str | None:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
        return answer.read().decode()
    return None


def test_monitor_and_explain(nodes):
    """An alarm as it is told: the epoch at the sender; the profile, the decision and its release at the receiver."""
    a, b = nodes
    monitors = {n: monitor(n) for n in (a, b)}
    try:
        until(lambda: all(json.loads(m.stdout.readline()) for m in monitors.values()), "they listen")
        a.alarm(a.host.ipv4)
        until(lambda: b.status()["allocation"]["decisions"].get("release"), "the quarantine comes and goes")
        until(lambda: b.profile(a)["levels"]["threat"] < 0.5, "the alarm is over")
        until(lambda: not b.resources("quarantine"), "and with it the last quarantine")
    finally:
        time.sleep(0.1)
        for process in monitors.values():
            process.terminate()
    told = {n: [json.loads(line) for line in m.communicate()[0].splitlines()] for n, m in monitors.items()}
    assert [e["node"] for e in told[a] if e["event"] == "alarm"] == [a.host.ipv4]
    assert [e["alarm"] for e in told[a] if e["event"] == "epoch"].count(True) == 1
    assert [e for e in told[b] if e["event"] == "profile" and e["levels"]["threat"] >= 0.5]
    assert [e["action"] for e in told[b] if e["event"] == "decision"][:1] == ["quarantine"]
    told_text = b.cli("explain", "a").stdout
    for part in ("isolate", "quarantine", a.host.ipv4, "threat"):
        assert part in told_text
    data = json.loads(b.cli("explain", "a", "--json", "--limit", "1").stdout)
    assert len(data["decisions"]) == 1
    assert data["policies"][0]["policy"] == "isolate"
    jsonschema.validate(data, SCHEMAS)
    assert {e["schema"] for events in told.values() for e in events} == {SCHEMA}


def test_status_tells_how_policies_stand_and_how_long_it_took(nodes):
    """From an accepted alarm to the decision, and to the quarantine on the host."""
    a, b = nodes
    before = {d["name"]: d["count"] for d in b.status()["allocation"]["delays"]}
    a.alarm(a.host.ipv4)
    until(lambda: b.resources("quarantine"), "the quarantine comes")

    def delays() -> dict[str, dict[str, float]]:
        return {d["name"]: d for d in b.status()["allocation"]["delays"]}

    until(lambda: delays()["alarm_applied"]["count"] > before["alarm_applied"], "it is applied")
    told = delays()
    assert 0 <= told["alarm_decided"]["last"] <= told["alarm_applied"]["last"] < PATIENCE
    [policy] = b.status()["allocation"]["policies"]
    assert policy["policy"] == "isolate"
    assert policy["outcomes"]["fired"] > 0
    assert abs(policy["fired_at"] - time.time()) < PATIENCE
    assert "alarm accepted -> applied" in b.cli("status").stdout
    until(lambda: not b.resources("quarantine"), "it ends by itself")


def test_a_second_daemon_touches_nothing(nodes):
    """It says whose place is taken and ends; what the first one made and keeps stays."""
    a, _ = nodes
    rules = a.host.out("iptables", "-S", "-t", "raw")
    kept = sorted(path.name for path in a.directory.rglob("*"))
    done = a.cli("run")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"another scentd is running, process {a.process.pid}; stop it first" in done.stderr
    assert "stopped" not in done.stderr
    assert a.host.out("iptables", "-S", "-t", "raw") == rules
    assert sorted(path.name for path in a.directory.rglob("*")) == kept
    assert a.status()["workers"]


def test_lists_are_bounded_and_the_rest_is_summed(nodes):
    _, b = nodes
    whole, short = b.status(), b.status(limit=1)
    assert whole["omitted"] == {"networks": 0, "issued": 0, "peers": 0, "peers_without_profile": 0, "traffic": None} | {
        "resources": {},
        "policies": 0,
    }
    assert len(short["peers"]) == 1
    peers, networks = b.peers, b.sections
    try:
        b.peers = [*peers, {**peers[0], "name": "later", "public_key": LATER, "addresses": ["192.0.2.99"]}]
        b.sections = {**networks, "policy": [*networks["policy"], {**networks["policy"][0], "name": "too"}]}
        b.reload()
        short = b.status(limit=1)
        assert [p["name"] for p in short["peers"]] == ["a"], "whose profile is known comes first"
        assert short["omitted"]["peers"] == short["omitted"]["peers_without_profile"] == 1
        assert short["omitted"]["policies"] == 1
        assert short["omitted"]["traffic"]["accepted"] == 0
        assert len(b.status(limit=0)["peers"]) == len(json.loads(b.cli("status", "--all", "--json").stdout)["peers"])
    finally:
        b.peers, b.sections = peers, networks
        b.reload()


def test_views(nodes):
    _, b = nodes
    assert b.cli("status", "--view", "text").stdout.startswith("scentd ")
    assert_metrics(b.cli("status", "--view", "prometheus").stdout)
    refused = b.cli("status", "--view", "tapestry")
    assert refused.returncode == 1
    assert "no such view; known: text, prometheus" in refused.stderr


def monitor(node) -> subprocess.Popen:
    argv = [sys.executable, "-m", "scentd", "monitor", "--json", "--socket", str(node.control)]
    return subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, text=True)


def test_explain_nobody(nodes):
    _, b = nodes
    done = b.cli("explain", "nobody")
    assert done.returncode == 1
    assert "no peer is named 'nobody'; known: a" in done.stderr


def test_rules_show_apply_and_remove(nodes):
    """`rules show` says whether the host is as wanted; what is taken away, the daemon puts back, at once if asked."""
    a, b = nodes
    assert b.cli("rules", "show").stdout.count("as wanted") == 3
    b.signal(signal.SIGSTOP)
    b.host.run("iptables", "-t", "raw", "-F", "SCENTD-IN")
    assert "differs from what is wanted" in b.cli("rules", "show").stdout
    b.signal(signal.SIGCONT)
    done = b.cli("rules", "apply")
    assert done.returncode == 0
    assert "the daemon has made them again" in done.stdout
    assert b.cli("rules", "show").stdout.count("as wanted") == 3
    b.host.run("ip6tables", "-t", "raw", "-F")
    until(lambda: b.cli("rules", "show").stdout.count("as wanted") == 3, "the daemon has seen it")
    assert "somebody has changed rules of ours" in b.log.read_text()
    accepted = b.count("accepted")
    a.host.run("ping", "-c", "2", "-i", "0.1", b.host.ipv4)
    until(lambda: b.count("accepted") >= accepted + 2, "packets go through the queue")


@pytest.mark.parametrize("command", [("rules", "remove"), ("cleanup",), ("cleanup", "--unless-restarting", "no.unit")])
def test_what_would_take_all_from_a_running_daemon_is_refused(nodes, command):
    """Also from one that hangs, and none of its packets is lost."""
    a, b = nodes
    before = b.cli("rules", "show").stdout
    for number in (signal.SIGCONT, signal.SIGSTOP):
        b.signal(number)
        done = b.cli(*command)
        b.signal(signal.SIGCONT)
        assert done.returncode == 1
        assert "a daemon runs here" in done.stderr
        assert "systemctl stop scentd" in done.stderr
    assert b.cli("rules", "show").stdout == before
    with a.socket(4) as one, b.socket(4) as other:
        assert answered(one, other)


def test_without_a_daemon_it_is_done(nodes):
    """Also if a killed daemon has left its control socket behind."""
    _, b = nodes
    b.kill()
    assert b.control.exists()
    assert b.cli("rules", "remove").returncode == 0
    assert b.cli("rules", "show").stdout.count("differs from what is wanted") == 3
    assert b.cli("rules", "apply").returncode == 0
    assert b.cli("rules", "show").stdout.count("as wanted") == 3
    assert b.cli("cleanup").returncode == 0
    assert b.cli("rules", "show").stdout.count("differs from what is wanted") == 3
    b.start()


def test_decode_a_capture(nodes, tmp_path):
    a, b = nodes
    path = tmp_path / "scents.pcap"
    with b.capture() as wire:
        a.host.run("ping", "-c", "2", "-i", "0.1", b.host.ipv4)
        packets = wire.packets()
    header = (
        (0xA1B2C3D4).to_bytes(4, "big") + b"\0\2\0\4" + bytes(8) + (65535).to_bytes(4, "big") + (101).to_bytes(4, "big")
    )
    path.write_bytes(header + b"".join(bytes(8) + len(p).to_bytes(4, "big") * 2 + p for p in packets))
    done = b.cli("decode", "--json", str(path))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) >= 2
    assert {scent["schema"] for scent in found} == {SCHEMA}
    assert a.identity.public.key_id.hex() in done.stdout
