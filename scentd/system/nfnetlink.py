"""Messages of nfnetlink_queue that netfilterqueue has no call for (linux/netfilter/nfnetlink_queue.h). Pure.

They go to the kernel through any duplicate of a bound queue's descriptor, which shares the queue's netlink port.
"""

from __future__ import annotations

import socket
import struct

SEQUENCE = 0x5CE7
CFG_PARAMS, CFG_MAX_LENGTH, CFG_MASK, CFG_FLAGS = 2, 3, 4, 5
COPY_META, COPY_PACKET = 1, 2
FLAG_FAIL_OPEN, FLAG_GSO = 1, 4
SOL_NETLINK, NETLINK_NO_ENOBUFS = 270, 5
SO_RCVBUFFORCE = 33
NLM_F_ACK = 4
ACCEPT, DROP, REPEAT = 1, 0, 4  # verdicts, linux/netfilter.h
_NLM_F_REQUEST = 1
_CONFIG, _VERDICT_BATCH = 3 << 8 | 2, 3 << 8 | 3  # NFNL_SUBSYS_QUEUE and the message
_VERDICT_HEADER = 2


def config(queue: int, *settings: tuple[int, bytes], flags: int = 0) -> bytes:
    """Settings of a queue: attributes and their values."""
    return _message(_CONFIG, queue, flags, *settings)


def copy(size: int, mode: int = COPY_PACKET) -> tuple[int, bytes]:
    """The setting of how many bytes of each packet are copied."""
    return CFG_PARAMS, struct.pack(">IB", size, mode)


def max_length(packets: int) -> tuple[int, bytes]:
    """The setting of how many packets may wait."""
    return CFG_MAX_LENGTH, struct.pack(">I", packets)


def queue_flags(on: int, of: int) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
    """The setting that turns flags on, and those of `of` that are not on off."""
    return (CFG_FLAGS, struct.pack(">I", on)), (CFG_MASK, struct.pack(">I", of))


def verdict_on_all(queue: int, last_id: int, verdict: int) -> bytes:
    """A verdict on every waiting packet up to an id."""
    return _message(_VERDICT_BATCH, queue, 0, (_VERDICT_HEADER, struct.pack(">II", verdict, last_id)))


def _message(kind: int, queue: int, flags: int, *attributes: tuple[int, bytes]) -> bytes:
    body = struct.pack(">BBH", socket.AF_UNSPEC, 0, queue)
    for attribute, value in attributes:
        body += struct.pack("=HH", 4 + len(value), attribute) + value + b"\0" * (-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST | flags, SEQUENCE, 0) + body
