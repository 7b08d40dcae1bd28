"""IPv6 packets of several segments: from a sender with the offload to a host that verifies by the queue.

a ---- fd00:1::/64 ---- b      veth hands them over as they are, as a card's receive offload would
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from compiled import bpffs
from edges import in_place
from hosts import Node, acquainted, pair, peer_of, start, transfer, until
from topology import Host, Topology

from scentd.wire import keys

pytestmark = pytest.mark.netns

UDP_SEGMENT, UDP_GRO = 103, 104
STRICT = {"absent": "drop", "rejected": "drop"}
LONG_QUEUE = 22602
BULK = 20 << 20
FAULTS = ("InErrs", "InCsumErrors", "Udp6InErrors", "Udp6InCsumErrors")


@contextmanager
def strict_pair(tag: str, directory: Path, offload: bool, mtu: int = 1500) -> Iterator[tuple[Node, Node]]:
    """Both run daemons, b by the queue alone; each drops what is not accepted."""
    with bpffs(directory / "bpf") as mount, pair(tag, directory, mtu=mtu) as (a, b):
        a.pin_dir = mount / "a" if offload else None
        a.peers, b.peers = [peer_of(b, **STRICT)], [peer_of(a, **STRICT)]
        start(a, b)
        acquainted(b, a)
        acquainted(a, b)
        yield a, b


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    with strict_pair("lp", tmp_path_factory.mktemp("lp"), True) as nodes:
        assert [node.status()["datapath"] for node in nodes] == ["nfqueue+ebpf", "nfqueue"], nodes[0].log.read_text()
        yield nodes


def faults(host: Host) -> dict[str, int]:
    """What the stack refused: of TCP in either family, of UDP over IPv6."""
    rows = [line.split() for line in host.out("cat", "/proc/net/snmp").splitlines() if line.startswith("Tcp:")]
    found = dict(zip(rows[0], rows[1], strict=True))
    found |= dict(line.split() for line in host.out("cat", "/proc/net/snmp6").splitlines())
    return {name: int(found[name]) for name in FAULTS}


def handed_over(host: Host) -> int:
    """Packets that the queue for long ones has had (net/netfilter/nfnetlink_queue.c: the last number given)."""
    rows = [line.split() for line in host.out("cat", "/proc/net/netfilter/nfnetlink_queue").splitlines()]
    return next(int(row[7]) for row in rows if int(row[0]) == LONG_QUEUE)


def test_tcp_in_bulk(ends):
    a, b = ends
    before, accepted = handed_over(b.host), b.count("accepted")
    transfer(a, b, 6, BULK)
    assert handed_over(b.host) > before + 100
    assert not any(faults(b.host).values())
    until(lambda: b.count("accepted") > accepted + 100, "they are counted")
    assert not any(b.status()["rejected"].values())
    assert not b.count("other", "internal_errors")


@pytest.mark.alone  # a busy machine answers late, and then TCP sends again what is not lost
@pytest.mark.parametrize("size", [100, 536, 700])
def test_small_segments_that_come_as_one(ends, size):
    """Together no longer than one packet may be: nothing but their protocol tells that they are several."""
    a, b = ends
    with b.listener(6) as listening, a.socket(6, socket.SOCK_STREAM) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, size)
        end.connect(listening.getsockname()[:2])
        other, _ = listening.accept()
        other.settimeout(5)
        with other:
            for _ in range(50):
                data = os.urandom(2 * size)
                end.sendall(data)
                got = b""
                while len(got) < len(data):
                    got += other.recv(1 << 16)
                assert got == data
        assert retransmitted(end) == 0
    assert not any(faults(b.host).values())


def retransmitted(end: socket.socket) -> int:
    """tcpi_total_retrans of linux/tcp.h."""
    return int.from_bytes(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[100:104], "little")


@pytest.mark.parametrize("merged", [False, True], ids=["a socket", "a socket that takes several at once"])
@pytest.mark.parametrize(("size", "number"), [(1200, 20), (1200, 2), (1399, 40), (300, 60)])
def test_datagrams_that_one_call_sends(ends, size, number, merged):
    a, b = ends
    data, before = os.urandom(size * number - 1), handed_over(b.host)
    with a.socket(6) as one, b.socket(6) as other:
        one.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        other.setsockopt(socket.IPPROTO_UDP, UDP_GRO, merged)
        one.sendto(data, other.getsockname()[:2])
        got: list[bytes] = []
        while sum(map(len, got)) < len(data):
            got.append(other.recv(70000))
        assert b"".join(got) == data
        assert merged or [len(datagram) for datagram in got] == [size] * (number - 1) + [size - 1]
    assert handed_over(b.host) > before
    assert not any(faults(b.host).values())


def test_the_other_direction_and_the_other_family(ends):
    a, b = ends
    before = handed_over(b.host)
    transfer(a, b, 4, 4 << 20)
    assert handed_over(b.host) == before
    transfer(b, a, 6, 4 << 20)
    assert not any(faults(a.host).values())


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_from_queue_to_queue(tmp_path, mtu):
    """A sender's queue cuts segments first; to the other's they go one by one."""
    with strict_pair("lq", tmp_path, False, mtu) as (a, b):
        transfer(a, b, 4, 4 << 20)
        before = handed_over(b.host)
        transfer(a, b, 6, 4 << 20)
        assert not any(faults(b.host).values())
        assert handed_over(b.host) > before + 100


def test_through_a_gateway(tmp_path):
    """a ---- g ---- n: g verifies for n, which knows nothing of scentd."""
    with bpffs(tmp_path / "bpf") as mount, Topology("lg") as net:
        a, g = Node(net.host("a"), tmp_path), Node(net.host("g", forward=True), tmp_path, issues=False)
        n = Node(net.host("n"), tmp_path)
        net.link(a.host, g.host, ipv6="fd00:1::/64")
        net.link(g.host, n.host, ipv6="fd00:8::/64")
        a.host.ip("route add fd00:8::/64 via fd00:1::2")
        n.host.ip("route add default via fd00:8::1")
        a.pin_dir = mount / "a"
        g.network["addresses"] = ["fd00:8::/64"]
        a.peers = [peer_of(g, verify=False) | {"addresses": ["fd00:8::/64"]}]
        g.peers = [peer_of(a, stamp=False, **STRICT)]
        with a, g:
            start(a, g)
            in_place(g)
            transfer(a, n, 6, BULK)
            assert handed_over(g.host) > 100
            assert not any(faults(n.host).values())


STRANGER = str(keys.identity(b"\7" * 32).public)


@pytest.fixture(params=["absent", "rejected"])
def refusing(request, tmp_path) -> Iterator[tuple[Node, Node, str]]:
    """b takes nothing from a for scented: a has no daemon, or b another key of it. What then happens is "pass"."""
    with bpffs(tmp_path / "bpf") as mount, pair("lt", tmp_path, issues=False) as (a, b):
        a.peers = [peer_of(b, verify=False)]
        treat(b, a, request.param, "pass")
        b.start()
        in_place(b)
        if request.param == "rejected":
            a.pin_dir = mount / "a"
            a.start()
        yield a, b, request.param


def treat(b: Node, a: Node, what: str, treatment: str) -> None:
    more = {"absent_ipv6_fragments": treatment} if what == "absent" else {}
    b.peers = [peer_of(a, stamp=False, **{what: treatment}, **more) | {"public_key": STRANGER}]


def treated(b: Node, what: str, treatment: str) -> int:
    verdict = "absent" if what == "absent" else "unknown-key"
    return b.status()["treated"].get(f"{verdict}:{treatment}", 0)


def test_what_is_passed_on_as_it_is(refusing):
    a, b, what = refusing
    transfer(a, b, 6, BULK)
    assert handed_over(b.host) > 100
    assert not any(faults(b.host).values())
    until(lambda: treated(b, what, "pass") > 100, "they are counted")


@pytest.mark.parametrize("treatment", ["drop", "reject"])
def test_what_is_refused_in_the_midst_of_a_connection(refusing, treatment):
    """The sender of a long packet is told as that of any other: TCP by a reset, UDP by an ICMP error."""
    a, b, what = refusing
    with b.listener(6) as listening, a.socket(6, socket.SOCK_STREAM) as end:
        end.connect(listening.getsockname()[:2])
        other, _ = listening.accept()
        treat(b, a, what, treatment)
        assert b.reload()["reloads"] == {"applied": 1, "refused": 0, "reverted": 0}, b.log.read_text()
        other.setblocking(False)
        with suppress(ConnectionError):
            end.sendall(bytes(50000))
        until(lambda: treated(b, what, treatment), "it is counted")
        with pytest.raises(BlockingIOError):
            other.recv(1)
        if treatment == "reject":
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    with a.socket(6) as one, b.socket(6) as other:
        one.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        one.connect(other.getsockname()[:2])
        before = handed_over(b.host)
        one.send(bytes(10000))
        until(lambda: handed_over(b.host) > before, "it is seen")
        if treatment == "reject":
            with pytest.raises(PermissionError):
                one.recv(1)
        else:
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                other.recv(1)
