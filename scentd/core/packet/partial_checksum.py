"""Finishes transport checksums that a sender's kernel left to its network card.

A packet that never met a card, or that was merged on its way in, has the folded sum of the pseudo-header in the
checksum's place (CHECKSUM_PARTIAL in the kernel's linux/skbuff.h). The kernel forgets that the checksum is partial when
a verdict changes the packet, so the checksum has to be finished here.
"""

from __future__ import annotations

from scentd.wire import ip

FIELD_AT = {ip.TCP: 16, ip.UDP: 6}  # RFC 9293 section 3.1, RFC 768: bytes from the start of the transport header


def finish(packet: bytes) -> bytes | None:
    """Finish a partial TCP checksum; return every other packet as it is. None: a UDP checksum is partial.

    A checksum that is not the bare sum of the pseudo-header counts as finished, right or wrong: a packet that was
    damaged on the way stays damaged. Only the kernel may finish a UDP checksum: the packet may be several datagrams,
    and Linux cuts them for their socket only where it left the checksum partial itself (net/ipv4/udp_offload.c,
    __udp_gso_segment, since 6.11 and in older stable kernels: csum_start must be the transport header).
    """
    parsed = ip.parse(packet)
    field = FIELD_AT.get(parsed.protocol)
    if field is None or parsed.malformed or parsed.fragment:
        return packet
    start, at = parsed.transport_at, parsed.transport_at + field
    length = len(packet) - start
    pseudo = parsed.source + parsed.destination + length.to_bytes(4, "big") + parsed.protocol.to_bytes(4, "big")
    if packet[at : at + 2] != ip.word_sum(pseudo).to_bytes(2, "big"):
        return packet
    if parsed.protocol == ip.UDP:
        return None
    # The field holds the pseudo-header's sum, so a sum over the transport alone includes it.
    total = ip.word_sum(packet[start:] + b"\0" * (length % 2)) ^ 0xFFFF
    return packet[:at] + total.to_bytes(2, "big") + packet[at + 2 :]
