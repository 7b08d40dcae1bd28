"""`scentd event` at one end, and what the other end gets of it.

a, the network that it happened to ---- b
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hosts import ROOT, acquainted, answered, environment, pair, start, until

from scentd.control import client

pytestmark = pytest.mark.netns

NOBODY = 65534


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with pair("ev", tmp_path_factory.mktemp("ev")) as (a, b):
        a.network["interval"] = "10s"
        a.network["source"] = [{"kind": "event", "hold": "3s"}]
        start(a, b)
        acquainted(b, a)
        yield a, b


def report(node, *arguments: str) -> subprocess.CompletedProcess[str]:
    return node.cli("event", "--network", node.name, *arguments)


def test_a_reported_event_is_on_the_wire_long_before_the_interval_is_over(nodes):
    a, b = nodes
    assert b.profile(a)["levels"]["threat"] == 0.0, "a source of events that says nothing: no threat"
    issued = a.status()["networks"][0]["issued"]
    until(lambda: a.status()["networks"][0]["issued"] > issued, "the beginning of an interval")
    before = a.status()["networks"][0]["epoch"]
    done = report(a, "--severity", "0.8", "--node", a.host.ipv4, "--for", "4s", "--detail", "found\n", "--json")
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout)
    fields = {"schema": 2, "network": "a", "kind": "intrusion", "node": a.host.ipv4, "severity": 0.8, "begins": True}
    assert {name: taken[name] for name in fields} == fields
    with a.socket(4) as sender, b.socket(4) as receiver:
        came = lambda: answered(sender, receiver) and b.profile(a)["epoch"] > before  # noqa: E731
        until(came, "b has the profile of the alarm", 5)
    profile = b.profile(a)
    assert profile["levels"]["threat"] == pytest.approx(0.8)
    assert profile["affected"] == [a.host.ipv4]
    assert a.status()["networks"][0]["items"] == ["event=intrusion", "metric=threat;level=high"]
    done = report(a, "--severity", "0.8", "--node", a.host.ipv4, "--for", "1s")
    assert done.stdout == f"intrusion of node {a.host.ipv4} goes on in network a\n"
    until(lambda: b.profile(a)["levels"]["threat"] == 0.0, "the event has ended", 30)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--severity", "0"], 2, "--severity 0: write a number above 0.0, up to 1.0"),
        (["--severity", "nan"], 2, "--severity nan: write a number above 0.0, up to 1.0"),
        (["--severity", "much"], 2, "--severity much: write a number above 0.0, up to 1.0"),
        (["--severity", "0.5", "--kind", "theft"], 2, "write one of intrusion, malware, policy, anomaly"),
        (["--severity", "0.5", "--for", "60"], 2, "--for 60: '60' is not a quantity"),
        (["--severity", "0.5", "--for", "2d"], 2, "--for 2d: write more than 0s, up to 24h"),
        (["--severity", "0.5", "--node", "192.0.2.1"], 1, "node '192.0.2.1': write an address of the network (10."),
        (["--severity", "0.5", "--network", "c"], 1, "no network 'c' has sources here; those that have: a"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(nodes, arguments, status, words):
    a, _ = nodes
    done = report(a, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr


def test_a_network_without_such_a_source_takes_no_reports(nodes):
    _, b = nodes
    done = report(b, "--severity", "0.5")
    assert done.returncode == 1
    assert 'takes no reports; give it a [[network.source]] with kind = "event"' in done.stderr


def test_who_may_only_read_the_status_may_not_report(nodes):
    a, _ = nodes
    a.control.chmod(0o666)  # as for a member of control_group
    taken = a.status()["networks"][0]["collectors"]["event_taken"]
    words = ["event", "--network", "a", "--severity", "1.0", "--socket", str(a.control)]
    command = [sys.executable, "-m", "scentd"]
    for path in (a.directory, *a.directory.parents[:3]):
        path.chmod(0o755)
    argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command, *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT, env=environment())
    assert (done.returncode, done.stdout) == (1, "")
    assert "event: only root may do this" in done.stderr, done.stderr
    assert a.status()["networks"][0]["collectors"]["event_taken"] == taken


def test_a_flood_is_summed_up_and_its_worst_is_not_lost(nodes):
    """4,000 reports about other nodes, and one that is worse, in a network of any address: bounded, and told."""
    a, b = nodes
    own = a.host.ipv4.rsplit(".", 2)[0] + ".0.0/16"
    a.network["addresses"] = [own]
    a.reload()
    for i in range(4000):
        ask(a, severity=0.3, node=f"{own.rsplit('.', 2)[0]}.{i // 250}.{i % 250}", hold=600.0)
    ask(a, severity=0.9, hold=600.0)
    counters = a.status()["networks"][0]["collectors"]
    assert counters["event_taken"] >= 4001
    assert counters["event_summed"] >= 4000 - 1024
    until(lambda: b.profile(a)["levels"]["threat"] == 1.0, "the threat of all of it", 20)
    assert a.status()["workers"], "the packet path goes on"


def ask(at, **said) -> None:
    client.change(str(at.control), {"command": "event", "report": {"network": at.name, **said}})


def test_reports_that_are_none(nodes):
    a, _ = nodes
    for wrong in (
        None,
        {},
        {"network": "a"},
        {"network": "a", "severity": 2.0},
        {"network": "a", "severity": 0.5, "hold": 1e9},
        {"network": "a", "severity": 0.5, "kind": "x"},
        {"network": "a", "severity": 0.5, "detail": "x" * 201},
        {"network": "a", "severity": 0.5, "more": 1},
    ):
        with pytest.raises(Exception, match=r"event: the report is missing|bad request"):
            client.change(str(a.control), {"command": "event", "report": wrong})
    assert os.path.exists(a.control)
