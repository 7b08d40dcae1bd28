"""The TCP connections of this host with their round trips, from the kernel (inet_diag over netlink)."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop
from struct import Struct
from typing import Any

from pyroute2 import DiagSocket
from pyroute2.netlink import NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.diag import SOCK_DIAG_BY_FAMILY, SS_ESTABLISHED, MarshalDiag
from pyroute2.netlink.exceptions import NetlinkError

from scentd.collect.source import CollectError

INET_DIAG_INFO = 2

# linux/netlink.h, linux/inet_diag.h (struct inet_diag_msg, 72 bytes), linux/tcp.h (struct tcp_info, grows at its end)
NETLINK_HEADER = Struct("=IHHII")  # length, type, flags, sequence, port
ERROR_CODE = Struct("=i")
DIAG = Struct("=BBBB4x16s16sIQ20x")  # family, state, timer, retransmissions, source, destination, interface, cookie
ATTRIBUTE = Struct("=HH")  # length with these four bytes, type
RTT = Struct("=II")
RTT_AT = 68  # tcpi_rtt, tcpi_rttvar, microseconds
SEGMENTS = Struct("=II")
SEGMENTS_AT = 136  # tcpi_segs_out, tcpi_segs_in
SENT = Struct("=QQ")
SENT_AT = 200  # tcpi_bytes_sent, tcpi_bytes_retrans
MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291, section 2.5.5.2


@dataclass(frozen=True, slots=True)
class Connection:
    cookie: int  # the kernel's own id of the socket, never used twice
    rtt: float  # seconds
    rttvar: float  # seconds
    segments: int  # out and in since it began, modulo 2^32
    destination: bytes = b""  # 4 or 16 bytes
    sent: int = 0  # bytes since it began, those that were sent again among them
    sent_again: int = 0


def established() -> list[Connection]:
    """Connections with a measured round trip to other hosts, both families. Raises CollectError."""
    connections: list[Connection] = []
    try:
        with DiagSocket() as diag:
            diag.set_marshal(InetDiagMarshal())
            diag.bind()
            for family in (AF_INET, AF_INET6):
                answers = diag.get_sock_stats(
                    family=family, states=1 << SS_ESTABLISHED, extensions=1 << (INET_DIAG_INFO - 1)
                )
                connections += [a["connection"] for a in answers if a.get("connection")]
    except (NetlinkError, OSError) as error:
        code = getattr(error, "code", None) or error.errno or 0
        hint = "load tcp_diag" if code == errno.ENOENT else "allow AF_NETLINK in the unit"
        raise CollectError(f"tcp connections over inet_diag: {os.strerror(code)}; {hint}") from None
    return connections


class InetDiagMarshal(MarshalDiag):
    """Decodes only the numbers of a Connection: about 18 us a connection in all instead of 100.

    It also decodes the kernel's refusals. MarshalDiag takes the first byte of the error
    code for an address family, and would wait for an answer for ever.
    """

    def parse_one_message(
        self, key: int, flags: int, sequence_number: int, data: bytes, offset: int, length: int
    ) -> dict[str, Any]:
        _, kind, *_ = NETLINK_HEADER.unpack_from(data, offset)
        body = offset + NETLINK_HEADER.size
        answer: dict[str, Any] = {
            "header": {"type": kind, "flags": flags, "sequence_number": sequence_number, "error": None}
        }
        if kind in (NLMSG_ERROR, NLMSG_DONE):  # a dump that fails ends with DONE and its error
            (code,) = ERROR_CODE.unpack_from(data, body)
            answer["header"]["error"] = NetlinkError(-code) if code < 0 else None
        elif kind == SOCK_DIAG_BY_FAMILY:
            answer["connection"] = parse_connection(data, body, offset + length)
        return answer


def parse_connection(data: bytes, at: int, end: int) -> Connection | None:
    """Decode one inet_diag_msg with its attributes; None for loopback, or without a measured round trip."""
    if end - at < DIAG.size:
        return None
    family, _, _, _, source, destination, _, cookie = DIAG.unpack_from(data, at)
    # A connection with the same address at both ends uses lo, too.
    if source == destination or is_loopback(family, destination):
        return None
    if family == AF_INET or destination[:12] == MAPPED:
        destination = destination[:4] if family == AF_INET else destination[12:]
    at += DIAG.size
    while at + ATTRIBUTE.size <= end:
        size, kind = ATTRIBUTE.unpack_from(data, at)
        if size < ATTRIBUTE.size or at + size > end:
            return None
        info = at + ATTRIBUTE.size
        if kind == INET_DIAG_INFO and at + size >= info + SEGMENTS_AT + SEGMENTS.size:
            rtt, rttvar = RTT.unpack_from(data, info + RTT_AT)
            segments = sum(SEGMENTS.unpack_from(data, info + SEGMENTS_AT)) & 0xFFFFFFFF
            sent = SENT.unpack_from(data, info + SENT_AT) if at + size >= info + SENT_AT + SENT.size else (0, 0)
            return Connection(cookie, rtt / 1e6, rttvar / 1e6, segments, destination, *sent) if rtt else None
        at += (size + 3) & ~3
    return None


def is_loopback(family: int, raw: bytes) -> bool:
    text = inet_ntop(AF_INET, raw[:4]) if family == AF_INET else inet_ntop(AF_INET6, raw)
    return text == "::1" or text.startswith(("127.", "::ffff:127."))
