"""ICMP errors that quote a scented packet, made as if it had never been scented. Pure.

A router in the middle of the path quotes what it saw (RFC 792, RFC 4443) and names
an MTU for packets with a scent. The sender's stack must see its own packet and the
MTU that leaves room. The quoted tag is checked first: only an error about a packet
that we sent is touched, which also tells a genuine error from a blind forgery.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import NamedTuple

from scentd.tables import Outgoing
from scentd.wire import ip, layout, tag

ICMP, ICMPV6 = 1, 58
_IPV6_MIN_MTU = 1280  # RFC 8200 section 5


class Unquoted(NamedTuple):
    packet: bytes  # the whole error, rewritten
    destination: bytes  # of the quoted packet
    mtu: int  # what the router allows, scent included


def is_too_big(packet: bytes, found: ip.Parsed) -> bool:
    """Whether this is "fragmentation needed" (IPv4) or "packet too big" (IPv6)."""
    at = found.transport_at
    if found.fragment or len(packet) < at + 8:
        return False
    if found.version == 4:
        return found.protocol == ICMP and packet[at : at + 2] == b"\x03\x04"
    return found.protocol == ICMPV6 and packet[at] == 2


def unquote(packet: bytes, found: ip.Parsed, outgoing_for: Callable[[ip.Parsed], Outgoing | None]) -> Unquoted | None:
    """The error without the scent, or None if it quotes no packet of ours."""
    if not is_too_big(packet, found):
        return None
    at = found.transport_at
    quoted = packet[at + 8 :]
    inner = _parse_quoted(quoted, found.version)
    if inner is None:
        return None
    whole, parsed = inner
    outgoing = outgoing_for(parsed)
    if outgoing is None or not _ours(whole, parsed, outgoing):
        return None
    bare = _remove(quoted, whole, parsed)
    if found.version == 4:
        mtu = int.from_bytes(packet[at + 6 : at + 8], "big")
        room = max(mtu - layout.IPV4_OPTION_LEN, 68)
        message = packet[at : at + 2] + b"\0\0" + packet[at + 4 : at + 6] + room.to_bytes(2, "big") + bare
        return Unquoted(_icmp(packet, found, message), parsed.destination, mtu)
    mtu = int.from_bytes(packet[at + 4 : at + 8], "big")
    room = max(mtu - layout.IPV6_HEADER_LEN, _IPV6_MIN_MTU)
    message = packet[at : at + 2] + b"\0\0" + room.to_bytes(4, "big") + bare
    return Unquoted(_icmpv6(packet, found, message), parsed.destination, mtu)


def _parse_quoted(quoted: bytes, version: int) -> tuple[bytes, ip.Parsed] | None:
    """The quotation as if it were a whole packet: its length field says how long it once was."""
    fixed = 20 if version == 4 else 40
    if len(quoted) < fixed or quoted[0] >> 4 != version:
        return None
    size = len(quoted) if version == 4 else len(quoted) - 40
    at = 2 if version == 4 else 4
    whole = quoted[:at] + size.to_bytes(2, "big") + quoted[at + 2 :]
    parsed = ip.parse(whole)
    return None if parsed.malformed or not parsed.scent_at else (whole, parsed)


def _ours(whole: bytes, parsed: ip.Parsed, outgoing: Outgoing) -> bool:
    scent = whole[parsed.scent_at : parsed.scent_at + layout.LEN]
    epoch = int.from_bytes(scent[layout.SCENT_EPOCH_AT : layout.SCENT_EPOCH_AT + 4], "big")
    if epoch // layout.PERIOD != outgoing.epoch // layout.PERIOD:
        return False
    made = tag.compute(outgoing.tag_key, scent[: layout.TAGGED_LEN], parsed)
    return hmac.compare_digest(made, scent[layout.SCENT_TAG_AT :])


def _remove(quoted: bytes, whole: bytes, parsed: ip.Parsed) -> bytes:
    """The quotation without the scent, its length field what it was before stamping."""
    bare = bytearray(ip.remove(whole, parsed))
    if parsed.version == 6:
        bare[4:6] = (int.from_bytes(quoted[4:6], "big") - layout.IPV6_HEADER_LEN & 0xFFFF).to_bytes(2, "big")
        return bytes(bare)
    bare[2:4] = (int.from_bytes(quoted[2:4], "big") - layout.IPV4_OPTION_LEN & 0xFFFF).to_bytes(2, "big")
    bare[10:12] = b"\0\0"
    header = (bare[0] & 15) * 4
    bare[10:12] = ip.checksum(bytes(bare[:header])).to_bytes(2, "big")
    return bytes(bare)


def _icmp(packet: bytes, found: ip.Parsed, message: bytes) -> bytes:
    message = message[:2] + ip.checksum(message + b"\0" * (len(message) % 2)).to_bytes(2, "big") + message[4:]
    header = bytearray(packet[: found.transport_at])
    header[2:4] = (len(header) + len(message)).to_bytes(2, "big")
    header[10:12] = b"\0\0"
    header[10:12] = ip.checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + message


def _icmpv6(packet: bytes, found: ip.Parsed, message: bytes) -> bytes:
    pseudo = found.source + found.destination + len(message).to_bytes(4, "big") + b"\0\0\0" + bytes((ICMPV6,))
    total = ip.checksum(pseudo + message + b"\0" * (len(message) % 2))
    message = message[:2] + total.to_bytes(2, "big") + message[4:]
    header = bytearray(packet[: found.transport_at])
    header[4:6] = (len(header) - 40 + len(message)).to_bytes(2, "big")
    return bytes(header) + message
