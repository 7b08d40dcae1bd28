"""Steady traffic from one node to another, in both families at once: what is lost, and what is without a scent."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType

from books import Wire
from hosts import Node, until

SO_RCVBUFFORCE, SOL_PACKET, PACKET_STATISTICS = 33, 263, 6
BUFFER = 1 << 26  # so that the test itself loses nothing
TICK = 0.001
BURST = 2  # datagrams a tick and family
PATTERN = os.urandom(1 << 16)
CHUNK = 2000  # bytes of a stream in a tick
PATIENCE = 5.0
LEAST = 500  # datagrams of a family


class Datagrams:
    """Numbered ones."""

    def __init__(self, sender: Node, receiver: Node, version: int) -> None:
        self.one, self.other = sender.socket(version), receiver.socket(version)
        self.other.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self.other.setblocking(False)
        self.one.connect(self.other.getsockname()[:2])
        self.sent = 0
        self.got: set[int] = set()

    def send(self) -> None:
        for _ in range(BURST):
            self.one.send(self.sent.to_bytes(4, "big"))
            self.sent += 1

    def receive(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self.got.add(int.from_bytes(self.other.recv(100), "big"))

    def whole(self) -> bool:
        return len(self.got) == self.sent

    def lost(self) -> list[int]:
        return sorted(set(range(self.sent)) - self.got)

    def close(self) -> None:
        self.one.close()
        self.other.close()


class Stream:
    """A TCP connection whose bytes are compared as they come."""

    def __init__(self, sender: Node, receiver: Node, version: int) -> None:
        with receiver.listener(version) as listening:
            self.one = sender.socket(version, socket.SOCK_STREAM)
            self.one.connect(listening.getsockname()[:2])
            self.other, _ = listening.accept()
        for end in (self.one, self.other):
            end.setblocking(False)
        self.sent = self.got = self.wrong = 0

    def send(self) -> None:
        at = self.sent % len(PATTERN)
        with suppress(BlockingIOError):
            self.sent += self.one.send(PATTERN[at : at + CHUNK])

    def receive(self) -> None:
        with suppress(BlockingIOError):
            while data := self.other.recv(1 << 16):
                at = self.got % len(PATTERN)
                self.wrong += (PATTERN + PATTERN)[at : at + len(data)] != data
                self.got += len(data)

    def whole(self) -> bool:
        return self.got == self.sent

    def lost(self) -> list[int]:
        return [] if self.whole() and not self.wrong else [self.got, self.sent, self.wrong]

    def close(self) -> None:
        self.one.close()
        self.other.close()


class Flows:
    """Context manager; leaving it fails unless all has arrived and each of the sender's packets had a scent."""

    def __init__(self, sender: Node, receiver: Node) -> None:
        self.sender = sender
        self.capture = receiver.capture()
        self.capture.end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self.flows = [kind(sender, receiver, version) for kind in (Datagrams, Stream) for version in (4, 6)]
        self.scented = 0
        self.bare: list[bytes] = []
        self.failed: OSError | None = None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, name="flows")

    def __enter__(self) -> Flows:
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                until(lambda: self.failed or min(flow.sent for flow in self.flows) > LEAST, "the flows flow")
        finally:
            self.stopped.set()
            self.thread.join()
        try:
            if error is None:
                self.check()
        finally:
            self.capture.end.close()
            for flow in self.flows:
                flow.close()

    def run(self) -> None:
        try:
            while not self.stopped.wait(TICK):
                for flow in self.flows:
                    flow.send()
                self.look()
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end and not all(flow.whole() for flow in self.flows):
                self.look()
                time.sleep(TICK)
            self.look()
        except OSError as error:  # told by check(), in the test's own thread
            self.failed = error

    def look(self) -> None:
        for flow in self.flows:
            flow.receive()
        wire = Wire(self.capture, self.sender)
        self.scented += len(wire.scented)
        self.bare += wire.bare

    def check(self) -> None:
        if self.failed is not None:
            raise self.failed
        _, unseen = struct.unpack("II", self.capture.end.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert unseen == 0, "the capture was too slow"
        for flow in self.flows:
            lost = flow.lost()
            assert not lost, f"{type(flow).__name__}: lost {len(lost)} of {flow.sent}: {lost[:3]} to {lost[-3:]}"
        assert not self.bare, f"{len(self.bare)} left without a scent; the first: {self.bare[0][:100].hex()}"
        assert self.scented > LEAST, f"{self.scented} seen"
