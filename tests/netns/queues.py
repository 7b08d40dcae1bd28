"""Queues that a test listens on, the rules that fill them, and packets that come there."""

from __future__ import annotations

import select
import socket
import threading
import time

from topology import Host

from scentd.collect.cpu import CpuSource
from scentd.config.sections import Config, Network, Peer
from scentd.datapath.host import path_table, rules, selection
from scentd.datapath.queue.nfqueue import Queue

IP_OPTIONS, IPV6_DSTOPTS = 4, 59


# An unknown option of 36 bytes, as the scent is; and the IPv6 header of 40 (RFC 8200: two bytes are the kernel's).
IPV4_OPTION = bytes([158, 36]) + bytes(34)


IPV6_OPTION = bytes([0, 4, 0x1E, 34]) + bytes(34) + bytes([1, 0])


STAMP_QUEUE, VERIFY_QUEUE, LONG_QUEUE = 22600, 22601, 22602


PEER = ["10.1.0.0/24", "fd00:1::/64"]


def config(peer: list[str] = PEER, local: list[str] | None = None, **more) -> Config:
    network = Network(
        name="n", key_file="k", addresses=local or [], source=[CpuSource()]
    )  # it signs: peers are scented
    return Config(network=[network], peer=[Peer(name="p", public_key="", addresses=peer)], **more)


class Queues:
    """Listens on the queues of a host; `seen` are (queue number, packet). Every packet goes on."""

    def __init__(self, host: Host) -> None:
        self.seen: list[tuple[int, bytes]] = []
        self.stopped = False
        numbers = (STAMP_QUEUE, VERIFY_QUEUE, LONG_QUEUE)
        self.queues = host.call(lambda: [Queue(n, self.taker(n), 1024) for n in numbers])
        self.thread = threading.Thread(target=self.run)

    def taker(self, number: int):
        def take(packet) -> None:
            self.seen.append((number, packet.get_payload()))
            packet.accept()

        return take

    def run(self) -> None:
        while not self.stopped:
            for ready in select.select(self.queues, [], [], 0.02)[0]:
                ready.run()

    def __enter__(self) -> Queues:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True
        self.thread.join()
        for queue in self.queues:
            queue.close()

    def count(self, number: int, containing: bytes) -> int:
        return sum(1 for queue, packet in self.seen if queue == number and containing in packet)


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def udp(address: str, data: bytes, mark: int = 0, options: bool = False) -> None:
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as s:
        if mark:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if options:
            set_options(s)
        s.sendto(data, (address, 9))


def set_options(s: socket.socket) -> None:
    if s.family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, IPV6_OPTION)
    else:
        s.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, IPV4_OPTION)


def heard(host: Host, address: str):
    """A UDP socket in the host; recv() says whether a datagram came through."""

    def make() -> socket.socket:
        s = socket.socket(family_of(address), socket.SOCK_DGRAM)
        s.bind((address, 9))
        s.settimeout(0.4)
        return s

    return host.call(make)


def wait_for(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


def install(host: Host, wish: Config) -> None:
    host.call(rules.apply, wish)
    host.call(path_table.apply, selection.select(wish))
