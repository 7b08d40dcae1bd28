"""Two hosts that provide, two allocators of one name, real daemons: one is killed, old states are replayed, no bus.

s (states, stamps) ==== packets ==== v (verifies) ---- NATS ---- a1, a2 (allocate) ---- db1, db2 (provide)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import giving
import pytest
from hosts import Node, peer_of, start, until
from nats_cluster import NatsCluster
from topology import Topology

from scentd.roles.fleet.allocating import INTERVAL
from scentd.state import key_files
from scentd.wire import keys

pytestmark = pytest.mark.netns

USERS = {"v": "edge-1", "alloc": "allocator", "db1": "db-2", "db2": "db-2"}
CUT = 8.0  # seconds of a restriction
TAKES_OVER = 2 * INTERVAL + 9


class ProvidingFleet:
    def __init__(self, net: Topology, directory: Path) -> None:
        self.directory = directory
        self.load = directory / "load"
        self.load.write_text("0.5")
        self.s = Node(net.host("s"), directory)
        self.v = Node(net.host("v"), directory)
        rest = [Node(net.host(name), directory, issues=False) for name in ("a1", "a2", "db1", "db2")]
        self.a1, self.a2, self.db1, self.db2 = rest
        self.broker = net.host("n0")
        net.link(self.s.host, self.v.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        net.bridge([self.v.host, *(node.host for node in rest), self.broker], ipv4="10.9.0.0/24")
        self.cluster = NatsCluster([self.broker], directory / "nats", USERS)
        self.keys = {name: key_files.generate() for name in USERS}
        for node in self.nodes:
            node.program = (giving.__file__,)
        self._configure()

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.s, self.v, self.a1, self.a2, self.db1, self.db2

    def files(self, node: Node) -> int:
        place = node.directory / "files" / "s"
        return len(list(place.iterdir())) if place.exists() else 0

    def _host(self, name: str, *duties: str) -> dict[str, Any]:
        public = keys.identity(key_files.parse_secret(self.keys[name])).public
        return {"name": name, "public_key": str(public), "duties": list(duties)}

    def _bus(self, node: Node, name: str, hosts: list[dict[str, Any]]) -> dict[str, Any]:
        own = node.directory / "bus.key"
        own.touch(0o600)
        own.write_text(self.keys[name])
        return {**self.cluster.settings(node, name), "key_file": str(own), "host": hosts}

    def _resource(self, node: Node, **more: Any) -> dict[str, Any]:
        section = {"name": f"{node.name}-files", "kind": "files", "maximum": 5, "normal": 1}
        return {**section, "directory": str(node.directory / "files"), **more}

    def _configure(self) -> None:
        self.s.network["source"] = [{"kind": "line", "path": str(self.load)}]
        self.s.peers = [peer_of(self.v, verify=False)]
        said = peer_of(self.s)
        self.v.peers = [said]
        self.v.sections = {"bus": self._bus(self.v, "v", [self._host("alloc", "allocate")])}
        providers = (self.db1, self.db2)
        for node in providers:
            (node.directory / "files").mkdir()
            node.peers = [said]
            bus = self._bus(node, node.name, [self._host("alloc", "allocate")])
            node.sections = {"network": [], "bus": bus, "resource": [self._resource(node)]}
        hosts = [self._host("v", "verify"), *(self._host(node.name, "provide") for node in providers)]
        many = {"kind": "amount", "resource": "db1-files", "to": 3}
        some = {"kind": "amount", "resource": "db2-files", "to": 2}
        cut = {"kind": "amount", "resource": "db1-files", "to": 0, "timeout": f"{CUT:g}s"}
        for node in (self.a1, self.a2):
            node.peers = [said]
            node.sections = {
                "network": [],
                "bus": self._bus(node, "alloc", hosts),
                "resource": [self._resource(one, host=one.name) for one in providers],
                "policy": [
                    {"name": "many", "when": "cpu > 0.8", "do": many},
                    {"name": "some", "when": "cpu > 0.8", "do": some},
                    {"name": "cut", "when": "cpu < 0.2", "purpose": "safety", "do": cut},
                ],
            }


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Iterator[ProvidingFleet]:
    with ExitStack() as stack:
        fleet = ProvidingFleet(stack.enter_context(Topology("pf")), tmp_path_factory.mktemp("pf"))
        stack.enter_context(fleet.cluster)
        for node in fleet.nodes:
            stack.enter_context(node)
        start(*fleet.nodes)
        yield fleet


def bus(node: Node) -> dict[str, Any]:
    return node.status()["bus"]


def active(fleet: ProvidingFleet) -> Node | None:
    """The allocator that decides; never two."""
    found = [node for node in (fleet.a1, fleet.a2) if node.running() and bus(node)["allocation_lease"]["active"]]
    assert len(found) <= 1
    return found[0] if found else None


def refused(node: Node) -> int:
    """Parts of an older term; on a machine that is slow they are recordings of more than a minute."""
    counters = bus(node)["counters"]
    return counters.get("old_term", 0) + counters.get("wrong_clock", 0)


def given(fleet: ProvidingFleet) -> tuple[int, int]:
    return fleet.files(fleet.db1), fleet.files(fleet.db2)


def test_what_one_allocator_decides_is_given_by_both_hosts(fleet):
    until(lambda: active(fleet), "one of them has the lease", 30)
    until(lambda: given(fleet) == (1, 1), "the usual amounts")
    fleet.load.write_text("0.9")
    until(lambda: given(fleet) == (3, 2), "what policies want", 30)
    standby = fleet.a2 if active(fleet) is fleet.a1 else fleet.a1
    assert "decides nothing: " in standby.cli("status").stdout
    assert "the active allocator, term " in active(fleet).cli("status").stdout
    assert "provides db1-files: told by alloc (term " in fleet.db1.cli("status").stdout
    assert standby.status()["allocation"]["decisions"] == {}


def test_one_allocator_is_killed_and_nothing_flaps_and_nothing_old_counts(fleet):
    recorded: list[tuple[str, bytes]] = []

    async def listen(client) -> None:
        async def take(message) -> None:
            recorded.append((message.subject, message.data))

        await client.subscribe("scentd.desired.db1.>", cb=take)
        while not recorded:
            await asyncio.sleep(0.1)

    async def replay(client) -> None:
        for subject, data in recorded:
            await client.publish(subject, data)
        await client.flush()

    fleet.cluster.run(listen)
    first = active(fleet)
    assert first is not None
    first.kill()
    killed, seen = time.monotonic(), {given(fleet)}
    while active(fleet) is None:
        seen.add(given(fleet))
        assert time.monotonic() - killed < TAKES_OVER, "the other one takes over"
        time.sleep(0.05)
    second = active(fleet)
    term = bus(second)["allocation_lease"]["term"]
    until(lambda: bus(fleet.db1)["providing"]["terms"] == {"alloc": term}, "db1 goes by it")
    end = time.monotonic() + 6
    while time.monotonic() < end:
        seen.add(given(fleet))
        time.sleep(0.05)
    assert seen == {(3, 2)}
    assert second.status()["allocation"]["decisions"] == {}
    before = refused(fleet.db1)
    fleet.cluster.run(replay)
    until(lambda: refused(fleet.db1) >= before + len(recorded), "it is refused")
    fleet.db1.restart()
    until(lambda: bus(fleet.db1)["counters"].get("taken"), "db1 hears the allocator again", 30)
    before = refused(fleet.db1)
    fleet.cluster.run(replay)
    until(lambda: refused(fleet.db1) >= before + len(recorded), "and after a restart, too")
    assert given(fleet) == (3, 2)
    first.start()
    until(lambda: bus(first)["connected"], "it is there again")


def test_without_a_bus_amounts_stay_and_a_restriction_ends(fleet):
    fleet.load.write_text("0.1")
    until(lambda: fleet.files(fleet.db1) == 0, "cut off", 30)
    fleet.cluster.stop(fleet.broker)
    stopped, seen = time.monotonic(), set()
    while fleet.files(fleet.db1) == 0:
        seen.add(fleet.files(fleet.db2))
        assert time.monotonic() - stopped < CUT + 5, "the restriction ends"
        time.sleep(0.05)
    time.sleep(3)
    assert given(fleet) == (1, 2)
    assert seen == {2}
    assert bus(fleet.db1)["counters"]["ended"] == 1
    assert active(fleet) is None
    fleet.load.write_text("0.9")
    fleet.cluster.start(fleet.broker)
    until(lambda: given(fleet) == (3, 2), "all is as policies want it", 40)


def test_a_host_hears_only_what_is_for_it(fleet):
    async def listen(client) -> set[str]:
        heard: set[str] = set()

        async def take(message) -> None:
            heard.add(".".join(message.subject.split(".")[:3]))

        for name in ("scentd.>", "scentd.desired.>", "scentd.provided.>", "scentd.desired.db2.>"):
            try:
                await client.subscribe(name, cb=take)
            except Exception:  # the connection may be ended for it
                break
        await asyncio.sleep(25)  # all is said again within 20 s
        return heard

    assert fleet.cluster.run(listen, fleet.db2.sections["bus"]) == {"scentd.desired.db2"}
