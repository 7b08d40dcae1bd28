"""What no vector can say of the programs: segments, marks, who a frame is for, time, and where memory ends."""

from __future__ import annotations

import os
import time
from ipaddress import ip_address

import pytest
import wire_setup
from bpf_programs import COARSE, MARKS, SHOT, UNSPEC, Kernel, next_tick
from msgspec.structs import replace
from packet_vectors import A4, A6, B6, C4, C6, DATA, ip4, ip6, raw, tcp, udp
from rejected_vectors import insert
from scapy.layers.inet import ICMP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6MLReport2,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6ExtHdrHopByHop,
    PadN,
    RouterAlert,
)

from scentd.core.offload import encode
from scentd.core.tables import Treatments, VerifyTable
from scentd.wire import layout, maps

pytestmark = pytest.mark.netns

NOW = wire_setup.NOW + 0.5  # on no boundary: a tick of the clock more or less is nothing
VLAN = 0x8100
OTHER, GROUP = b"\x02\0\0\0\0\x09", b"\x33\x33\0\0\0\x01"
PLAIN = {4: bytes(ip4() / tcp() / DATA), 6: bytes(ip6() / tcp() / DATA)}
SCENTED = {version: wire_setup.stamper().stamp(packet) for version, packet in PLAIN.items()}
FORGED = insert(ip4() / tcp(), key=bytes(16))
BOTH = pytest.mark.parametrize("version", [4, 6])
HEADER = {4: 20 + layout.IPV4_OPTION_LEN, 6: 40 + layout.IPV6_HEADER_LEN}


@pytest.fixture(scope="module")
def loaded():
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(loaded):
    loaded.stamp_by()
    loaded.verify_by()
    loaded.fresh_stamper()
    loaded.fresh_verifier()
    return loaded


def assert_left(ran, packet, mark=0):
    assert (ran.action, ran.packet, ran.mark, ran.counts) == (UNSPEC, packet, mark, {})


# -- segments ------------------------------------------------------------


@pytest.mark.parametrize(("header", "length"), [(udp(), 8), (tcp(), 20), (tcp(options=[("Timestamp", (1, 2))]), 32)])
def test_a_portless_scent_is_judged_by_the_segment(kernel, header, length):
    """As a beacon, because a test run strips no segments."""
    most = layout.PORTLESS_MIN - HEADER[4] - length
    packet = insert(ip4(flags=0) / header / raw(2 * most), flags=layout.FLAG_BEACON)
    for size, verdict in ((most, "wrong-binding:drop"), (most + 1, "accepted:drop")):
        ran = kernel.verify(packet, NOW, segments=2, segment_size=size)
        assert (ran.action, ran.counts) == (SHOT, {verdict: 2})


@pytest.mark.parametrize(("header", "treatment"), [(udp(), "pass"), (tcp(), "drop")])
def test_what_may_have_been_a_fragment_is_judged_by_the_segment(kernel, header, treatment):
    """Carol's without a scent. TCP is never fragmented."""
    packet = bytes(ip6(src=C6) / header / raw(2400))
    most = layout.PORTLESS_MIN - 40 - 8
    assert kernel.verify(packet, NOW, segments=2, segment_size=most - 12).counts == {"absent:drop": 2}
    assert kernel.verify(packet, NOW, segments=2, segment_size=most + 1).counts == {f"absent:{treatment}": 2}


@BOTH
def test_what_is_too_big_is_so_by_the_segment(kernel, version):
    """A packet of two segments that fit; one byte more and neither does."""
    packet = bytes((ip4() if version == 4 else ip6()) / tcp() / raw(2800))
    fits = 1500 - HEADER[version] - 20
    ran = kernel.stamp(packet, segments=2, segment_size=fits + 1)
    assert (ran.packet, ran.counts) == (packet, {"unstamped:too-big": 2})
    # Segments of no kind are what a test run has, and the kernel does not let them grow.
    ran = kernel.stamp(packet, segments=2, segment_size=fits)
    assert (ran.action, ran.packet, ran.counts) == (UNSPEC, packet, {"offload_failed": 2})
    assert kernel.stamp(PLAIN[version]).packet == SCENTED[version]  # no fragment was used up


@BOTH
def test_what_the_kernel_does_not_strip_is_left_to_the_queue(kernel, version):
    ran = kernel.verify(SCENTED[version], NOW, segments=2, segment_size=1000)
    assert ran.counts == {"offload_failed": 1}
    assert (ran.action, ran.packet, ran.mark) == (UNSPEC, SCENTED[version], 0)


# -- marks ---------------------------------------------------------------


def test_the_mark_of_an_outer_packet_is_not_taken_for_ours(kernel):
    """A packet out of a tunnel comes with it; it is judged all the same, and other bits stay."""
    ran = kernel.verify(SCENTED[4], NOW, mark=MARKS.verified | 0x5)
    assert (ran.packet, ran.mark, ran.counts) == (PLAIN[4], MARKS.verified | 0x5, {"accepted": 1})
    assert kernel.verify(FORGED, NOW, mark=MARKS.verified).action == SHOT
    stranger = bytes(ip4(src="10.9.0.1") / tcp())
    assert_left(kernel.verify(stranger, NOW, mark=MARKS.verified | 0x5), stranger, mark=0x5)


@pytest.mark.parametrize("shift", [0, 16, 24])
def test_the_glance_in_the_mark(kernel, shift):
    """Of accepted packets alone. Bits of ours that a packet comes with say nothing; others stay as they were."""
    mask = 0xFF << shift
    marks = encode.Marks(verified=0x100, glance=mask)
    kernel.verify_by(marks=marks)
    before = 0x5A5A5A5A
    kept = before & ~(marks.verified | mask)
    glance = 8 << 4 | 3  # of the statement: load 0.52, threat 0.2
    for packet in SCENTED.values():
        ran = kernel.verify(packet, NOW, mark=before)
        assert ran.mark == (kept | glance << shift | marks.verified)
    unscented = kernel.verify(PLAIN[4], NOW, mark=before)
    assert (unscented.counts, unscented.mark) == ({"absent:pass": 1}, kept | marks.verified)


# -- whose packets -------------------------------------------------------


@pytest.mark.parametrize("frame", [{"destination": OTHER}, {"destination": GROUP}, {"kind": VLAN}, {"kind": 0x0806}])
def test_frames_that_the_verifier_does_not_look_at(kernel, frame):
    for packet in (*SCENTED.values(), FORGED):
        assert_left(kernel.verify(packet, NOW, **frame), packet)


@pytest.mark.parametrize("frame", [{"destination": GROUP}, {"kind": VLAN}, {"kind": 0x0806}, {"received_on": 1}])
def test_frames_that_the_stamper_does_not_look_at(kernel, frame):
    for packet in PLAIN.values():
        assert_left(kernel.stamp(packet, **frame), packet)


@BOTH
def test_forwarded_packets_are_stamped_where_that_is_asked_for(kernel, version):
    kernel.stamp_by(forwarded=MARKS.verified)
    for mark in (MARKS.verified | 5, 5):
        ran = kernel.stamp(PLAIN[version], received_on=1, destination=OTHER, mark=mark)
        assert (ran.packet, ran.mark) == (SCENTED[version], 5)
        kernel.fresh_stamper()


@BOTH
def test_behind_an_address_of_the_host_only_a_rule_tells_whose_a_forwarded_packet_is(kernel, version):
    """Masquerading: the packet's source says nothing. A peer's prefixes alone are looked at, so no other is counted."""
    kernel.stamp_by(forwarded=MARKS.verified, own=(A4, A6))
    forwarded = {"received_on": 1, "destination": OTHER}
    for _ in range(2):  # the second time the processor remembers the addresses
        ran = kernel.stamp(PLAIN[version], **forwarded, mark=5)
        assert (ran.packet, ran.mark, ran.counts) == (PLAIN[version], 5, {"unstamped:masqueraded": 1})
    assert kernel.stamp(PLAIN[version], **forwarded, mark=MARKS.verified).packet == SCENTED[version]
    ran = kernel.stamp(PLAIN[version], **forwarded)
    assert ran.counts == {"unstamped:masqueraded": 1}, "though the processor remembers the flow's scent"
    kernel.fresh_stamper()
    assert kernel.stamp(PLAIN[version]).counts == {"stamped": 1}, "the host's own"
    elsewhere = bytes(ip4(dst="10.8.0.1") / tcp())
    assert_left(kernel.stamp(elsewhere, **forwarded), elsewhere)


def test_declined_parts_are_unscented_packets(kernel):
    """Behind defragmentation nobody would judge them. Carol's unscented packets are dropped, alice's pass."""
    options = [IPOption_NOP()] * 4
    for part, counts in (
        (ip4(src=C4, flags="MF", options=options), "absent:drop"),
        (ip4(src=C4, frag=8, options=options), "absent:drop"),
        (ip4(src=C4, options=options), "offload_declined"),
        (ip4(src=A4, frag=8, options=options), "offload_declined"),
    ):
        assert kernel.verify(bytes(part / udp() / bytes(16)), NOW).counts == {counts: 1}


@pytest.mark.parametrize("protocol", [tcp(), udp(), ICMP()])
def test_networks_that_sign_nothing_are_counted(kernel, protocol):
    kernel.stamp_by(unsigned=["10.9.0.0/24"])
    packet = bytes(ip4(src="10.9.0.1") / protocol)
    assert kernel.stamp(packet).counts == {"unstamped:not-a-peer": 1}
    elsewhere = bytes(ip4(src="10.9.0.1", dst="10.8.0.1") / protocol)
    assert_left(kernel.stamp(elsewhere), elsewhere)


@pytest.mark.parametrize(
    "packet",
    [
        bytes(ip6(src=C6, hlim=255) / ICMPv6ND_NS(tgt="2001:db8:b::9")),
        bytes(ip6(src=C6, hlim=1) / ICMPv6MLReport2()),
    ],
)
def test_neighbours_find_each_other(kernel, packet):
    """Carol's packets without a scent are dropped, but not these."""
    assert_left(kernel.verify(packet, NOW), packet)
    assert_left(kernel.stamp(packet), packet)
    routed = packet[:7] + b"\x40" + packet[8:]
    assert kernel.verify(routed, NOW).counts == {"absent:drop": 1}
    assert kernel.stamp(routed).counts == {"stamped": 1}


def test_groups_are_nobodys_peer(kernel):
    """Multicast listener reports have a Hop-by-Hop header, and a peer may be everybody."""
    everybody = (("0.0.0.0/0", 0), ("::/0", 0))
    kernel.stamp_by(replace(wire_setup.STAMP_TABLE, networks=everybody, peers=everybody, limits=()))
    alert = IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"")])
    assert kernel.stamp(bytes(ip6(dst=B6, hlim=64) / alert / ICMPv6MLReport2())).counts == {"stamped": 1}
    for packet in (
        ip6(dst="ff02::16", hlim=1) / alert / ICMPv6MLReport2(),
        ip6(dst=B6, hlim=1) / alert / ICMPv6MLReport2(),
        ip6(dst="ff05::1", hlim=64) / udp(),
        ip4(dst="224.0.0.251") / udp(),
        ip4(dst="255.255.255.255") / udp(),
    ):
        assert_left(kernel.stamp(bytes(packet)), bytes(packet))
    kernel.stamp_by()


@pytest.mark.parametrize(
    "packet", [ip4() / ICMP(type=3, code=4, nexthopmtu=1400), ip6() / ICMPv6PacketTooBig(mtu=1400)]
)
def test_routers_errors_are_the_queues(kernel, packet):
    for one in (bytes(packet), insert(packet, flags=0)):
        ran = kernel.verify(one, NOW)
        assert (ran.packet, ran.mark, ran.counts) == (one, 0, {"offload_declined": 1})


def test_peers_with_the_same_key_id_are_told_apart_by_address(kernel):
    """As many as there may be; the last one's packet is judged by the last one's keys."""
    alice = wire_setup.incoming("alice", "bob")
    wrong = (replace(alice.keys[0], tag_keys=dict.fromkeys(alice.keys[0].tag_keys, bytes(16))),)
    others = [replace(alice, pair=10 + i, peer=(f"10.{i}.0.0/16",), keys=wrong) for i in range(maps.CANDIDATES - 1)]
    kernel.verify_by(VerifyTable(incoming=(*others, alice)))
    kernel.fresh_verifier()
    assert kernel.verify(SCENTED[4], NOW).counts == {"accepted": 1}
    assert list(kernel.nodes()) == [alice.pair]
    for source, verdict in (("10.1.0.1", "bad-tag:drop"), ("10.200.0.1", "wrong-address:drop")):
        assert kernel.verify(insert(ip4(src=source) / tcp()), NOW).counts == {verdict: 1}


def test_a_key_of_another_of_our_networks_is_a_known_key(kernel):
    """Carol has a pair with bob and none with frank."""
    packet = insert(ip6(src=C6, dst="2001:db8:f::9") / udp(), "carol", flags=layout.FLAG_SENDER)
    assert wire_setup.verifier(NOW).verify(packet).verdict == layout.VERDICT_WRONG_ADDRESS
    assert kernel.verify(packet, NOW).counts == {"wrong-address:reject": 1}


# -- time and room -------------------------------------------------------


def test_without_a_daemon_the_lease_ends(kernel):
    for packet in (SCENTED[4], FORGED, PLAIN[4]):
        assert_left(kernel.verify(packet, NOW, lease=-1, mark=MARKS.verified), packet)


def test_an_expired_profile_is_not_sent(kernel):
    kernel.expired_stamper()
    assert kernel.stamp(PLAIN[4]).counts == {"unstamped:no-profile": 1}


@pytest.mark.parametrize(("address", "prefix"), [(A4, "192.0.2.0/28"), (A6, "2001:db8:a::7/128")])
def test_quarantine_drops_until_the_release(kernel, address, prefix):
    """Scented, unscented or forged, and whomever it is for."""
    to_others = bytes((ip4 if ":" not in address else ip6)(dst="10.9.0.1" if ":" not in address else "2001:db8:9::1"))
    version = ip_address(address).version
    second = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 10**9
    kernel.verify_by(quarantine={prefix: second + 3600})
    for packet in (SCENTED[version], PLAIN[version], to_others):
        ran = kernel.verify(packet, NOW)
        assert (ran.action, ran.counts) == (SHOT, {"offload_quarantined": 1})
    assert kernel.verify(SCENTED[10 - version], NOW).counts == {"accepted": 1}
    kernel.verify_by(quarantine={prefix: max(second - 1, 0)})
    assert kernel.verify(SCENTED[version], NOW).counts == {"accepted": 1}


@pytest.mark.parametrize(("version", "prefix"), [(4, "192.0.2.0/28"), (6, "2001:db8:a::7/128")])
def test_what_a_quarantined_sender_says_is_heard(kernel, version, prefix):
    """Its epoch and fragment, if its tag is right; every packet is dropped, a repeated one and a forged one, too."""
    second = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 10**9
    kernel.fresh_verifier()
    kernel.verify_by(quarantine={prefix: second + 3600})
    tag_at = {4: 22, 6: 44}[version] + layout.SCENT_TAG_AT
    forged = bytearray(SCENTED[version])
    forged[tag_at] ^= 1
    for packet in (bytes(forged), SCENTED[version], SCENTED[version]):
        ran = kernel.verify(packet, NOW)
        assert (ran.action, ran.counts) == (SHOT, {"offload_quarantined": 1})
    assert kernel.states()[0].highest == wire_setup.EPOCH
    kernel.verify_by()


def test_a_pair_without_memory_is_left_to_the_queue(kernel):
    kernel.forget_pairs()
    ran = kernel.verify(SCENTED[4], NOW)
    assert (ran.packet, ran.mark, ran.counts) == (SCENTED[4], 0, {"offload_declined": 1})


def test_nodes_of_a_second_are_bounded(kernel):
    """And accepted all the same; in the next second there is room again."""
    one = wire_setup.stamper()
    packets = []
    for number in range(maps.NODES + 10):
        packet = bytearray(PLAIN[6])
        packet[8:24] = ip_address("2001:db8:a::1").packed[:14] + number.to_bytes(2, "big")
        packets.append(one.stamp(bytes(packet)))
    assert {str(kernel.verify(packet, NOW).counts) for packet in packets} == {"{'accepted': 1}"}
    assert len(kernel.nodes()[0]) == maps.NODES
    kernel.verify(packets[-1], NOW + 1)
    assert len(kernel.nodes()[0]) == maps.NODES + 1


def test_treatments_of_strangers(kernel):
    """Nobody is judged for having no scent unless the default says so."""
    stranger = bytes(ip4(src="10.9.0.1") / tcp())
    for absent, counts in (("pass", {}), ("drop", {"absent:drop": 1}), ("reject", {"absent:reject": 1})):
        kernel.verify_by(replace(wire_setup.VERIFY_TABLE, default=Treatments("reject", absent, absent)))
        ran = kernel.verify(stranger, NOW)
        assert ran.counts == counts
    assert (ran.action, ran.mark) == (SHOT, 0)
    assert kernel.verify(insert(ip4(src="10.9.0.1") / tcp()), NOW).counts == {"wrong-address:reject": 1}


def test_who_is_refused_and_to_be_told_is_told_of_a_few_times_in_a_tick(kernel):
    """The packet is dropped each time; the daemon answers from the event, which has the start of the packet."""
    packet = bytes(ip4(src="10.9.0.1") / tcp() / (b"x" * 1000))
    kernel.verify_by(replace(wire_setup.VERIFY_TABLE, default=Treatments("reject", "reject", "reject")))
    kernel.verify(packet, NOW)
    next_tick()
    began = time.clock_gettime(COARSE)
    ran = [kernel.verify(packet, None) for _ in range(200)]
    ticks = 1 + round((time.clock_gettime(COARSE) - began) / time.clock_getres(COARSE))
    told = [event for r in ran for event in r.refused]
    assert {r.action for r in ran} == {SHOT}
    assert 0 < len(told) <= maps.ANSWERS * ticks * len(os.sched_getaffinity(0))
    assert {event[:2] for event in told} == {(packet[: maps.REFUSED_LEN], len(packet))}
