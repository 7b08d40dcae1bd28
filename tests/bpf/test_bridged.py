"""The programs of a bridge's port: whose packets they look at, and what becomes of those that no queue sees."""

from __future__ import annotations

import pytest
import wire_setup
from bpf_programs import MARKS, SHOT, UNSPEC, Kernel
from packet_vectors import A4, C4, C6, DATA, ip4, ip6, tcp, udp
from rejected_vectors import insert
from scapy.layers.inet import ICMP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6ExtHdrHopByHop, PadN

from scentd.wire import layout

pytestmark = pytest.mark.netns

NOW = wire_setup.NOW + 0.5
PORT, UPLINK, ROUTED = 7, 8, 9  # interfaces by which packets have come; the last is no port
PLAIN = {4: bytes(ip4() / tcp() / DATA), 6: bytes(ip6() / tcp() / DATA)}
SCENTED = {version: wire_setup.stamper().stamp(packet) for version, packet in PLAIN.items()}
FORGED = insert(ip4() / tcp(), key=bytes(16))
OTHER, GROUP = b"\x02\0\0\0\0\x09", b"\x33\x33\0\0\0\x01"
BRIDGED = {"port": True, "received_on": UPLINK, "destination": OTHER}
BOTH = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def loaded():
    kernel = Kernel()
    kernel.bridge(PORT, UPLINK)
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(loaded):
    loaded.stamp_by(forwarded=MARKS.verified)
    loaded.verify_by()
    loaded.fresh_stamper()
    loaded.fresh_verifier()
    return loaded


def assert_left(ran, packet):
    assert (ran.action, ran.packet, ran.counts) == (UNSPEC, packet, {})


@BOTH
def test_what_a_guest_sends_is_stamped(kernel, version):
    assert kernel.stamp(PLAIN[version], **BRIDGED).packet == SCENTED[version]
    kernel.stamp_by(forwarded=0)
    assert_left(kernel.stamp(PLAIN[version], **BRIDGED), PLAIN[version])


@BOTH
def test_a_port_leaves_what_the_host_sends_to_the_bridges_device(kernel, version):
    assert_left(kernel.stamp(PLAIN[version], port=True), PLAIN[version])
    assert_left(kernel.stamp(PLAIN[version], **BRIDGED | {"destination": GROUP}), PLAIN[version])
    routed = BRIDGED | {"received_on": ROUTED}
    assert kernel.stamp(PLAIN[version], **routed).counts == {"stamped": 1}, "by a flow table, past that device"
    kernel.expired_stamper()
    assert_left(kernel.stamp(PLAIN[version], **routed), PLAIN[version])
    assert kernel.stamp(PLAIN[version], **BRIDGED).counts == {"unstamped:no-profile": 1}


@BOTH
def test_what_a_guest_gets_is_verified(kernel, version):
    ran = kernel.verify(SCENTED[version], NOW, **BRIDGED, mark=5)
    assert (ran.action, ran.packet, ran.mark, ran.counts) == (UNSPEC, PLAIN[version], 5, {"accepted": 1})
    unscented = kernel.verify(PLAIN[version], NOW, **BRIDGED)
    assert (unscented.action, unscented.mark, unscented.counts) == (UNSPEC, 0, {"absent:pass": 1})


def test_what_is_refused_is_dropped(kernel):
    """Also where the sender would be told: nobody behind this program answers."""
    forged = kernel.verify(FORGED, NOW, **BRIDGED)
    assert (forged.action, forged.counts) == (SHOT, {"bad-tag:drop": 1})
    for packet in (bytes(ip4(src=C4) / tcp()), bytes(ip6(src=C6) / tcp())):
        assert kernel.verify(packet, NOW, **BRIDGED).counts == {"absent:drop": 1}
    assert kernel.verify(PLAIN[4], NOW, **BRIDGED, segments=3, segment_size=1448).counts == {"absent:pass": 3}


@pytest.mark.parametrize("frame", [{"received_on": 0}, {"received_on": ROUTED}, {"destination": GROUP}])
def test_what_was_judged_where_it_came_in_is_not_judged_again(kernel, frame):
    for packet in (*SCENTED.values(), FORGED, bytes(ip4(src=C4) / tcp())):
        assert_left(kernel.verify(packet, NOW, **BRIDGED | frame), packet)


def test_what_the_queue_would_judge_is_unscented_here(kernel):
    """Carol's unscented packets are dropped, alice's pass: with options, and in parts."""
    for packet in (
        ip4(src=C4, options=[IPOption_NOP()] * 4) / udp(),
        ip4(src=C4, options=[IPOption_NOP()] * 4, flags="MF") / udp() / bytes(16),
        ip6(src=C6) / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / tcp(),
    ):
        ran = kernel.verify(bytes(packet), NOW, **BRIDGED)
        assert (ran.action, ran.counts) == (SHOT, {"absent:drop": 1})
    ran = kernel.verify(bytes(ip4(src=A4, options=[IPOption_NOP()] * 4) / udp()), NOW, **BRIDGED)
    assert (ran.action, ran.counts) == (UNSPEC, {"absent:pass": 1})
    kernel.forget_pairs()
    assert kernel.verify(SCENTED[4], NOW, **BRIDGED).counts == {"absent:pass": 1}


def test_quarantine_and_the_end_of_the_lease(kernel):
    kernel.verify_by(quarantine={f"{A4}/32": (1 << 32) - 1})
    assert kernel.verify(SCENTED[4], NOW, **BRIDGED).counts == {"offload_quarantined": 1}
    assert_left(kernel.verify(FORGED, NOW, lease=-1, **BRIDGED), FORGED)


@BOTH
def test_a_router_tells_a_guest_how_much_of_its_own_fits(kernel, version):
    """The error quotes the scented packet, so the guest's own may be as much smaller; another error is left."""
    overhead = {4: layout.IPV4_OPTION_LEN, 6: layout.IPV6_HEADER_LEN}[version]
    for quoted, fits in ((SCENTED[version], 1400 - overhead), (PLAIN[version], 1400)):
        told = kernel.verify(too_big(version, quoted, 1400), NOW, **BRIDGED)
        assert (told.action, told.packet, told.counts) == (UNSPEC, too_big(version, quoted, fits), {})
    short = too_big(version, SCENTED[version][: {4: 20, 6: 40}[version]], 1400)
    assert_left(kernel.verify(short, NOW, **BRIDGED), short)


def too_big(version: int, quoted: bytes, mtu: int) -> bytes:
    """The error of a router, whom nobody knows."""
    if version == 4:
        return bytes(ip4(src="10.99.0.7") / ICMP(type=3, code=4, nexthopmtu=mtu) / quoted)
    return bytes(ip6(src="2001:db8:ffff::7") / ICMPv6PacketTooBig(mtu=mtu) / quoted)
