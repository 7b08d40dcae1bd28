"""One netfilter queue: whole packets, fail-open, and a verdict for every packet.

A thin wrapper around netfilterqueue, which truncates long packets and
has no call for the kernel's flags. A duplicate of its descriptor shares the
netlink port, so the missing settings go there as plain nfnetlink_queue messages
(linux/netfilter/nfnetlink_queue.h).

Two ways to read. Narrow is the library's own loop in C: a tenth less CPU a packet, but
its buffer holds 4096 bytes. Wide reads everything, through a Python call. A queue begins
narrow. The first truncated packet makes it wide; that packet goes through its hook once more
(NF_REPEAT) and comes back whole. After _WIDE_RUNS runs without a long packet the queue turns narrow again.

An unsegmented queue is always wide. The kernel hands it packets that it has merged (GRO) or not yet cut into segments
(GSO) as they are, with unfinished checksums. Any other queue gets the segments of such packets.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import warnings
from collections.abc import Callable
from typing import Any

from netfilterqueue import NetfilterQueue

from scentd.errors import HostError
from scentd.system import nfnetlink

log = logging.getLogger(__name__)

PACKET_MAX = 65531  # a netlink attribute's length is 16 bits with its own header
# Bytes of a packet that netfilterqueue asks the kernel for. Its buffer holds 4096 with what the kernel says besides: 76
# bytes usually, 96 while any socket of the host wants timestamps (ping, chrony), 164 at most. A message that does not
# fit is lost, and its packet waits for a verdict for ever: the library's own 4016 leaves too little.
NARROW = 3840
_BUFFER = PACKET_MAX + 4096
_NLMSG_ERROR = 2
_BATCH = 128  # packets in one run: a busy queue must not keep its owner from everything else
_WIDE_RUNS = 1000  # runs without a long packet, then the queue turns narrow


class _BatchDone(Exception):
    """Ends netfilterqueue's loop while packets wait; nothing else does. Raised after a packet's verdict."""


class Queue:
    """A bound queue. `run()` hands the waiting packets to `callback`, a bounded number of them, and returns.

    The callbacks must give each packet a verdict and must not raise. `uncopyable` gets the packets of more than
    PACKET_MAX bytes, which nobody can read whole; without it they go to `callback`, truncated. A callback that
    changes a packet of an `unsegmented` queue must finish its checksum. Raises HostError if the queue cannot be bound.
    """

    def __init__(
        self,
        number: int,
        callback: Callable[[Any], None],
        length: int,
        uncopyable: Callable[[Any], None] | None = None,
        unsegmented: bool = False,
    ) -> None:
        self.number = number
        self.refused_settings = 0  # settings that the kernel did not take while packets were handled
        self._length = length
        self._unsegmented = unsegmented
        self._range = NARROW  # bytes that the kernel copies
        self._wide = False  # how packets are read
        self._plain_runs = 0  # wide: runs since the last long packet
        self._repeats = 0  # wide: how many more truncated packets may come
        self._early_messages: list[bytes] = []
        self._buffer = bytearray(_BUFFER)
        self._queue = NetfilterQueue()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the receive buffer, which is set below
                self._queue.bind(number, self._handler(callback, uncopyable or callback), max_len=length, range=NARROW)
        except OSError as error:
            raise HostError(
                f"cannot bind NFQUEUE {number}: {error}. Is another program (or another scentd) bound to it? "
                "See /proc/net/netfilter/nfnetlink_queue; choose another datapath.queue"
            ) from None
        self._socket = socket.socket(fileno=os.dup(self._queue.get_fd()))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, nfnetlink.SO_RCVBUFFORCE, min(length, 16384) * 2048)
        self._socket.setsockopt(nfnetlink.SOL_NETLINK, nfnetlink.NETLINK_NO_ENOBUFS, 1)
        if unsegmented:
            self._configure(nfnetlink.copy(PACKET_MAX))
            self._range, self._wide, self._repeats = PACKET_MAX, True, length
            self._configure(*nfnetlink.queue_flags(nfnetlink.FLAG_GSO, nfnetlink.FLAG_GSO))

    def set_overload(self, is_open: bool) -> None:
        """What happens to packets that a full queue does not take: they go on, or are dropped as at first.

        Raises HostError.
        """
        on = nfnetlink.FLAG_FAIL_OPEN * is_open
        self._configure(*nfnetlink.queue_flags(on, nfnetlink.FLAG_FAIL_OPEN))

    def fileno(self) -> int:
        return self._socket.fileno()

    def run(self) -> None:
        """Handle the waiting packets, about a batch at most; packets that still wait keep the descriptor readable."""
        while True:
            try:
                if self._wide or self._early_messages:
                    self._run_wide()
                else:
                    self._queue.run(block=False)
            except _BatchDone:
                pass
            if not self._early_messages:
                return

    def _run_wide(self) -> None:
        self._plain_runs += not self._unsegmented  # an unsegmented queue never turns narrow
        if self._plain_runs == _WIDE_RUNS and not self._set_range(NARROW):
            self._plain_runs = 0  # stays wide, and asks again after as many runs
        # Packets that are in the socket already may be too long for the small buffer: at most a queue full of them.
        if self._plain_runs > _WIDE_RUNS + self._length // _BATCH + 1:
            self._wide = False
        self._queue.run_socket(self)  # type: ignore[arg-type]  # it asks for recv() alone
        if self._range == NARROW:  # and the socket is empty
            self._wide = False

    def recv(self, _size: int) -> bytes | bytearray:
        """Return one message to run_socket. A zero header behind it ends the parser's walk."""
        if self._early_messages:
            return self._early_messages.pop(0)
        size = self._socket.recv_into(self._buffer)
        self._buffer[size : size + 4] = b"\0\0\0\0"
        return self._buffer

    def _handler(self, callback: Callable[[Any], None], uncopyable: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return the function that netfilterqueue calls with each packet. It is a closure for speed."""
        left = _BATCH

        def handle(packet: Any) -> None:
            nonlocal left
            if packet.get_payload_len() < NARROW:
                callback(packet)
            elif self._requeue(packet):
                raise _BatchDone  # the small buffer is of no use any more
            elif packet.get_payload_len() == PACKET_MAX and is_truncated(packet.get_payload()):
                uncopyable(packet)
            else:
                callback(packet)
            left -= 1
            if not left:
                left = _BATCH
                raise _BatchDone

        return handle

    def _requeue(self, packet: Any) -> bool:
        """Send a truncated packet through its hook again, so that it is queued whole. False: handle it as it is.

        No packet repeats for ever: the kernel truncated at most a queue full of packets before it knew the wide
        range. The IP header of any other truncated packet states more bytes than the packet has.
        """
        self._plain_runs = 0
        if packet.get_payload_len() > NARROW or not is_truncated(packet.get_payload()):
            return False
        if self._range == NARROW:
            if not self._set_range(PACKET_MAX):
                return False
            self._wide, self._repeats = True, self._length
        if self._repeats == 0:
            return False
        self._repeats -= 1
        packet.repeat()
        return True

    def _set_range(self, size: int) -> bool:
        """Tell the kernel how much of a packet to copy; whether it accepted. Never raises: packets go on."""
        try:
            self._socket.send(nfnetlink.config(self.number, nfnetlink.copy(size)))
        except OSError as error:  # ENOBUFS, ENOMEM: the next long packet asks again
            self.refused_settings += 1
            if self.refused_settings <= 10:
                log.warning("NFQUEUE %d: cannot have %d bytes of each packet copied: %s", self.number, size, error)
            return False
        self._range = size
        return True

    def close(self) -> None:
        """Unbind the queue; the kernel drops what waits in it."""
        self._socket.close()
        self._queue.unbind()

    def _configure(self, *settings: tuple[int, bytes]) -> None:
        """Send one configuration message and wait for its acknowledgement; keep packets that arrive before it."""
        self._socket.setblocking(True)
        self._socket.settimeout(5)
        self._socket.send(nfnetlink.config(self.number, *settings, flags=nfnetlink.NLM_F_ACK))
        while True:
            message = self._socket.recv(_BUFFER)
            _, kind, _, sequence, _ = struct.unpack_from("=IHHII", message)
            if kind == _NLMSG_ERROR and sequence == nfnetlink.SEQUENCE:
                break
            self._early_messages.append(message)
        self._socket.setblocking(False)
        (code,) = struct.unpack_from("=i", message, 16)
        if code:
            name = errno.errorcode.get(-code, str(-code))
            raise HostError(f"NFQUEUE {self.number}: the kernel refused a setting ({name}); is it older than 3.10?")


def is_truncated(payload: bytes) -> bool:
    """Whether an IP packet's header states more bytes than the packet has."""
    if payload[0] >> 4 == 4:
        return int.from_bytes(payload[2:4], "big") > len(payload)
    return 40 + int.from_bytes(payload[4:6], "big") > len(payload)
