"""What a SYN announces is lowered, wherever its options stand, and scapy finds the checksum right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from wire_strategies import quick

from scentd.core.packet import mss
from scentd.wire import ip

BASES = {
    "ipv4": IP(src="10.1.0.1", dst="10.2.0.1"),
    "ipv4 with options": IP(src="10.1.0.1", dst="10.2.0.1", options=[IPOption_NOP()] * 8),
    "ipv6": IPv6(src="fd00:1::1", dst="fd00:2::1"),
    "ipv6 behind a header": IPv6(src="fd00:1::1", dst="fd00:2::1") / IPv6ExtHdrHopByHop(),
}
EVERY = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
LINUX = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), ("WScale", 7)]
NOPS = st.lists(st.just(("NOP", None)), max_size=3)
OPTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("MSS"), st.integers(0, 65535)),
        st.sampled_from([("NOP", None), ("SAckOK", b""), ("WScale", 7)]),
    ),
    max_size=8,
)


def segment(base, options=LINUX, flags="S", payload=b""):
    return bytes(base / TCP(sport=4000, dport=5000, seq=9, flags=flags, options=options) / payload)


def lowered(packet, longest):
    return mss.lower(packet, ip.parse(packet), longest)


def tcp_of(packet):
    return (IP(packet) if packet[0] >> 4 == 4 else IPv6(packet))[TCP]


def announced(packet):
    return [value for kind, value in tcp_of(packet).options if kind == "MSS"]


def unfinished(packet):
    """With the pseudo-header's sum in the checksum's place, as the kernel leaves it to a card."""
    parsed = ip.parse(packet)
    at, size = parsed.transport_at, len(packet) - parsed.transport_at
    pseudo = ip.word_sum(parsed.source + parsed.destination + bytes((0, 6)) + size.to_bytes(2, "big"))
    return packet[: at + 16] + pseudo.to_bytes(2, "big") + packet[at + 18 :]


@EVERY
@pytest.mark.parametrize("flags", ["S", "SA"])
def test_a_syn_announces_no_more_than_fits(base, flags):
    assert lowered(segment(base, flags=flags), 1180) == segment(base, [("MSS", 1180), *LINUX[1:]], flags)
    for fits in (1460, 1461, 65535):
        packet = segment(base, flags=flags)
        assert lowered(packet, fits) is packet, "nothing is raised"


@quick
@given(st.sampled_from(list(BASES.values())), OPTIONS, st.integers(mss.LEAST, 65535), st.binary(max_size=3))
def test_every_option_at_every_offset(base, options, longest, payload):
    """Several of them, too, at even and odd offsets; data behind the header may be of odd length (RFC 7413)."""
    packet = segment(base, options, payload=payload)
    wanted = [(kind, min(value, longest) if kind == "MSS" else value) for kind, value in options]
    assert lowered(packet, longest) == segment(base, wanted, payload=payload)
    if any(kind == "MSS" and value > longest for kind, value in options):
        assert lowered(unfinished(packet), longest) == segment(base, wanted, payload=payload)


@EVERY
def test_no_other_packet_is_a_syn(base):
    for flags in ("A", "FA", "R", "PA", ""):
        packet = segment(base, flags=flags)
        assert not mss.is_syn(packet, ip.parse(packet))
    for flags in ("S", "SA", "SEC"):
        packet = segment(base, flags=flags)
        assert mss.is_syn(packet, ip.parse(packet))
    for size in range(len(segment(base))):
        packet = segment(base)[:size]
        assert not mss.is_syn(packet, ip.parse(packet)), "its length is wrong"


@EVERY
def test_headers_that_cannot_be_read_stay(base):
    whole = segment(base, [("NOP", None), ("MSS", 1460), ("NOP", None)])
    at = ip.parse(whole).transport_at
    for place, value in ((12, 0xF0), (22, 3), (22, 5), (22, 1), (22, 0), (20, 0), (20, 200), (21, 0)):
        damaged = whole[: at + place] + bytes((value,)) + whole[at + place + 1 :]
        assert lowered(damaged, 500) is damaged, (place, value)


def test_the_last_option_may_be_cut():
    packet = bytearray(segment(BASES["ipv4"], [("NOP", None)] * 4))
    packet[-1] = mss.MSS
    assert lowered(bytes(packet), 500) == packet


@pytest.mark.parametrize(("version", "room", "longest"), [(6, 1240, 1180), (4, 540, 500), (4, 100, 88), (6, 30, 88)])
def test_the_segment_for_a_room(version, room, longest):
    assert mss.longest_segment(version, room) == longest
