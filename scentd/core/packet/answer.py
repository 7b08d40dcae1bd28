"""The answer to a refused packet: RST for TCP, "administratively prohibited" for the rest. Pure.

RFC 9293 section 3.10.7.1 says what an RST has, RFC 1812 section 5.2.7.1 and RFC 4443 section 3.1 what the ICMP error.
Nobody answers an error, an RST, a later fragment, or a source that names no host (RFC 1122 section 3.2.2).
"""

from __future__ import annotations

import struct

from scentd.wire import ip

TOO_SHORT_FOR_TCP = 14  # bytes up to the flags
FIN, SYN, RST, ACK = 1, 2, 4, 16
HOPS = 64
ICMP, ICMPV6 = 1, 58
QUOTED_MAX = {4: 548, 6: 1232}  # bytes of the packet in an error: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4
# Queries and replies. Any other type of ICMP is an error message, or unknown and may be one (linux icmp_pointers).
QUERIES_IPV4 = frozenset((0, 8, 9, 10, 13, 14, 15, 16, 17, 18))
ICMPV6_FIRST_QUERY, ICMPV6_REDIRECT = 128, 137  # RFC 4443 section 2.1, 2.4 (e.2)


def answer(head: bytes, length: int) -> bytes | None:
    """The IP packet that tells the sender, or None. `head`: the packet's first bytes, `length`: all that it has."""
    parsed = ip.parse(with_length(head))
    if not parsed.transport_at or names_no_host(parsed.source) or is_later_fragment(head, parsed):
        return None
    if parsed.protocol == ip.TCP:
        body = reset(head[parsed.transport_at :], length - parsed.transport_at, pseudo_header(parsed, 20))
        return None if body is None else with_header(parsed, body)
    if may_be_icmp_error(head, parsed):
        return None
    return with_header(parsed, prohibited(head, parsed))


def with_length(head: bytes) -> bytes:
    """The head as a packet of its own length."""
    if len(head) < 20:
        return b""
    at, size = (2, len(head)) if head[0] >> 4 == 4 else (4, len(head) - 40)
    return head[:at] + max(0, size).to_bytes(2, "big") + head[at + 2 :]


def names_no_host(source: bytes) -> bool:
    """Unspecified, loopback, multicast, reserved or limited broadcast. The kernel refuses a subnet's broadcast."""
    if len(source) == 4:
        return source[0] in (0, 127) or source[0] >= 224
    return source[0] == 0xFF or (source[:15] == bytes(15) and source[15] <= 1)


def is_later_fragment(head: bytes, parsed: ip.Parsed) -> bool:
    """Such a fragment has no transport header. Of IPv6 the parser finds none behind a later Fragment header."""
    if not parsed.fragment:
        return False
    return parsed.version == 6 or int.from_bytes(head[6:8], "big") & 0x1FFF != 0


def may_be_icmp_error(packet: bytes, parsed: ip.Parsed) -> bool:
    kind = packet[parsed.transport_at] if parsed.transport_at < len(packet) else None
    if parsed.version == 4:
        return parsed.protocol == ICMP and kind not in QUERIES_IPV4
    if parsed.protocol != ICMPV6:
        return False
    return kind is None or kind < ICMPV6_FIRST_QUERY or kind == ICMPV6_REDIRECT


def reset(segment: bytes, length: int, pseudo: bytes) -> bytes | None:
    """The RST about a segment of `length` bytes, of which `segment` are the first."""
    if len(segment) < TOO_SHORT_FOR_TCP:
        return None
    source, destination, sequence, acknowledged, offset, flags = struct.unpack_from(">HHIIBB", segment)
    if flags & RST:
        return None
    if flags & ACK:
        numbers = acknowledged, 0, RST
    else:
        space = max(0, length - (offset >> 4) * 4) + bool(flags & SYN) + bool(flags & FIN)
        numbers = 0, sequence + space & 0xFFFFFFFF, RST | ACK
    made = struct.pack(">HHIIBBHHH", destination, source, numbers[0], numbers[1], 5 << 4, numbers[2], 0, 0, 0)
    return made[:16] + ip.checksum(pseudo + made).to_bytes(2, "big") + made[18:]


def prohibited(head: bytes, parsed: ip.Parsed) -> bytes:
    quoted = head[: QUOTED_MAX[parsed.version]]
    message = struct.pack(">BBHI", *((3, 13, 0, 0) if parsed.version == 4 else (1, 1, 0, 0))) + quoted
    pseudo = b"" if parsed.version == 4 else pseudo_header(parsed, len(message), ICMPV6)
    padded = pseudo + message + b"\0" * (len(message) % 2)
    return message[:2] + ip.checksum(padded).to_bytes(2, "big") + message[4:]


def pseudo_header(parsed: ip.Parsed, length: int, protocol: int = ip.TCP) -> bytes:
    """Of the answer, whose source is the packet's destination (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    numbers = struct.pack(">BBH", 0, protocol, length) if parsed.version == 4 else struct.pack(">II", length, protocol)
    return parsed.destination + parsed.source + numbers


def with_header(parsed: ip.Parsed, body: bytes) -> bytes:
    """The kernel fills in an IPv4 header's identification and checksum (raw(7))."""
    tcp = parsed.protocol == ip.TCP
    if parsed.version == 4:
        protocol = ip.TCP if tcp else ICMP
        start = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, HOPS, protocol, 0)
    else:
        start = struct.pack(">IHBB", 6 << 28, len(body), ip.TCP if tcp else ICMPV6, HOPS)
    return start + parsed.destination + parsed.source + body
