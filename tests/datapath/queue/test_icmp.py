"""Which packets we answer with "too big", and what the answer is; sending it is tested in tests/netns."""

import pytest
from hypothesis import example, given
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.packet import Raw
from wire_strategies import ip_like, noise, quick

from scentd.datapath.queue import icmp
from scentd.wire import ip

A4, B4, A6, B6 = "192.0.2.7", "198.51.100.9", "2001:db8:a::7", "2001:db8:b::9"
FULL = Raw(bytes(1400))


def answered(packet) -> bool:
    return icmp.may_answer(bytes(packet), ip.parse(bytes(packet)))


def df(source: str = A4, **more) -> IP:
    return IP(src=source, dst=B4, flags="DF", **more)


def v6(source: str = A6) -> IPv6:
    return IPv6(src=source, dst=B6)


def icmpv6(kind: int) -> Raw:
    return Raw(bytes((kind, 0, 0, 0)) + bytes(1400))


@pytest.mark.parametrize(
    "packet",
    [
        df() / TCP() / FULL,
        df() / UDP() / FULL,
        df() / ICMP(type=8) / FULL,
        df() / ICMP(type=0) / FULL,
        v6() / TCP() / FULL,
        v6() / UDP() / FULL,
        v6() / ICMPv6EchoRequest() / FULL,
        v6() / IPv6ExtHdrHopByHop() / UDP() / FULL,
        IPv6(src=A6, dst=B6, nh=58) / icmpv6(129),
    ],
    ids=lambda packet: packet.summary(),
)
def test_sources_that_can_send_less_are_told(packet):
    assert answered(packet)


def test_ipv4_without_df_is_fragmented_or_left_alone():
    assert not answered(IP(src=A4, dst=B4) / UDP() / FULL)


@pytest.mark.parametrize("offset", [0, 100])
def test_fragments_are_not_answered(offset):
    """RFC 1122 section 3.2.2: not what is not the first; we answer none."""
    assert not answered(IP(src=A4, dst=B4, flags="DF+MF", frag=offset) / UDP() / FULL)
    assert not answered(v6() / IPv6ExtHdrFragment(offset=offset, m=1, nh=17) / UDP() / FULL)


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12, 1, 41, 255])
def test_icmp_errors_are_not_answered(kind):
    """RFC 1122 section 3.2.2: nor what may be one."""
    assert not answered(df(proto=1) / Raw(bytes((kind, 4)) + bytes(1400)))


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 100, 127, 137])
def test_icmpv6_errors_and_redirects_are_not_answered(kind):
    """RFC 4443 section 2.4 (e.1), (e.2); behind extension headers, too."""
    assert not answered(IPv6(src=A6, dst=B6, nh=58) / icmpv6(kind))
    assert not answered(v6() / IPv6ExtHdrHopByHop(nh=58) / icmpv6(kind))


@pytest.mark.parametrize("source", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.2.3", "255.255.255.255"])
def test_sources_that_name_no_ipv4_host(source):
    assert not answered(df(source) / UDP() / FULL)


@pytest.mark.parametrize("source", ["::", "::1", "ff02::1", "ff0e::1"])
def test_sources_that_name_no_ipv6_host(source):
    """RFC 4443 section 2.4 (e.6)."""
    assert not answered(v6(source) / UDP() / FULL)


@pytest.mark.parametrize("size", [1279, 1280, 1281])
def test_an_ipv6_source_cannot_send_less_than_1280(size):
    """RFC 8200 section 5."""
    packet = v6() / UDP() / Raw(bytes(size - 48))
    assert len(bytes(packet)) == size
    assert answered(packet) == (size > 1280)


def test_an_ipv4_source_need_not_send_less_than_68():
    assert not answered(df() / UDP() / Raw(bytes(68 - 28)))
    assert answered(df() / UDP() / Raw(bytes(69 - 28)))


def test_an_icmp_header_that_is_not_there_may_have_been_an_error():
    packet = bytes(IPv6(src=A6, dst=B6, nh=0) / Raw(bytes((58, 255)) + bytes(2046)))
    assert ip.parse(packet).transport_at == len(packet)
    assert not ip.parse(packet).malformed
    assert not answered(packet)


@quick
@given(noise.map(ip_like))
@example(b"")
def test_arbitrary_bytes_never_raise(packet):
    assert icmp.may_answer(packet, ip.parse(packet)) in (True, False)


@pytest.mark.parametrize("size", [100, 101, 1500])
def test_the_ipv4_answer_quotes_what_fits_into_576_bytes(size):
    packet = bytes(df() / UDP() / Raw(bytes(range(200)) * 8))[:size]
    made = icmp.too_big(packet, 1464)
    read = ICMP(made)
    assert (read.type, read.code, read.nexthopmtu) == (3, 4, 1464)
    assert made[8 : 8 + min(size, 548)] == packet[:548]
    assert len(made) + 20 <= 576
    assert ip.checksum(made) == 0


@pytest.mark.parametrize("size", [1281, 1500])
def test_the_ipv6_answer_quotes_what_fits_into_1280_bytes(size):
    packet = bytes(v6() / UDP() / FULL)[:size]
    made = icmp.too_big(packet, 1460)
    assert ICMPv6PacketTooBig(made).mtu == 1460
    assert made[8:] == packet[:1232]
    assert len(made) + 40 <= 1280
