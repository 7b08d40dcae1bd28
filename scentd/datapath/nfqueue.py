"""One netfilter queue: whole packets, fail-open, and a verdict for every packet.

A thin wrapper around netfilterqueue, which truncates packets above 4016 bytes and
has no call for the kernel's fail-open flag. A duplicate of its descriptor shares the
netlink port, so the missing settings go there as plain nfnetlink_queue messages
(linux/netfilter/nfnetlink_queue.h).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import warnings
from collections.abc import Callable
from typing import Any

from netfilterqueue import NetfilterQueue

from scentd.errors import HostError

PACKET_MAX = 65531  # a netlink attribute's length is 16 bits with its own header
_BUFFER = PACKET_MAX + 4096
_NLMSG_ERROR, _NLM_F_REQUEST, _NLM_F_ACK = 2, 1, 4
_MSG_CONFIG = 3 << 8 | 2  # NFNL_SUBSYS_QUEUE, NFQNL_MSG_CONFIG
_CFG_PARAMS, _CFG_MASK, _CFG_FLAGS = 2, 4, 5
_COPY_PACKET = 2
_FLAG_FAIL_OPEN = 1
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_SO_RCVBUFFORCE = 33
_BATCH = 128  # packets handled in one run: a busy queue must not keep its owner from everything else


class Queue:
    """A bound queue. `run()` hands the waiting packets to `callback`, a bounded number of them, and returns.

    The callback must give each packet a verdict and must not raise. Raises HostError
    if the queue cannot be bound.
    """

    def __init__(self, number: int, callback: Callable[[Any], None], length: int, fail_open: bool) -> None:
        self.number = number
        self._queue = NetfilterQueue()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the receive buffer, which is set below
                self._queue.bind(number, callback, max_len=length)
        except OSError as error:
            raise HostError(
                f"cannot bind NFQUEUE {number}: {error}. Is another program (or another scentd) bound to it? "
                "See /proc/net/netfilter/nfnetlink_queue; choose another datapath.queue"
            ) from None
        self._socket = socket.socket(fileno=os.dup(self._queue.get_fd()))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, min(length, 16384) * 2048)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        self._buffer = bytearray(_BUFFER)
        self._early: list[bytes] = []
        self._left = 0
        self._configure(_CFG_PARAMS, struct.pack(">IB", PACKET_MAX, _COPY_PACKET))
        if fail_open:
            flag = struct.pack(">I", _FLAG_FAIL_OPEN)
            self._configure(_CFG_FLAGS, flag, _CFG_MASK, flag)

    def fileno(self) -> int:
        return self._socket.fileno()

    def run(self) -> None:
        """Handle what is waiting, at most a batch; packets that still wait make the descriptor readable."""
        self._left = _BATCH
        self._queue.run_socket(self)  # type: ignore[arg-type]  # it asks for recv() alone

    def recv(self, _size: int) -> bytes | bytearray:
        """What run_socket reads: one message. A zero header behind it ends the parser's walk."""
        if self._early:
            return self._early.pop(0)
        if self._left <= 0:
            raise BlockingIOError(errno.EAGAIN, "the batch is full")
        self._left -= 1
        size = self._socket.recv_into(self._buffer)
        self._buffer[size : size + 4] = b"\0\0\0\0"
        return self._buffer

    def close(self) -> None:
        self._socket.close()
        self._queue.unbind()

    def _configure(self, *attributes: Any) -> None:
        """Send one configuration message and wait for its acknowledgement; packets that come first are kept."""
        body = struct.pack(">BBH", socket.AF_UNSPEC, 0, self.number)
        for kind, value in zip(attributes[::2], attributes[1::2], strict=True):
            body += struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
        header = struct.pack("=IHHII", 16 + len(body), _MSG_CONFIG, _NLM_F_REQUEST | _NLM_F_ACK, 0x5CE7, 0)
        self._socket.setblocking(True)
        self._socket.settimeout(5)
        self._socket.send(header + body)
        while True:
            message = self._socket.recv(_BUFFER)
            _, kind, _, sequence, _ = struct.unpack_from("=IHHII", message)
            if kind == _NLMSG_ERROR and sequence == 0x5CE7:
                break
            self._early.append(message)
        self._socket.setblocking(False)
        (code,) = struct.unpack_from("=i", message, 16)
        if code:
            name = errno.errorcode.get(-code, str(-code))
            raise HostError(f"NFQUEUE {self.number}: the kernel refused a setting ({name}); is it older than 3.8?")
