"""Rewrites ICMP errors that quote a scented packet, as if the packet had never been scented. Pure.

A router in the middle of the path quotes the packet that it saw (RFC 792, RFC 4443), and names an MTU for packets with
a scent. The sender's stack must see its own packet, and an MTU that leaves room for the scent. The quoted tag is
checked first: only an error about a packet that we sent lately is rewritten, so a blind forgery fails. Somebody who
sees our packets can still forge an error, so an error that no router would send is refused, too.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import NamedTuple

from scentd.wire import ip, layout, tag
from scentd.wire.carrier import carrier_of

ICMP, ICMPV6 = 1, 58
MAX_AGE = 120  # seconds from the quoted epoch to our current one: an error comes a round trip after its packet

# (the quoted packet, its epoch, its key id) -> the tag key; None: we have sent no packet of that pair and epoch lately
TagKey = Callable[[ip.Parsed, int, bytes], bytes | None]


class RewrittenError(NamedTuple):
    packet: bytes  # the whole error, rewritten
    destination: bytes  # of the quoted packet
    mtu: int  # the router's MTU, for packets with their scent
    flow_bound: bool  # whether the quoted tag vouches for the destination


def is_too_big(packet: bytes, outer: ip.Parsed) -> bool:
    """Whether this is "fragmentation needed" (IPv4) or "packet too big" (IPv6)."""
    at = outer.transport_at
    if outer.fragment or len(packet) < at + 8:
        return False
    if outer.version == 4:
        return outer.protocol == ICMP and packet[at : at + 2] == b"\x03\x04"
    return outer.protocol == ICMPV6 and packet[at] == 2


def unquote(packet: bytes, outer: ip.Parsed, tag_key: TagKey) -> RewrittenError | None:
    """Remove the scent from an error. None: it quotes no packet of ours, or no router would send such an error."""
    if not is_too_big(packet, outer):
        return None
    at = outer.transport_at
    mtu = int.from_bytes(packet[at + 6 : at + 8] if outer.version == 4 else packet[at + 4 : at + 8], "big")
    quoted = packet[at + 8 :]
    quotation = _parse_quoted(quoted, outer.version)
    if quotation is None:
        return None
    whole, inner = quotation
    if outer.destination != inner.source or not 0 < mtu < _stated_length(quoted, outer.version):
        return None
    if not _checksum_holds(packet, outer) or not _has_our_tag(whole, inner, tag_key):
        return None
    room = max(mtu - carrier_of(inner).overhead, ip.LEAST_MTU[outer.version])
    if outer.version == 4:
        message = packet[at : at + 2] + b"\0\0" + packet[at + 4 : at + 6] + room.to_bytes(2, "big")
    else:
        message = packet[at : at + 2] + b"\0\0" + room.to_bytes(4, "big")
    message += _remove(quoted, whole, inner)
    rewritten = _icmp(packet, outer, message) if outer.version == 4 else _icmpv6(packet, outer, message)
    flow_bound = not whole[inner.scent_at + layout.SCENT_VERSION_FLAGS_AT] & layout.FLAG_SENDER
    return RewrittenError(rewritten, inner.destination, mtu, flow_bound)


def _stated_length(quoted: bytes, version: int) -> int:
    """The length of the quoted packet when the router saw it, by its own header, bytes."""
    return int.from_bytes(quoted[2:4], "big") if version == 4 else 40 + int.from_bytes(quoted[4:6], "big")


def _checksum_holds(packet: bytes, outer: ip.Parsed) -> bool:
    """Whether the error's own checksum is right. Rewriting computes a new one, which would hide any damage."""
    message = packet[outer.transport_at :]
    if outer.version == 6:
        message = _pseudo_header(outer, len(message)) + message
    return ip.word_sum(message + b"\0" * (len(message) % 2)) == 0xFFFF


def _parse_quoted(quoted: bytes, version: int) -> tuple[bytes, ip.Parsed] | None:
    """The quotation as a packet that parses: its length field gets the length of the quotation, which may be cut."""
    fixed = 20 if version == 4 else 40
    if len(quoted) < fixed or quoted[0] >> 4 != version:
        return None
    size = len(quoted) if version == 4 else len(quoted) - 40
    at = 2 if version == 4 else 4
    whole = quoted[:at] + size.to_bytes(2, "big") + quoted[at + 2 :]
    inner = ip.parse(whole)
    return None if inner.malformed or not inner.scent_at else (whole, inner)


def _has_our_tag(whole: bytes, inner: ip.Parsed, tag_key: TagKey) -> bool:
    scent = whole[inner.scent_at : inner.scent_at + layout.LEN]
    _, _, _, key_id, epoch, _, _, packet_tag = layout.SCENT.unpack(scent)
    key = tag_key(inner, epoch, key_id)
    if key is None:
        return False
    our_tag = tag.compute(key, scent[: layout.TAGGED_LEN], inner)
    return hmac.compare_digest(our_tag, packet_tag)


def _remove(quoted: bytes, whole: bytes, inner: ip.Parsed) -> bytes:
    """The quotation without the scent. Its length field says the packet's length before stamping."""
    carrier = carrier_of(inner)
    bare, overhead = bytearray(carrier.remove(whole, inner)), carrier.overhead
    if inner.version == 6:
        bare[4:6] = (int.from_bytes(quoted[4:6], "big") - overhead & 0xFFFF).to_bytes(2, "big")
        return bytes(bare)
    bare[2:4] = (int.from_bytes(quoted[2:4], "big") - overhead & 0xFFFF).to_bytes(2, "big")
    bare[10:12] = b"\0\0"
    header = (bare[0] & 15) * 4
    bare[10:12] = ip.checksum(bytes(bare[:header])).to_bytes(2, "big")
    return bytes(bare)


def _icmp(packet: bytes, outer: ip.Parsed, message: bytes) -> bytes:
    message = message[:2] + ip.checksum(message + b"\0" * (len(message) % 2)).to_bytes(2, "big") + message[4:]
    header = bytearray(packet[: outer.transport_at])
    header[2:4] = (len(header) + len(message)).to_bytes(2, "big")
    header[10:12] = b"\0\0"
    header[10:12] = ip.checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + message


def _icmpv6(packet: bytes, outer: ip.Parsed, message: bytes) -> bytes:
    total = ip.checksum(_pseudo_header(outer, len(message)) + message + b"\0" * (len(message) % 2))
    message = message[:2] + total.to_bytes(2, "big") + message[4:]
    header = bytearray(packet[: outer.transport_at])
    header[4:6] = (len(header) - 40 + len(message)).to_bytes(2, "big")
    return bytes(header) + message


def _pseudo_header(outer: ip.Parsed, size: int) -> bytes:
    """The pseudo-header, which an ICMPv6 checksum covers besides the message (RFC 8200 section 8.1)."""
    return outer.source + outer.destination + size.to_bytes(4, "big") + bytes((0, 0, 0, ICMPV6))
