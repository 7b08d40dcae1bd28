"""Finds the scent in an IP packet, and the fields to which the tag binds it. carrier.py inserts and removes scents.

`parse(packet)` believes no field: it checks lengths first, and walks a bounded number of options (RFC 791 section 3.1)
or extension headers (RFC 8200 section 4). The stamper, the verifier and the tests use it alike. The packet path calls
it once per flow and epoch, not once per packet.
"""

from __future__ import annotations

from dataclasses import dataclass

from scentd.wire import layout

TCP, UDP = 6, 17
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
SOURCE_ROUTES = (131, 137)  # RFC 791: loose and strict
PORT_PROTOCOLS = frozenset((TCP, UDP, 33, 132, 136))  # also DCCP, SCTP, UDP-Lite
# By IP version, bytes: a packet of this length passes every link (RFC 791 section 3.2, RFC 8200 section 5).
LEAST_MTU = {4: 68, 6: 1280}

_MAGIC = layout.MAGIC.to_bytes(2, "big")
_IPV6_SCENT = bytes((layout.IPV6_OPTION_TYPE, layout.LEN))
_IPV6_LENGTH = layout.IPV6_HEADER_LEN // 8 - 1
_NOT_FIRST, _IN_PARTS = 0xFFF8, 0xFFF9  # of a Fragment header: the offset; the offset and "more fragments"


@dataclass(slots=True)
class Parsed:
    """The anatomy of an IP packet. Offsets are from the start of the packet."""

    version: int = 4
    malformed: bool = False  # lengths do not fit, or there are several scents, or one in a wrong place
    scent_at: int = 0  # offset of the scent's 34 bytes; 0: the packet has no scent
    insert_at: int = 0  # offset at which a carrier inserts a scent
    has_room: bool = True  # the headers leave room for a scent
    atomic: bool = False  # an IPv6 packet that is whole and yet has a Fragment header (RFC 6946)
    routed: bool = False  # a source route changes the destination on the way, so the tag cannot bind it
    transport_at: int = 0
    protocol: int = 0
    fragment: bool = False
    dont_fragment: bool = False
    source: bytes = b""
    destination: bytes = b""
    ports: bytes = b""  # 4 bytes; empty: the packet has no ports to bind


def parse(packet: bytes) -> Parsed:
    """The packet's anatomy. It never raises, whatever the bytes."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return _parse_ipv4(packet)
    if version == 6:
        return _parse_ipv6(packet)
    return Parsed(version, malformed=True)


def _parse_ipv4(packet: bytes) -> Parsed:
    parsed = Parsed(4)
    size = len(packet)
    header = (packet[0] & 15) * 4
    if size < 20 or header < 20 or header > size or int.from_bytes(packet[2:4], "big") != size:
        parsed.malformed = True
        return parsed
    parsed.source, parsed.destination = packet[12:16], packet[16:20]
    parsed.protocol = packet[9]
    parsed.fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF != 0
    parsed.dont_fragment = packet[6] & 0x40 != 0
    parsed.transport_at = header
    parsed.insert_at = 20
    _find_ipv4_option(packet, header, parsed)
    parsed.has_room = header + layout.IPV4_OPTION_LEN <= 60 and not parsed.routed
    parsed.malformed |= parsed.routed and parsed.scent_at > 0
    _find_ports(packet, parsed)
    return parsed


def _find_ipv4_option(packet: bytes, end: int, parsed: Parsed) -> None:
    at = 20
    while at < end and packet[at] != 0:
        kind = packet[at]
        if kind == 1:
            at += 1
            continue
        length = packet[at + 1] if at + 1 < end else 0
        if kind in SOURCE_ROUTES:
            parsed.routed = True
        if length < 2 or at + length > end:
            parsed.malformed = True
            return
        if kind == layout.IPV4_OPTION_TYPE and packet[at + 2 : min(at + 4, at + length)] == _MAGIC:
            if length != layout.IPV4_OPTION_LEN or parsed.scent_at:
                parsed.malformed = True
                return
            parsed.scent_at = at + 2
        at += length


def _parse_ipv6(packet: bytes) -> Parsed:
    parsed = Parsed(6)
    size = len(packet)
    if size < 40 or int.from_bytes(packet[4:6], "big") != size - 40:
        parsed.malformed = True
        return parsed
    parsed.source, parsed.destination = packet[8:24], packet[24:40]
    parsed.dont_fragment = True  # only the source of an IPv6 packet may fragment it
    parsed.insert_at = 40
    protocol, at, headers = packet[6], 40, 0
    while protocol in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION):
        headers += 1
        if headers > layout.HEADERS_MAX or at + 8 > size:
            parsed.malformed = True
            return parsed
        length = 8 if protocol == FRAGMENT else (packet[at + 1] + 1) * 8
        if at + length > size:
            parsed.malformed = True
            return parsed
        if protocol == DESTINATION:
            _find_ipv6_option(packet, at, length, parsed)
            if parsed.malformed:
                return parsed
        elif protocol == HOP_BY_HOP and at == 40:
            parsed.insert_at = 40 + length
        elif protocol == FRAGMENT:
            offset = int.from_bytes(packet[at + 2 : at + 4], "big")
            if offset & _IN_PARTS:
                parsed.fragment = True
            else:
                parsed.atomic = True
            if offset & _NOT_FIRST:  # payload follows
                protocol, at = packet[at], at + 8
                break
        else:
            parsed.routed = True  # a Routing header changes the destination; a Hop-by-Hop header here is an error
        protocol, at = packet[at], at + length
    # Conntrack reassembles atomic fragments, too, and drops them behind our header like other fragments (measured).
    parsed.has_room = not parsed.routed and not parsed.atomic and headers < layout.HEADERS_MAX
    parsed.malformed |= parsed.routed and parsed.scent_at > 0
    parsed.protocol, parsed.transport_at = protocol, at
    _find_ports(packet, parsed)
    return parsed


def _find_ipv6_option(packet: bytes, at: int, length: int, parsed: Parsed) -> None:
    """Find a scent in a Destination Options header. A scent is malformed unless the header has no other option, has the
    one form that carriers write, and is in its place.
    """
    end, option, padding, options = at + length, at + 2, 0, 0
    while option < end:
        kind = packet[option]
        size = packet[option + 1] if option + 1 < end else 255
        if kind > 1:
            padding, options = 0, options + 1
        else:
            padding += 1 if kind == 0 else 2 + size
        if padding > layout.PADDING_MAX or options > layout.OPTIONS_MAX or (kind and option + 2 + size > end):
            parsed.malformed = True
            return
        if kind == layout.IPV6_OPTION_TYPE and packet[option + 2 : min(option + 4, option + 2 + size)] == _MAGIC:
            canonical = option == at + 2 and packet[at + 1] == _IPV6_LENGTH and size == layout.LEN
            padding = packet[at + layout.IPV6_HEADER_PAD_TYPE_AT : end] == b"\x01\x00"
            if not canonical or not padding or at != parsed.insert_at or parsed.scent_at:
                parsed.malformed = True
                return
            parsed.scent_at = option + 2
        option += 2 + size if kind else 1


def _find_ports(packet: bytes, parsed: Parsed) -> None:
    at = parsed.transport_at
    if parsed.protocol in PORT_PROTOCOLS and not parsed.fragment and at + 4 <= len(packet):
        parsed.ports = packet[at : at + 4]


def checksum(header: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071) over an even number of bytes; the checksum's own field must be zero."""
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def word_sum(data: bytes) -> int:
    """The ones' complement sum of an even number of bytes, 1 .. 0xffff, for updates after RFC 1624."""
    total = int.from_bytes(data, "big") % 0xFFFF
    return total or 0xFFFF
