"""A provider who has Prometheus needs no agent: a real server, one query a metric, the profile at the peer.

a ---- b      a has Prometheus and an exporter on loopback, and no [[network.source]]
"""

from __future__ import annotations

import signal

import pytest
from certificates import self_signed
from hosts import pair, start, until
from prometheus_host import PORT, PrometheusHost

from scentd.collect.prometheus_server import ServerReader
from scentd.config.prometheus_server import PrometheusServer, Query
from scentd.state import key_files

pytestmark = pytest.mark.netns

QUERIES = [
    {"metric": "database_load", "query": "tenant_load", "full": 100, "role": "db"},
    {"metric": "latency", "query": "max by (network, region) (probe_seconds)", "full": 0.2},
    {"metric": "cpu", "query": "max by (network) (tenant_load) and on () (nothing)", "full": 1},
    {"metric": "memory", "query": "1", "full": 1},
    {"metric": "jitter", "query": "sum(", "full": 1},
]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pq")
    with pair("pq", directory) as (a, b), PrometheusHost(a.host, directory / "prometheus") as prometheus:
        other = directory / "other.key"
        other.touch(0o600)
        other.write_text(key_files.generate())
        prometheus.gauge.labels(a.name, "10.1.0.1:9187").set(20)
        prometheus.gauge.labels("other", "db-1").set(90)
        prometheus.gauge.labels("other", "10.7.0.1").set(10)
        prometheus.gauge.labels("other", "10.8.0.1").set(100)
        prometheus.gauge.labels("nobody", "db-1").set(100)
        prometheus.latency.labels(a.name, "us-east").set(0.19)
        prometheus.latency.labels(a.name, "eu-west").set(0.01)
        until(lambda: len(prometheus.ask("tenant_load")) == 5, "Prometheus has all series")
        network = {"name": a.name, "key_file": str(a.key_file), "addresses": a.addresses, "interval": "2s"}
        second = {"name": "other", "key_file": str(other), "addresses": ["10.7.0.0/24"], "interval": "2s"}
        a.sections["network"] = [{**network, "sign": True}, {**second, "sign": True}]
        a.sections["prometheus_server"] = [{"name": "p", "url": f"http://127.0.0.1:{PORT}", "query": QUERIES}]
        start(a, b)
        yield a, b, prometheus


def level(node, metric="database_load", network=0):
    return node.status()["networks"][network]["levels"].get(metric)


def queries(node):
    return {q["metric"]: q for q in node.status()["prometheus_servers"][0]["queries"]}


def test_a_change_at_the_exporter_arrives_in_the_profile_at_the_peer(nodes):
    a, b, prometheus = nodes
    until(lambda: (b.profile(a) or {"levels": {}})["levels"].get("database_load") == 0.2, "the first level")
    prometheus.gauge.labels(a.name, "10.1.0.1:9187").set(84)
    until(lambda: b.profile(a)["levels"].get("database_load") == 0.84, "the new level")
    assert "role=db;metric=database_load;level=high" in a.status()["networks"][0]["items"]


def test_a_slow_region_is_known_from_prometheus_alone(nodes):
    a, _, _ = nodes
    items = {f"region={r};metric=latency;level={level}" for r, level in (("us-east", "high"), ("eu-west", "low"))}
    until(lambda: items <= set(a.status()["networks"][0]["items"]), "both regions have their own level")
    assert "latency" not in a.status()["networks"][0]["levels"], "a path's is not the network's"


def test_each_network_has_its_own_and_strangers_none(nodes):
    a, _, _ = nodes
    until(lambda: level(a, network=1) == 0.5, "the mean of the two nodes that are the network's")
    counters = a.status()["prometheus_servers"][0]["counters"]
    assert counters["unknown_network"] >= 1
    assert counters["foreign_node"] >= 1
    assert [n["name"] for n in a.status()["networks"]] == [a.name, "other"]


def test_queries_fail_alone_and_say_why(nodes):
    a, _, _ = nodes
    until(lambda: all(q["answered_at"] or q["why_not"] for q in queries(a).values()), "all were asked")
    found = queries(a)
    assert (found["database_load"]["networks"], found["database_load"]["samples"]) == (2, 3)
    assert "gives no series" in found["cpu"]["why_not"]
    assert "gives a 'scalar' instead of a vector" in found["memory"]["why_not"]
    assert "bad_data: " in found["jitter"]["why_not"]
    assert "correct `query`" in found["jitter"]["why_not"]
    shown = a.cli("status").stdout
    assert "database_load: 3 samples of 2 networks" in shown
    assert "jitter: fails: " in shown


def test_the_host_goes_on_while_the_server_is_stopped_hung_and_gone(nodes):
    a, _, prometheus = nodes
    until(lambda: level(a) is not None, "a level")
    prometheus.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: "no complete answer" in queries(a)["database_load"]["why_not"], "a hung server is named")
        until(lambda: level(a) is None, "its last samples are too old")
        issued = a.status()["networks"][0]["issued"]
        until(lambda: a.status()["networks"][0]["issued"] > issued, "epochs go on")
    finally:
        prometheus.process.send_signal(signal.SIGCONT)
    prometheus.stop()
    until(lambda: "Connection refused" in queries(a)["database_load"]["why_not"], "a server that is gone is named")
    prometheus.start()
    until(lambda: level(a) is not None, "the level is back", 30)
    assert "works again" in a.log.read_text()


def test_tls_of_the_real_server_is_verified(nodes, tmp_path, monkeypatch):
    _, _, prometheus = nodes
    certificate, key = self_signed(tmp_path)
    web = tmp_path / "web.yml"
    web.write_text(f"tls_server_config: {{cert_file: {certificate}, key_file: {key}}}\n")
    prometheus.stop()
    prometheus.start(f"--web.config.file={web}", wait=False)
    query = Query(metric="cpu", query='label_replace(vector(7), "network", "n", "", "")', full=10)
    server = PrometheusServer(name="p", url=f"https://127.0.0.1:{PORT}", query=[query])
    reader = ServerReader(server, {"n": None})

    def read():
        return prometheus.host.call(reader.read)

    until(lambda: not read() and "certificate" in reader.queries[0].why_not, "its certificate is refused")
    assert "add its authority to the system's trust store" in reader.queries[0].why_not
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    until(lambda: [s.value for s in read().get("n", ())] == [0.7], "it is trusted")
    reader.close()
