"""A network of three nodes in trouble, each in another way, in the profile that the other end verifies.

    db-1: PostgreSQL, busy --+
                             +-- a (sshd, knocked at by b) ---- b
    web-1: sends too much ---+   `~~~~ east, a slow path

First by sources of a, which measures the two guests from outside; then by a real Prometheus server alone, of the
exporters of PostgreSQL, of the links and of probes, and of mtail for sshd's log.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
from groups import sending
from guests import EXPORTER_PORT, UPDATES, Database, Guest, seeing_cgroups
from hosts import Node, acquainted, peer_of, start, until
from knocking import WRONG_PASSWORD, Sshd
from prometheus_host import PORT, Prometheus
from slow_wire import SlowWire, Talk
from topology import Host, Topology

from scentd.collect.cgroup import UNIFIED, mounted

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(UNIFIED not in mounted(), reason="needs a mounted cgroup v2, whose cgroups have programs"),
]

TROUBLE = {
    "database": 'has("role=db;metric=database_load;level=high")',
    "hog": 'has("role=web;metric=bandwidth_out;level=high")',
    "region": 'has("region=east;metric=latency;level=high")',
    "attack": "threat >= 0.5",
    # What must not fire: another application, another role.
    "wrong-hog": 'has("role=db;metric=bandwidth_out;level=high")',
    "wrong-load": 'has("role=web;metric=database_load;level=high")',
}
REAL = {"database", "hog", "region", "attack"}
# Of other items 0.7 % seem to be in a filter: not twice in three profiles.
POLICY = {"do": {"kind": "command", "argv": ["/bin/true"]}, "matches": 2, "profiles": 3}
MTAIL = "counter sshd_failures\n/Failed password/ {\n  sshd_failures++\n}\n"


class Site:
    """The hosts; `trouble()` makes all four kinds at once."""

    def __init__(self, net: Topology, directory: Path) -> None:
        self.a, self.b = Node(net.host("a", forward=True), directory), Node(net.host("b"), directory)
        net.link(self.a.host, self.b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        seeing_cgroups(self.a.host)
        self.database = Guest.of(net, self.a.host, "db", "10.2.1.0/24")
        self.web = Guest.of(net, self.a.host, "web", "10.2.2.0/24")
        self.east = net.host("east")
        self.b.host.ip("route add 10.2.0.0/16 via 10.1.0.1")
        self.wire = SlowWire(net, self.a.host, self.east, ipv4="10.3.0.0/24")
        self.log = directory / "sshd"
        guests = [
            {"name": f"{guest.host.name}-1", "addresses": [guest.address], "role": guest.host.name}
            for guest in (self.database, self.web)
        ]
        self.a.network |= {
            "interval": "1s",
            "addresses": [*self.a.addresses, self.database.address, self.web.address],
            "regions": {"east": ["10.3.0.0/24"]},
            "node": guests,
        }
        self.a.sections["stamp"] = {"forwarded": True}
        self.a.peers = [peer_of(self.b)]
        self.b.peers = [peer_of(self.a) | {"addresses": self.a.network["addresses"]}]
        self.b.sections["policy"] = [{"name": name, "when": when, **POLICY} for name, when in TROUBLE.items()]

    def sources(self) -> list[dict]:
        """What a sees of itself and, without an agent in them, of its guests."""
        one_each = [
            source
            for guest in (self.database, self.web)
            for source in (
                {"kind": "cpu", "cgroup": guest.group.name, "node": f"{guest.host.name}-1"},
                {"kind": "memory", "cgroup": guest.group.name, "node": f"{guest.host.name}-1"},
                {
                    "kind": "application",
                    "cgroup": guest.group.name,
                    "capacity": "4mbit",
                    "role": guest.host.name,
                    "node": f"{guest.host.name}-1",
                },
            )
        ]
        page = {"kind": "prometheus", "url": f"http://{self.database.address}:{EXPORTER_PORT}/metrics", "node": "db-1"}
        return [
            {"kind": "cpu"},
            {"kind": "sshd", "file": str(self.log / "auth.log"), "failures": 3, "hold": "30s"},
            {"kind": "tcp", "latency_full": "100ms"},
            page | {"series": UPDATES, "rate": True, "full": 200.0, "metric": "database_load"},
            *one_each,
        ]

    @contextmanager
    def trouble(self, sshd: Sshd, database: Database) -> Iterator[None]:
        self.wire.delay = 0.06
        hog = self.web.start(*sending(self.b.host.ipv4, 1400, 0.001))
        with database.busy(), Talk(self.a.host, self.east):
            inside = ("ip", "netns", "exec", self.b.host.namespace)
            for user in ("root", "admin", "oracle", "postgres"):
                assert sshd.knock(user=user, password=WRONG_PASSWORD, prefix=inside) != 0
            yield
        hog.kill()
        hog.wait()
        self.wire.delay = 0.0


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[Site, Sshd, Database]]:
    directory = tmp_path_factory.mktemp("tn")
    with ExitStack() as stack:
        site = Site(stack.enter_context(Topology("tn")), directory)
        for guest in (site.database, site.web):
            stack.enter_context(guest.group)
        stack.enter_context(site.wire)
        run = lambda argv: site.a.host.start(*argv)  # noqa: E731
        sshd = stack.enter_context(Sshd(site.log, 22, site.a.host.ipv4, run=run))
        database = stack.enter_context(Database(site.database))
        stack.enter_context(site.a)
        stack.enter_context(site.b)
        yield site, sshd, database


def fired(node: Node) -> set[str]:
    return {p["policy"] for p in node.status()["allocation"]["policies"] if p["outcomes"].get("fired")}


def begin(site: Site, metric: str) -> None:
    """Start both, and wait until a rate has two values."""
    start(site.a, site.b)
    acquainted(site.b, site.a)
    until(lambda: metric in site.b.profile(site.a)["levels"], f"b has {metric}")
    assert not fired(site.b), "all is quiet"


def acts_on_all(site: Site) -> None:
    b = site.b
    with suppress(AssertionError):
        until(lambda: fired(b) == REAL, "b acts on all four", 40)
    assert fired(b) == REAL, site.a.cli("status").stdout + b.cli("status").stdout


def test_three_nodes_seen_from_one_host(site):
    net, sshd, database = site
    a, b = net.a, net.b
    a.network["source"] = net.sources()
    begin(net, "database_load")
    with net.trouble(sshd, database):
        acts_on_all(net)
        until(lambda: b.profile(a)["levels"]["threat"] >= 0.5, "the threat is in the profile, too")
        told = json.loads(a.cli("explain", "--profile", "a", "--json").stdout)["profile"]
    levels = {of["metric"]: of for of in told["levels"]}
    assert [(s["node"], s["role"]) for s in levels["database_load"]["samples"]] == [("db-1", "db")]
    assert {s["node"] for s in levels["bandwidth_out"]["samples"]} == {"db-1", "web-1"}
    assert {s["node"] for s in levels["cpu"]["samples"]} == {"", "db-1", "web-1"}
    assert [e["kind"] for e in told["events"]] == ["intrusion"]
    text = a.cli("explain", "--profile", "a").stdout
    assert "role web: bandwidth_out" in text
    assert "region east: latency" in text
    assert b.status()["absent"] == 0, "the hog's packets have the scent, too"


def jobs(net: Site) -> list[dict]:
    """What Prometheus scrapes: four exporters, each with the labels that say of whom it speaks."""

    def job(name: str, target: str, labels: dict[str, str], **more: object) -> dict:
        found = [{"targets": [target], "labels": {"network": "a", **labels}}]
        return {"job_name": name, "static_configs": found, **more}

    probe = {"metrics_path": "/probe", "params": {"module": ["connect"], "target": [f"{net.east.ipv4}:7"]}}
    return [
        job("postgres", f"{net.database.address}:{EXPORTER_PORT}", {"node": "db-1", "role": "db"}),
        job("links", "127.0.0.1:9100", {}),
        job("sshd", "127.0.0.1:3903", {"node": "gw"}),
        job("east", "127.0.0.1:9115", {"node": "gw", "region": "east"}, **probe),
    ]


def queries(net: Site) -> list[dict]:
    devices = {guest.outside: guest.host.name for guest in (net.database, net.web)}
    sent = f'rate(node_network_receive_bytes_total{{device=~"{"|".join(devices)}"}}[3s])'
    for device, name in devices.items():  # a container's link is its application's
        for label, value in (("node", f"{name}-1"), ("role", name)):
            sent = f'label_replace({sent}, "{label}", "{value}", "device", "{device}")'
    return [
        {"metric": "database_load", "query": f"rate({UPDATES}[3s])", "full": 200},
        {"metric": "bandwidth_out", "query": sent, "full": 500_000},
        {"metric": "latency", "query": "probe_duration_seconds", "full": 0.1},
        {"metric": "threat", "query": "increase(sshd_failures[1m])", "full": 4},
    ]


def exporters(host: Host, directory: Path, log: Path) -> None:
    (directory / "sshd.mtail").write_text(MTAIL)
    (directory / "blackbox.yml").write_text("modules: {connect: {prober: tcp, timeout: 2s}}\n")
    with open(directory / "exporters.log", "ab") as out:
        for argv in (
            ("prometheus-node-exporter", "--collector.disable-defaults", "--collector.netdev"),
            ("prometheus-blackbox-exporter", f"--config.file={directory}/blackbox.yml", "--timeout-offset=0.1"),
            ("mtail", "-logtostderr", f"-progs={directory}/sshd.mtail", f"-logs={log}", "-address=127.0.0.1"),
        ):
            host.start(*argv, stdout=out, stderr=out)


def test_the_same_from_a_prometheus_server_alone(site):
    net, sshd, database = site
    a, b = net.a, net.b
    for node in (a, b):
        if node.running():
            node.stop()
    directory = a.directory / "prometheus"
    directory.mkdir()
    exporters(a.host, directory, sshd.log)
    with closing(net.east.call(socket.create_server, (net.east.ipv4, 7))), Prometheus(a.host, directory, *jobs(net)):
        del a.network["source"]
        a.network["sign"] = True
        a.network["node"].append({"name": "gw", "addresses": a.addresses})
        server = {"name": "p", "url": f"http://127.0.0.1:{PORT}", "node_label": "node", "query": queries(net)}
        a.sections["prometheus_server"] = [server]
        begin(net, "bandwidth_out")
        with net.trouble(sshd, database):
            acts_on_all(net)
        told = json.loads(a.cli("explain", "--profile", "a", "--json").stdout)["profile"]
    nodes = {of["metric"]: {s["node"] for s in of["samples"]} for of in told["levels"]}
    assert nodes["bandwidth_out"] == {"db-1", "web-1"}
    assert nodes["threat"] == {"gw"}
