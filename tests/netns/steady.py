"""A steady stream of numbered datagrams from one node to another."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hosts import Node


@contextmanager
def steady(sender: Node, receiver: Node, version: int, pause: float = 0.002) -> Iterator[Steady]:
    """Numbered datagrams from a thread of their own while the block runs."""
    made = Steady(sender, receiver, version, pause)
    made.thread.start()
    try:
        yield made
    finally:
        made.finish()


class Steady:
    """A steady stream. After the block: `sent` numbers went out, `got` arrived."""

    def __init__(self, sender: Node, receiver: Node, version: int, pause: float) -> None:
        self.ends = sender.socket(version), receiver.socket(version)
        self.sent = 0
        self.got: set[int] = set()
        self.pause = pause
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.ends[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def run(self) -> None:
        sender, receiver = self.ends
        target = receiver.getsockname()[:2]
        while not self.stopped.wait(self.pause):
            with suppress(OSError):  # an ICMP error about an earlier one; that one counts as lost
                sender.sendto(self.sent.to_bytes(4, "big"), target)
            self.sent += 1
            self.receive()

    def receive(self) -> None:
        self.ends[1].settimeout(0)
        with suppress(BlockingIOError):
            while True:
                self.got.add(int.from_bytes(self.ends[1].recv(100), "big"))

    def finish(self) -> None:
        self.stopped.set()
        self.thread.join()
        end = time.monotonic() + 2
        while len(self.got) < self.sent and time.monotonic() < end:
            self.receive()
            time.sleep(0.01)
        for end_ in self.ends:
            end_.close()

    @property
    def lost(self) -> list[int]:
        return sorted(set(range(self.sent)) - self.got)
