"""A fleet: a collector, a profiler and its standby, two gateways, a verifier and an allocator, with NATS between them.

c, p1, p2, g1, g2, NATS servers ---- 10.9.0.0/24 (the bus)
g1, g2, v ---- 10.1.0.0/24, fd00:1::/64 (packets)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hosts import Node, peer_of, start
from nats_cluster import NatsCluster
from topology import Topology

from scentd.state import key_files
from scentd.wire import keys

BUS = "10.9.0.0/24"
INTERVAL, LAG = 2, 20  # seconds
# Hosts, and whose permissions in the shipped nats-server.conf each has; collectors have db-1's.
USERS = {"profiler": "profiler", "g1": "gw-1", "g2": "gw-1", "v": "edge-1", "alloc": "allocator"}


class Fleet:
    """Its hosts and configurations; nothing is started. `network` is the identity of acme, whose parts all are."""

    def __init__(
        self,
        net: Topology,
        directory: Path,
        servers: int = 1,
        collectors: Sequence[str] = ("c",),
        site: Sequence[str] = (),
        site_keeps: bool = False,
    ) -> None:
        """`site`: the hosts of another site, with a server of their own; `site_keeps`: as in a NatsCluster."""
        self.net = net
        names = (*collectors, "p1", "p2", "g1", "g2", "alloc")
        nodes = [Node(net.host(name), directory, issues=False) for name in names]
        self.collectors = nodes[: len(collectors)]
        self.p1, self.p2, self.g1, self.g2, self.alloc = nodes[len(collectors) :]
        self.v = Node(net.host("v"), directory)
        self.brokers = [net.host(f"n{number}") for number in range(servers)]
        self.site, self._at_site = net.host("leaf") if site else None, site
        # The packets' link comes first, so that a host's first address is the network's.
        self.switch = net.bridge([self.g1.host, self.g2.host, self.v.host], ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        on_bus = [node.host for node in (*nodes, self.v)]
        net.bridge([*on_bus, *self.brokers, *([self.site] if self.site else [])], ipv4=BUS)
        self.cluster = NatsCluster(
            self.brokers, directory / "nats", USERS | dict.fromkeys(collectors, "db-1"), self.site, site_keeps
        )
        self.network = self.g1.identity  # its key
        self.bus_keys = {name: key_files.generate() for name in (*collectors, *USERS)}
        self._configure()

    @property
    def profilers(self) -> tuple[Node, Node]:
        return self.p1, self.p2

    @property
    def nodes(self) -> tuple[Node, ...]:
        return *self.collectors, self.p1, self.p2, self.g1, self.g2, self.v, self.alloc

    @property
    def gateways(self) -> tuple[Node, Node]:
        return self.g1, self.g2

    def host(self, name: str, *duties: str) -> dict[str, Any]:
        """A [[bus.host]] entry."""
        public = keys.identity(key_files.parse_secret(self.bus_keys[name])).public
        return {"name": name, "public_key": str(public), "duties": list(duties)}

    def _configure(self) -> None:
        base = {"name": "acme", "interval": f"{INTERVAL}s", "addresses": [*self.g1.addresses, *self.g2.addresses]}
        key = {"key_file": str(self.g1.key_file), "lag": f"{LAG}s"}
        to_profiler = [self.host("profiler", "sign")]
        others = [self.host(c.name, "collect") for c in self.collectors]
        others += [self.host(g.name, "stamp") for g in self.gateways]
        peers = [peer_of(self.v, verify=False)]
        for node, name, network, hosts, known in (
            *((c, c.name, {"source": [{"kind": "memory"}], "stamp": False}, to_profiler, []) for c in self.collectors),
            (self.p1, "profiler", {"sign": True, "stamp": False} | key, others, peers),
            (self.p2, "profiler", {"sign": True, "stamp": False} | key, others, peers),
            (self.g1, "g1", {"stamp": True, "public_key": str(self.network.public)}, to_profiler, peers),
            (self.g2, "g2", {"stamp": True, "public_key": str(self.network.public)}, to_profiler, peers),
        ):
            node.peers = known
            node.sections = {"network": [base | network], "bus": self._bus(node, name, hosts)}
        acme = {"name": "acme", "public_key": str(self.network.public), "addresses": base["addresses"]}
        self.v.peers = [acme | {"absent": "drop", "rejected": "drop"}]
        self.v.sections = {"bus": self._bus(self.v, "v", [self.host("alloc", "allocate")])}
        self.alloc.peers = [acme]
        self.alloc.sections = {"network": [], "bus": self._bus(self.alloc, "alloc", [self.host("v", "verify")])}

    def _bus(self, node: Node, name: str, hosts: list[dict[str, Any]]) -> dict[str, Any]:
        """The [bus] section of a host."""
        own = node.directory / "bus.key"
        own.touch(0o600)
        own.write_text(self.bus_keys[name])
        at_site = node.name in self._at_site
        return {**self.cluster.settings(node, name, at_site), "key_file": str(own), "host": hosts}


@contextmanager
def running(tag: str, directory: Path, **more: Any) -> Iterator[Fleet]:
    """A fleet with one profiler, whose allocator acts as soon as it knows anything."""
    with ExitStack() as stack:
        fleet = Fleet(stack.enter_context(Topology(tag)), directory, **more)
        stack.enter_context(fleet.cluster)
        for node in fleet.nodes:
            stack.enter_context(node)
        high = {"name": "high", "when": "memory > 0.0", "do": {"kind": "command", "argv": ["/bin/true"]}}
        fleet.alloc.sections["policy"] = [high]
        start(*fleet.collectors, fleet.p1, *fleet.gateways, fleet.v, fleet.alloc)
        yield fleet


def network(node: Node) -> dict[str, Any]:
    return node.status()["networks"][0]


def lease(node: Node) -> dict[str, Any]:
    return node.status()["bus"]["lease"]


def profile(fleet: Fleet) -> dict[str, Any] | None:
    """The newest that the verifier has of acme."""
    return next(p["profile"] for p in fleet.v.status()["peers"] if p["name"] == "acme")
