"""The checksums that the kernel leaves unfinished, against scapy's arithmetic; what was finished is not touched."""

from __future__ import annotations

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    in6_chksum,
)
from scapy.packet import Packet

from scentd.core.packet.partial_checksum import finish
from scentd.wire import ip

SIZES = [0, 1, 2, 535, 1460, 9000, 60001, 65000]
LAYERS = {ip.TCP: TCP(sport=4000, dport=5000, seq=7), ip.UDP: UDP(sport=4000, dport=5000)}
FIELD = {ip.TCP: 16, ip.UDP: 6}


def right(protocol: int, size: int, between: Packet | None = None) -> bytes:
    base = IPv6(src="fd00:1::1", dst="fd00:1::2")
    body = LAYERS[protocol] / bytes(n % 251 for n in range(size))
    return bytes(base / between / body if between else base / body)


def unfinished(packet: bytes) -> bytes:
    """As the kernel has it: the folded sum of the pseudo-header in the field."""
    found = ip.parse(packet)
    sum_ = in6_chksum(found.protocol, IPv6(packet), b"") ^ 0xFFFF
    length = len(packet) - found.transport_at
    sum_ += length
    sum_ = (sum_ & 0xFFFF) + (sum_ >> 16)
    return with_field(packet, sum_.to_bytes(2, "big"))


def with_field(packet: bytes, field: bytes) -> bytes:
    found = ip.parse(packet)
    at = found.transport_at + FIELD[found.protocol]
    return packet[:at] + field + packet[at + 2 :]


@pytest.mark.parametrize("size", SIZES)
def test_an_unfinished_one_is_finished(size):
    packet = right(ip.TCP, size)
    assert unfinished(packet) != packet
    assert finish(unfinished(packet)) == packet


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("protocol", [ip.TCP, ip.UDP])
def test_a_finished_one_is_left_alone(protocol, size):
    packet = right(protocol, size)
    assert finish(packet) is packet


@pytest.mark.parametrize("size", SIZES)
def test_unfinished_datagrams_are_the_kernels(size):
    assert finish(unfinished(right(ip.UDP, size))) is None


@pytest.mark.parametrize("protocol", [ip.TCP, ip.UDP])
def test_what_was_damaged_stays_damaged(protocol):
    """In the checksum or in the data: both are passed on as they came."""
    packet = right(protocol, 9000)
    field = int.from_bytes(packet[40 + FIELD[protocol] :][:2], "big")
    for bit in range(16):
        damaged = with_field(packet, (field ^ 1 << bit).to_bytes(2, "big"))
        if damaged != unfinished(packet):
            assert finish(damaged) is damaged
    damaged = packet[:-1] + bytes((packet[-1] ^ 1,))
    assert finish(damaged) is damaged


@pytest.mark.parametrize("between", [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()])
def test_behind_extension_headers(between):
    packet = right(ip.TCP, 3001, between)
    assert finish(unfinished(packet)) == packet
    assert finish(packet) is packet


def test_a_checksum_of_zero():
    """TCP's may be: only UDP writes 0xffff instead (RFC 8200 section 8.1)."""
    packet = right(ip.TCP, 1000)
    zero = int.from_bytes(packet[56:58], "big")
    carry = int.from_bytes(packet[-2:], "big") + zero
    packet = packet[:-2] + ((carry & 0xFFFF) + (carry >> 16)).to_bytes(2, "big")
    assert finish(unfinished(packet)) == with_field(packet, b"\0\0")


def test_what_has_no_such_checksum_is_left_alone():
    base = IPv6(src="fd00:1::1", dst="fd00:1::2")
    fragment = bytes(base / IPv6ExtHdrFragment(m=1, nh=6) / bytes(1600))
    for packet in (bytes(base / ICMPv6EchoRequest(data=bytes(3000))), fragment, right(ip.TCP, 0)[:50], b"", b"\x60"):
        assert finish(packet) is packet
