"""ICMP "too big" about our packets: as if there had been no scent. About anything else: untouched."""

import pytest
import wire_setup as setup
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw

from scentd import quote
from scentd.wire import ip, layout

A4, B4, A6, B6 = "192.0.2.7", "198.51.100.9", "2001:db8:a::7", "2001:db8:b::9"
OVERHEAD = {4: layout.IPV4_OPTION_LEN, 6: layout.IPV6_HEADER_LEN}


def bare(version: int, payload: bytes = bytes(1400), transport=None) -> bytes:
    head = IP(src=A4, dst=B4, flags="DF") if version == 4 else IPv6(src=A6, dst=B6)
    return bytes(head / (transport or TCP(sport=5000, dport=443)) / Raw(payload))


def error(version: int, quoted: bytes, mtu: int = 1400, keep: int = 500) -> bytes:
    if version == 4:
        return bytes(IP(src="203.0.113.1", dst=A4) / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(quoted[:keep]))
    return bytes(IPv6(src="2001:db8::1", dst=A6) / ICMPv6PacketTooBig(mtu=mtu) / Raw(quoted[:keep]))


def inner(packet: bytes) -> bytes:
    return packet[ip.parse(packet).transport_at + 8 :]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("keep", [90, 100, 500, 1232])
def test_the_stack_sees_its_own_packet(version, keep):
    """Whatever is left of the quotation is what the stack sent, its length field included; checksums are right."""
    sender, original = setup.stamper(), bare(version)
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
    sender = setup.stamper()
    before = error(version, sender.stamp(bare(version)), 1300)
    destination = ip.parse(bare(version)).destination
    assert sender.limit(destination) == 1500
    sender.unquote(before, ip.parse(before))
    assert sender.limit(destination) == 1300
    assert sender.stamp(bare(version, bytes(1300))) == layout.UNSTAMPED_TOO_BIG


@pytest.mark.parametrize("version", [4, 6])
def test_a_forgery_is_left_alone(version):
    """Invariant 1: the quoted tag is checked first; a blind attacker cannot lower our MTU by way of us."""
    sender = setup.stamper()
    made = bytearray(sender.stamp(bare(version)))
    made[ip.parse(bytes(made)).scent_at + 30] ^= 1
    before = error(version, bytes(made))
    assert sender.unquote(before, ip.parse(before)) is None
    assert sender.limit(ip.parse(bare(version)).destination) == 1500


@pytest.mark.parametrize("version", [4, 6])
def test_other_errors_and_other_packets(version):
    sender = setup.stamper()
    for quoted in (bare(version), bare(version, transport=UDP(sport=1, dport=2)), b"", bytes(40)):
        before = error(version, quoted)
        assert sender.unquote(before, ip.parse(before)) is None
    plain = bare(version)
    assert not quote.is_too_big(plain, ip.parse(plain))
    if version == 4:
        unreachable = bytes(IP(src="203.0.113.1", dst=A4) / ICMP(type=3, code=3) / Raw(sender.stamp(plain)[:100]))
        assert sender.unquote(unreachable, ip.parse(unreachable)) is None


@pytest.mark.parametrize(("version", "mtu", "room"), [(4, 60, 68), (4, 0, 68), (6, 1280, 1280), (6, 0, 1280)])
def test_no_room_below_what_every_link_has(version, mtu, room):
    """RFC 791: 68 bytes, RFC 8200: 1280."""
    sender = setup.stamper()
    before = error(version, sender.stamp(bare(version)), mtu)
    after = sender.unquote(before, ip.parse(before))
    at = ip.parse(after).transport_at
    field = after[at + 6 : at + 8] if version == 4 else after[at + 4 : at + 8]
    assert int.from_bytes(field, "big") == room


@given(st.sampled_from([4, 6]), st.integers(0, 600), st.binary(max_size=8), st.integers(0, 100))
def test_truncated_and_broken_quotations(version, keep, junk, at):
    """Never an exception: None, or a well-formed packet."""
    sender = setup.stamper()
    made = bytearray(sender.stamp(bare(version))[:keep])
    made[at : at + len(junk)] = junk
    before = error(version, bytes(made), keep=keep)
    after = sender.unquote(before, ip.parse(before))
    assert after is None or not ip.parse(after).malformed
