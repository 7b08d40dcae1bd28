"""ICMP errors about packets that no longer fit once they are scented. Pure but for `Sender`.

A gateway that scents forwarded packets makes the path's MTU smaller than its links
say, so it must answer like a router with such a link: RFC 792 / RFC 1191 (IPv4
"fragmentation needed") and RFC 4443 section 3.2 (ICMPv6 "packet too big").
"""

from __future__ import annotations

import socket
import struct

from scentd.wire import ip, layout

_QUOTE_IPV4 = 548  # RFC 1812 section 4.3.2.3: as much as fits into 576 bytes
_QUOTE_IPV6 = 1232  # RFC 4443 section 2.4: as much as fits into 1280 bytes
_PER_SECOND = 100  # errors sent at most, RFC 1812 section 4.3.2.8


def too_big(packet: bytes, mtu: int) -> bytes:
    """The ICMP message (without IP header; ICMPv6 without checksum) that says packets of `mtu` bytes fit."""
    if packet[0] >> 4 == 4:
        message = struct.pack(">BBHHH", 3, 4, 0, 0, mtu) + packet[:_QUOTE_IPV4]
        message += b"\0" * (len(message) % 2)
        return message[:2] + ip.checksum(message).to_bytes(2, "big") + message[4:]
    return struct.pack(">BBHI", 2, 0, 0, mtu) + packet[:_QUOTE_IPV6]  # the kernel fills in the checksum


class Sender:
    """Sends `too_big` errors through raw sockets, a bounded number a second."""

    def __init__(self) -> None:
        self._ipv4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        for end in (self._ipv4, self._ipv6):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # it only sends
        self._second = 0
        self._left = 0

    def send(self, packet: bytes, mtu: int, now: float) -> bool:
        """Whether an error went to the packet's source; never raises for want of a route or of budget."""
        if int(now) != self._second:
            self._second, self._left = int(now), _PER_SECOND
        if self._left <= 0:
            return False
        self._left -= 1
        try:
            if packet[0] >> 4 == 4:
                self._ipv4.sendto(too_big(packet, mtu), (socket.inet_ntop(socket.AF_INET, packet[12:16]), 0))
            else:
                source = socket.inet_ntop(socket.AF_INET6, packet[8:24])
                self._ipv6.sendto(too_big(packet, max(mtu, 1280)), (source, 0))
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._ipv4.close()
        self._ipv6.close()


def overhead(version: int) -> int:
    return layout.IPV4_OPTION_LEN if version == 4 else layout.IPV6_HEADER_LEN
