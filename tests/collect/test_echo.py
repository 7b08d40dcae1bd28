"""Probes between real hosts:  a (10.99.8.1, fd99:8::1) ---- (10.99.8.2, fd99:8::2) b"""

import os
import socket
import struct
import threading
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow_wire import SlowWire
from topology import Topology

from scentd.collect import echo
from scentd.collect.echo import Round, Target
from scentd.collect.source import CollectError
from scentd.wire.ip import checksum

V4, V6 = ip_address("10.99.8.2"), ip_address("fd99:8::2")


@pytest.fixture(scope="module")
def wire():
    if os.geteuid():
        pytest.skip("namespaces need root")
    with Topology("ec") as net:
        a, b = net.host("a"), net.host("b")
        with SlowWire(net, a, b, ipv4="10.99.8.0/24", ipv6="fd99:8::/64") as slow:
            slow.a, slow.b = a, b
            listeners = [b.call(socket.create_server, ("", 80), family=socket.AF_INET6, dualstack_ipv6=True)]
            yield slow
            for listener in listeners:
                listener.close()


@pytest.fixture
def probe(wire):
    def run(*targets, timeout=2.0, sources=None):
        made = Round(targets, sources or {})
        wire.a.call(made.run, timeout)
        return made

    yield run
    wire.delay, wire.lose = 0.0, 0


ALL = [Target(V4), Target(V6), Target(V4, 80), Target(V6, 80), Target(V4, 81)]  # nobody listens at 81: refused


def settle(probe):
    """Neighbours are resolved first, which takes a round trip of its own."""
    probe(*ALL)


@pytest.mark.netns
@pytest.mark.parametrize("raw", [True, False])
def test_every_kind_of_probe_measures_the_round_trip(wire, probe, raw):
    groups = "1 0" if raw else "0 2147483647"
    wire.a.run("sysctl", "-qw", f"net.ipv4.ping_group_range={groups}")
    assert wire.a.call(echo.echo_socket, 4)[1] is raw
    settle(probe)
    wire.delay = 0.05
    made = probe(*ALL)
    assert set(made.trips) == set(ALL)
    assert all(trip >= 0.1 for trip in made.trips.values()), made.trips
    assert (made.unreachable, made.foreign) == (0, 0)


@pytest.mark.netns
def test_what_is_lost_has_no_trip_and_costs_the_timeout(wire, probe):
    settle(probe)
    wire.lose = 1
    made = probe(*ALL, timeout=0.2)
    assert (made.trips, made.unreachable) == ({}, 0)
    wire.lose = 0
    wire.delay = 0.3
    assert probe(*ALL, timeout=0.2).trips == {}
    wire.delay = 0.0
    assert set(probe(*ALL).trips) == set(ALL), "late answers to earlier probes hinder no later ones"


@pytest.mark.netns
def test_where_no_way_leads_is_unreachable_at_once(probe):
    nowhere = [Target(ip_address("198.51.100.1"), port) for port in (0, 80)]
    made = probe(*nowhere, timeout=60.0)
    assert (made.trips, made.unreachable) == ({}, 2)


@pytest.mark.netns
def test_probes_come_from_the_address_that_was_named(wire, probe):
    wire.a.ip(f"addr add 10.99.8.77/24 dev {wire.a.interfaces[0]}")
    seen = wire.b.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with seen:
        seen.settimeout(5)
        assert probe(Target(V4), sources={4: "10.99.8.77"}).trips
        assert seen.recvfrom(2048)[1][0] == "10.99.8.77"
    with pytest.raises(CollectError, match=r"10\.9\.9\.9: Cannot assign requested address; correct `source_address`"):
        probe(Target(V4), sources={4: "10.9.9.9"})


@pytest.mark.netns
def test_what_this_host_forbids_is_no_path(wire, probe):
    rules = "table inet scecho { chain out { type filter hook output priority 0; ip daddr 10.99.8.2 reject; }; }"
    wire.a.run("nft", "-f", "-", input=rules)
    try:
        with pytest.raises(CollectError, match=r"10\.99\.8\.2: Operation not permitted; look at this host's firewall"):
            probe(Target(V4))
    finally:
        wire.a.run("nft", "delete", "table", "inet", "scecho")


@pytest.mark.netns
def test_a_forged_reply_is_counted_and_believed_by_nobody(wire, probe):
    """b answers every echo with wrong bytes, before its kernel's own answer has come over the slow wire."""
    wire.a.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
    settle(probe)
    wire.b.run("sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1")
    forger = wire.b.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    forger.settimeout(5)

    def forge():
        packet, (address, _) = forger.recvfrom(2048)
        message = packet[20:]
        fake = struct.pack("!BBH", 0, 0, 0) + message[4:8] + bytes(8)
        forger.sendto(fake[:2] + checksum(fake).to_bytes(2, "big") + fake[4:], (address, 0))

    thread = threading.Thread(target=forge)
    thread.start()
    try:
        made = probe(Target(V4), timeout=0.5)
    finally:
        thread.join()
        forger.close()
        wire.b.run("sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=0")
    assert made.trips == {}
    assert made.foreign == 1


@pytest.mark.netns
def test_a_round_leaves_no_descriptor_open(wire, probe):
    settle(probe)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        probe(*ALL)
        probe(Target(ip_address("198.51.100.1"), 80))
    assert len(os.listdir("/proc/self/fd")) <= before


@given(st.binary(max_size=80), st.sampled_from([4, 6]), st.booleans())
def test_any_message_has_random_bytes_or_none(message, version, with_header):
    assert len(echo.nonce_of(message, version, with_header)) in (0, echo.NONCE)


@pytest.mark.parametrize("version", [4, 6])
def test_a_request_has_its_checksum_where_the_kernel_does_not_make_it(version):
    message = echo.request(version, 7, 1, b"12345678")
    assert message[0] == echo.REQUEST[version]
    assert checksum(message) == (0 if version == 4 else checksum(message))
    reply = bytes([echo.REPLY[version]]) + message[1:]
    assert echo.nonce_of(reply, version, False) == b"12345678"
    assert echo.nonce_of(message, version, False) == b"", "what came to us as a request"
