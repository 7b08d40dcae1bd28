"""Rules and sets in real namespaces, with real packets and real queues.

sender ---- 10.1.0.0/24, fd00:1::/64 ---- receiver
"""

from __future__ import annotations

import socket
import struct

import pytest
from queues import (
    LONG_QUEUE,
    PEER,
    STAMP_QUEUE,
    VERIFY_QUEUE,
    Queues,
    config,
    family_of,
    heard,
    install,
    udp,
    wait_for,
)
from topology import Topology

from scentd.config.sections import Config, Datapath, Network, Stamp, Verify
from scentd.datapath.host import iptables, path_table, rules, selection
from scentd.errors import HostError

pytestmark = pytest.mark.netns

MARK_STAMPED = Datapath().mark_stamped


# -- the text, without a kernel ------------------------------------------------


def test_queues_bypass_and_balance_follow_the_configuration():
    closed = config(stamp=Stamp(fail="closed"), verify=Verify(fail="closed"), datapath=Datapath(workers=4, queue=100))
    assert rules.outbound_rules(closed)[-1].endswith("-j NFQUEUE --queue-balance 100:103")
    assert rules.inbound_rules(closed, 4)[-1].endswith("-j NFQUEUE --queue-balance 104:107")
    assert "-j NFQUEUE --queue-balance 108:111" in " ".join(rules.inbound_rules(closed, 6))
    opened = config(stamp=Stamp(fail="open"), verify=Verify(fail="open"))
    assert rules.outbound_rules(opened)[-1].endswith("-j NFQUEUE --queue-num 22600 --queue-bypass")
    assert rules.inbound_rules(opened, 6)[-1].endswith("-j NFQUEUE --queue-num 22601 --queue-bypass")


def test_what_may_be_segments_of_ipv6_has_queues_of_its_own():
    """None may be left to the rule behind it: the kernel would cut it for that queue."""
    *_, tcp, long, short = rules.inbound_rules(config(), 6)
    for what, line in (("-p tcp ", tcp), ("-m length --length 1501:65535 ", long)):
        assert what in line
        assert line.replace(what, "").replace("22602", "22601") == short
    plain = rules.inbound_rules(config(), 4) + rules.outbound_rules(config())
    assert not any("length" in line or "-p tcp" in line for line in plain)


def test_saved_rules_name_nothing_that_may_be_missing():
    """At the next boot a restore would fail as a whole. And they do nothing to a packet that nobody has marked."""
    everything = config(
        local=["10.1.0.1"], stamp=Stamp(forwarded=True), verify=Verify(absent="drop"), datapath=Datapath(workers=2)
    )
    for family in (4, 6):
        for lines in rules.build(everything, family).values():
            assert not any("--match-set" in line for line in lines)
            own = [line for line in lines if not line.startswith(("-N", "-A SCENTD-"))]
            assert own
            assert all("-m mark --mark 0x20000000/0x20000000 -j SCENTD-" in line for line in own)


def test_every_rule_names_a_chain_of_ours():
    """By that they are told from the host's; a comment would cost each packet as much as another match."""
    for family in (4, 6):
        for lines in rules.build(config(stamp=Stamp(forwarded=True)), family).values():
            assert lines == iptables.own_lines(lines)
            assert not any("comment" in line for line in lines)


# -- rules as the host holds them -------------------------------------------


@pytest.mark.netns
@pytest.mark.parametrize("forwarded", [False, True])
@pytest.mark.parametrize("local", [None, ["10.1.0.1", "fd00:1::1"]])
def test_apply_is_idempotent_and_remove_leaves_others_alone(sender, backend, forwarded, local):
    for program in ("iptables", "ip6tables"):
        sender.run(program, "-t", "security", "-A", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")
        sender.run(program, "-t", "raw", "-A", "PREROUTING", "-p", "udp", "-j", "ACCEPT")
        sender.run(program, "-t", "raw", "-N", "OTHER")
    foreign = [sender.call(iptables.read_tables, family) for family in (4, 6)]
    wish = config(local=local, stamp=Stamp(forwarded=forwarded), verify=Verify(rejected="reject", absent="drop"))
    assert sender.call(rules.apply, wish)
    first = [sender.call(iptables.read_tables, family) for family in (4, 6)]
    for family, have in zip((4, 6), first, strict=True):
        assert iptables.is_applied(rules.build(wish, family), have)
        for table in iptables.TABLES:  # a queue's verdict skips the rest of a table: ours come last
            hooks = [line for line in have[table] if line.startswith(("-A PREROUTING", "-A OUTPUT"))]
            assert [" -j ACCEPT" in line for line in hooks] == [True, False]
    assert not sender.call(rules.apply, wish)
    assert [sender.call(iptables.read_tables, family) for family in (4, 6)] == first
    other = config(datapath=Datapath(workers=2))  # fewer chains, other targets
    assert sender.call(rules.apply, other)
    assert sender.call(rules.show, other).count("as wanted") == 2
    assert "FORWARD -m" not in sender.out("iptables", "-t", "security", "-S")
    assert sender.call(rules.remove)
    assert not sender.call(rules.remove)
    assert [sender.call(iptables.read_tables, family) for family in (4, 6)] == foreign


@pytest.mark.netns
def test_what_was_saved_is_restored_without_us_and_does_no_harm(sender, receiver):
    """As at the next boot: the host's own rules come back, and packets to and from peers pass."""
    for host in (sender, receiver):
        host.run("iptables", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", "7", "-j", "DROP")
        install(host, config(stamp=Stamp(fail="closed"), verify=Verify(fail="closed", absent="drop")))
        saved = {program: host.out(f"{program}-save") for program in ("iptables", "ip6tables")}
        host.call(path_table.remove)
        host.call(rules.remove)
        for program, text in saved.items():
            assert "SCENTD-IN" in text
            host.run(f"{program}-restore", input=text)
    for address in ("10.1.0.2", "fd00:1::2"):
        with heard(receiver, address) as s:
            sender.call(udp, address, b"passes", 0, True)
            assert s.recv(100) == b"passes"


@pytest.mark.netns
def test_missing_programs_are_explained(sender, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="apt-get install iptables"):
        sender.call(rules.apply, config())


# -- packets ------------------------------------------------------------------


@pytest.mark.netns
def test_only_packets_to_peers_that_are_not_marked_reach_the_stamp_queue(sender, receiver):
    receiver.ip("addr add 10.1.0.9/24 dev sender0", "addr add fd00:1::9/64 dev sender0")
    install(sender, config(["10.1.0.2", "fd00:1::2"]))
    with Queues(sender) as queues:
        for address, stranger in (("10.1.0.2", "10.1.0.9"), ("fd00:1::2", "fd00:1::9")):
            sender.call(udp, stranger, b"not a peer")
            sender.call(udp, address, b"marked", MARK_STAMPED)
            sender.call(udp, "::1" if ":" in address else "127.0.0.1", b"loopback")
            sender.call(udp, address, b"to a peer")
        assert wait_for(lambda: queues.count(STAMP_QUEUE, b"to a peer") == 2)
        assert [queues.count(STAMP_QUEUE, b) for b in (b"not a peer", b"marked", b"loopback")] == [0, 0, 0]


@pytest.mark.netns
def test_a_host_that_signs_nothing_queues_nothing_that_it_sends(sender):
    """Without a collector there is never a scent: a packet that waits for one would pay for nothing."""
    verifies_only = config()
    verifies_only.network[0].source.clear()
    install(sender, verifies_only)
    found = selection.sets(verifies_only)
    assert (found["stamp4"], found["stamp6"]) == ((), ())
    assert found["verify4"] == ((4, 0x0A010000, 0x0A0100FF),)
    with Queues(sender) as queues:
        for address in ("10.1.0.2", "fd00:1::2"):
            sender.call(udp, address, b"to a peer")
        install(sender, config())  # the same host with a collector: the queue does see it
        sender.call(udp, "10.1.0.2", b"with a collector")
        assert wait_for(lambda: queues.count(STAMP_QUEUE, b"with a collector"))
        assert not queues.count(STAMP_QUEUE, b"to a peer")


@pytest.mark.netns
def test_loopback_and_broadcast_are_left_alone_even_if_a_peer_is_everybody(sender):
    install(sender, config(["0.0.0.0/0", "::/0"]))

    def broadcast() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            s.sendto(b"broadcast", ("10.1.0.255", 9))

    with Queues(sender) as queues:
        sender.call(broadcast)
        for address in ("127.0.0.1", "::1", "10.1.0.1", "fd00:1::1"):
            sender.call(udp, address, b"loopback")
        sender.call(udp, "10.1.0.2", b"to a peer")
        assert wait_for(lambda: queues.count(STAMP_QUEUE, b"to a peer"))
        assert [packet for _, packet in queues.seen if b"loopback" in packet or b"broadcast" in packet] == []


@pytest.mark.netns
def test_destinations_outside_the_configured_networks_are_not_verified(sender, receiver):
    receiver.ip("addr add 10.1.0.8/24 dev sender0")
    install(receiver, config(local=["10.1.0.8"]))
    with Queues(receiver) as queues:
        sender.call(udp, "10.1.0.2", b"to the host")
        sender.call(udp, "10.1.0.8", b"to the network")
        assert wait_for(lambda: queues.count(VERIFY_QUEUE, b"to the network"))
        assert not queues.count(VERIFY_QUEUE, b"to the host")


@pytest.mark.netns
def test_sources_outside_the_configured_networks_are_not_stamped(sender):
    sender.ip("addr add 10.1.0.7/24 dev receiver0")
    install(sender, config(["10.1.0.2"], local=["10.1.0.7"]))
    with Queues(sender) as queues:

        def send(source: str) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.bind((source, 0))
                s.sendto(source.encode(), ("10.1.0.2", 9))

        for source in ("10.1.0.1", "10.1.0.7"):
            sender.call(send, source)
        assert wait_for(lambda: queues.count(STAMP_QUEUE, b"10.1.0.7"))
        assert not queues.count(STAMP_QUEUE, b"10.1.0.1")


@pytest.mark.netns
def test_closed_without_a_daemon_stops_packets_but_not_neighbour_discovery(sender, receiver):
    install(sender, config(stamp=Stamp(fail="closed")))
    with heard(receiver, "fd00:1::2") as s:
        sender.call(udp, "fd00:1::2", b"stopped")
        with pytest.raises(TimeoutError):
            s.recv(100)
    sender.call(udp, "fd00:1::2", b"resolve", MARK_STAMPED)
    assert wait_for(lambda: "lladdr" in sender.out("ip", "-6", "neigh", "show", "fd00:1::2"))
    install(sender, config(stamp=Stamp(fail="open")))
    with heard(receiver, "fd00:1::2") as s:
        sender.call(udp, "fd00:1::2", b"passed")
        assert s.recv(100) == b"passed"


@pytest.mark.netns
@pytest.mark.parametrize("address", ["10.1.0.2", "fd00:1::2"])
def test_what_the_verify_queue_sees(sender, receiver, address):
    with heard(receiver, address) as s:
        install(receiver, config())  # the sender is a peer
        with Queues(receiver) as queues:
            sender.call(udp, address, b"from a peer")
            assert s.recv(100) == b"from a peer"
            assert queues.count(VERIFY_QUEUE, b"from a peer") == 1
        install(receiver, config(["192.0.2.1", "2001:db8::1"]))  # the sender is a stranger
        with Queues(receiver) as queues:
            sender.call(udp, address, b"plain stranger")
            sender.call(udp, address, b"stranger with options", 0, True)
            assert [s.recv(100), s.recv(100)] == [b"plain stranger", b"stranger with options"]
            assert queues.count(VERIFY_QUEUE, b"plain stranger") == 0
            assert queues.count(VERIFY_QUEUE, b"stranger with options") == 1
        install(receiver, config(["192.0.2.1", "2001:db8::1"], verify=Verify(absent="drop")))
        with Queues(receiver) as queues:
            sender.call(udp, address, b"unwelcome stranger")
            assert s.recv(100) == b"unwelcome stranger"
            assert queues.count(VERIFY_QUEUE, b"unwelcome stranger") == 1


@pytest.mark.netns
@pytest.mark.parametrize("peer", [PEER, ["192.0.2.1", "2001:db8::1"]], ids=["a peer's", "a stranger's with options"])
def test_long_packets_have_a_queue_of_their_own(peer):
    with Topology("rules") as net:
        sender, receiver = net.host("sender"), net.host("receiver")
        net.link(sender, receiver, "10.1.0.0/24", "fd00:1::/64", mtu=9000)
        install(receiver, config(peer))
        headers = 40 + 40 + 8
        with Queues(receiver) as queues:
            for size, number in ((1500, VERIFY_QUEUE), (1501, LONG_QUEUE), (8000, LONG_QUEUE)):
                data = (b"%d bytes" % size).ljust(size - headers, b".")
                sender.call(udp, "fd00:1::2", data, 0, True)
                assert wait_for(lambda n=number, d=data: queues.count(n, d) == 1)
            sender.call(udp, "10.1.0.2", bytes(8000), 0, True)
            assert wait_for(lambda: queues.count(VERIFY_QUEUE, bytes(1000)) == 1)
            came = [n for n, packet in queues.seen if b" bytes" in packet and n != STAMP_QUEUE]  # there: ICMP about it
            assert came == [VERIFY_QUEUE, LONG_QUEUE, LONG_QUEUE]


@pytest.mark.netns
@pytest.mark.parametrize(
    ("kind", "hops"), [*((k, 255) for k in range(133, 138)), *((k, 1) for k in (130, 131, 132, 143))]
)
def test_only_a_neighbours_messages_pass_the_verifier_by(sender, receiver, kind, hops):
    """RFC 4861 section 7.1: what came through a router has less than 255 hops left, whatever its type."""

    def send(left: int) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as s:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, left)
            s.sendto(bytes((kind, 0, 0, 0)) + bytes(4) + b"hops=%d." % left, ("fd00:1::2", 0))

    install(receiver, config())  # the sender is a peer
    with Queues(receiver) as queues:
        for left in (hops, 254, 64, 2):
            sender.call(send, left)
        assert wait_for(lambda: queues.count(VERIFY_QUEUE, b"hops=2."))
        assert queues.count(VERIFY_QUEUE, b"hops=254.") == queues.count(VERIFY_QUEUE, b"hops=64.") == 1
        assert queues.count(VERIFY_QUEUE, b"hops=%d." % hops) == 0


@pytest.mark.netns
def test_too_big_messages_of_anybody_are_seen_and_pass_without_a_daemon(sender, receiver):
    install(receiver, config(["192.0.2.1", "2001:db8::1"], verify=Verify(fail="closed")))

    def complain() -> None:
        inner = bytes.fromhex("4500 001c 0000 4000 4011 0000") + bytes([10, 1, 0, 2, 10, 1, 0, 1]) + b"quotation"
        body = struct.pack(">BBHHH", 3, 4, 0, 0, 1400) + inner
        words = struct.unpack(f">{len(body) // 2 + 1}H", body + b"\0" * (2 - len(body) % 2))
        total = sum(words)
        total = (total & 0xFFFF) + (total >> 16)
        body = body[:2] + struct.pack(">H", 0xFFFF - ((total & 0xFFFF) + (total >> 16))) + body[4:]
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
            s.sendto(body, ("10.1.0.2", 0))
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as s:
            s.sendto(struct.pack(">BBHI", 2, 0, 0, 1400) + bytes(48) + b"quotation", ("fd00:1::2", 0))

    def listen(family: int, protocol: int) -> socket.socket:
        s = socket.socket(family, socket.SOCK_RAW, protocol)
        s.settimeout(2)
        return s

    with (
        receiver.call(listen, socket.AF_INET, socket.IPPROTO_ICMP) as v4,
        receiver.call(listen, socket.AF_INET6, socket.IPPROTO_ICMPV6) as v6,
    ):
        sender.call(complain)
        assert wait_for(lambda: b"quotation" in v4.recv(1500))
        assert wait_for(lambda: b"quotation" in v6.recv(1500))
    with Queues(receiver) as queues:
        sender.call(complain)
        assert wait_for(lambda: queues.count(VERIFY_QUEUE, b"quotation") == 2)


@pytest.mark.netns
def test_forwarded_packets_of_our_networks_are_stamped_if_asked_for():
    with Topology("fwd") as net:
        node, gateway, remote = net.host("node"), net.host("gateway", forward=True), net.host("remote")
        net.link(node, gateway, "10.5.0.0/24", "fd00:5::/64")
        net.link(gateway, remote, "10.1.0.0/24", "fd00:1::/64")
        node.ip("route add default via 10.5.0.2", "route add default via fd00:5::2")
        remote.ip("route add default via 10.1.0.1", "route add default via fd00:1::1")
        node.ip("addr add 10.5.0.77/24 dev gateway0", "addr add fd00:5::77/64 dev gateway0")
        wish = config(local=["10.5.0.1", "fd00:5::1"], stamp=Stamp(forwarded=True))

        def send(source: str, to: str) -> None:
            with socket.socket(family_of(source), socket.SOCK_DGRAM) as s:
                s.bind((source, 0))
                s.sendto(source.encode(), (to, 9))

        ours = (("10.5.0.1", "10.1.0.2"), ("fd00:5::1", "fd00:1::2"))
        others = (("10.5.0.77", "10.1.0.2"), ("fd00:5::77", "fd00:1::2"))
        host_itself = Network(name="host", key_file="k")  # its packets are stamped, those of strangers still are not
        install(gateway, Config(network=[*wish.network, host_itself], peer=wish.peer, stamp=wish.stamp))
        with Queues(gateway) as queues:
            for pair in (*others, *ours):
                node.call(send, *pair)
            assert wait_for(lambda: all(queues.count(STAMP_QUEUE, source.encode()) for source, _ in ours))
            assert [p for q, p in queues.seen if q == STAMP_QUEUE and b"77" in p] == []
        install(gateway, config(local=["10.5.0.1", "fd00:5::1"]))
        with Queues(gateway) as queues, heard(remote, "10.1.0.2") as s:
            node.call(send, *ours[0])
            assert s.recv(100) == b"10.5.0.1"
            assert queues.seen == []
