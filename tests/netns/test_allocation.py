"""Policies and resources in running daemons: shipped policies change real queues and real rules, and survive kill -9.

a (whose levels are what a file says) ---- b (which serves it)
"""

from __future__ import annotations

import json
import re
import time
from contextlib import closing

import pytest
import toys
from hosts import ROOT, Node, acquainted, pair, start, until

from scentd.state.history import reading

pytestmark = pytest.mark.netns

POLICIES = ROOT / "systemd" / "policies"


class Served:
    """The pair; `say` sets a level of a."""

    def __init__(self, a: Node, b: Node, directory) -> None:
        self.a, self.b, self.directory = a, b, directory
        a.program = (toys.__file__,)
        metrics = "cpu", "bandwidth_in", "bandwidth_out", "latency"
        for metric in metrics:
            self.say(metric, 0.5)
        lines = [{"kind": "line", "path": str(directory / metric), "metric": metric} for metric in metrics]
        a.network |= {"interval": "1s", "source": [*lines, {"kind": "eve", "socket": str(a.eve), "hold": "2s"}]}

    def say(self, metric: str, level: float) -> None:
        (self.directory / metric).write_text(str(level))

    def serve(self, policies: list[str], resources: list[dict], **sections) -> None:
        """Start both with shipped policies, by the names of their files; pauses are a tenth of what they are."""
        included = []
        for name in policies:
            text = (POLICIES / f"{name}.toml").read_text()
            shorter = re.sub(r'"(\d+)(s|m)"', lambda m: f'"{int(m[1]) * (100 if m[2] == "s" else 6000)}ms"', text)
            path = self.directory / f"{name}.toml"
            path.write_text(shorter)
            included.append(str(path))
        self.b.sections |= {"include": included, "resource": resources, **sections}
        start(self.a, self.b)
        acquainted(self.b, self.a)

    def amount(self, resource: str) -> dict:
        return next(r for r in self.b.status()["allocation"]["resources"] if r["resource"] == resource)

    def has(self, resource: str, amount: float) -> bool:
        found = self.amount(resource)
        return found["amount"] == found["observed"] == amount

    def decisions(self) -> list[dict]:
        return json.loads(self.b.cli("explain", self.a.name, "--limit", "100", "--json").stdout)["decisions"]


@pytest.fixture
def served(tmp_path):
    with pair("alc", tmp_path) as (a, b):
        yield Served(a, b, tmp_path)


def pipe(served: Served, **more) -> dict:
    rates = {"link": "1gbit", "minimum": "10mbit", "normal": "20mbit", "maximum": "100mbit"}
    return {"name": "pipe", "kind": "bandwidth", "interface": served.b.host.interfaces[0], **rates, **more}


def precedence(served: Served) -> dict:
    own = {"name": "precedence", "kind": "bandwidth_priority", "link": "1gbit"}
    return {**own, "interface": served.b.host.interfaces[0]}


def rate_of(served: Served) -> str:
    """The ceiling of the peer's class, as tc says it; the link's class has 1Gbit."""
    classes = served.b.host.out("tc", "class", "show", "dev", served.b.host.interfaces[0])
    return next((rate for rate in re.findall(r"ceil (\S+)", classes) if rate != "1Gbit"), "")


def test_bandwidth_follows_load_and_narrows_under_attack(served):
    """Wider step by step, first on the link, narrower again, and at the minimum while the network is attacked."""
    served.serve(["bandwidth"], [pipe(served), precedence(served)])
    until(lambda: served.has("pipe", 2e7), "the usual rate is set before any policy asks")
    assert rate_of(served) == "20Mbit"
    served.say("bandwidth_out", 0.95)
    until(lambda: served.has("pipe", 1e8), "wider by half each second, up to the maximum")
    assert rate_of(served) == "100Mbit"
    steps = [d["after"] for d in reversed(served.decisions()) if d["policy"] == "wider"]
    assert steps == ["30mbit", "45mbit", "67.5mbit", "100mbit"]
    served.say("cpu", 0.95)
    served.say("bandwidth_out", 0.1)
    served.say("bandwidth_in", 0.1)
    served.a.alarm(served.a.host.ipv4)
    until(lambda: served.has("pipe", 1e7), "the minimum while it is attacked")
    assert rate_of(served) == "10Mbit"
    until(lambda: served.has("pipe", 2e7), "the usual rate after the attack's timeout", 40)
    assert {d["policy"] for d in served.decisions()} >= {"wider", "narrow-attacked"}


def test_more_monitoring_and_quarantine_on_threat_and_back(served):
    captures = served.directory / "captures"
    closer = {"name": "closer", "kind": "monitor", "pcap_directory": str(captures)}
    served.serve(["monitor", "quarantine"], [closer], allocator={"protected": [served.b.host.ipv4]})
    until(lambda: served.has("closer", 0.0), "nobody is monitored")
    served.a.alarm(served.a.host.ipv4)
    until(lambda: served.has("closer", 1.0), "its packets are captured")
    until(lambda: served.b.resources("quarantine"), "and its node is cut off")
    assert "inet scentd_monitor" in served.b.host.out("nft", "list", "tables")
    until(lambda: not served.b.resources("quarantine"), "the quarantine ends", 40)
    served.b.stop()
    assert "scentd" not in served.b.host.out("nft", "list", "tables")
    assert list(captures.iterdir()), "the captures stay"


def test_kill_changes_nothing_but_a_delay(served):
    """What was given stays while nobody is there, and the next daemon knows it, and does not ask again."""
    served.serve(["bandwidth"], [pipe(served), precedence(served)])
    served.say("bandwidth_out", 0.95)
    until(lambda: served.has("pipe", 1e8), "the maximum")
    time.sleep(1.2)  # it is written once a second
    served.b.kill()
    assert rate_of(served) == "100Mbit"
    before = decisions_in(served.b.directory / "history.db")
    assert before > 0
    served.b.start()
    until(lambda: served.has("pipe", 1e8), "as before")
    acquainted(served.b, served.a)
    time.sleep(2)
    assert rate_of(served) == "100Mbit"
    assert decisions_in(served.b.directory / "history.db") == before


def test_held_by_hand_and_changed_by_hand(served):
    served.serve(["bandwidth"], [pipe(served), precedence(served)])
    until(lambda: served.has("pipe", 2e7), "the usual rate")
    assert served.b.cli("hold", "pipe").stdout == "held: pipe; `scentd resume` goes on\n"
    assert "no resource or peer has this name; known: *, a, pipe, precedence" in served.b.cli("hold", "pip").stderr
    served.say("bandwidth_out", 0.95)
    time.sleep(3)
    assert served.has("pipe", 2e7)
    assert "held: pipe" in served.b.cli("status").stdout
    assert served.b.cli("resume").stdout == "nothing is held\n"
    until(lambda: served.has("pipe", 1e8), "the policy's")
    served.b.host.run("tc", "qdisc", "del", "dev", served.b.host.interfaces[0], "root")
    until(lambda: "drift" in {d["action"] for d in served.decisions()}, "what was taken away is told", 20)
    until(lambda: served.has("pipe", 1e8) and rate_of(served) == "100Mbit", "and put back")


def test_a_dry_run_changes_nothing_and_tells(served):
    served.serve(["bandwidth"], [pipe(served), precedence(served)], allocator={"dry_run": True})
    served.say("bandwidth_out", 0.95)
    until(lambda: any(d["action"] == "dry-run amount" for d in served.decisions()), "what it would do is told")
    assert served.has("pipe", 2e7)
    assert "dry run: policies only say what they would do" in served.b.cli("status").stdout


def decisions_in(path) -> int:
    with closing(reading(path)) as history:
        return history.execute("SELECT count(*) FROM decision").fetchone()[0]
