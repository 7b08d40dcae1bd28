"""Both datapaths at either end, in every combination: the same packets arrive and the same books are kept.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      each drops what is rejected or has no scent, so what was left out is seen
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from books import REASON, Books, Wire
from compiled import bpffs
from hosts import Capture, Node, acquainted, pair, peer_of, say, start, transfer, until

from scentd.wire import ip

pytestmark = pytest.mark.netns

IP_RECVOPTS, IPV6_RECVDSTOPTS = 6, 58
HEADERS = {4: 28, 6: 48}  # IP and UDP
ROOM = {4: 1500 - 36, 6: 1500 - 40}  # the longest packet that is not cut
STRICT = {"absent": "drop", "rejected": "drop"}
NAMES = [f"{sends} to {receives}" for sends in ("queue", "offload") for receives in ("queue", "offload")]
COMBINATIONS = [(sends, receives) for sends in (False, True) for receives in (False, True)]
BOTH = pytest.mark.parametrize("version", [4, 6])
PINGS = 3
LARGE = [
    *range(1437, 1521, 3),
    *range(2900, 3011, 10),
    9000,
    65000,
]  # bytes of a datagram that are too many for a packet
DATAGRAMS = len(LARGE) + 2 * PINGS
NOPS = bytes((1,)) * 36
TRACES = {4: [NOPS], 6: []}  # what a socket sees behind the queue, which cannot take IPv4's option off


@dataclass
class Ends:
    """Two running daemons; whether a stamps, and b verifies, by its programs."""

    a: Node
    b: Node
    sends: bool
    receives: bool
    books: Books


@pytest.fixture(scope="module", params=COMBINATIONS, ids=NAMES)
def ends(request, tmp_path_factory) -> Iterator[Ends]:
    sends, receives = request.param
    directory = tmp_path_factory.mktemp("mx")
    with bpffs(directory / "bpf") as mount, pair("mx", directory) as (a, b):
        for node, other, offload in ((a, b, sends), (b, a, receives)):
            node.pin_dir = mount / node.name if offload else None
            node.peers = [peer_of(other, **STRICT, absent_ipv6_fragments="pass")]
            node.network["interval"] = "30s"  # no beacon is due before both verify: its answer would have no scent
        start(a, b)
        for node, offload in ((a, sends), (b, receives)):
            assert node.status()["datapath"] == ("nfqueue+ebpf" if offload else "nfqueue"), node.log.read_text()
        ping(a, b, 4, 56, 10)
        acquainted(b, a)
        acquainted(a, b)
        yield Ends(a, b, sends, receives, Books(a, b))


def requests(client: Node, server: Node, version: int, number: int) -> None:
    """Connections of one question and one answer each."""
    question, answer = os.urandom(80), os.urandom(800)
    with server.listener(version) as listening:
        for _ in range(number):
            with client.socket(version, socket.SOCK_STREAM) as asking:
                asking.connect(listening.getsockname()[:2])
                answering, _ = listening.accept()
                with answering:
                    asking.sendall(question)
                    assert answering.recv(2000) == question
                    answering.sendall(answer)
                    assert asking.recv(2000) == answer


def ping(sender: Node, receiver: Node, version: int, size: int, number: int = PINGS) -> None:
    """The program itself compares what comes back. One at a time: for the last of several it waits two RTTs only."""
    for _ in range(number):
        out = sender.host.out("ping", "-c", "1", "-W", "10", "-s", str(size), receiver.address(version))
        assert "1 received" in out, out
        assert "wrong" not in out, out


@BOTH
def test_tcp(ends, version):
    """In bulk, so that segments are made behind the programs and merged in front of them; and in small requests."""
    size = (52 if ends.sends and ends.receives else 5) << 20
    transfer(ends.a, ends.b, version, size)
    transfer(ends.b, ends.a, version, size >> 2)
    requests(ends.a, ends.b, version, 40)
    for name, sent in (("a", size), ("b", size >> 2)):
        ends.books.least[name] += sent // 1500 + 40
    ends.books.balance()


@BOTH
def test_datagrams_of_one_packet(ends, version):
    largest = ROOM[version] - HEADERS[version]
    sizes = [0, *range(1, 9), 100, 1000, *range(largest - 70, largest + 1)]
    with ends.a.socket(version) as one, ends.b.socket(version) as other:
        for size in sizes:
            say(one, other, os.urandom(size))
            say(other, one, os.urandom(size))
    for size in (0, 56, largest):
        ping(ends.a, ends.b, version, size)
    for name in ("a", "b"):
        ends.books.least[name] += len(sizes) + 3 * PINGS
    ends.books.balance()


@BOTH
def test_datagrams_of_several_packets(ends, version):
    """IPv4: every fragment is scented. IPv6: none is, and both ends count them (wire/README.md, 5.3)."""
    sent = several(ends, version)
    for sender, receiver, offload in ((ends.a, ends.b, ends.sends), (ends.b, ends.a, ends.receives)):
        wire = sent[sender.name]
        assert len(wire.bare if version == 4 else wire.scented) == 0
        if version == 6:
            ends.books.unscented[receiver.name] += len(wire.bare)
        elif not offload:  # the queue has stamped whole datagrams
            ends.books.copies[sender.name] += len(wire.scented) - DATAGRAMS
    ends.books.balance()
    if version == 6:
        for sender, offload in ((ends.a, ends.sends), (ends.b, ends.receives)):
            counted = sender.count("unstamped", REASON)
            assert counted == (len(sent[sender.name].bare) if offload else DATAGRAMS)


def test_ipv6_fragments_where_the_verifier_sees_them_first(ends):
    """stamp_ipv6_fragments = true towards an offload: they are scented, too, and none need pass without."""
    if not ends.receives:
        pytest.skip("b verifies behind defragmentation, where it has any")
    epoch = issued(ends.a)
    ends.a.peers = [peer_of(ends.b, **STRICT, stamp_ipv6_fragments=True, absent_ipv6_fragments="pass")]
    ends.b.peers = [peer_of(ends.a, **STRICT)]
    for node in (ends.a, ends.b):
        assert node.reload()["reloads"] == {"applied": 1, "refused": 0, "reverted": 0}, node.log.read_text()
    until(lambda: issued(ends.a) > epoch, "an epoch begins: the programs learn of the setting with it")
    before = ends.b.status()
    with ends.a.socket(6) as one, ends.b.socket(6) as other, ends.b.capture() as capture:
        for size in LARGE:
            say(one, other, os.urandom(size))
        wire = Wire(capture, ends.a)
    assert wire.bare == []
    assert len(wire.scented) >= 2 * len(LARGE)
    after = ends.b.status()
    assert after["accepted"] - before["accepted"] >= len(wire.scented)
    assert after["absent"] == before["absent"]
    assert after["rejected"] == before["rejected"]

    assert ends.a.count("unstamped", "too-big") == 0


def issued(node: Node) -> int:
    return node.status()["networks"][0]["epoch"]


def several(ends: Ends, version: int) -> dict[str, Wire]:
    """Datagrams that the kernel cuts, both ways; what was on the wire, by sender."""
    with ends.a.capture() as at_a, ends.b.capture() as at_b:
        with ends.a.socket(version) as one, ends.b.socket(version) as other:
            for size in LARGE:
                say(one, other, os.urandom(size))
                say(other, one, os.urandom(size))
        for size in (1600, 9000):
            ping(ends.a, ends.b, version, size)
        return {"a": Wire(at_b, ends.a), "b": Wire(at_a, ends.b)}


@BOTH
def test_what_is_on_the_wire_and_what_a_socket_sees(ends, version):
    """Invariant 3: every packet of a's is scented where it leaves and arrives, and b's sockets see no trace of it."""
    with ends.b.capture() as arriving, Capture(ends.a.host, ends.a.host.interfaces[0], outgoing=True) as leaving:
        transfer(ends.a, ends.b, version, 1 << 20)
        ping(ends.a, ends.b, version, 56)
        with ends.a.socket(version) as one, ends.b.socket(version) as other:
            data = os.urandom(333)
            assert options_seen(one, other, version, data) == ([] if ends.receives else TRACES[version])
            if version == 4:
                check_header(ends, one, other, data)
        for wire in (Wire(arriving, ends.a), Wire(leaving, ends.a)):
            assert wire.bare == []
            assert len(wire.scented) > 10


def options_seen(sender: socket.socket, receiver: socket.socket, version: int, data: bytes) -> list[bytes]:
    """The options that a datagram has when it is received."""
    if version == 4:
        receiver.setsockopt(socket.IPPROTO_IP, IP_RECVOPTS, 1)
    else:
        receiver.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVDSTOPTS, 1)
    sender.sendto(data, receiver.getsockname()[:2])
    got, ancillary, _, _ = receiver.recvmsg(2000, 1000)
    assert got == data
    return [options for _, _, options in ancillary]


def check_header(ends: Ends, one: socket.socket, other: socket.socket, data: bytes) -> None:
    """A raw socket of b's shows the IPv4 header: its length, the packet's, a right checksum."""
    with ends.b.socket(4, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        one.sendto(data, other.getsockname()[:2])
        packet = until(lambda: (p := raw.recv(2000)).endswith(data) and p, "the datagram is seen")
        size = 20 if ends.receives else 20 + len(NOPS)
        assert (packet[0] & 15) * 4 == size
        assert int.from_bytes(packet[2:4], "big") == len(packet) == size + 8 + len(data)
        assert ip.word_sum(packet[:size]) % 0xFFFF == 0
        assert other.recv(2000) == data
