"""The sending host's own source NAT, and a receiver with default settings: it loses nothing, and refuses nothing.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      a has a second address, .77, and its rules come and go while it runs
tenant ---- gateway (a) ---- b              a masquerades what it forwards
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from compiled import bpffs
from edges import grown, in_place, offloaded, totals
from hosts import Node, acquainted, exchange, peer_of, start, until
from topology import Host, Topology

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])
PROGRAM = {4: "iptables", 6: "ip6tables"}
LEGACY = {4: "iptables-legacy", 6: "ip6tables-legacy"}
UDP = 17
SECOND = {4: "10.1.0.77", 6: "fd00:1::77"}


@pytest.fixture(scope="module", params=["queue", "offload"])
def nodes(request, tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    directory = tmp_path_factory.mktemp("sn")
    with ExitStack() as stack:
        net = stack.enter_context(Topology("sn"))
        a, b = (stack.enter_context(Node(net.host(name), directory)) for name in "ab")
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        a.host.ip(f"addr add {SECOND[4]}/24 dev {a.host.interfaces[0]}")
        a.host.ip(f"addr add {SECOND[6]}/64 dev {a.host.interfaces[0]} nodad preferred_lft 0")
        a.network["addresses"] = [*a.addresses, *SECOND.values()]
        a.peers, b.peers = [peer_of(b)], [{**peer_of(a), "addresses": a.network["addresses"]}]
        if request.param == "offload":
            offloaded(stack.enter_context(bpffs(directory / "bpf")), a, b)
        start(a, b)
        in_place(a, b)
        acquainted(b, a)
        acquainted(a, b)
        yield a, b


@contextmanager
def nat(host: Host, program: str, *rule: str) -> Iterator[None]:
    """A rule of the nat table; our own rules have followed when this begins."""
    host.run(program, "-w", "-t", "nat", "-A", *rule)
    try:
        until(lambda: follows(host), "scentd knows of NAT")
        yield
    finally:
        host.run(program, "-w", "-t", "nat", "-D", *rule)


def follows(host: Host) -> bool:
    return "notrack" in host.out("nft", "list", "table", "inet", "scentd_path")


def refused(node: Node) -> int:
    return sum(node.status()["rejected"].values())


def speak(one: Node, other: Node, version: int, seen: Callable[[str], bool]) -> None:
    """Datagrams of one flow, of flows of their own, and TCP both ways; `seen` judges the source that arrives."""
    with one.socket(version) as sender, other.socket(version) as receiver, other.listener(version) as listening:
        for n in range(10):
            sender.sendto(b"%d" % n, receiver.getsockname()[:2])
            data, source = receiver.recvfrom(100)
            assert (data, seen(source[0])) == (b"%d" % n, True)
        for n in range(5):
            with one.socket(version) as fresh:
                fresh.sendto(b"%d" % n, receiver.getsockname()[:2])
                assert receiver.recv(100) == b"%d" % n
        with one.socket(version, socket.SOCK_STREAM) as client:
            client.connect(listening.getsockname()[:2])
            with listening.accept()[0] as server:
                assert exchange(client, server, bytes(300_000)) == bytes(300_000)
                assert exchange(server, client, bytes(300_000)) == bytes(300_000)


@BOTH
def test_another_address_of_the_host(nodes, version):
    a, b = nodes
    before, wrong = totals(a), refused(b)
    rule = ("POSTROUTING", "-d", b.address(version), "-j", "SNAT", "--to-source", SECOND[version])
    with nat(a.host, PROGRAM[version], *rule):
        speak(a, b, version, lambda source: source == SECOND[version])
        if a.pin_dir is None:
            until(lambda: grown(a, before).get("unstamped:translated", 0) > 20, "a counts them")
            until(lambda: "(translated)" in a.log.read_text(), "the log tells")
            assert f" to {b.address(version)}" in a.cli("doctor").stdout
            assert headers_of_a_flow(a, b, version) == [94 if version == 4 else 60, *[UDP] * 4]
        else:
            assert "unstamped:translated" not in grown(a, before), "the program stamps what really leaves"
        assert refused(b) == wrong


def headers_of_a_flow(one: Node, other: Node, version: int) -> list[int]:
    """What stands behind the fixed header of five datagrams of a new flow: the type of an option, or the protocol."""
    with other.capture() as wire, one.socket(version) as sender, other.socket(version) as receiver:
        for _ in range(5):
            sender.sendto(b"of a flow", receiver.getsockname()[:2])
            assert receiver.recv(100) == b"of a flow"
        packets = [p for p in wire.packets() if p.endswith(b"of a flow")]
    return [p[20] if p[0] > 0x45 and version == 4 else p[9 if version == 4 else 6] for p in packets]


@BOTH
def test_a_port_of_the_host_is_another(nodes, version):
    """A service's port: what answers has its source rewritten behind the queue, though no source NAT is in sight."""
    a, b = nodes
    wrong = refused(b)
    with a.listener(version) as listening:
        target = {4: "{}:{}", 6: "[{}]:{}"}[version].format(*listening.getsockname())
        rule = ("PREROUTING", "-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", target)
        with nat(a.host, PROGRAM[version], *rule), b.socket(version, socket.SOCK_STREAM) as client:
            client.connect((a.address(version), 80))
            with listening.accept()[0] as server:
                assert exchange(server, client, bytes(300_000)) == bytes(300_000)
    assert refused(b) == wrong


@BOTH
def test_only_the_port_is_another(nodes, version):
    """MASQUERADE to ports, of the other iptables, which tells nobody of its rules."""
    a, b = nodes
    wrong = refused(b)
    rule = ("POSTROUTING", "-p", "udp", "-d", b.address(version), "-j", "MASQUERADE", "--to-ports", "5000-5999")
    with nat(a.host, LEGACY[version], *rule), a.socket(version) as sender, b.socket(version) as receiver:
        for n in range(5):
            sender.sendto(b"%d" % n, receiver.getsockname()[:2])
            data, source = receiver.recvfrom(100)
            assert (data, 5000 <= source[1] < 6000) == (b"%d" % n, True)
    assert refused(b) == wrong


@BOTH
def test_beacons(nodes, version):
    """They leave under the address of which their tag is, so profiles come though a is quiet."""
    a, b = nodes
    a.peers = [peer_of(b, endpoint=[b.address(version)])]
    rule = ("POSTROUTING", "-d", b.address(version), "-j", "SNAT", "--to-source", SECOND[version])
    with nat(a.host, PROGRAM[version], *rule):
        a.reload()
        wrong, epoch, sent = refused(b), b.epoch(a), a.status()["beacons"]["sent"]
        until(lambda: b.epoch(a) > epoch + 4, "profiles come")
        assert a.status()["beacons"]["sent"] > sent
        assert refused(b) == wrong


@BOTH
def test_a_peer_that_takes_scents_of_the_sender(nodes, version):
    """`bind = "sender"` is for NAT: such scents survive it, so nothing is left out."""
    a, b = nodes
    a.peers, b.peers = [peer_of(b, bind="sender")], [{**b.peers[0], "bind": "sender"}]
    for node in nodes:
        node.reload()
    before, wrong = totals(a), refused(b)
    rule = ("POSTROUTING", "-d", b.address(version), "-j", "SNAT", "--to-source", SECOND[version])
    try:
        with nat(a.host, PROGRAM[version], *rule):
            speak(a, b, version, lambda source: source == SECOND[version])
            until(lambda: grown(a, before).get("stamped", 0) > 20, "a stamps them")
            assert "unstamped:translated" not in grown(a, before)
        assert refused(b) == wrong
    finally:
        a.peers = [peer_of(b)]
        b.peers[0].pop("bind")
        for node in nodes:
            node.reload()


@pytest.fixture(scope="module", params=["queue", "offload"])
def gateway(request, tmp_path_factory) -> Iterator[tuple[Node, Node, Node]]:
    directory: Path = tmp_path_factory.mktemp("mg")
    with ExitStack() as stack:
        net = stack.enter_context(Topology("mg"))
        tenant = net.host("t")
        a, b = (stack.enter_context(Node(net.host(name, forward=name == "a"), directory)) for name in "ab")
        net.link(a.host, b.host, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        net.link(tenant, a.host, ipv4="10.7.0.0/24", ipv6="fd00:7::/64")
        tenant.ip("route add default via 10.7.0.2", "route add ::/0 via fd00:7::2")
        a.network["addresses"] = ["10.7.0.0/24", "fd00:7::/64", *a.addresses]
        a.sections["stamp"] = {"forwarded": True}
        a.peers, b.peers = [peer_of(b)], [peer_of(a)]
        if request.param == "offload":
            offloaded(stack.enter_context(bpffs(directory / "bpf")), a, b)
        start(a, b)
        in_place(a, b)
        acquainted(b, a)
        yield Node(tenant, directory / "tenant"), a, b


@BOTH
def test_a_gateway_that_masquerades(gateway, version):
    tenant, a, b = gateway
    before, wrong = totals(a), refused(b)
    with nat(a.host, PROGRAM[version], "POSTROUTING", "-o", a.host.interfaces[0], "-j", "MASQUERADE"):
        speak(tenant, b, version, lambda source: source == a.address(version))
        count = "unstamped:translated" if a.pin_dir is None else "stamped"
        until(lambda: grown(a, before).get(count, 0) > 20, f"a counts {count}")
    assert refused(b) == wrong
