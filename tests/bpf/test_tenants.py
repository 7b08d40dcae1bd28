"""Networks with equal addresses: the programs tell them apart as the queue does, at either end."""

from __future__ import annotations

import itertools
import time

import pytest
import wire_setup
from bpf_programs import SHOT, Kernel
from msgspec.structs import replace
from packet_vectors import A4, A6, ip4, ip6, tcp, udp

from scentd.core import shared
from scentd.core.offload import encode
from scentd.core.packet.verify import BARRED, Outcome
from scentd.core.tables import INTERFACE, Origin, VerifyTable
from scentd.errors import HostError
from scentd.wire import ip, layout, maps

pytestmark = pytest.mark.netns

NOW = wire_setup.NOW + 0.5
ALICE, CAROL, ERIN = 0, 233, 2  # networks; 233 apart, one place of the cache is often that of both
TAP, OTHER_TAP = 7, 8  # interfaces
FORWARDED = 0x1000  # the mark of forwarded packets that a rule knows
ORIGINS = (Origin(INTERFACE, TAP, CAROL), Origin(0xFF00, 0x100, ALICE), Origin(0xFF, 0x3, ERIN))
NETWORK = {0: ALICE, 1: CAROL, 2: ERIN}
STAMP_TABLE = replace(
    wire_setup.STAMP_TABLE,
    networks=tuple((prefix, NETWORK[n]) for prefix, n in wire_setup.STAMP_TABLE.networks),
    pairs=tuple(replace(pair, network=NETWORK[pair.network]) for pair in wire_setup.STAMP_TABLE.pairs),
    origins=ORIGINS,
)
PACKETS = [bytes(packet) for packet in (ip4(src="10.9.9.9") / tcp(), ip6(src="2001:db8:9::9") / udp(), ip4() / udp())]
# Alice and carol have alice's addresses; it is carol's `absent` that is strict, and alice's `rejected`.
INCOMING = tuple(replace(i, peer=wire_setup.PREFIXES["alice"]) for i in wire_setup.VERIFY_TABLE.incoming)
BOTH_TREATED = shared.strictest([wire_setup.ALICE_TREATMENTS, wire_setup.CAROL_TREATMENTS])
VERIFY_TABLE = VerifyTable(INCOMING, tuple((p, BOTH_TREATED) for p in wire_setup.PREFIXES["alice"]))
PLAIN = {4: bytes(ip4(src=A4) / tcp()), 6: bytes(ip6(src=A6) / tcp())}


def stamped(packet: bytes, interface: int = 0, mark: int = 0) -> bytes | int:
    """What the queue makes of it."""
    stamper = wire_setup.stamper(table=STAMP_TABLE)
    stamper.come_from(interface, mark)
    return stamper.stamp(packet)


SCENTED = {
    (name, version): stamped(packet, interface)
    for version, packet in PLAIN.items()
    for name, interface in (("alice", 0), ("carol", TAP))
}


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    kernel.stamp_by(STAMP_TABLE, forwarded=FORWARDED)
    kernel.verify_by(VERIFY_TABLE)
    yield kernel
    kernel.close()


@pytest.mark.parametrize("packet", PACKETS, ids=["stranger4", "stranger6", "alice4"])
def test_the_origin_comes_before_the_source(kernel, packet):
    """First the interface, then the marks, then the source."""
    seen = set()
    for interface, mark in itertools.product((0, TAP, OTHER_TAP), (0, 0x100, 0x3, 0x103, 0x1FF, 0x203)):
        want = stamped(packet, interface, mark)
        kernel.fresh_stamper()
        ran = kernel.stamp(packet, received_on=interface, mark=mark)
        if isinstance(want, bytes):
            assert ran.packet == want, (interface, hex(mark))
            seen.add(want)
        else:
            assert ran.packet == packet
    assert len(seen) == 2, "alice's and carol's; erin has nothing to send"


def test_equal_packets_of_two_networks_in_turn(kernel):
    """Neither cache takes the one for the other, nor does the queue."""
    kernel.fresh_stamper()
    python = wire_setup.stamper(table=STAMP_TABLE)
    turns = [(TAP, 0, key_id("carol")), (0, 0x100, key_id("alice"))]
    for number in range(1, 41):
        packet = bytes(ip4(src=f"10.9.9.{number}") / tcp())
        for _ in range(5):  # some of them in one tick of the clock
            for interface, mark, name in turns:
                assert name in kernel.stamp(packet, received_on=interface, mark=mark).packet
                python.come_from(interface, mark)
                assert name in python.stamp(packet)


def test_an_error_about_a_networks_packet_is_known_by_its_key():
    """Nobody says where the packet came from that a router quotes."""
    one = wire_setup.stamper(table=STAMP_TABLE)
    parsed = ip.parse(PACKETS[0])
    assert one._tag_key(parsed, wire_setup.EPOCH, key_id("carol")) == wire_setup.outgoing()[1].tag_key
    assert one._tag_key(parsed, wire_setup.EPOCH, key_id("erin")) is None


@pytest.mark.parametrize("version", [4, 6])
def test_a_shared_address_is_told_apart_by_key(kernel, version):
    kernel.fresh_verifier()
    python = wire_setup.verifier(NOW, table=VERIFY_TABLE)
    for _ in range(3):
        for name, number in (("alice", 0), ("carol", 1)):
            before = kernel.of_pairs()[number, "accepted"]
            assert kernel.verify(SCENTED[name, version], NOW).packet == PLAIN[version]
            assert kernel.of_pairs()[number, "accepted"] == before + 1
            assert isinstance(python.verify(SCENTED[name, version]), bytes)
    assert python.drain_accepted() == {0: 3, 1: 3}


def test_what_is_refused_there(kernel):
    """Unscented packets are nobody's and meet the strictest; a wrong scent counts for whom it names."""
    python = wire_setup.verifier(NOW, table=VERIFY_TABLE)
    assert python.verify(PLAIN[4]) == Outcome(layout.VERDICT_ABSENT, "drop", maps.NO_PAIR)
    forged = {name: flipped(SCENTED[name, 4]) for name in ("alice", "carol")}
    before = kernel.of_pairs()
    assert kernel.verify(PLAIN[4], NOW).counts == {"absent:drop": 1}
    assert kernel.of_pairs() == before
    for number, packet in enumerate(forged.values()):
        assert python.verify(packet) == Outcome(layout.VERDICT_BAD_TAG, "drop", number)
        assert kernel.verify(packet, NOW).counts == {"bad-tag:drop": 1}
        assert kernel.of_pairs()[number, "bad-tag:drop"] == before[number, "bad-tag:drop"] + 1


@pytest.mark.parametrize("version", [4, 6])
def test_a_quarantine_by_key(kernel, version):
    """Carol's packets are dropped until the release, alice's are not; what carol's say is heard."""
    second = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 10**9
    prefix = wire_setup.PREFIXES["alice"][version == 6]
    python = wire_setup.verifier(NOW, table=VERIFY_TABLE)
    python.verify(SCENTED["carol", version])
    python.bar({1: {prefix: NOW + 1}})
    try:
        kernel.verify_by(VERIFY_TABLE, barred={1: {prefix: second + 3600}})
        kernel.fresh_verifier()
        for _ in range(2):
            ran = kernel.verify(SCENTED["carol", version], NOW)
            assert (ran.action, ran.counts) == (SHOT, {"offload_quarantined": 1})
            assert kernel.verify(SCENTED["alice", version], NOW).counts == {"accepted": 1}
            assert python.verify(SCENTED["carol", version]) == Outcome(BARRED, "drop", 1)
            assert isinstance(python.verify(SCENTED["alice", version]), bytes)
        assert kernel.states()[1].highest == wire_setup.EPOCH
        kernel.verify_by(VERIFY_TABLE, barred={1: {prefix: max(second - 1, 0)}})
        assert kernel.verify(SCENTED["carol", version], NOW).counts == {"accepted": 1}
        python.tick(NOW + 2)
        assert isinstance(python.verify(SCENTED["carol", version]), bytes)
    finally:
        kernel.verify_by(VERIFY_TABLE)


def test_masks_that_are_too_many_are_left_to_the_queue():
    table = replace(STAMP_TABLE, origins=tuple(Origin(1 << n, 1 << n, ALICE) for n in range(maps.MASKS_MAX + 1)))
    with pytest.raises(HostError, match=r"network\.mark: 6 different masks"):
        encode.stamp_entries(table, (), 0, 1)


def key_id(name: str) -> bytes:
    return wire_setup.IDENTITIES[name].public.key_id


def flipped(packet: bytes) -> bytes:
    """With another tag; the IPv4 header's checksum is not the verifier's business."""
    at = 22 + layout.SCENT_TAG_AT
    return packet[:at] + bytes((packet[at] ^ 1,)) + packet[at + 1 :]
