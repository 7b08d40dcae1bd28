"""The offload while the host changes around it: interfaces that come and go, programs of others, clsact, many peers.

a ---- b, and more links between them
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from compiled import bpffs, compiled
from edges import CLSACT_ONLY, grown, in_place, offloaded, offloaded_pair, queueing, strict, totals
from hosts import Node, acquainted, peer_of, say, start, transfer, until
from pyroute2 import IPRoute
from steady import steady
from topology import Topology

from scentd.control.status import LIMIT
from scentd.datapath.offload import bpfprog, libbpf
from scentd.datapath.offload.bpfmap import Map
from scentd.state import key_files
from scentd.wire import keys

pytestmark = pytest.mark.netns

TCX = {"ingress": 46, "egress": 47}
CLSACT = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
MANY, MORE = 5000, 500
LONG = 180.0  # seconds
COUNTING = """
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} seen SEC(".maps");

SEC("tc") int counting(struct __sk_buff *skb)
{
    __u32 zero = 0;
    __u64 *count = bpf_map_lookup_elem(&seen, &zero);

    if (count)
        __sync_fetch_and_add(count, 1);
    return TC_ACT_UNSPEC;
}
"""


# -- interfaces that come and go -----------------------------------------------


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("el")
    with bpffs(directory / "bpf") as bpf, Topology("el") as net:
        a, b = Node(net.host("a"), directory), Node(net.host("b"), directory)
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        for number, node in enumerate((a, b), start=1):
            node.network["addresses"] = [*node.addresses, f"10.1.9.{number}", f"fd00:1:9::{number}"]
        for node, other in ((a, b), (b, a)):
            node.peers = [strict(other, endpoint=other.addresses) | {"addresses": other.network["addresses"]}]
        offloaded(bpf, a, b)
        with a, b:
            start(a, b)
            acquainted(b, a)
            acquainted(a, b)
            yield net, a, b


def served(node: Node) -> list[str]:
    return node.status()["offload"]["egress"]


@pytest.fixture
def rules(nodes):
    """Routing rules of the hosts' own: nothing of ours goes without rules in OUTPUT then."""
    _, a, b = nodes
    for node in (a, b):
        node.host.ip("rule add pref 30000 table main")
    until(lambda: queueing(a) and queueing(b), "rules of ours in OUTPUT")
    yield
    for node in (a, b):
        node.host.ip("rule del pref 30000")


@pytest.mark.alone  # at a load of 10 the programs came later than a test waits, once
@pytest.mark.usefixtures("rules")
def test_a_new_interface_from_its_first_packet(nodes, monkeypatch):
    """What is not scented by the queue until the programs are there is scented by them."""
    net, a, b = nodes
    before = totals(a), totals(b)
    ends = linked_anew(net, a, b, monkeypatch)
    sent = 0
    while sent < 50 or not is_served(a, b, ends):
        sent += said(a, b, sent)
    assert_all_scented(a, b, before, sent)
    assert_forgotten(a, b, ends)


@pytest.mark.alone  # at a load of 10 the programs came later than a test waits, once
def test_a_new_interface_of_a_rule_free_host(nodes, monkeypatch):
    """Nothing stamps there before the programs: a packet that is earlier would go out without a scent."""
    net, a, b = nodes
    until(lambda: not queueing(a) and not queueing(b), "no rules of ours in OUTPUT")
    before = totals(a), totals(b)
    ends = linked_anew(net, a, b, monkeypatch)
    until(lambda: is_served(a, b, ends), "the programs are on the new interface")
    sent = 0
    while sent < 50:
        sent += said(a, b, sent)
    assert not queueing(a)
    assert_all_scented(a, b, before, sent)
    assert_forgotten(a, b, ends)


def linked_anew(net: Topology, a: Node, b: Node, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """One more link, which all of a test's packets take. Returns the names of a's and of b's end."""
    ends = net.link(a.host, b.host, ipv4="10.1.9.0/24", ipv6="fd00:1:9::/64")
    for number, node in enumerate((a, b), start=1):
        monkeypatch.setattr(node.host, "ipv4", f"10.1.9.{number}")
        monkeypatch.setattr(node.host, "ipv6", f"fd00:1:9::{number}")
    return ends


def is_served(a: Node, b: Node, ends: tuple[str, str]) -> bool:
    return ends[0] in served(a) and ends[1] in served(b)


def said(a: Node, b: Node, number: int) -> int:
    """One datagram a family, each of which must arrive. Returns how many."""
    for version in (4, 6):
        with a.socket(version) as one, b.socket(version) as other:
            say(one, other, b"%d" % (number + version))
    return 2


def assert_all_scented(a: Node, b: Node, before: tuple[dict, dict], sent: int) -> None:
    for version in (4, 6):
        transfer(a, b, version)
    until(lambda: grown(a, before[0]).get("stamped", 0) >= sent, "all are counted")
    refused = {
        n: c for n, c in {**grown(a, before[0]), **grown(b, before[1])}.items() if n[:3] in ("uns", "rej", "abs")
    }
    assert not refused


def assert_forgotten(a: Node, b: Node, ends: tuple[str, str]) -> None:
    """The link's end takes the programs away, and is no error."""
    a.host.ip(f"link del {ends[0]}")
    until(lambda: ends[0] not in served(a) and ends[1] not in served(b), "the programs are forgotten")
    for node in (a, b):
        lines = node.log.read_text().splitlines()
        assert not [line for line in lines if line.startswith("E ") or "Traceback" in line]


# -- programs of others ----------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["tcx", "clsact"])
def test_programs_of_others_run_on(tmp_path, mechanism):
    """Before the daemon, beside it and after it; each packet comes by once."""
    path = compiled(tmp_path, "counting", COUNTING)
    with offloaded_pair("eo", tmp_path) as (a, b):
        a.peers, b.peers = [strict(b)], [strict(a)]
        with foreign(b, path, "ingress", mechanism) as came, foreign(b, path, "egress", mechanism) as went:
            assert_seen(a, b, came, went)
            start(a, b)
            acquainted(b, a)
            acquainted(a, b)
            assert b.status()["offload"]["ingress"] == b.host.interfaces
            assert_seen(a, b, came, went)
            a.stop()
            b.stop()
            assert_seen(a, b, came, went)


@contextmanager
def foreign(node: Node, path: str, direction: str, mechanism: str):
    """A program of somebody else's on the node's interface; yields a function of what it has counted."""
    number = node.host.call(socket.if_nametoindex, node.host.interfaces[0])
    with libbpf.Object(path) as loaded:
        loaded.load()
        fd, link = loaded.program_fd("counting"), None
        if mechanism == "tcx":
            link = node.host.call(bpfprog.link_create, fd, number, TCX[direction])
        else:
            node.host.call(add_filter, number, direction, fd)
        yield lambda: int.from_bytes(Map(loaded.map_fd("seen")).lookup(bytes(4)), "little")
        if link is not None:
            os.close(link)


def add_filter(number: int, direction: str, fd: int) -> None:
    with IPRoute() as ip:
        if not any(qdisc.get_attr("TCA_KIND") == "clsact" for qdisc in ip.get_qdiscs(number)):
            ip.tc("add", "clsact", number)
        ip.tc("add-filter", "bpf", number, parent=CLSACT[direction], prio=7, fd=fd, name="counting", direct_action=True)


def assert_seen(a: Node, b: Node, came, went) -> None:
    """Twenty packets each way."""
    before = came(), went()
    for version in (4, 6):
        with a.socket(version) as one, b.socket(version) as other:
            for n in range(10):
                say(one, other, b"%d" % n)
                say(other, one, b"%d" % n)
    assert 20 <= came() - before[0] < 60  # neighbour discovery, beacons
    assert 20 <= went() - before[1] < 60


# -- clsact ----------------------------------------------------------------------


def test_clsact(tmp_path):
    """Both ends by filters: traffic of every size, the queue's part of it, and nothing left behind."""
    with (
        bpffs(tmp_path / "bpf") as bpf,
        Topology("ek") as net,
        Node(net.host("a"), tmp_path) as a,
        Node(net.host("b"), tmp_path) as b,
    ):
        a.program = b.program = CLSACT_ONLY
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        a.peers, b.peers = [strict(b)], [strict(a)]
        offloaded(bpf, a, b)
        start(a, b)
        acquainted(b, a)
        acquainted(a, b)
        assert a.status()["offload"]["mechanism"] == b.status()["offload"]["mechanism"] == "clsact"
        before = totals(a), totals(b)
        for version in (4, 6):
            transfer(a, b, version)
            transfer(b, a, version)
            b.host.run("ping", "-c", "3", "-i", "0.02", "-s", "1000", a.address(version))
        with a.socket(4) as one, b.socket(4) as other:
            one.setsockopt(socket.IPPROTO_IP, 4, b"\x94\x04\0\0")
            say(one, other, b"router alert")
        until(lambda: grown(b, before[1]).get("other:offload_declined"), "the queue has its part")
        counted = grown(a, before[0]) | grown(b, before[1])
        assert not [name for name in counted if name.startswith(("unstamped", "rejected", "absent"))], counted
        a.stop()
        b.stop()
        for node in (a, b):
            assert "clsact" not in node.host.out("tc", "qdisc", "show")


# -- many peers ------------------------------------------------------------------


def test_many_peers(tmp_path, capsys):
    """20,000 peers and 1,000 more by a reload, while packets of one of them go on."""
    with (
        bpffs(tmp_path / "bpf") as bpf,
        Topology("ep") as net,
        Node(net.host("a"), tmp_path) as a,
        Node(net.host("b"), tmp_path) as b,
    ):
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        strangers = [stranger(n) for n in range(MANY + MORE)]
        a.network |= {"interval": "30s"}
        b.network.pop("source")
        a.peers, b.peers = [peer_of(b, verify=False)], [strict(a), *strangers[:MANY]]
        offloaded(bpf, a, b)
        a.start()
        b.write()
        began = time.monotonic()
        b.launch()
        until(lambda: "SCENTD-IN" in b.host.out("ip6tables", "-t", "raw", "-S"), "rules", LONG)
        started = time.monotonic() - began
        in_place(b)
        exchange(a, b)
        b.peers += strangers[MANY:]
        b.write()
        began = time.monotonic()
        b.signal(signal.SIGHUP)
        with steady(a, b, 4) as stream:
            until(lambda: "configuration reloaded" in b.log.read_text(), "b reloads", LONG)
        reloaded = time.monotonic() - began
        assert not stream.lost
        exchange(a, b)
        status = b.status()
        assert len(status["peers"]) + status["omitted"]["peers"] == MANY + MORE + 1
        assert len(status["peers"]) == LIMIT
        assert len(b.status(limit=0)["peers"]) == MANY + MORE + 1
        with capsys.disabled():
            print(f"\n{MANY} peers: started in {started:.1f} s, {MORE} more in {reloaded:.1f} s")


def stranger(number: int) -> dict[str, object]:
    public = keys.identity(key_files.parse_secret(key_files.generate())).public
    address = 0x0B000000 + number  # 11.0.0.0/8
    return {"name": f"p{number}", "public_key": str(public), "addresses": [str(ip_address(address))], "stamp": False}


def exchange(a: Node, b: Node) -> None:
    before = totals(b)
    for version in (4, 6):
        with a.socket(version) as one, b.socket(version) as other:
            for n in range(10):
                say(one, other, b"%d" % n)
    until(lambda: grown(b, before).get("accepted", 0) >= 20, "b accepts")
