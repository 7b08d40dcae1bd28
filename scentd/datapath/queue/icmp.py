"""ICMP errors about packets that no longer fit once they carry a scent. Pure except `IcmpSender`.

A gateway that stamps forwarded packets makes the path's MTU smaller than its links
state, so it must answer like a router with such a link: RFC 792 / RFC 1191 (IPv4
"fragmentation needed") and RFC 4443 section 3.2 (ICMPv6 "packet too big").
"""

from __future__ import annotations

import socket
import struct

from scentd.core.packet.answer import QUOTED_MAX, may_be_icmp_error, names_no_host
from scentd.wire import ip

IP_PKTINFO = 8  # linux/in.h
_PER_SECOND = 100  # errors sent at most, RFC 1812 section 4.3.2.8


def too_big(packet: bytes, mtu: int) -> bytes:
    """Return the ICMP message that says packets of `mtu` bytes fit, without IP header; ICMPv6 without checksum."""
    if packet[0] >> 4 == 4:
        message = struct.pack(">BBHHH", 3, 4, 0, 0, mtu) + packet[: QUOTED_MAX[4]]
        message += b"\0" * (len(message) % 2)
        return message[:2] + ip.checksum(message).to_bytes(2, "big") + message[4:]
    return struct.pack(">BBHI", 2, 0, 0, mtu) + packet[: QUOTED_MAX[6]]  # the kernel fills in the checksum


def may_answer(packet: bytes, parsed: ip.Parsed) -> bool:
    """Whether a router may send `too_big` about this packet, and its source can do anything about it.

    RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e). This function is stricter than the
    RFCs about fragments: it refuses the first one, too.
    """
    if parsed.malformed or parsed.fragment or not parsed.dont_fragment or len(packet) <= ip.LEAST_MTU[parsed.version]:
        return False
    return not names_no_host(parsed.source) and not may_be_icmp_error(packet, parsed)


class IcmpSender:
    """Sends `too_big` errors through raw sockets, a bounded number a second."""

    def __init__(self) -> None:
        self._ipv4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        for end in (self._ipv4, self._ipv6):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # it only sends
        self._second = 0
        self._budget = 0

    def send(self, packet: bytes, mtu: int, now: float, interface: int = 0) -> bool:
        """Send an error to the packet's source; whether it went. A missing route or a spent budget does not raise.

        `interface`: by which it goes, because others have the source's address, too; 0: as the kernel routes.
        The caller asks `may_answer` first.
        """
        if int(now) != self._second:
            self._second, self._budget = int(now), _PER_SECOND
        if self._budget <= 0:
            return False
        self._budget -= 1
        try:
            if packet[0] >> 4 == 4:
                message, source = too_big(packet, max(mtu, ip.LEAST_MTU[4])), packet[12:16]
                leave_by = socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I8x", interface)
                self._ipv4.sendmsg([message], [leave_by], 0, (socket.inet_ntop(socket.AF_INET, source), 0))
            else:
                message, source = too_big(packet, max(mtu, ip.LEAST_MTU[6])), packet[8:24]
                leave_by = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16xI", interface)
                self._ipv6.sendmsg([message], [leave_by], 0, (socket.inet_ntop(socket.AF_INET6, source), 0))
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._ipv4.close()
        self._ipv6.close()
