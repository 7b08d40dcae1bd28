"""Lowers the longest segment that a SYN announces, so that TCP leaves room for a scent. Pure.

A path's MTU cannot always be lowered: IPv6 sockets never go below 1280 bytes, and a guest does not see our routes. But
every TCP takes the segments that its peer's SYN asks for (RFC 9293 section 3.7.1), and it takes what options it adds
off them. bpf/mss.h does the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from scentd.core.packet import partial_checksum
from scentd.wire import ip

SYN = 2  # of the TCP flags
FLAGS_AT, HEADER_LEN = 13, 20  # bytes, in the TCP header and of it without options
END, NOP, MSS, MSS_LEN = 0, 1, 2, 4  # RFC 9293 section 3.2: kinds of TCP options, and a length
HEADERS = {4: 40, 6: 60}  # bytes of the headers of IP and TCP without options, by IP version
LEAST = 88  # bytes; Linux sends no shorter segments (TCP_MIN_MSS)


def longest_segment(version: int, room: int) -> int:
    """The segment, in bytes as a SYN announces them, whose packets are `room` bytes long."""
    return max(room - HEADERS[version], LEAST)


def is_syn(packet: bytes, parsed: ip.Parsed) -> bool:
    """Whether this is a SYN or a SYN-ACK."""
    flags = parsed.transport_at + FLAGS_AT
    is_tcp = parsed.protocol == ip.TCP and not parsed.fragment and not parsed.malformed
    return is_tcp and flags < len(packet) and bool(packet[flags] & SYN)


def lower(packet: bytes, parsed: ip.Parsed, longest: int) -> bytes:
    """The SYN, which announces no longer segment than `longest`. One that announces none stays as it is."""
    values = [at for at in _mss_values(packet, parsed) if int.from_bytes(packet[at : at + 2], "big") > longest]
    if not values:
        return packet
    changed = bytearray(partial_checksum.finish(packet) or packet)
    for at in values:
        changed[at : at + 2] = longest.to_bytes(2, "big")
    start = parsed.transport_at
    field = start + partial_checksum.FIELD_AT[ip.TCP]
    # RFC 1624: the old words go, the new ones come. A value at an odd offset is a part of two words.
    first, end = min(values) - (min(values) - start) % 2, max(values) + 2 + (max(values) - start) % 2
    gone = ip.word_sum(packet[first:end]) ^ 0xFFFF
    total = (changed[field] ^ 0xFF) << 8 | changed[field + 1] ^ 0xFF
    total += gone + ip.word_sum(bytes(changed[first:end]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    changed[field : field + 2] = (total ^ 0xFFFF).to_bytes(2, "big")
    return bytes(changed)


def _mss_values(packet: bytes, parsed: ip.Parsed) -> Iterator[int]:
    """The offsets of the values of a TCP header's MSS options: of those before the first that cannot be read."""
    at = parsed.transport_at + HEADER_LEN
    end = parsed.transport_at + (packet[parsed.transport_at + 12] >> 4) * 4
    if end > len(packet):
        return
    while at < end and packet[at] != END:
        if packet[at] == NOP:
            at += 1
            continue
        length = packet[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            return
        if packet[at] == MSS and length == MSS_LEN:
            yield at + 2
        at += length
