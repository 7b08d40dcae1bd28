"""Messages of nfnetlink_log: copies of packets that rules with `log group` send (linux/netfilter/nfnetlink_log.h)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from scentd.system.rtnetlink import HEADER, NLMSG_ERROR, attribute, attributes, messages

NETLINK_NETFILTER, SO_RCVBUFFORCE = 12, 33
CONFIG, PACKET = 4 << 8 | 1, 4 << 8  # NFNL_SUBSYS_ULOG and the message
CFG_CMD, CFG_MODE, CFG_BUFFER, CFG_TIMEOUT = 1, 2, 3, 4
COMMAND_BIND, COPY_PACKET = 1, 2
TIMESTAMP, PAYLOAD = 3, 9
REQUEST_ACK = 5
GENERAL = 4  # bytes of struct nfgenmsg
RECEIVE_BUFFER = 16 << 20  # bytes
TOGETHER = 1 << 17  # bytes of copies that the kernel sends in one message, at most
DELAY = 10  # hundredths of a second until it sends them in any case
READ = 1 << 18
TIMEOUT = 5.0  # seconds; the kernel answers at once


class Copy(NamedTuple):
    """A packet from its IP header on, cut to the wanted length. `at`: Unix time, 0 if the kernel noted none."""

    at: float
    packet: bytes


def opened(group: int, length: int) -> socket.socket:
    """A socket that gets the copies of a group, `length` bytes of each at most. Raises OSError; EPERM: it is taken."""
    end = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        end.bind((0, 0))
        end.settimeout(TIMEOUT)
        end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        configure(end, group, (CFG_CMD, bytes([COMMAND_BIND])))
        configure(
            end,
            group,
            (CFG_MODE, struct.pack(">IBx", length, COPY_PACKET)),
            (CFG_BUFFER, struct.pack(">I", TOGETHER)),
            (CFG_TIMEOUT, struct.pack(">I", DELAY)),
        )
    except BaseException:
        end.close()
        raise
    return end


def configure(end: socket.socket, group: int, *settings: tuple[int, bytes]) -> None:
    body = struct.pack(">BBH", socket.AF_UNSPEC, 0, group) + b"".join(attribute(k, value) for k, value in settings)
    end.send(HEADER.pack(HEADER.size + len(body), CONFIG, REQUEST_ACK, 1, 0) + body)
    while True:
        for kind, content, _ in messages(end.recv(READ)):
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", content)[0]
                if code:
                    raise OSError(code, f"NFLOG group {group}: {os.strerror(code)}")
                return


def copies(data: bytes) -> Iterator[Copy]:
    """The copies in what the socket has received."""
    for kind, content, _ in messages(data):
        if kind == PACKET:
            found = attributes(content, GENERAL)
            seconds, microseconds = struct.unpack(">QQ", found[TIMESTAMP]) if TIMESTAMP in found else (0, 0)
            yield Copy(seconds + microseconds * 1e-6, found.get(PAYLOAD, b""))
