"""Everything together: three tenants, one overloaded, one attacked, one far away; real servers, one daemon for all.

busy 10.5.0.1 ----+
                  host: scentd, PostgreSQL with HAProxy, an edge of nginx ---- 40 ms each way ---- origin: nginx
attacked 10.6.0.1 +
client 10.1.0.1 --+   (tests/caching.py)

The levels are what files say. The load of `busy` is shared by what serves it: it falls when replicas really join.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import toys
from caching import ORIGINS, get, site_files, world
from hosts import ROOT, Node, acquainted, peer_of, start, until
from read_pool import PASSWORD, ROLE, ReadPool

pytestmark = [pytest.mark.netns, pytest.mark.alone]

POLICIES = ROOT / "systemd" / "policies"
SHORT = {"database": ('"30s"', '"2s"'), "cache": ('"5m"', '"2s"'), "quarantine": ('"60s"', '"8s"')}
METRICS = "cpu", "latency", "database_load", "request_load"


class Tenant(Node):
    """Its levels are what files say."""

    def __init__(self, host, directory: Path) -> None:
        super().__init__(host, directory)
        self.program = (toys.__file__,)
        sources = [{"kind": "line", "path": str(self.directory / m), "metric": m} for m in METRICS]
        self.network |= {"interval": "1s", "labels": ["region=eu"]}
        self.network["source"] = [*sources, {"kind": "eve", "socket": str(self.eve), "hold": "3s"}]
        for metric in METRICS:
            self.say(metric, 0.3)

    def say(self, metric: str, level: float) -> None:
        new = self.directory / f"{metric}.new"
        new.write_text(str(round(min(level, 1.0), 3)))
        new.replace(self.directory / metric)


class Scene:
    def __init__(self, net, pool: ReadPool, directory: Path) -> None:
        self.net, self.pool, host = net, pool, net.hosts["host"]
        self.tenants = {}
        addresses = ["10.1.0.2", "fd01::2", "10.5.0.2", "10.6.0.2"]
        for name, number in (("client", 0), ("busy", 5), ("attacked", 6)):
            if number:
                net.link(net.host(name), host, ipv4=f"10.{number}.0.0/24")
            self.tenants[name] = Tenant(net.hosts[name], directory)
        self.service = Node(host, directory, issues=False)
        self.service.network["addresses"] = addresses
        for tenant in self.tenants.values():
            reached = [a for a in addresses if a.split(".")[1:2] == (tenant.host.ipv4.split(".")[1:2])]
            tenant.peers = [peer_of(self.service, verify=False) | {"addresses": reached}]
        self.service.peers = [peer_of(tenant) for tenant in self.tenants.values()]
        self.service.sections = {
            "include": [self.shortened(directory, name) for name in ("database", "cache", "quarantine", "monitor")],
            "resource": self.resources(directory),
            "allocator": {"protected": ["10.3.0.0/24"]},
        }
        self.demand = 0.3
        self.stopping = threading.Event()
        self.sharing = threading.Thread(target=self.share)

    @staticmethod
    def shortened(directory: Path, name: str) -> str:
        """A shipped policy whose pauses fit into a test."""
        text = (POLICIES / f"{name}.toml").read_text()
        old, new = SHORT.get(name, ("", ""))
        path = directory / f"{name}.toml"
        path.write_text(text.replace(old, new).replace('"30m"', '"3s"').replace('"10m"', '"8s"') if old else text)
        if name == "monitor":
            path.write_text(text.replace('"10m"', '"8s"'))
        return str(path)

    def resources(self, directory: Path) -> list[dict]:
        section, primary = self.pool.section(), self.pool.primary
        return [
            {
                "name": "replicas",
                "kind": "postgres",
                "peer": "busy",
                "maximum": 3,
                "conninfo": section.conninfo,
                "passfile": str(primary.passfile),
                "directory": str(self.pool.replicas),
                "ports": [26100, 26199],
                "haproxy_socket": str(self.pool.haproxy.socket),
                "pool": "reads",
                "grace": "5s",
                "provide": "3s",
            },
            {
                "name": "edge",
                "kind": "cache",
                "peer": "client",
                "origin": ORIGINS,
                "check": "/logo.png",
                "access_log": str(directory / "access.log"),
                "edge": [{"name": "here", "address": ["10.1.0.2:8080", "[fd01::2]:8080"], "region": "eu"}],
                "provide": "1s",
            },
            {"name": "closer", "kind": "monitor", "pcap_directory": str(directory / "captures")},
        ]

    def share(self) -> None:
        """The demand of `busy` is served by the primary and those replicas that are really in the pool."""
        while not self.stopping.wait(0.3):
            serving = 1 + len([n for n in self.pool.directories() if not n.endswith(".new")])
            self.tenants["busy"].say("database_load", self.demand / serving)

    def amount(self, resource: str, peer: str) -> dict:
        found = self.service.status()["allocation"]["resources"]
        return next(r for r in found if (r["resource"], r["peer"]) == (resource, peer))

    def has(self, resource: str, peer: str, amount: float) -> bool:
        one = self.amount(resource, peer)
        return one["amount"] == one["observed"] == amount

    def replicas_of(self) -> int:
        """What clients of the pool can reach: each answers that it is a replica."""
        with psycopg.connect(
            host="127.0.0.1",
            port=self.pool.haproxy.front,
            user=ROLE,
            password=PASSWORD,
            dbname="postgres",
            connect_timeout=5,
        ) as connection:
            (recovering,) = connection.execute("SELECT pg_is_in_recovery()").fetchone() or (None,)
        return int(bool(recovering))

    def decided(self, peer: str) -> list[str]:
        said = json.loads(self.service.cli("explain", peer, "--limit", "200", "--json").stdout)["decisions"]
        return [f"{d['policy']}:{d['action']}:{d['after']}" for d in reversed(said)]


@pytest.fixture
def scene(tmp_path):
    site_files(tmp_path)
    with world(tmp_path) as net:
        host = net.hosts["host"]
        with closing(host.call(ReadPool)) as pool:
            made = Scene(net, pool, tmp_path)
            nodes = [made.service, *made.tenants.values()]
            made.sharing.start()
            try:
                start(*nodes)
                for tenant in made.tenants.values():
                    acquainted(made.service, tenant)
                yield made
            finally:
                made.stopping.set()
                made.sharing.join()
                for node in nodes:
                    if node.running():
                        node.stop()
                host.call(stop_replicas, pool)


def stop_replicas(pool: ReadPool) -> None:
    """Those that the daemon has left, as is its way with replicas."""
    backend = pool.backend(("busy",), peer="busy", name="replicas")
    backend.change("busy", 0)


def test_three_tenants_get_what_they_need_and_give_it_back(scene):
    busy, attacked, client = scene.tenants["busy"], scene.tenants["attacked"], scene.tenants["client"]
    began = time.monotonic()

    # All is calm: nobody has anything.
    until(lambda: scene.has("replicas", "busy", 0.0) and scene.has("edge", "client", 0.0), "nothing is given")
    before, cached, _ = get(scene.net, "/app.js")
    assert cached is None
    assert before > 0.15

    # The load of one rises: two replicas really join and share it.
    scene.demand = 1.9
    until(lambda: scene.has("replicas", "busy", 2.0), "two replicas serve", 60)
    assert scene.net.hosts["host"].call(scene.replicas_of) == 1
    assert len(scene.pool.primary.slots()) == 2
    until(lambda: scene.service.profile(busy)["levels"]["database_load"] < 0.7, "and the load falls")

    # One is attacked: its node is cut off, its packets are captured; the neighbours are not.
    attacked.alarm(attacked.host.ipv4)
    until(lambda: scene.service.resources("quarantine"), "the node is cut off")
    assert [r["resource"] for r in scene.service.resources("quarantine")] == [attacked.host.ipv4]
    until(lambda: scene.has("closer", "attacked", 1.0), "its packets are captured")
    assert scene.has("closer", "busy", 0.0)

    # kill -9 in the middle: what was given stays, and the next daemon goes on.
    time.sleep(1.5)
    scene.service.kill()
    assert len(scene.pool.primary.slots()) == 2
    scene.service.start()
    until(lambda: scene.has("replicas", "busy", 2.0), "the replicas are there as before")
    acquainted(scene.service, busy)

    # One is far away: its connections are led to the edge, which is warm.
    for path in ("/app.js", "/logo.png"):
        get(scene.net, path)
    client.say("latency", 0.9)
    until(lambda: scene.has("edge", "client", 1.0), "it is led to the edge", 60)
    after, cached, _ = get(scene.net, "/app.js")
    assert cached == "HIT"
    assert after < before / 3

    # All is calm again: everything is given back, and nothing is left.
    until(lambda: not scene.service.resources("quarantine"), "the quarantine ends", 60)
    until(lambda: scene.has("closer", "attacked", 0.0), "nobody is monitored", 60)
    scene.demand = 0.3
    client.say("latency", 0.1)
    client.say("request_load", 0.1)
    until(lambda: scene.has("replicas", "busy", 0.0), "the replicas are drained and gone", 90)
    until(lambda: scene.has("edge", "client", 0.0), "it goes to the origin again", 60)
    assert scene.pool.clean()
    assert get(scene.net, "/app.js")[1] is None

    # For at least two minutes, and nothing moves while all is calm.
    calm = scene.decided("busy")
    time.sleep(max(10.0, 120.0 - (time.monotonic() - began)))
    assert scene.decided("busy") == calm
    assert scene.has("replicas", "busy", 0.0)
    numbers = [int(d.split(":")[2].split()[0]) for d in calm if ":amount:" in d and d.endswith("replicas")]
    peak = numbers.index(max(numbers))
    assert max(numbers) == 2, "no more than needed"
    assert numbers[: peak + 1] == sorted(numbers[: peak + 1]), "straight up"
    assert numbers[peak:] == sorted(numbers[peak:], reverse=True), "and straight down"
    assert not [d for peer in ("busy", "attacked", "client") for d in scene.decided(peer) if ":oscillation:" in d]
