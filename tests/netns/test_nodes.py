"""A network of three nodes in one profile: this host by its own processors, two others by what a Prometheus page says.

a (10.1.0.1) measures itself, db-1 (10.9.0.1) and web-1, and expects a third, spare, that never speaks ---- b
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import jsonschema
import pytest
from hosts import ROOT, Node, acquainted, pair, start, until
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import MetricsHandler

pytestmark = pytest.mark.netns

SCHEMAS = json.loads((ROOT / "scentd" / "control" / "status.schema.json").read_text())


class Exporter:
    """A real Prometheus page on the loopback of a host."""

    def __init__(self, node: Node) -> None:
        registry = CollectorRegistry()
        self.load = Gauge("load", "", ["node"], registry=registry)
        handler = MetricsHandler.factory(registry)
        self._node, self._handler, self.port = node, handler, 0
        self.start()

    def start(self) -> None:
        end = self._node.host.call(socket.create_server, ("127.0.0.1", self.port))
        self.port = end.getsockname()[1]
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = end
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def source(self, node: str, metric: str, **more: str) -> dict:
        url = f"http://127.0.0.1:{self.port}/metrics"
        series = f'load{{node="{node}"}}'
        return {
            "kind": "prometheus",
            "url": url,
            "series": series,
            "full": 10.0,
            "metric": metric,
            "node": node,
            **more,
        }


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Iterator[tuple[Node, Node, Exporter, Exporter]]:
    with pair("no", tmp_path_factory.mktemp("no")) as (a, b):
        database, web = Exporter(a), Exporter(a)
        database.load.labels("10.9.0.1").set(9.0)
        web.load.labels("web-1").set(2.0)
        a.network |= {
            "stale_after": "3s",
            "aggregate": {"cpu": "max"},
            "node": [{"name": "db-1", "addresses": ["10.9.0.1"], "role": "db"}, {"name": "web-1"}, {"name": "spare"}],
            "source": [
                {"kind": "cpu", "role": "web"},
                database.source("10.9.0.1", "database_load"),
                web.source("web-1", "request_load", role="web"),
                {"kind": "eve", "socket": str(a.eve), "node": "10.9.0.1", "hold": "60s"},
            ],
        }
        high = 'has("role=db;metric=database_load;level=high")'
        b.sections["policy"] = [{"name": "busy", "when": high, "do": {"kind": "command", "argv": ["/bin/true"]}}]
        start(a, b)
        acquainted(b, a)
        yield a, b, database, web
        database.stop()
        web.stop()


def network(node: Node) -> dict:
    return node.status()["networks"][0]


def states(node: Node, what: str = "nodes") -> dict[str, str]:
    return {one["name"]: one["state"] for one in network(node)[what]}


def test_the_peer_reads_all_nodes_in_one_profile(three):
    a, b, _, _ = three
    until(lambda: {"cpu", "database_load", "request_load"} <= b.profile(a)["levels"].keys(), "all have spoken")
    levels = b.profile(a)["levels"]
    assert (levels["database_load"], levels["request_load"]) == (0.9, 0.2)
    assert levels["threat"] == 0.0, "somebody watches, and all is quiet"
    assert "role=db;metric=database_load;level=high" in network(a)["items"]
    assert not any("db-1" in item or "10.9" in item for item in network(a)["items"])
    until(lambda: b.count("allocation")["decisions"].get("command"), "a policy acts on the role's level")


def test_states_of_nodes_and_sources_are_in_status_and_metrics(three):
    a, _, _, _ = three
    until(lambda: states(a)["spare"] == "stale", "who never speaks is named")
    assert states(a) == {"": "fresh", "db-1": "fresh", "web-1": "fresh", "spare": "stale"}
    sources = network(a)["sources"]
    assert {s["kind"]: s["state"] for s in sources} == dict.fromkeys(("cpu", "prometheus", "eve"), "fresh")
    assert {s["node"]: s["scale"] for s in sources if s["kind"] == "prometheus"} == {
        node: f'load{{node="{node}"}} = 10' for node in ("10.9.0.1", "web-1")
    }
    text = a.cli("status").stdout
    assert "nodes: fresh 3, stale 1" in text
    assert "node spare is stale: nothing has come in" in text
    jsonschema.validate(json.loads(a.cli("status", "--json").stdout), SCHEMAS)
    metrics = a.cli("metrics").stdout
    assert 'scentd_nodes{network="a",state="stale"} 1.0' in metrics
    assert 'scentd_source_state{network="a",source="cpu",state="fresh"} 1.0' in metrics


def test_explain_tells_how_each_level_came_about(three):
    a, _, database, _ = three
    database.load.labels("10.9.0.1").set(7.13)
    until(lambda: network(a)["levels"].get("database_load") == 0.72, "the next profile")
    told = json.loads(a.cli("explain", "--profile", "a", "--json").stdout)
    jsonschema.validate(told, SCHEMAS)
    levels = {of["metric"]: of for of in told["profile"]["levels"]}
    load = levels["database_load"]
    assert (load["aggregation"], load["nodes"], load["value"], load["level"]) == ("max", 1, 0.713, 0.72)
    [sample] = load["samples"]
    assert (sample["node"], sample["role"], sample["counts"], sample["state"]) == ("db-1", "db", 0.713, "fresh")
    assert levels["cpu"]["aggregation"] == "max"
    text = a.cli("explain", "--profile", "a").stdout
    assert "database_load 0.72: max of 1 node 0.7130, 0 to 1 of the source's full, weight 1 of 4" in text
    assert "db-1 (db) 0.713, " in text
    assert "role db: database_load 0.72 medium of 1 node(s)" in text
    assert "node spare: stale, nothing has come in" in text
    unknown = a.cli("explain", "--profile", "nobody")
    assert unknown.returncode == 1
    assert "no network of this host is named 'nobody'; known: a" in unknown.stderr
    assert a.cli("explain").returncode == a.cli("explain", "b", "--profile", "a").returncode == 2


def test_a_node_that_falls_silent_counts_no_more_and_is_named_once(three):
    a, _, _, web = three
    web.stop()
    until(lambda: states(a)["web-1"] == "stale", "it is stale after stale_after")
    assert states(a, "sources")["prometheus_request_load_web_1"] == "failing"
    until(lambda: "request_load" not in network(a)["levels"], "its level is unknown")
    assert network(a)["levels"]["database_load"] == 0.72, "the others count on"
    web.start()
    until(lambda: states(a)["web-1"] == "fresh", "it heals")
    assert network(a)["intake"]["became_stale"] >= 2  # and spare
    assert a.log.read_text().count("stale node web-1: silent for") == 1


def test_an_alert_of_a_node_is_a_threat_that_names_it(three):
    a, b, _, _ = three
    line = {"event_type": "alert", "alert": {"severity": 1, "category": "A Network Trojan was detected"}}
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(a.eve))
        end.sendall(json.dumps(line).encode() + b"\n")
    until(lambda: network(a)["affected"] == ["10.9.0.1"], "the source says of which node it speaks")
    until(lambda: b.profile(a)["levels"]["threat"] == 1.0, "the peer knows")
    told = json.loads(a.cli("explain", "--profile", "a", "--json").stdout)["profile"]
    assert [(e["kind"], e["node"]) for e in told["events"]] == [("malware", "10.9.0.1")]
