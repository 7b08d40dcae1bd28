"""Answers to refused packets. scapy builds the packets and reads the answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6TimeExceeded, IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from scentd.core.packet.answer import answer

ENDS = {4: IP(src="10.1.0.1", dst="10.2.0.2"), 6: IPv6(src="fd00:1::1", dst="fd00:2::2")}
BOTH = pytest.mark.parametrize("version", [4, 6])


def about(packet: Packet, cut: int = 1 << 16) -> Packet | None:
    data = bytes(packet)
    made = answer(data[:cut], len(data))
    if made is None:
        return None
    again = IP(made) if made[0] >> 4 == 4 else IPv6(made)
    assert (again.src, again.dst) == (packet.dst, packet.src)
    return again


def checked(packet: Packet, layer: type[Packet]) -> Packet:
    """The layer, if its checksum is the right one."""
    name = "cksum" if "cksum" in packet[layer].fields else "chksum"
    told = packet[layer].fields[name]
    fresh = packet.copy()
    del fresh[layer].fields[name]
    assert type(packet)(bytes(fresh))[layer].fields[name] == told
    return packet[layer]


@BOTH
@pytest.mark.parametrize("cut", [60, 1 << 16])
def test_a_syn_gets_a_reset_that_acknowledges_it(version, cut):
    made = checked(about(ENDS[version] / TCP(sport=5, dport=80, seq=0xFFFFFFFF, flags="S"), cut), TCP)
    assert (made.sport, made.dport, str(made.flags), made.seq, made.ack) == (80, 5, "RA", 0, 0)


@BOTH
def test_a_segment_without_acknowledgment_is_acknowledged_to_its_end(version):
    made = checked(about(ENDS[version] / TCP(sport=5, dport=80, seq=100, flags="F") / Raw(bytes(500)), 100), TCP)
    assert made.ack == 100 + 500 + 1


@BOTH
def test_a_segment_with_acknowledgment_gets_a_reset_from_there(version):
    made = checked(about(ENDS[version] / TCP(sport=5, dport=80, seq=9, ack=77, flags="PA") / Raw(b"hello")), TCP)
    assert (str(made.flags), made.seq, made.ack) == ("R", 77, 0)


@BOTH
@pytest.mark.parametrize("size", [8, 40, 5000])
def test_the_rest_is_administratively_prohibited(version, size):
    packet = ENDS[version] / UDP(sport=5, dport=53) / Raw(bytes(size))
    made = about(packet, 128)
    if version == 4:
        error = checked(made, ICMP)
        assert (error.type, error.code) == (3, 13)
        assert isinstance(made[ICMP].payload, IPerror)
    else:
        error = checked(made, ICMPv6DestUnreach)
        assert error.code == 1
    assert bytes(packet)[:28] in bytes(made)
    assert len(made) <= (576 if version == 4 else 1280)


@pytest.mark.parametrize(
    "packet",
    [
        ENDS[4] / TCP(flags="R"),
        ENDS[6] / TCP(flags="RA"),
        ENDS[4] / ICMP(type=3, code=1) / IPerror() / ICMPerror(),
        ENDS[6] / ICMPv6TimeExceeded() / Raw(bytes(48)),
        ENDS[6] / ICMPv6DestUnreach() / Raw(bytes(48)),
        IP(src="10.1.0.1", dst="10.2.0.2", frag=3) / Raw(bytes(40)),
        ENDS[6] / IPv6ExtHdrFragment(offset=3, m=1) / Raw(bytes(40)),
        IP(src="0.0.0.0", dst="10.2.0.2") / UDP(),
        IP(src="224.0.0.1", dst="10.2.0.2") / UDP(),
        IP(src="127.0.0.1", dst="10.2.0.2") / UDP(),
        IPv6(src="ff02::1", dst="fd00:2::2") / UDP(),
        IPv6(src="::", dst="fd00:2::2") / UDP(),
        IP(src="10.1.0.1", dst="10.2.0.2", proto=6) / Raw(bytes(13)),
    ],
    ids=str,
)
def test_nobody_is_told(packet):
    """RFC 1122 section 3.2.2: no error about an error, and none to who is no host."""
    assert about(packet) is None


def test_a_query_is_answered_and_a_first_fragment_of_ipv4():
    assert about(ENDS[4] / ICMP(type=8))[ICMP].code == 13
    assert about(ENDS[6] / ICMPv6EchoRequest())[ICMPv6DestUnreach].code == 1
    assert about(IP(src="10.1.0.1", dst="10.2.0.2", flags="MF") / UDP() / Raw(bytes(40)))[ICMP].code == 13


@given(st.binary(max_size=160), st.sampled_from([0x40, 0x45, 0x4F, 0x60]), st.integers(0, 1 << 16))
def test_no_bytes_make_it_fail(data, first, length):
    made = answer(bytes([first]) + data, length)
    assert made is None or len(made) >= 40
