"""Real traffic through two daemons: what the applications see, and what is on the wire.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      both issue, both have two workers
"""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import ExitStack

import pytest
from hosts import Node, acquainted, answered, pair, say, settled, start, transfer, until

from scentd.wire import ip, layout, tag

pytestmark = pytest.mark.netns

IP_RECVOPTS, IPV6_RECVDSTOPTS = 6, 58
GRE, SCTP = 47, 132
BOTH = pytest.mark.parametrize("version", [4, 6])
DIRECTIONS = pytest.mark.parametrize("backwards", [False, True], ids=["a to b", "b to a"])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with pair("dp", tmp_path_factory.mktemp("dp")) as (a, b):
        for node in (a, b):
            node.sections["datapath"] = {"workers": 2}
        start(a, b)
        acquainted(a, b)
        acquainted(b, a)
        yield a, b


def scented(packets: list[bytes], sender: Node, receiver: Node, protocol: int) -> list[ip.Parsed]:
    """The packets of a protocol; fails unless each has a scent whose tag is right."""
    found = []
    for packet in packets:
        parsed = ip.parse(packet)
        if parsed.protocol != protocol or ipaddress.ip_address(parsed.source) not in addresses(sender):
            continue
        assert parsed.scent_at, f"{len(packet)} bytes of protocol {protocol} left without a scent"
        scent = packet[parsed.scent_at : parsed.scent_at + layout.LEN]
        head, given = scent[: layout.TAGGED_LEN], scent[layout.TAGGED_LEN :]
        epoch = int.from_bytes(scent[layout.SCENT_EPOCH_AT :][:4], "big")
        assert tag.compute(sender.pair_keys_to(receiver, epoch).tag, head, parsed) == given
        found.append(parsed)
    return found


def addresses(node: Node) -> list:
    return list(map(ipaddress.ip_address, node.addresses))


@BOTH
@DIRECTIONS
def test_udp_is_scented_on_the_wire_and_bare_in_the_application(nodes, version, backwards):
    """Invariant 3: an accepted packet reaches the host as if it had never been stamped."""
    one, other = nodes[::-1] if backwards else nodes
    with one.socket(version) as sender, other.socket(version) as receiver, other.capture() as wire:
        if version == 4:
            receiver.setsockopt(socket.IPPROTO_IP, IP_RECVOPTS, 1)
        else:
            receiver.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVDSTOPTS, 1)
        data = os.urandom(333)
        for _ in range(20):
            sender.sendto(data, receiver.getsockname()[:2])
            got, ancillary, _, _ = receiver.recvmsg(2000, 1000)
            assert got == data
            for _, _, options in ancillary:  # IPv4: NOPs stand where the option was; IPv6: nothing
                assert set(options) <= {1}
        assert len(scented(wire.packets(), one, other, ip.UDP)) == 20


@BOTH
@DIRECTIONS
def test_tcp(nodes, version, backwards):
    one, other = nodes[::-1] if backwards else nodes
    with other.capture() as wire:
        transfer(one, other, version)
        assert len(scented(wire.packets(), one, other, ip.TCP)) > 100


@BOTH
def test_ping(nodes, version):
    """Both directions are scented; ICMP has no ports, so the tag binds the addresses and the protocol."""
    a, b = nodes
    protocol = 1 if version == 4 else 58
    with b.capture() as there, a.capture() as back:
        a.host.run("ping", "-c", "3", "-i", "0.05", "-W", "2", b.address(version))
        requests = [p for p in there.packets() if echo(p)]
        replies = [p for p in back.packets() if echo(p)]
        assert len(scented(requests, a, b, protocol)) == 3
        assert len(scented(replies, b, a, protocol)) == 3


def echo(packet: bytes) -> bool:
    at = ip.parse(packet).transport_at
    return packet[at] in (0, 8, 128, 129)


@BOTH
@pytest.mark.parametrize("protocol", [GRE, SCTP], ids=["GRE", "SCTP"])
def test_other_protocols(nodes, version, protocol):
    """Any protocol is served; SCTP's ports are bound, GRE has none."""
    a, b = nodes
    data = b"\x12\x34\x56\x78" + os.urandom(96)
    with ExitStack() as stack:
        sender, receiver = (stack.enter_context(n.socket(version, socket.SOCK_RAW, protocol)) for n in (a, b))
        wire = stack.enter_context(b.capture())
        sender.sendto(data, (b.address(version), 0))
        got = receiver.recv(2000)
        assert got[-len(data) :] == data
        if version == 4:
            assert set(got[20 : -len(data)]) <= {1}
        (parsed,) = scented(wire.packets(), a, b, protocol)
        assert bool(parsed.ports) == (protocol == SCTP)


@BOTH
def test_many_connections_at_once(nodes, version):
    """40 connections, spread by the kernel over the two workers; each answer comes from the right one."""
    a, b = nodes
    with ExitStack() as stack:
        listening = stack.enter_context(b.listener(version))
        ends = []
        for i in range(40):
            end = stack.enter_context(a.socket(version, socket.SOCK_STREAM))
            end.connect(listening.getsockname()[:2])
            other = stack.enter_context(listening.accept()[0])
            end.sendall(b"%d" % i)
            ends.append((end, other))
        for i, (end, other) in enumerate(ends):
            assert other.recv(10) == b"%d" % i
            other.sendall(b"answer %d" % i)
            assert end.recv(20) == b"answer %d" % i


def test_two_workers_share_the_flows(nodes):
    """Both workers' queues have seen packets: /proc/net/netfilter/nfnetlink_queue, last column but one."""
    a, b = nodes
    for one, other in (nodes, nodes[::-1]):
        for protocol in range(200, 232):  # the kernel shares out by addresses and protocol
            with one.socket(4, socket.SOCK_RAW, protocol) as sender:
                sender.sendto(b"x", (other.host.ipv4, 0))

    def counts(node: Node) -> dict[int, int]:
        lines = node.host.out("cat", "/proc/net/netfilter/nfnetlink_queue").split("\n")
        return {int(line.split()[0]): int(line.split()[7]) for line in lines if line}

    used = range(22600, 22604)  # the last two are for long IPv6 packets
    for node in (a, b):
        assert sorted(counts(node)) == [*range(22600, 22606)]
        until(lambda node=node: all(map(counts(node).get, used)), "each queue has seen packets")


def test_what_is_not_for_a_peer_is_left_alone(nodes):
    """No scent on packets to addresses that are nobody's."""
    a, b = nodes
    b.host.ip(f"addr add 10.1.0.77/24 dev {b.host.interfaces[0]}")
    stamped = settled(a, "stamped", 40)
    with a.socket(4) as sender, b.socket(4, bind=False) as receiver, b.capture() as wire:
        receiver.bind(("10.1.0.77", 0))
        say(sender, receiver, b"bare")
        (packet,) = [p for p in wire.packets() if p.endswith(b"bare")]
        assert len(packet) == 20 + 8 + 4
    assert a.count("stamped") - stamped < 40  # beacons apart, nothing of it was stamped


@BOTH
def test_nothing_is_lost_while_epochs_change(nodes, version):
    """2,000 datagrams over a change of epochs: all arrive, none is refused."""
    a, b = nodes
    before, epoch = b.status(), b.epoch(a)
    with a.socket(version) as sender, b.socket(version) as receiver:
        number = 0
        while number < 2000 or b.epoch(a) < epoch + 2:
            for _ in range(100):
                say(sender, receiver, b"%d" % number)
                number += 1
    after = b.status()
    assert after["rejected"] == before["rejected"]
    assert after["other"]["internal_errors"] == 0


def test_counters_tell_what_happened(nodes):
    a, b = nodes
    stamped, accepted = a.count("stamped"), b.count("accepted")
    with a.socket(4) as sender, b.socket(4) as receiver:
        for _ in range(50):
            say(sender, receiver, b"x")
    until(lambda: a.count("stamped") >= stamped + 50, "a counts what it stamped")
    until(lambda: b.count("accepted") >= accepted + 50, "b counts what it accepted")


def test_beacon_port_hears_nothing(nodes):
    """Beacons are consumed: a socket on the beacon port gets none of them."""
    _, b = nodes
    received = b.count("beacons", "received")
    with b.socket(6, bind=False) as receiver:
        receiver.bind(("::", layout.BEACON_PORT))  # IPv4 as well
        until(lambda: b.count("beacons", "received") > received, "a beacon comes")
        receiver.settimeout(0)
        with pytest.raises(BlockingIOError):
            receiver.recv(100)


def test_a_plain_packet_to_the_beacon_port_is_delivered(nodes):
    """Only authentic beacons are consumed; the port stays usable."""
    a, b = nodes
    with a.socket(4) as sender, b.socket(4, bind=False) as receiver:
        receiver.bind((b.host.ipv4, layout.BEACON_PORT))
        assert answered(sender, receiver)
