"""Small UDP packets as fast as both ends carry them. Run inside a namespace.

    dataplane_flood receive FILE ADDRESS             says "ready", then counts into FILE until it is ended
    dataplane_flood send FILE ADDRESS SECONDS        prints JSON: sent, lost, seconds, waited

Both ends share FILE, so the sender knows what has arrived and never has more than WINDOW packets on their
way: it finds the rate that both can carry without a search, and a slow path is not measured while it throws
packets away. What does not arrive within PATIENCE is lost. sendmmsg and recvmmsg keep Python out of the
packets' way; the receiver looks in from time to time, so that no packet pays for waking it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
import time
from typing import Any

from benchmarks.lab import PORT

PAYLOAD = 64  # bytes
BATCH = 64  # packets of one system call
WINDOW = 512  # under the shortest queue on any path: 500 packets of a TUN device and what is beyond it
PATIENCE = 0.1  # seconds
PAUSE = 50e-6
# A queue without fail-open, nothing there yet, a device or socket buffer; an ICMP error about an earlier packet.
FULL = (errno.EPERM, errno.EAGAIN, errno.ENOBUFS, errno.ECONNREFUSED)
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE, _MSG_DONTWAIT = 33, 32, 0x40
_BUFFER = 16 << 20
_COUNTER = 8  # bytes of the shared file: packets that arrived


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Header(ctypes.Structure):
    """struct msghdr of recvmsg(2)."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Message(ctypes.Structure):
    """struct mmsghdr of recvmmsg(2)."""

    _fields_ = [("header", _Header), ("length", ctypes.c_uint)]


class Batch:
    """Room for BATCH packets of PAYLOAD bytes, and the two calls that move them."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._data = ctypes.create_string_buffer(PAYLOAD * BATCH)
        start = ctypes.addressof(self._data)
        self._vectors = (_Vector * BATCH)(*((start + PAYLOAD * n, PAYLOAD) for n in range(BATCH)))
        self._messages = (_Message * BATCH)()
        for message, vector in zip(self._messages, self._vectors, strict=True):
            message.header.vectors, message.header.vector_count = ctypes.pointer(vector), 1

    def send(self, fd: int, count: int) -> int:
        """Packets that were sent; 0 when something on the way is full."""
        return self._done(self._libc.sendmmsg(fd, self._messages, count, 0))

    def receive(self, fd: int) -> int:
        """Packets that had waited."""
        return self._done(self._libc.recvmmsg(fd, self._messages, BATCH, _MSG_DONTWAIT, None))

    def _done(self, result: int) -> int:
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code in FULL:
            return 0
        raise OSError(code, os.strerror(code))


def shared(path: str) -> memoryview:
    """The counter that both ends see."""
    with open(path, "r+b") as file:
        file.truncate(_COUNTER)
        return memoryview(mmap.mmap(file.fileno(), _COUNTER)).cast("Q")


def opened(address: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)


def receive(path: str, address: str) -> None:
    arrived, batch = shared(path), Batch()
    with opened(address) as end:
        end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        end.bind((address, PORT))
        print("ready", flush=True)
        while True:
            count = batch.receive(end.fileno())
            arrived[0] += count
            if count < BATCH:
                time.sleep(PAUSE)


def send(path: str, address: str, seconds: float) -> dict[str, Any]:
    arrived, batch = shared(path), Batch()
    sent, lost, waits = 0, 0, 0.0
    with opened(address) as end:
        end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        end.connect((address, PORT))
        start = last = now = time.perf_counter()
        seen = 0
        while now < start + seconds:
            free = WINDOW - (sent - lost - arrived[0])
            count = batch.send(end.fileno(), BATCH) if free >= BATCH else 0
            sent += count
            now = time.perf_counter()
            if count or arrived[0] != seen:
                last, seen = now, arrived[0]
            elif now > last + PATIENCE:
                lost, last = sent - arrived[0], now
            if not count:
                time.sleep(PAUSE)
                waits += time.perf_counter() - now
        carried = arrived[0]
    settle(arrived, sent)
    return {"sent": sent, "arrived": arrived[0], "carried": carried, "seconds": now - start, "waited": waits}


def settle(arrived: memoryview, sent: int) -> None:
    """Until all has arrived or nothing more does."""
    seen, last = arrived[0], time.perf_counter()
    while arrived[0] < sent and time.perf_counter() < last + PATIENCE:
        time.sleep(PAUSE)
        if arrived[0] != seen:
            seen, last = arrived[0], time.perf_counter()


def main(argv: list[str]) -> None:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0 if argv[0] == "send" else -1]})
    if argv[0] == "receive":
        receive(*argv[1:])
    else:
        print(json.dumps(send(argv[1], argv[2], float(argv[3]))))


if __name__ == "__main__":
    main(sys.argv[1:])
