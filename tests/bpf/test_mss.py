"""The programs lower what SYNs announce as Python does: with options of every kind at every offset."""

from __future__ import annotations

from random import Random

import pytest
import wire_setup
from bpf_programs import MARKS, UNSPEC, Kernel
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from scentd.core.packet import mss
from scentd.core.tables import StampPair, StampTable, VerifyTable
from scentd.wire import ip

pytestmark = pytest.mark.netns

PACKETS = 300
NOW = wire_setup.NOW + 0.5
NARROW = wire_setup.NARROW_STAMP_TABLE  # between alice, a network, and bob
ALICE, BOB = {4: "192.0.2.1", 6: "2001:db8:a::1"}, {4: "198.51.100.1", 6: "2001:db8:b::1"}
LONGEST = {4: 500, 6: 1180}
KINDS = [
    b"\x01",
    b"\x01",
    b"\x03\x03\x07",
    b"\x04\x02",
    b"\x02\x04\x05\xb4",
    b"\x02\x04\x00\xff",
    b"\x02\x03\x05",
    b"\0",
]
BOTH = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    kernel.bridge(7, 8)
    yield kernel
    kernel.close()


def segment(version, source, destination, flags="S", options=b"\x02\x04\x05\xb4"):
    base = IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)
    padded = options.ljust(-(-len(options) // 4) * 4, b"\0")
    packet = bytearray(bytes(base / TCP(sport=4000, dport=5000, flags=flags, dataofs=5 + len(padded) // 4) / padded))
    return bytes(packet)


def drawn(version, source, destination):
    """SYNs, and some other packets."""
    random = Random(7)  # noqa: S311
    for _ in range(PACKETS):
        options = b"".join(random.choice(KINDS) for _ in range(random.randrange(9)))[:40]
        yield segment(version, source, destination, random.choice(["S", "SA", "S", "A"]), options)


def lowered(packet, version):
    parsed = ip.parse(packet)
    return mss.lower(packet, parsed, LONGEST[version]) if mss.is_syn(packet, parsed) else packet


@BOTH
def test_what_comes_in(kernel, version):
    """To a host that verifies nothing, too, and then nothing is judged."""
    kernel.verify_by(VerifyTable(), stamp=NARROW)
    seen = set()
    for packet in drawn(version, BOB[version], ALICE[version]):
        ran = kernel.verify(packet, NOW)
        assert (ran.action, ran.mark, ran.counts) == (UNSPEC, 0, {})
        assert ran.packet == lowered(packet, version), packet.hex()
        seen.add(ran.packet == packet)
    assert seen == {True, False}
    for stranger in ("203.0.113.9", "2001:db8:ffff::9"):
        if (":" in stranger) == (version == 6):
            packet = segment(version, stranger, ALICE[version])
            assert kernel.verify(packet, NOW).packet == packet


@BOTH
def test_what_comes_in_with_a_scent(kernel, version):
    """Bob stamps, too: alice's SYN is lowered behind her scent, which is taken off."""
    prefixes = wire_setup.PREFIXES
    limits = tuple((prefix, 1280 if ":" in prefix else 576) for prefix in prefixes["alice"])
    own, peers = (tuple((prefix, 0) for prefix in prefixes[name]) for name in ("bob", "alice"))
    packet = segment(version, ALICE[version], BOB[version], options=b"\x02\x04\x05\x70")
    scented = wire_setup.stamper().stamp(packet)
    for stamp, wanted in (
        (StampTable(own, peers, (StampPair(0, 0, 0),), limits), lowered(packet, version)),
        (NARROW, packet),
    ):
        kernel.verify_by(stamp=stamp)
        kernel.fresh_verifier()
        ran = kernel.verify(scented, NOW)
        assert (ran.packet, ran.mark, ran.counts) == (wanted, MARKS.verified, {"accepted": 1})


@BOTH
@pytest.mark.parametrize("has_profile", [True, False])
def test_what_leaves(kernel, version, has_profile):
    kernel.stamp_by(NARROW)
    if has_profile:
        kernel.fresh_stamper()
    else:
        kernel.expired_stamper()
    for packet in drawn(version, ALICE[version], BOB[version]):
        one = wire_setup.stamper(table=NARROW)
        ran = kernel.stamp(packet)
        wanted = lowered(packet, version)
        if has_profile:
            assert mss.is_syn(ran.packet, ip.parse(ran.packet)) == mss.is_syn(packet, ip.parse(packet))
            made = one.stamp(packet)
            assert ran.packet[ip.parse(ran.packet).transport_at :] == made[ip.parse(made).transport_at :]
        else:
            assert ran.packet == wanted


@BOTH
def test_what_a_bridge_forwards_to_a_guest(kernel, version):
    """By its port, as no route leads over the bridge."""
    kernel.verify_by(VerifyTable(), stamp=NARROW)
    packet = segment(version, BOB[version], ALICE[version], "SA")
    ran = kernel.verify(packet, NOW, port=True, received_on=8, destination=b"\x02\0\0\0\0\x09")
    assert ran.packet == lowered(packet, version) != packet
