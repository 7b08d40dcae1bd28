"""A host with many interfaces, as one with containers: the offload while these come and go, by links and by filters.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      a has many more, which lead elsewhere
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from compiled import bpffs
from edges import CLSACT_ONLY, grown, offloaded, queueing, strict, totals
from flows import Flows
from hosts import Node, acquainted, start, transfer, until
from pinned import links
from steady import steady
from topology import Topology

from scentd.datapath.offload import attach, clsact
from scentd.datapath.offload.interfaces import LINKED

pytestmark = pytest.mark.netns

MANY, MORE = 60, 200
LONG = 60.0  # seconds


class Crowd:
    """Interfaces of a, whose other ends are in a namespace of their own."""

    def __init__(self, net: Topology, a: Node) -> None:
        self.host, self.elsewhere = a.host, net.host("elsewhere")

    def add(self, tag: str, count: int) -> list[str]:
        names = [f"{tag}{n}" for n in range(count)]
        self.host.ip(*(f"link add {n} up type veth peer name {n} netns {self.elsewhere.namespace}" for n in names))
        self.elsewhere.ip(*(f"link set {n} up" for n in names))
        return names

    def delete(self, names: list[str]) -> None:
        self.host.ip(*(f"link del {n}" for n in names))


@pytest.fixture(scope="module", params=["tcx", "clsact"])
def ends(request, tmp_path_factory) -> Iterator[tuple[Node, Node, Crowd]]:
    directory = tmp_path_factory.mktemp("mi")
    with bpffs(directory / "bpf") as bpf, Topology("mi") as net:
        a, b = Node(net.host("a"), directory), Node(net.host("b"), directory)
        if request.param == "clsact":
            a.program = b.program = CLSACT_ONLY
        crowd = Crowd(net, a)
        crowd.add("old", MANY)
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")  # the one with the highest index
        for node, other in ((a, b), (b, a)):
            node.peers = [strict(other)]
            node.leaving = False
        offloaded(bpf, a, b)
        with a, b:
            start(a, b)
            acquainted(b, a)
            acquainted(a, b)
            yield a, b, crowd


@pytest.fixture
def nodes(ends) -> tuple[Node, Node, Crowd]:
    for node in ends[:2]:
        if not node.running():
            node.start()
    acquainted(ends[1], ends[0])
    acquainted(ends[0], ends[1])
    return ends


def served(node: Node) -> set[str]:
    return set(node.status()["offload"]["ingress"])


def filtered(node: Node) -> set[str]:
    """The interfaces that have a filter of ours at both sides."""
    numbers = dict(node.host.call(socket.if_nameindex))
    sides = node.host.call(clsact.attached_sides)
    return {name for number, name in numbers.items() if {(number, "ingress"), (number, "egress")} <= sides}


def linked(node: Node) -> set[str]:
    numbers = dict(node.host.call(socket.if_nameindex))
    return {numbers[int(path.name.split("-")[1])] for path in links(node)}


def is_tcx(node: Node) -> bool:
    return node.program != CLSACT_ONLY


def traces(node: Node) -> list[str]:
    """Programs and qdiscs of ours on the host."""
    attached = json.loads(node.host.out("bpftool", "-j", "net", "list"))[0]["tc"]
    return [str(entry) for entry in attached if "scent" in str(entry)] + [
        line for line in node.host.out("tc", "qdisc", "show").splitlines() if "clsact" in line
    ]


def test_all_are_served_and_few_have_links(nodes):
    a, _, _ = nodes
    assert len(served(a)) == MANY + 1
    assert not queueing(a), "rule-free: every interface has the stamper"
    uplink = a.host.interfaces[0]
    if is_tcx(a):
        assert uplink in linked(a), "the only one to peers has the highest index"
        assert len(linked(a)) <= LINKED + 1
        assert filtered(a) == served(a) - linked(a)
    else:
        assert filtered(a) == served(a)
        assert not links(a)


def test_many_come_and_go_under_load(nodes):
    """Not a packet is lost or unscented, and all have the programs in the end."""
    a, b, crowd = nodes
    with Flows(a, b), Flows(b, a):
        names = crowd.add("new", MORE)
        until(lambda: served(a) >= set(names), "all new ones are served", LONG)
        assert filtered(a) >= set(names)
        crowd.delete(names)
        until(lambda: not served(a) & set(names), "all are forgotten", LONG)
    until(lambda: not queueing(a), "rule-free, as before")
    numbers = dict(a.host.call(socket.if_nameindex))
    assert {number for number, _ in a.host.call(clsact.attached_sides)} <= numbers.keys()


def test_a_reload_in_the_middle(nodes):
    a, b, crowd = nodes
    with Flows(a, b), Flows(b, a):
        before = a.log.read_text().count("configuration reloaded")
        names = crowd.add("rel", MORE)
        a.signal(signal.SIGHUP)
        until(lambda: a.log.read_text().count("configuration reloaded") > before, "a has reloaded", LONG)
        until(lambda: served(a) >= set(names), "all new ones are served", LONG)
        crowd.delete(names)


@contextmanager
def another_link(a: Node, b: Node) -> Iterator[None]:
    """A second link between the two, `later` at both ends."""
    a.host.ip(f"link add later type veth peer name later netns {b.host.namespace}")
    try:
        for node in (a, b):
            node.host.ip("link set later up")
        yield
    finally:
        a.host.ip("link del later")


def lead(one: Node, other: Node, number: int) -> None:
    """Let one's packets to the other leave by the link `later`, where the other has this number."""
    one.host.ip(
        f"route add {other.host.ipv4}/32 via 10.1.8.{number} dev later src {one.host.ipv4}",
        f"route add {other.host.ipv6}/128 via fd00:1:8::{number} dev later src {one.host.ipv6}",
    )


def test_one_that_gets_routes_to_peers(nodes):
    """The link takes the filter's place, and no verifier sees what another one has verified."""
    a, b, _ = nodes
    uplink = a.host.interfaces[0]
    with another_link(a, b):
        until(lambda: "later" in filtered(a), "it has filters")
        for number, node in enumerate((a, b), start=1):
            node.host.ip(f"addr add 10.1.8.{number}/24 dev later", f"addr add fd00:1:8::{number}/64 dev later")
            node.host.sysctl(net_ipv4_conf_all_rp__filter=0, net_ipv4_conf_later_rp__filter=0)
        lead(b, a, 1)  # what a receives meets the filters
        a.host.run("ping", "-c", "1", "10.1.8.2")
        a.host.run("ping", "-c", "1", "fd00:1:8::2")
        before = totals(a), totals(b)
        with ExitStack() as stack:
            ways = [(one, other, version) for one, other in ((a, b), (b, a)) for version in (4, 6)]
            streams = [stack.enter_context(steady(*way)) for way in ways]
            lead(a, b, 2)
            until(lambda: "later" in a.status()["offload"]["egress"], "packets to peers leave by it")
            if is_tcx(a):
                until(lambda: "later" in linked(a) and "later" not in filtered(a), "it has links in their place")
        assert not [stream.lost for stream in streams if stream.lost]
        changed = grown(a, before[0]) | grown(b, before[1])
        assert not [name for name in changed if name.startswith(("rejected", "absent"))]
    until(lambda: uplink in a.status()["offload"]["egress"], "the first way again")


def test_one_that_becomes_a_port(nodes):
    a, _, crowd = nodes
    (name,) = crowd.add("port", 1)
    until(lambda: name in filtered(a), "it has filters")
    a.host.ip("link add br0 type bridge", f"link set {name} master br0")
    until(lambda: name not in filtered(a) and name not in served(a), "a port is not served")
    assert name not in linked(a)
    a.host.ip("link del br0", f"link del {name}")


def test_filters_that_somebody_takes_away_come_back(nodes):
    a, _, _ = nodes
    name = sorted(filtered(a))[0]
    a.host.run("tc", "qdisc", "del", "dev", name, "clsact")
    until(lambda: name in filtered(a), "they are there again", LONG)
    assert "removed programs of ours" not in a.log.read_text() or a.status()["rules_restored"] > 0


def test_a_killed_daemons_programs_are_taken_over(nodes):
    a, b, crowd = nodes
    a.kill()
    names = crowd.add("gap", 3)
    first = linked(a), filtered(a)
    a.start()
    until(lambda: served(a) >= set(names), "those that came meanwhile are served")
    assert linked(a) >= first[0]
    assert filtered(a) >= first[1] - linked(a)
    before = totals(b)
    for version in (4, 6):
        transfer(a, b, version)
        transfer(b, a, version)
    assert not [name for name in grown(b, before) if name.startswith(("rejected", "absent"))]
    crowd.delete(names)


def test_a_stop_in_the_middle(nodes):
    """Whatever the daemon was about to do: nothing of it stays, and what comes later gets nothing."""
    a, _, crowd = nodes
    names = crowd.add("end", MORE)
    try:
        a.stop()
        assert traces(a) == []
        assert not a.host.call(clsact.attached_sides)
        assert not a.pin_dir.exists() or not links(a)
    finally:
        crowd.delete(names)
    assert {i.name for i in a.host.call(attach.read_interfaces)} >= {"old0", f"old{MANY - 1}"}
