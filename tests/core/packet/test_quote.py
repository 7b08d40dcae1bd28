"""ICMP "too big" about our packets: as if there had been no scent. About anything else: untouched."""

import pytest
import wire_setup
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw

from scentd.core.packet import quote
from scentd.core.packet.stamp import Stamper
from scentd.wire import ip, layout

CAROL = ("203.0.113.7", "2001:db8:c::7")
A4, B4, A6, B6 = "192.0.2.7", "198.51.100.9", "2001:db8:a::7", "2001:db8:b::9"
OVERHEAD = {4: layout.IPV4_OPTION_LEN, 6: layout.IPV6_HEADER_LEN}


def bare(version: int, payload: bytes = bytes(1400), transport=None, sources: tuple[str, str] = (A4, A6)) -> bytes:
    head = IP(src=sources[0], dst=B4, flags="DF") if version == 4 else IPv6(src=sources[1], dst=B6)
    return bytes(head / (transport or TCP(sport=5000, dport=443)) / Raw(payload))


def error(version: int, quoted: bytes, mtu: int = 1400, keep: int = 500, to: tuple[str, str] = (A4, A6)) -> bytes:
    if version == 4:
        return bytes(IP(src="192.0.2.254", dst=to[0]) / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(quoted[:keep]))
    return bytes(IPv6(src="2001:db8::1", dst=to[1]) / ICMPv6PacketTooBig(mtu=mtu) / Raw(quoted[:keep]))


def answered(sender: Stamper, before: bytes) -> bytes | None:
    return sender.unquote(before, ip.parse(before))


def inner(packet: bytes) -> bytes:
    return packet[ip.parse(packet).transport_at + 8 :]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("keep", [90, 100, 500, 1232])
def test_the_stack_sees_its_own_packet(version, keep):
    """Whatever is left of the quotation is what the stack sent, its length field included; checksums are right."""
    sender, original = wire_setup.stamper(), bare(version)
    before = error(version, sender.stamp(original), 1400, keep)
    after = sender.unquote(before, ip.parse(before))
    assert after is not None
    assert inner(after) == original[: keep - OVERHEAD[version]] or version == 4
    again = (IP if version == 4 else IPv6)(after)
    if version == 4:
        assert again[ICMP].nexthopmtu == 1400 - 36
        assert inner(after)[20:] == original[20 : keep - 36]
        assert inner(after)[:10] == original[:10]
        assert ip.checksum(inner(after)[:20]) == 0
        assert ip.checksum(after[:20]) == 0
        data = after[20:]
        assert ip.checksum(data + b"\0" * (len(data) % 2)) == 0
    else:
        assert again[ICMPv6PacketTooBig].mtu == 1400 - 40
        mended = IPv6(after)
        del mended[ICMPv6PacketTooBig].cksum
        assert bytes(mended) == after
    assert not ip.parse(after).malformed


@pytest.mark.parametrize("version", [4, 6])
def test_what_was_learned_limits_the_next_packets(version):
    sender = wire_setup.stamper()
    before = error(version, sender.stamp(bare(version)), 1300)
    destination = ip.parse(bare(version)).destination
    assert sender.limit(destination) == 1500
    sender.unquote(before, ip.parse(before))
    assert sender.limit(destination) == 1300
    assert sender.stamp(bare(version, bytes(1300))) == layout.UNSTAMPED_TOO_BIG


@pytest.mark.parametrize("version", [4, 6])
def test_a_forgery_is_left_alone(version):
    """Invariant 1: the quoted tag is checked first; a blind attacker cannot lower our MTU by way of us."""
    sender = wire_setup.stamper()
    made = bytearray(sender.stamp(bare(version)))
    made[ip.parse(bytes(made)).scent_at + 30] ^= 1
    before = error(version, bytes(made))
    assert sender.unquote(before, ip.parse(before)) is None
    assert sender.limit(ip.parse(bare(version)).destination) == 1500


@pytest.mark.parametrize("version", [4, 6])
def test_other_errors_and_other_packets(version):
    sender = wire_setup.stamper()
    for quoted in (bare(version), bare(version, transport=UDP(sport=1, dport=2)), b"", bytes(40)):
        before = error(version, quoted)
        assert sender.unquote(before, ip.parse(before)) is None
    plain = bare(version)
    assert not quote.is_too_big(plain, ip.parse(plain))
    if version == 4:
        unreachable = bytes(IP(src="192.0.2.254", dst=A4) / ICMP(type=3, code=3) / Raw(sender.stamp(plain)[:100]))
        assert sender.unquote(unreachable, ip.parse(unreachable)) is None


@pytest.mark.parametrize(("version", "mtu", "room"), [(4, 60, 68), (4, 1, 68), (6, 1280, 1280), (6, 1, 1280)])
def test_no_room_below_what_every_link_has(version, mtu, room):
    """RFC 791: 68 bytes, RFC 8200: 1280."""
    sender = wire_setup.stamper()
    before = error(version, sender.stamp(bare(version)), mtu)
    after = sender.unquote(before, ip.parse(before))
    at = ip.parse(after).transport_at
    field = after[at + 6 : at + 8] if version == 4 else after[at + 4 : at + 8]
    assert int.from_bytes(field, "big") == room


@given(st.sampled_from([4, 6]), st.integers(0, 600), st.binary(max_size=8), st.integers(0, 100))
def test_truncated_and_broken_quotations(version, keep, junk, at):
    """Never an exception: None, or a well-formed packet."""
    sender = wire_setup.stamper()
    made = bytearray(sender.stamp(bare(version))[:keep])
    made[at : at + len(junk)] = junk
    before = error(version, bytes(made), keep=keep)
    after = sender.unquote(before, ip.parse(before))
    assert after is None or not ip.parse(after).malformed


BOTH = pytest.mark.parametrize("version", [4, 6])
HEADERS = {4: 20 + layout.IPV4_OPTION_LEN, 6: 40 + layout.IPV6_HEADER_LEN}


@BOTH
def test_truncated_at_every_length(version):
    """The tag needs the headers and the ports: with less nothing is believed, with more all that is left is bare."""
    sender, original = wire_setup.stamper(), bare(version)
    made = sender.stamp(original)
    for keep in range(HEADERS[version] + 60):
        after = answered(sender, error(version, made, keep=keep))
        if keep < HEADERS[version] + 4:
            assert after is None, keep
            continue
        assert after is not None, keep
        assert not ip.parse(after).malformed
        header = 20 if version == 4 else 40
        assert inner(after)[header:] == original[header : keep - OVERHEAD[version]]
        stated = 2 if version == 4 else 4
        assert inner(after)[stated : stated + 2] == original[stated : stated + 2]


@BOTH
def test_every_flipped_bit_of_what_the_tag_covers_is_refused(version):
    """The scent, both addresses, the protocol and the ports."""
    sender = wire_setup.stamper()
    made = sender.stamp(bare(version))
    found = ip.parse(made)
    addresses = range(12, 20) if version == 4 else range(8, 40)
    covered = [
        *range(found.scent_at, found.scent_at + layout.LEN),
        *addresses,
        *range(HEADERS[version], HEADERS[version] + 4),
    ]
    assert answered(sender, error(version, made)) is not None
    for at in [*covered, 9 if version == 4 else 40]:
        for bit in range(8):
            flipped = made[:at] + bytes((made[at] ^ 1 << bit,)) + made[at + 1 :]
            assert answered(sender, error(version, flipped)) is None, (at, bit)
    assert sender.limit(found.destination) == 1400  # of the first one


@BOTH
def test_an_error_to_somebody_else_is_not_ours(version):
    sender = wire_setup.stamper()
    before = error(version, sender.stamp(bare(version)), to=("192.0.2.8", "2001:db8:a::8"))
    assert answered(sender, before) is None
    assert sender.limit(ip.parse(bare(version)).destination) == 1500


@BOTH
def test_an_mtu_that_the_quoted_packet_fits_is_no_error(version):
    """No router says so; zero is what routers before RFC 1191 say, and the stack has its own answer to that."""
    sender = wire_setup.stamper()
    made = sender.stamp(bare(version, bytes(1300)))
    for mtu in (0, len(made), len(made) + 1, 9000):
        assert answered(sender, error(version, made, mtu)) is None, mtu
    assert sender.limit(ip.parse(made).destination) == 1500
    assert answered(sender, error(version, made, len(made) - 1)) is not None


@BOTH
@pytest.mark.parametrize("keep", [500, 501])
def test_a_wrong_checksum_is_not_made_right(version, keep):
    """The kernel drops such an error; rewritten it would have a right checksum."""
    sender = wire_setup.stamper()
    before = error(version, sender.stamp(bare(version)), keep=keep)
    at = ip.parse(before).transport_at
    for wrong in (at + 2, at + 3, at + 7, len(before) - 1):
        damaged = before[:wrong] + bytes((before[wrong] ^ 1,)) + before[wrong + 1 :]
        assert answered(sender, damaged) is None, wrong
    assert sender.limit(ip.parse(bare(version)).destination) == 1500
    assert answered(sender, before) is not None


@BOTH
@pytest.mark.parametrize("age", [-1, 0, 1, quote.MAX_AGE, quote.MAX_AGE + 1])
def test_only_packets_of_the_last_two_minutes_are_believed(version, age):
    """Within one period: an old quotation is a replay, one of an epoch that we have not reached a forgery."""
    epoch = wire_setup.EPOCH + 1000
    quoted = wire_setup.stamper(epoch - age, now=epoch - age).stamp(bare(version))
    sender = wire_setup.stamper(epoch, now=epoch)
    assert (answered(sender, error(version, quoted)) is not None) == (0 <= age <= quote.MAX_AGE)


@BOTH
def test_an_error_just_after_the_hour_is_still_believed(version):
    """The packet left under the tag key of the period before; in the next epochs that key is still known."""
    assert wire_setup.BEFORE // layout.PERIOD != wire_setup.EPOCH // layout.PERIOD
    sender = wire_setup.stamper(wire_setup.BEFORE, now=wire_setup.BEFORE + 1)
    before = error(version, sender.stamp(bare(version)))
    for epoch in (wire_setup.EPOCH, wire_setup.EPOCH + 5, wire_setup.EPOCH + 60):
        sender.update(wire_setup.outgoing(epoch))
        assert answered(sender, before) is not None, epoch
    sender.update(wire_setup.outgoing(wire_setup.BEFORE + quote.MAX_AGE + 1))
    assert answered(sender, before) is None


@BOTH
def test_a_sender_bound_quotation_is_rewritten_but_not_learned(version):
    """Its tag does not cover the destination: whoever has seen one could name any."""
    sender, original = wire_setup.stamper(), bare(version, sources=CAROL)
    before = error(version, sender.stamp(original), to=CAROL)
    after = answered(sender, before)
    assert after is not None
    assert inner(after)[20 if version == 4 else 40 :] == original[20 if version == 4 else 40 : 500 - OVERHEAD[version]]
    assert sender.limit(ip.parse(original).destination) == 1500
