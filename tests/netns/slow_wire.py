"""A wire with latency and loss for kernels without netem: a TAP device in each of two namespaces, and a thread that
hands frames over when they are due. It adds 0.3 ms of its own.

    with Topology("x") as net, SlowWire(net, a, b, ipv4="10.3.0.0/24", delay=0.02) as wire:
        wire.delay = 0.1    # seconds, each way
        wire.lose = 8       # every eighth frame of over 500 bytes; 1: all frames; 0: none
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress

from topology import Host, Topology

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
LONG = 500  # bytes: what carries data


class SlowWire:
    def __init__(self, net: Topology, a: Host, b: Host, ipv4: str = "", ipv6: str = "", delay: float = 0.0) -> None:
        self.delay = delay
        self.lose = 0
        self._long = 0
        self._waiting: deque[tuple[float, int, bytes]] = deque()  # due, end, frame
        name = f"slow{next(net.numbers)}"
        self._ends = [host.call(open_tap, name) for host in (a, b)]
        for number, host in enumerate((a, b), start=1):
            host.ip(f"link set {name} up")
            net.address(host, name, number, ipv4, ipv6)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run, name=name)

    def __enter__(self) -> SlowWire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stopped)
        self._thread.join()
        for end in (*self._ends, self._stop):
            os.close(end)

    def _run(self) -> None:
        while True:
            patience = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
            ready, _, _ = select.select([self._stop, *self._ends], [], [], patience)
            if self._stop in ready:
                return
            for end in ready:
                self._take(os.read(end, 70000), self._ends[1 - self._ends.index(end)])
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, end, frame = self._waiting.popleft()
                with suppress(OSError):  # the other end is down
                    os.write(end, frame)

    def _take(self, frame: bytes, end: int) -> None:
        if len(frame) > LONG:
            self._long += 1
        lost = self.lose == 1 or (self.lose and len(frame) > LONG and self._long % self.lose == 0)
        if not lost:
            self._waiting.append((time.monotonic() + self.delay, end, frame))


def open_tap(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return end


class Talk:
    """Messages from a to east and back, one after another, until the block ends."""

    def __init__(self, a: Host, east: Host) -> None:
        with east.call(socket.create_server, (east.ipv4, 0)) as listener:
            self.near = a.call(socket.create_connection, listener.getsockname(), 10)
            self.far, _ = listener.accept()
        self.threads = [threading.Thread(target=t) for t in (self.speak, self.answer)]

    def __enter__(self) -> Talk:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self.near, self.far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.near.close()
        self.far.close()

    def speak(self) -> None:
        with suppress(OSError):
            while True:
                self.near.sendall(bytes(30_000))
                self.near.recv(1)

    def answer(self) -> None:
        with suppress(OSError):
            while True:
                rest = 30_000
                while rest:
                    got = len(self.far.recv(rest))
                    if not got:
                        return
                    rest -= got
                self.far.sendall(b"k")
