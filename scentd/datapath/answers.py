"""Sends the answers to refused packets (core/packet/answer.py) through raw sockets, a bounded number a second."""

from __future__ import annotations

import socket

from scentd.core.packet.answer import answer
from scentd.datapath.family import families

PER_SECOND = 1000
IPV6_HDRINCL = 36  # linux/in6.h
LINK_LOCAL = b"\xfe\x80"
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class Answers:
    """Raises OSError without the right to raw sockets (CAP_NET_RAW)."""

    def __init__(self) -> None:
        self._ends: dict[int, socket.socket] = {}
        for version in families():
            end = socket.socket(FAMILY[version], socket.SOCK_RAW, socket.IPPROTO_RAW)
            end.setblocking(False)
            if version == 6:
                end.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
            self._ends[version] = end
        self._second = self._budget = 0
        self.sent = 0

    def send(self, head: bytes, length: int, interface: int, now: float) -> None:
        """Answer a packet of which `head` are the first bytes. `interface`: the index of the one by which it came.

        A packet that has no answer, a missing route and a spent budget do not raise: the packet is dropped anyway.
        """
        if int(now) != self._second:
            self._second, self._budget = int(now), PER_SECOND
        if self._budget <= 0:
            return
        self._budget -= 1
        made = answer(head, length)
        end = self._ends.get(made[0] >> 4) if made is not None else None
        if made is None or end is None:
            return
        try:
            end.sendto(made, destination(made, interface))
        except OSError:
            return
        self.sent += 1

    def close(self) -> None:
        for end in self._ends.values():
            end.close()


def destination(packet: bytes, interface: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """Where a packet goes, as sendto() takes it. A link-local address needs its interface."""
    if packet[0] >> 4 == 4:
        return socket.inet_ntop(socket.AF_INET, packet[16:20]), 0
    address = packet[24:40]
    scope = interface if address.startswith(LINK_LOCAL) else 0
    return socket.inet_ntop(socket.AF_INET6, address), 0, 0, scope
