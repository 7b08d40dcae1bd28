import json
from pathlib import Path

import carriers
import pytest
import wire_setup
from hypothesis import example, given
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from wire_strategies import (
    SMALL,
    STAMPED,
    TCP4,
    TCP6,
    ip_like,
    mended,
    mutated,
    noise,
    quick,
    verdict,
    without_checksum,
)

from scentd.core.packet import verify
from scentd.core.packet.verify import Outcome
from scentd.core.tables import EPOCH_ROW
from scentd.wire import ip, layout

REJECTED = json.loads((Path(__file__).parents[2] / "vectors" / "rejected.json").read_text())["packets"]
PACKETS = sorted(SMALL.values())
FLOW = ("tcp4", "tcp6", "udp4", "udp6", "sctp4", "dccp4", "icmp4", "gre4", "esp6", "hop by hop", "options4 room",
        "first fragment4", "later fragment6", "own destination options")  # fmt: skip


def warm():
    """A verifier that has believed every packet of the vectors."""
    one = wire_setup.verifier()
    for packet in STAMPED.values():
        assert isinstance(one.verify(packet), bytes)
    return one


WARM = warm()  # reading only: what is verified below never changes what it believes


def covered_bits(packet):
    """Positions of every bit of the scent and of what its tag covers."""
    found = ip.parse(packet)
    covered = set(range(found.scent_at, found.scent_at + layout.LEN))
    flags = packet[found.scent_at + 2] & 15
    if not flags & layout.FLAG_SENDER:
        covered |= set(range(12, 20) if found.version == 4 else range(8, 40))
        covered.add(9 if found.version == 4 else protocol_at(packet))
    if flags & layout.FLAG_PORTS:
        covered |= set(range(found.transport_at, found.transport_at + 4))
    return [(at, 1 << bit) for at in sorted(covered) for bit in range(8)]


def protocol_at(packet):
    """The last next-header field of an IPv6 header chain."""
    at, field = 40, 6
    while packet[field] in (0, 44, 60):
        field, at = at, at + (8 if packet[field] == 44 else (packet[at + 1] + 1) * 8)
        if packet[field] == 44 and packet[at + 2 : at + 4] != b"\0\1":
            return at
    return field


@pytest.mark.parametrize("name", FLOW)
def test_every_bit_that_the_tag_covers_counts(name):
    """Invariant 1, through a cache that knows the original: a changed packet is refused or has no scent."""
    packet = STAMPED[name]
    assert isinstance(WARM.verify(packet), bytes)
    for at, bit in covered_bits(packet):
        changed = bytearray(packet)
        changed[at] ^= bit
        for tried in (bytes(changed), mended(bytes(changed))):
            outcome = WARM.verify(tried)
            assert isinstance(outcome, Outcome), (name, at, bit)
            assert outcome.verdict != layout.VERDICT_ACCEPTED


@pytest.mark.parametrize("flags", [b"\x20\0", b"\0\1", b"\x20\1", b"\x60\0"])
def test_a_fragment_does_not_pass_as_the_whole_packet_it_was_copied_from(flags):
    """The flags and the offset are not under the tag; what stands where the ports would is data."""
    assert isinstance(WARM.verify(TCP4), bytes)
    fragment = mended(TCP4[:6] + flags + TCP4[8:])
    assert verdict(WARM.verify(fragment)) == layout.VERDICT_WRONG_BINDING


@pytest.mark.parametrize("name", ["sender bound4", "sender bound6"])
def test_every_bit_of_a_sender_bound_scent_counts(name):
    packet = STAMPED[name]
    for at, bit in covered_bits(packet):
        changed = bytearray(packet)
        changed[at] ^= bit
        assert isinstance(WARM.verify(mended(bytes(changed))), Outcome), (at, bit)


@pytest.mark.parametrize("name", SMALL)
def test_truncated_or_continued_packets_are_never_accepted(name):
    packet = STAMPED[name]
    for size in range(len(packet)):
        assert verdict(WARM.verify(packet[:size])) != layout.VERDICT_ACCEPTED
    for more in (b"\0", bytes(8), packet):
        assert verdict(WARM.verify(packet + more)) != layout.VERDICT_ACCEPTED


@quick
@given(noise.map(ip_like))
@example(b"")
@example(b"\x4e")
@example(b"\x60")
def test_arbitrary_bytes_never_raise_and_are_never_accepted(packet):
    """Invariants 1 and 4."""
    assert WARM.verify(packet).verdict in (layout.VERDICT_ABSENT, layout.VERDICT_MALFORMED, layout.VERDICT_UNKNOWN_KEY,
                                           layout.VERDICT_UNSUPPORTED_VERSION)  # fmt: skip


@quick
@given(mutated(PACKETS))
def test_hot_path_equals_slow_path(packet):
    """A verifier that has seen every original and one that has seen nothing say the same."""
    cold = wire_setup.verifier(epochs=list(WARM._epochs))
    hot, slow = WARM.verify(packet), cold.verify(packet)
    if isinstance(hot, bytes) and isinstance(slow, bytes) and mended(packet) != packet:
        # The kernel has checked the header checksum. A wrong one stays as wrong as it was, or is made anew.
        assert without_checksum(hot) == without_checksum(slow)
    else:
        assert hot == slow


@quick
@given(mutated(PACKETS))
def test_what_is_accepted_is_what_was_stamped(packet):
    """Invariant 3: besides the scent, an accepted packet reaches the stack byte for byte."""
    bare = WARM.verify(packet)
    if isinstance(bare, bytes):
        found = ip.parse(packet)
        assert without_checksum(bare) == without_checksum(carriers.strip(packet, found))
        assert mended(packet) != packet or mended(bare) == bare
        again = ip.parse(bare)
        assert (again.scent_at, again.malformed) == (0, False)


@pytest.mark.parametrize("name", ["tcp4", "udp4"])
def test_every_header_checksum_is_right_on_the_hot_path(name):
    packet = STAMPED[name]
    for number in range(0, 65536, 11):
        changed = mended(packet[:4] + number.to_bytes(2, "big") + packet[6:])
        bare = WARM.verify(changed)
        assert mended(bare) == bare


def test_checksum_zero_may_be_written_as_ffff():
    for number in range(65536):
        changed = mended(TCP4[:4] + number.to_bytes(2, "big") + TCP4[6:])
        if changed[10:12] == b"\0\0":
            break
    other = changed[:10] + b"\xff\xff" + changed[12:]
    assert WARM.verify(changed) == WARM.verify(other) == mended(WARM.verify(changed))


def test_each_fragment_is_handed_on_once_an_epoch():
    one, sender = wire_setup.verifier(), wire_setup.stamper()
    bare = carriers.remove(TCP4, ip.parse(TCP4))
    for _ in range(40):
        one.verify(sender.stamp(bare))
    assert [e.index for e in one.events] == list(range(10))
    assert b"".join(e.data for e in one.events) == b"".join(wire_setup.outgoing()[0].fragments)
    assert {(e.pair, e.epoch, e.load, e.threat) for e in one.events} == {(0, wire_setup.EPOCH, 8 / 15, 3 / 15)}


def test_an_older_epoch_in_grace_says_nothing():
    one, older = wire_setup.verifier(), wire_setup.stamper(wire_setup.EPOCH - 1, wire_setup.EPOCH - 1)
    bare = carriers.remove(TCP4, ip.parse(TCP4))
    one.verify(older.stamp(bare))
    one.verify(older.stamp(bare))  # grace is for what a verifier has seen: one that starts anew grants none
    one.verify(TCP4)
    one.events.clear()
    assert all(isinstance(one.verify(older.stamp(bare)), bytes) for _ in range(10))
    assert one.events == []


def test_the_first_packet_carries_the_glance():
    one = wire_setup.verifier()
    one.verify(STAMPED["tcp6"])
    assert (one.events[0].load, one.events[0].threat) == (8 / 15, 3 / 15)


def test_recent_flows_are_bounded(monkeypatch):
    """Invariant 4."""
    monkeypatch.setattr(verify, "MAX_FLOWS", 8)
    one, sender = wire_setup.verifier(), wire_setup.stamper()
    for base in (carriers.remove(TCP4, ip.parse(TCP4)), carriers.remove(TCP6, ip.parse(TCP6))):
        at = ip.parse(base).transport_at
        for number in range(50):
            one.verify(sender.stamp(base[:at] + (1024 + number).to_bytes(2, "big") + base[at + 2 :]))
            assert sum(map(len, one._recent4)) + len(one._recent6) <= 8


def test_unauthentic_packets_leave_no_trace():
    """Invariant 4: no state of any kind from what is not accepted."""
    one = wire_setup.verifier()
    for packet in PACKETS:
        found = ip.parse(packet)
        one.verify(
            packet[: found.scent_at + 33] + bytes((packet[found.scent_at + 33] ^ 1,)) + packet[found.scent_at + 34 :]
        )
    assert (one.events, one.drain_nodes(), one._recent_count, list(one._epochs)) == ([], {}, 0, [0] * 4 * EPOCH_ROW)
    assert not any(one._recent4)
    assert not one._recent6


def test_nodes_are_bounded_and_drained(monkeypatch):
    monkeypatch.setattr(verify, "MAX_NODES", 3)
    one, sender = wire_setup.verifier(), wire_setup.stamper()
    bare = carriers.remove(TCP4, ip.parse(TCP4))
    for last in range(1, 20):
        one.verify(sender.stamp(mended(bare[:15] + bytes((last,)) + bare[16:])))
    assert {pair: sorted(nodes) for pair, nodes in one.drain_nodes().items()} == {
        0: [bytes((192, 0, 2, n)) for n in (1, 2, 3)]
    }
    assert one.drain_nodes() == {}


def test_a_reload_keeps_what_was_seen_and_forgets_who_is_gone():
    one = warm()
    before = len(one.events)
    one.configure(wire_setup.VERIFY_TABLE)
    assert isinstance(one.verify(TCP4), bytes)
    assert len(one.events) == before
    one.configure(verify.VerifyTable())
    assert verdict(one.verify(TCP4)) == layout.VERDICT_UNKNOWN_KEY


def test_treatments_follow_the_source():
    one = wire_setup.verifier()
    alice, carol, stranger = (
        mended(carriers.remove(TCP4, ip.parse(TCP4))[:12] + source + TCP4[16:20] + bytes(20))
        for source in (b"\xc0\0\2\7", b"\xcb\0\x71\5", b"\x0a\1\1\1")
    )
    assert [one.verify(p).treatment for p in (alice, carol, stranger)] == ["pass", "drop", "pass"]
    wrong = mended(STAMPED["sender bound4"][:-1] + b"!")
    broken = bytearray(wrong)
    broken[22 + 33] ^= 1
    assert one.verify(mended(bytes(broken))).treatment == "reject"


def test_ipv6_that_came_in_fragments_has_an_absent_treatment_of_its_own():
    one = wire_setup.verifier()
    base = carriers.remove(STAMPED["sender bound6"], ip.parse(STAMPED["sender bound6"]))
    assert one.verify(base).treatment == "drop"
    assert one.verify(mended(base + bytes(1281 - len(base)))).treatment == "pass"
    tcp = base[:6] + b"\x06" + base[7:]
    assert one.verify(mended(tcp + bytes(1281 - len(tcp)))).treatment == "drop"


ABSENT = {v["name"]: v["treatment"] for v in REJECTED if v["verdict"] == "absent" and v["name"].endswith("of carol")}


def test_only_what_may_have_come_in_fragments_escapes_the_absent_treatment():
    """Neither a Fragment header of one piece nor a fragment of TCP is a way around absent = drop."""
    assert ABSENT == {
        "small fragment of carol": "pass",
        "large udp of carol": "pass",
        "small udp of carol": "drop",
        "atomic fragment of carol": "drop",
        "tcp fragment of carol": "drop",
        "large tcp of carol": "drop",
    }


def test_a_rejected_packet_never_comes_back_as_bytes():
    """Invariant 3: only what is accepted is handed on."""
    for name, packet in SMALL.items():
        broken = bytearray(packet)
        broken[ip.parse(packet).scent_at + 26] ^= 0x80
        outcome = WARM.verify(mended(bytes(broken)))
        assert isinstance(outcome, Outcome), name
        assert outcome.treatment in ("drop", "reject")


def syn(source, destination, announced=1460):
    base = IPv6(src=source, dst=destination) if ":" in source else IP(src=source, dst=destination)
    return bytes(base / TCP(sport=4000, dport=5000, flags="S", options=[("MSS", announced)]))


@pytest.mark.parametrize(
    ("alice", "bob", "longest"), [("192.0.2.1", "198.51.100.1", 500), ("2001:db8:a::1", "2001:db8:b::1", 1180)]
)
def test_a_syn_that_comes_in_leaves_room_for_a_scent(alice, bob, longest):
    """The second one finds the flow known; nothing of it but the announced segment changes."""
    narrow = wire_setup.stamper(table=wire_setup.NARROW_STAMP_TABLE)
    one = wire_setup.verifier(make_room=narrow.make_room)
    scented, lowered = (wire_setup.stamper().stamp(syn(alice, bob, n)) for n in (1460, longest))
    for _ in range(2):
        assert one.verify(scented) == carriers.strip(lowered, ip.parse(lowered))
    unscented = one.verify(syn(alice, bob))
    assert (unscented.treatment, unscented.lowered) == ("pass", syn(alice, bob, longest))
    assert one.verify(syn(alice, bob, longest)).lowered is None
    assert wire_setup.verifier().verify(scented) == carriers.strip(scented, ip.parse(scented))
